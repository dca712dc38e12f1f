"""A small HTTP server for the admin port: GET and HEAD, with synchronous handlers.

llhttp does the parsing. Kubelets, Prometheus and people send a few small requests, so each response
is built and written in the callback that received its request. A connection may be idle for
`IDLE_S`, which includes the time that the client takes to read its last response. A client that
sends too much, or does not read its responses, is disconnected.
"""

import asyncio
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple, cast
from urllib.parse import parse_qsl

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from sidecar.http.timeouts import Deadlines

# Longer than Prometheus' default scrape interval, so that the next scrape reuses its connection.
IDLE_S = 75.0
# One request, including its body.
MAX_REQUEST_BYTES = 64 * 1024
# Requests accepted at once on a connection. Each blocks the loop for milliseconds, which delays the
# agents' requests.
MAX_PIPELINED = 8
_METHODS = (b"GET", b"HEAD")
_TEXT = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """A response; `headers` are added to the server's own."""

    body: bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = {}


# Returns the response to a query, a mapping of each name to its first value.
Handler = Callable[[Mapping[str, str]], Response]


class HttpServer:
    """State shared by all connections: a handler for each path, and headers for every response."""

    def __init__(self, handlers: Mapping[str, Handler], headers: Mapping[str, str]) -> None:
        self._handlers = handlers
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self.connections: set[ServerConnection] = set()
        self.idle = Deadlines(IDLE_S, ServerConnection.abort)

    def connect(self) -> "ServerConnection":
        """A protocol for a new connection."""
        return ServerConnection(self)

    def close(self) -> None:
        """Close every connection, after its pending responses are written."""
        for connection in list(self.connections):
            connection.close()
        self.idle.close()

    def respond(self, method: bytes, target: bytes, *, keep_alive: bool) -> bytes:
        """The bytes of the response to a request."""
        head, body = self._serialize(self._handle(method, target), keep_alive=keep_alive)
        return head if method == b"HEAD" else head + body

    def malformed_request(self) -> bytes:
        """The last response on a connection whose request is malformed or too large."""
        response = bad_request("malformed or oversized request")
        return b"".join(self._serialize(response, keep_alive=False))

    def _serialize(self, response: Response, *, keep_alive: bool) -> tuple[bytes, bytes]:
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Date": formatdate(usegmt=True),
            "Connection": "keep-alive" if keep_alive else "close",
            **self._headers,
            **response.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n{lines}\r\n"
        return head.encode(), response.body

    def _handle(self, method: bytes, target: bytes) -> Response:
        try:
            parsed = parse_url(target)
            path, query = (parsed.path or b"").decode(), (parsed.query or b"").decode()
        except (HttpParserError, UnicodeDecodeError):
            return bad_request("malformed request target")
        handler = self._handlers.get(path)
        if handler is None:
            return Response(b"no such path\n", status=HTTPStatus.NOT_FOUND)
        if method not in _METHODS:
            allowed = {"Allow": "GET, HEAD"}
            return Response(b"use GET\n", status=HTTPStatus.METHOD_NOT_ALLOWED, headers=allowed)
        try:
            return handler(dict(reversed(parse_qsl(query, keep_blank_values=True))))
        except Exception as bug:  # noqa: BLE001 (observing the sidecar must never stop it)
            context = {"message": f"the handler of {path} failed", "exception": bug}
            self._loop.call_exception_handler(context)
            return Response(b"see the log\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)


def bad_request(text: str) -> Response:
    """A 400 with `text` as its body."""
    return Response(text.encode() + b"\n", status=HTTPStatus.BAD_REQUEST)


class ServerConnection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._parser = HttpRequestParser(self)
        self._size = 0  # bytes received of the incomplete request
        self._target = b""
        # Complete requests: method, target, keep_alive.
        self._requests: list[tuple[bytes, bytes, bool]] = []
        self._write_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server.connections.add(self)
        self._server.idle.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self._server.idle.discard(self)
        del self._parser  # breaks the reference cycle

    def pause_writing(self) -> None:
        # Read no more requests from a client that does not read its responses.
        self._write_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        malformed = False
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            malformed = True
        if len(self._requests) > MAX_PIPELINED:
            self.abort()
            return
        self._respond_to_all()
        if self._transport.is_closing():
            return
        if malformed or self._size > MAX_REQUEST_BYTES:
            self._transport.write(self._server.malformed_request())
            self.close()

    def _respond_to_all(self) -> None:
        requests, self._requests = self._requests, []
        for method, target, keep_alive in requests:
            if self._transport.is_closing():
                return
            if self._write_paused:
                self.abort()  # it pipelines requests without reading the responses
                return
            self._transport.write(self._server.respond(method, target, keep_alive=keep_alive))
            if not keep_alive:
                self.close()
        if requests:
            self._server.idle.discard(self)
            self._server.idle.add(self)

    def close(self) -> None:
        """Close the connection after all written bytes are flushed."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection without flushing."""
        self._transport.abort()

    # Callbacks of the parser

    def on_url(self, url: bytes) -> None:
        self._target += url  # can arrive in pieces

    def on_message_complete(self) -> None:
        keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._requests.append((self._parser.get_method(), self._target, keep_alive))
        self._target, self._size = b"", 0
