"""Plays bytes to a server's connection, without a socket, and parses what it writes."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import httptools

from sidecar.http.messages import (
    Answer,
    Discard,
    Flow,
    Receiver,
    Request,
    Response,
    StreamedResponse,
)
from sidecar.http.server import HttpServer

if TYPE_CHECKING:
    from sidecar.http.response_writer import ResponseWriter
    from sidecar.http.server_connection import ServerConnection

IDLE_S, BODY_S = 75.0, 30.0


class Responses:
    """Parses what a server writes. No body of `Port` looks like a status line."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.raw = b""
        self._parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.bodies.append(b"")

    @property
    def statuses(self) -> list[int]:
        """The statuses of all responses, interim ones as well."""
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", self.raw)]

    def on_body(self, data: bytes) -> None:
        self.bodies[-1] += data

    def feed(self, data: bytes) -> None:
        """Parse bytes that the server wrote."""
        self.raw += data
        with suppress(httptools.HttpParserError):  # it does not know about HEAD
            self._parser.feed_data(data)


class Wire(asyncio.Transport):
    """The transport of one connection; its client is the test.

    `high_water`: once more bytes are unread, the connection has to stop writing.
    """

    def __init__(self, high_water: int = 2**16) -> None:
        super().__init__()
        self.responses = Responses()
        self.connection: ServerConnection
        self.writer: ResponseWriter
        self.unread = 0
        self.reading = True
        self.eof = self.closed = False
        self._high_water = high_water
        self._paused = False

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        assert not self.eof
        self.responses.feed(bytes(data))
        self.unread += len(data)
        if self.unread > self._high_water and not self._paused:
            self._paused = True
            self.connection.pause_writing()

    def read(self) -> None:
        """Let the client read everything."""
        self.unread = 0
        if self._paused:
            self._paused = False
            self.connection.resume_writing()

    def write_eof(self) -> None:
        self.eof = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            self.connection.connection_lost(None)


class Heard(NamedTuple):
    """A request as the service got it."""

    request: Request
    body: bytes


class Keep:
    """A receiver that keeps the body, and gives the response that the test prepares."""

    wants_body = True

    def __init__(self, answer: Callable[[bytes], Answer], flow: Flow, *, is_stream: bool) -> None:
        self.body = b""
        self.ended = False
        self.is_stream = is_stream
        self.flow = flow
        self.was_lost: list[bool] = []
        self._answer = answer

    def data(self, chunk: bytes) -> None:
        self.body += chunk

    def end(self) -> Answer:
        self.ended = True
        return self._answer(self.body)

    def lost(self, *, late: bool) -> Response:
        self.was_lost.append(late)
        return Response(408 if late else 400, b"lost\n")


class Port:
    """A server whose service echoes `METHOD target body`.

    `/refused` is refused by its head, `/later` waits for `gate`, and `/bug` raises. `streams` maps
    paths to streamed responses.
    """

    def __init__(self, max_connections: int = 100) -> None:
        self.heard: list[Heard] = []
        self.heads: list[tuple[Request, Keep]] = []
        self.receivers: list[Keep] = []
        self.refused: list[int] = []
        self.bugs: list[BaseException] = []
        self.crowds = 0
        self.gate = asyncio.Event()
        self.streams: dict[str, Callable[[], Awaitable[StreamedResponse]]] = {}
        self.server = HttpServer(
            self._receive,
            max_connections=max_connections,
            idle_s=IDLE_S,
            body_s=BODY_S,
            refused=self._refuse,
            crowded=self._crowded,
            failed=self.bugs.append,
        )

    def connect(self, high_water: int = 2**16) -> Wire:
        """A new connection."""
        wire = Wire(high_water)
        wire.connection = self.server.connect()
        wire.connection.connection_made(wire)
        if not wire.closed:
            wire.writer = wire.connection.writer
        return wire

    def play(self, pieces: Iterable[bytes]) -> Wire:
        """Send `pieces` on a new connection, as long as it is open."""
        wire = self.connect()
        for piece in pieces:
            if not wire.closed:
                wire.connection.data_received(piece)
        return wire

    def receivers_lost(self) -> bool:
        """Whether a body was given up."""
        return any(each.was_lost for each in self.receivers)

    def _refuse(self, status: int, error: str) -> Response:
        self.refused.append(status)
        return Response(status, f"{error}\n".encode())

    def _crowded(self) -> None:
        self.crowds += 1

    def _receive(self, request: Request, flow: Flow) -> Receiver:
        if request.path == "/refused":
            return Discard(Response(403, b"refused\n"))

        def answer(body: bytes) -> Answer:
            self.heard.append(Heard(request, body))
            if request.path == "/bug":
                raise ZeroDivisionError
            text = b"%b %b %b" % (request.method.encode(), request.target.encode(), body)
            response = Response(200, text)
            if request.path in self.streams:
                return self.streams[request.path]()
            return self._after_gate(response) if request.path == "/later" else response

        receiver = Keep(answer, flow, is_stream=request.path in self.streams)
        self.receivers.append(receiver)
        self.heads.append((request, receiver))
        return receiver

    async def _after_gate(self, response: Response) -> Response:
        await self.gate.wait()
        return response


def sent(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    """A request with `Host`, and with `Content-Length` if there is a body."""
    length = [b"Content-Length: %d" % len(body)] if body else []
    return b"\r\n".join([line, b"Host: a", *headers, *length, b"", body])


async def chunks_of(*chunks: bytes, gate: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """The body of a streamed response; after each chunk it waits for `gate`, if there is one."""
    for chunk in chunks:
        yield chunk
        if gate is not None:
            await gate.wait()
            gate.clear()
