"""The operators' small server, byte by byte: what a kubelet never sends, and what it does."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from sidecar.http.server import (
    IDLE_S,
    MAX_PIPELINED,
    MAX_REQUEST_BYTES,
    HttpServer,
    Response,
    ServerConnection,
)
from tests.support.world import run_virtual

LARGE = b"x" * 300_000
DEADLINE_S = 10.0


def echo(query: Mapping[str, str]) -> Response:
    """What was asked, in the order of the names."""
    return Response(" ".join(f"{name}={query[name]}" for name in sorted(query)).encode())


def bug(_: Mapping[str, str]) -> Response:
    """A handler that fails."""
    raise ZeroDivisionError


class Wire(asyncio.Transport):
    """A transport whose other end is the test; it tells when more than `room` is unread."""

    def __init__(self, room: int = 1_000_000) -> None:
        super().__init__()
        self._room = room
        self.written = b""
        self.paused = self.aborted = False
        self.visitor: ServerConnection

    def carry(self, visitor: ServerConnection) -> ServerConnection:
        """Let `visitor` be at this end."""
        self.visitor = visitor
        visitor.connection_made(self)
        return visitor

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        """The server writes."""
        self.written += data
        if len(self.written) > self._room:
            self.visitor.pause_writing()

    def pause_reading(self) -> None:
        """The server reads no more."""
        self.paused = True

    def resume_reading(self) -> None:
        """It does again."""
        self.paused = False

    def is_closing(self) -> bool:
        """Whether the server ended it."""
        return self.aborted

    def abort(self) -> None:
        """The server ends it at once."""
        if not self.aborted:
            self.aborted = True
            self.visitor.connection_lost(None)


@dataclass
class Place:
    """A running server."""

    visitors: HttpServer
    port: int

    async def ask(self, *pieces: bytes) -> bytes:
        """Everything it says to `pieces` until it ends the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            said = await reader.read()
            writer.close()
        return said


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """A server with a few handlers."""
    handlers = {"/": echo, "/large": lambda _: Response(LARGE), "/bug": bug}
    visitors = HttpServer(handlers, {"X-All": "yes"})
    server = await asyncio.get_running_loop().create_server(visitors.connect, "127.0.0.1", 0)
    try:
        yield Place(visitors, server.sockets[0].getsockname()[1])
    finally:
        server.close()
        visitors.close()


def request(line: bytes, *headers: bytes) -> bytes:
    """A request without a body."""
    return b"\r\n".join([line, b"Host: a", *headers, b"", b""])


LAST = request(b"GET /?last=1 HTTP/1.1", b"Connection: close")


async def test_requests_on_one_connection() -> None:
    """Each is answered in its order, however the bytes are cut, until one says that it is over."""
    asked = request(b"GET /?a=1&a=2&b=%20 HTTP/1.1") + request(b"GET /nowhere HTTP/1.1") + LAST
    async with place() as there:
        whole = await there.ask(asked)
        cut = await there.ask(*(asked[at : at + 5] for at in range(0, len(asked), 5)))
    assert re.findall(rb"HTTP/1.1 (\d+)", whole) == [b"200", b"404", b"200"]
    assert b"\r\n\r\na=1 b= HTTP/" in whole
    assert whole.endswith(b"\r\n\r\nlast=1")
    assert whole.count(b"X-All: yes\r\n") == cut.count(b"X-All: yes\r\n") == 3
    assert cut.endswith(b"\r\n\r\nlast=1")


async def test_head_has_the_length_and_no_body() -> None:
    """HEAD is GET without what follows the header."""
    async with place() as there:
        said = await there.ask(request(b"HEAD /large HTTP/1.1") + LAST)
    assert b"Content-Length: %d\r\n" % len(LARGE) in said
    assert b"xx" not in said


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        (b"GET / HTTP/1.0", ()),
        (b"GET / HTTP/1.1", (b"Connection: close",)),
        (b"GET / HTTP/1.1", (b"Connection: Upgrade", b"Upgrade: h2c")),
    ],
)
async def test_the_last_request_of_a_connection(line: bytes, headers: tuple[bytes, ...]) -> None:
    """It is answered, and the connection ends; what follows it is nobody's."""
    async with place() as there:
        said = await there.ask(request(line, *headers) + request(b"GET / HTTP/1.1"))
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.count(b"HTTP/1.1") == 1
    assert b"Connection: close\r\n" in said


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"OPTIONS"])
async def test_nothing_can_be_changed(method: bytes) -> None:
    """Other methods are answered 405, with those that there are; a body is thrown away."""
    body = (b"Content-Length: 4", b"Connection: close")
    async with place() as there:
        said = await there.ask(request(method + b" / HTTP/1.1", *body) + b"GET ")
    assert said.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in said


