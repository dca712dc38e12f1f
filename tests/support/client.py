"""A sidecar that answers by a script, in a thread: real sockets for tests without a loop."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Answer = tuple[int, dict[str, str], bytes]
ACCEPTED: Answer = (202, {}, b'{"accepted":1,"rejected":[]}')
PATIENCE_S = 20.0


class Posted(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    events: list[dict[str, Any]]


class ScriptedSidecar:
    """Answers `script` one by one, then 202; `hold` makes it wait before it answers."""

    def __init__(self) -> None:
        self.posts: list[Posted] = []
        self.script: list[Answer] = []
        self.connections = 0
        self.hold = threading.Event()
        self.hold.set()
        self.arrived = threading.Condition()
        self.port = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def names(self) -> list[str]:
        """The span names of all events, in order of arrival."""
        return [event["span"]["name"] for post in self.posts for event in post.events]

    def wait_for_posts(self, count: int) -> None:
        """Wait until that many requests have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.posts) >= count, PATIENCE_S)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[None]:
        """Listen, on a free port unless one is named."""
        sidecar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                sidecar.connections += 1
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                events = [json.loads(line) for line in body.split(b"\n")]
                headers = {name.lower(): value for name, value in self.headers.items()}
                with sidecar.arrived:
                    sidecar.posts.append(Posted(self.path, headers, events))
                    answer = sidecar.script.pop(0) if sidecar.script else ACCEPTED
                    sidecar.arrived.notify_all()
                sidecar.hold.wait(PATIENCE_S)
                status, more, text = answer
                self.send_response(status)
                for name, value in (more | {"Content-Length": str(len(text))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)
                self.close_connection = more.get("Connection") == "close"

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                """Stay quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that goes away is no news."""

        server = Server(("127.0.0.1", port), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            self.hold.set()
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def scripted(*script: Answer) -> Iterator[ScriptedSidecar]:
    """A running `ScriptedSidecar`."""
    sidecar = ScriptedSidecar()
    sidecar.script = list(script)
    with sidecar.running():
        yield sidecar
