"""A small HTTP server for operators: GET and HEAD, answers that are there at once. llhttp parses.

Kubelets, Prometheus and people ask little and seldom, so each answer is made and written in the
step of the loop in which its request came. A connection has `IDLE_S` for its next request and for
reading the answer to the last one; a visitor that sends much, or does not read, is hung up on.
"""

import asyncio
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple, cast
from urllib.parse import parse_qsl

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from sidecar.http.timeouts import Deadlines

# Longer than Prometheus' default interval, so that a scrape finds its connection again.
IDLE_S = 75.0
# Of one request, body included; and how many may come at once on one connection: each answer takes
# the loop milliseconds, and agents wait for it meanwhile.
MAX_REQUEST_BYTES = 64 * 1024
MAX_PIPELINED = 8
_READS = (b"GET", b"HEAD")
_TEXT = "text/plain; charset=utf-8"


class Response(NamedTuple):
    """An answer: its body, and what that is."""

    body: bytes
    content_type: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = {}


# Gives the answer for a query; its first value for each name.
Handler = Callable[[Mapping[str, str]], Response]


class HttpServer:
    """What all connections share: a handler for each path, and headers for every answer."""

    def __init__(self, handlers: Mapping[str, Handler], headers: Mapping[str, str]) -> None:
        self._handlers = handlers
        self._headers = headers
        self._loop = asyncio.get_running_loop()
        self.connections: set[ServerConnection] = set()
        self.idle = Deadlines(IDLE_S, ServerConnection.hang_up)

    def connect(self) -> "ServerConnection":
        """The protocol of a new connection."""
        return ServerConnection(self)

    def close(self) -> None:
        """End every connection, once its answers have gone."""
        for visitor in list(self.connections):
            visitor.close()
        self.idle.close()

    def answer(self, method: bytes, url: bytes, *, stays: bool) -> bytes:
        """The bytes of an answer."""
        head, body = self._written(self._said(method, url), stays=stays)
        return head if method == b"HEAD" else head + body

    def refusal(self) -> bytes:
        """What is said last to a visitor that can't be understood, or does not come to an end."""
        return b"".join(self._written(bad_request("no request that is understood"), stays=False))

    def _written(self, said: Response, *, stays: bool) -> tuple[bytes, bytes]:
        headers = {
            "Content-Type": said.content_type,
            "Content-Length": str(len(said.body)),
            "Date": formatdate(usegmt=True),
            "Connection": "keep-alive" if stays else "close",
            **self._headers,
            **said.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {said.status.value} {said.status.phrase}\r\n{lines}\r\n".encode()
        return head, said.body

    def _said(self, method: bytes, url: bytes) -> Response:
        try:
            parsed = parse_url(url)
            path, query = (parsed.path or b"").decode(), (parsed.query or b"").decode()
        except (HttpParserError, UnicodeDecodeError):
            return bad_request("the address is none")
        handler = self._handlers.get(path)
        if handler is None:
            return Response(b"no such path\n", status=HTTPStatus.NOT_FOUND)
        if method not in _READS:
            allowed = {"Allow": "GET, HEAD"}
            return Response(b"use GET\n", status=HTTPStatus.METHOD_NOT_ALLOWED, headers=allowed)
        try:
            return handler(dict(reversed(parse_qsl(query, keep_blank_values=True))))
        except Exception as bug:  # noqa: BLE001 (whoever looks must not end what is looked at)
            context = {"message": f"no answer for {path}", "exception": bug}
            self._loop.call_exception_handler(context)
            return Response(b"see the log\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)


def bad_request(text: str) -> Response:
    """The answer to what can't be understood."""
    return Response(text.encode() + b"\n", status=HTTPStatus.BAD_REQUEST)


class ServerConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, visitors: HttpServer) -> None:
        self._visitors = visitors
        self._transport: asyncio.Transport
        self._parser = HttpRequestParser(self)
        self._size = 0  # of the request that is arriving
        self._url = b""
        self._asked: list[tuple[bytes, bytes, bool]] = []
        self._reads = True  # whether the visitor reads what it is told

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._visitors.connections.add(self)
        self._visitors.idle.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """They are gone."""
        self._visitors.connections.discard(self)
        self._visitors.idle.discard(self)
        del self._parser  # it holds us

    def pause_writing(self) -> None:
        """The last answers are not read yet: no more questions."""
        self._reads = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """They are."""
        self._reads = True
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole now."""
        broken = False
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            broken = True
        if len(self._asked) > MAX_PIPELINED:
            self.hang_up()
            return
        self._answer_all()
        if self._transport.is_closing():
            return
        if broken or self._size > MAX_REQUEST_BYTES:
            self._transport.write(self._visitors.refusal())
            self.close()

    def _answer_all(self) -> None:
        asked, self._asked = self._asked, []
        for method, url, stays in asked:
            if self._transport.is_closing():
                return
            if not self._reads:
                self.hang_up()  # it asks on and on, and does not read
                return
            self._transport.write(self._visitors.answer(method, url, stays=stays))
            if not stays:
                self.close()
        if asked:
            self._visitors.idle.discard(self)
            self._visitors.idle.add(self)

    def close(self) -> None:
        """End it, once what is written has gone."""
        self._transport.close()

    def hang_up(self) -> None:
        """End it now."""
        self._transport.abort()

    # For the parser.

    def on_url(self, url: bytes) -> None:
        """A piece of the address."""
        self._url += url

    def on_message_complete(self) -> None:
        """A request is whole."""
        stays = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._asked.append((self._parser.get_method(), self._url, stays))
        self._url, self._size = b"", 0
