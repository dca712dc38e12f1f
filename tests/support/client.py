"""A scripted fake sidecar on a real socket, in a thread, for tests without an event loop."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Response = tuple[int, dict[str, str], bytes]
ACCEPTED: Response = (202, {}, b'{"accepted":1,"rejected":[]}')
FLUSHED: Response = (200, {}, b'{"left":{}}')
DEADLINE_S = 20.0


class Request(NamedTuple):
    """A request as the fake received it."""

    path: str
    headers: dict[str, str]
    events: list[dict[str, Any]]


class ScriptedSidecar:
    """Sends the responses in `script` in order, then 202s. Clear `may_respond` to make it hang.

    What is posted to `/v1/flush` is apart: `flushes` has the paths, `flush_script` the responses
    before the 200s, and `connections` does not count it. Clear `may_flush` to make it hang.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.script: list[Response] = []
        self.connections = 0
        self.flushes: list[str] = []
        self.flush_script: list[Response] = []
        self.may_flush = threading.Event()
        self.may_flush.set()
        self.may_respond = threading.Event()
        self.may_respond.set()
        self.arrived = threading.Condition()
        self.port = 0

    @property
    def url(self) -> str:
        """The URL it listens at."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def names(self) -> list[str]:
        """The span names of all events, in order of arrival."""
        return [event["span"]["name"] for request in self.requests for event in request.events]

    def wait_for_requests(self, count: int) -> None:
        """Wait until `count` requests have arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, DEADLINE_S)

    def wait_for_flushes(self, count: int) -> None:
        """Wait until `count` requests to flush have arrived."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.flushes) >= count, DEADLINE_S)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[None]:
        """Listen on `port`, or on a free one."""
        sidecar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            counted = False

            def do_POST(self) -> None:
                if self.path.startswith("/v1/flush"):
                    self.flush()
                    return
                sidecar.connections += not self.counted
                self.counted = True
                body = self.rfile.read(int(self.headers["Content-Length"]))
                events = [json.loads(line) for line in body.split(b"\n")]
                headers = {name.lower(): value for name, value in self.headers.items()}
                with sidecar.arrived:
                    sidecar.requests.append(Request(self.path, headers, events))
                    response = sidecar.script.pop(0) if sidecar.script else ACCEPTED
                    sidecar.arrived.notify_all()
                sidecar.may_respond.wait(DEADLINE_S)
                self.respond(response)

            def flush(self) -> None:
                with sidecar.arrived:
                    sidecar.flushes.append(self.path)
                    response = sidecar.flush_script.pop(0) if sidecar.flush_script else FLUSHED
                    sidecar.arrived.notify_all()
                sidecar.may_flush.wait(DEADLINE_S)
                self.respond(response)

            def respond(self, response: Response) -> None:
                status, headers, payload = response
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(payload))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)
                self.close_connection = headers.get("Connection") == "close"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base
                """Stay quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """Ignore clients that disconnect."""

        server = Server(("127.0.0.1", port), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            self.may_respond.set()
            self.may_flush.set()
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def scripted(*script: Response) -> Iterator[ScriptedSidecar]:
    """A running `ScriptedSidecar`."""
    sidecar = ScriptedSidecar()
    sidecar.script = list(script)
    with sidecar.running():
        yield sidecar