@pytest.mark.parametrize("junk", [b"\0\0\r\n\r\n", b"GET", b"GET / FTP/1.1\r\n\r\n"])
async def test_what_is_no_http(junk: bytes) -> None:
    """What was asked before is answered, then the connection ends."""
    async with place() as there:
        said = await there.ask(request(b"GET / HTTP/1.1") + junk + b"\r\n\0\r\n")
    assert said.count(b"HTTP/1.1 200 OK") == 1
    assert said.count(b"HTTP/1.1 400 Bad Request") == 1


@pytest.mark.parametrize("line", [b"GET http://a:x/ HTTP/1.1", b"GET /\xff HTTP/1.1"])
async def test_an_address_that_is_none(line: bytes) -> None:
    """It is refused, or ends the connection; nobody else notices."""
    async with place() as there:
        said = await there.ask(request(line, b"Connection: close"))
        assert said.startswith(b"HTTP/1.1 400 ")
        assert (await there.ask(LAST)).endswith(b"last=1")


async def test_a_request_without_end() -> None:
    """A header, or a body, of more than `MAX_REQUEST_BYTES` ends the connection."""
    async with place() as there:
        header = await there.ask(
            b"GET / HTTP/1.1\r\nX: ", *[b"x" * 4096] * (MAX_REQUEST_BYTES // 4096)
        )
        assert header.startswith(b"HTTP/1.1 400 ")
        body = request(b"POST / HTTP/1.1", b"Content-Length: 10000000")
        said = await there.ask(body, *[b"x" * 4096] * (MAX_REQUEST_BYTES // 4096))
        assert said.startswith(b"HTTP/1.1 400 ")


async def test_a_handler_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The visitor gets a 500, the log the reason, and others are served."""
    async with place() as there:
        said = await there.ask(request(b"GET /bug HTTP/1.1") + LAST)
    assert said.startswith(b"HTTP/1.1 500 ")
    assert said.endswith(b"last=1")
    assert "ZeroDivisionError" in caplog.text


def test_somebody_who_says_nothing() -> None:
    """A connection without a request, or with half of one, ends after `IDLE_S`."""

    async def story() -> None:
        visitors = HttpServer({"/": echo}, {})
        wires = [Wire(), Wire()]
        for wire in wires:
            visitor = wire.carry(visitors.connect())
        half = request(b"GET / HTTP/1.1")
        await asyncio.sleep(IDLE_S - 1)
        visitor.data_received(half)  # begins its time anew
        await asyncio.sleep(IDLE_S - 1)
        visitor.data_received(half[:10])  # does not
        assert [wire.aborted for wire in wires] == [True, False]
        await asyncio.sleep(2)
        assert [wire.aborted for wire in wires] == [True, True]
        visitors.close()

    run_virtual(story())


async def test_many_questions_at_once() -> None:
    """More than `MAX_PIPELINED` behind each other would hold up the loop: hung up on."""
    asked = 0

    def count(_: Mapping[str, str]) -> Response:
        nonlocal asked
        asked += 1
        return Response(b"")

    visitor = HttpServer({"/": count}, {}).connect()
    wire = Wire()
    wire.carry(visitor)
    visitor.data_received(request(b"HEAD / HTTP/1.1") * MAX_PIPELINED)
    assert asked == MAX_PIPELINED
    assert not wire.aborted
    visitor.data_received(request(b"HEAD / HTTP/1.1") * (MAX_PIPELINED + 1))
    assert asked == MAX_PIPELINED
    assert wire.aborted


def test_somebody_who_does_not_read() -> None:
    """More questions while the answers are not taken: hung up on, not kept in memory."""

    async def story() -> None:
        visitors = HttpServer({"/": echo}, {})
        wire = Wire(room=1)
        visitor = wire.carry(visitors.connect())
        visitor.data_received(request(b"GET / HTTP/1.1"))
        assert wire.written.count(b"HTTP/1.1 200") == 1
        assert wire.paused
        visitor.resume_writing()
        assert not wire.paused
        visitor.data_received(request(b"GET / HTTP/1.1") * 3)
        assert wire.aborted
        assert wire.written.count(b"HTTP/1.1 200") == 2
        visitors.close()

    run_virtual(story())
