"""The admin port's HTTP server: ordinary, malformed, oversized and pipelined requests."""

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
    """The query's parameters, sorted by name."""
    return Response(" ".join(f"{name}={query[name]}" for name in sorted(query)).encode())


def bug(_: Mapping[str, str]) -> Response:
    """A handler with a bug."""
    raise ZeroDivisionError


class FakeTransport(asyncio.Transport):
    """A fake transport; it pauses writing once more than `high_water` bytes are written."""

    def __init__(self, high_water: int = 1_000_000) -> None:
        super().__init__()
        self._high_water = high_water
        self.written = b""
        self.paused = self.aborted = False
        self.connection: ServerConnection

    def attach(self, connection: ServerConnection) -> ServerConnection:
        """Make this the transport of `connection`."""
        self.connection = connection
        connection.connection_made(self)
        return connection

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        self.written += data
        if len(self.written) > self._high_water:
            self.connection.pause_writing()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self.connection.connection_lost(None)


@dataclass
class RunningServer:
    """A listening server."""

    port: int

    async def send(self, *pieces: bytes) -> bytes:
        """Send `pieces` on one connection and return everything received until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            received = await reader.read()
            writer.close()
        return received


@asynccontextmanager
async def running_server() -> AsyncIterator[RunningServer]:
    """A listening server with a few handlers."""
    handlers = {"/": echo, "/large": lambda _: Response(LARGE), "/bug": bug}
    server = HttpServer(handlers, {"X-All": "yes"})
    listening = await asyncio.get_running_loop().create_server(server.connect, "127.0.0.1", 0)
    try:
        yield RunningServer(listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        server.close()


def request(request_line: bytes, *headers: bytes) -> bytes:
    """A request without a body."""
    return b"\r\n".join([request_line, b"Host: a", *headers, b"", b""])


LAST = request(b"GET /?last=1 HTTP/1.1", b"Connection: close")


async def test_requests_on_one_connection() -> None:
    """Responses are in order, however the bytes are split, until a request says `close`."""
    sent = request(b"GET /?a=1&a=2&b=%20 HTTP/1.1") + request(b"GET /nowhere HTTP/1.1") + LAST
    async with running_server() as server:
        whole = await server.send(sent)
        split = await server.send(*(sent[at : at + 5] for at in range(0, len(sent), 5)))
    assert re.findall(rb"HTTP/1.1 (\d+)", whole) == [b"200", b"404", b"200"]
    assert b"\r\n\r\na=1 b= HTTP/" in whole
    assert whole.endswith(b"\r\n\r\nlast=1")
    assert whole.count(b"X-All: yes\r\n") == split.count(b"X-All: yes\r\n") == 3
    assert split.endswith(b"\r\n\r\nlast=1")


async def test_head_has_the_length_and_no_body() -> None:
    """HEAD gets the same head as GET, without the body."""
    async with running_server() as server:
        received = await server.send(request(b"HEAD /large HTTP/1.1") + LAST)
    assert b"Content-Length: %d\r\n" % len(LARGE) in received
    assert b"xx" not in received


@pytest.mark.parametrize(
    ("request_line", "headers"),
    [
        (b"GET / HTTP/1.0", ()),
        (b"GET / HTTP/1.1", (b"Connection: close",)),
        (b"GET / HTTP/1.1", (b"Connection: Upgrade", b"Upgrade: h2c")),
    ],
)
async def test_the_last_request_of_a_connection(
    request_line: bytes, headers: tuple[bytes, ...]
) -> None:
    """It gets its response, the connection closes, and later requests are ignored."""
    async with running_server() as server:
        received = await server.send(request(request_line, *headers) + request(b"GET / HTTP/1.1"))
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.count(b"HTTP/1.1") == 1
    assert b"Connection: close\r\n" in received


@pytest.mark.parametrize("method", [b"POST", b"DELETE", b"OPTIONS"])
async def test_other_methods_are_refused(method: bytes) -> None:
    """The response is 405 with the allowed methods; a body is discarded."""
    body = (b"Content-Length: 4", b"Connection: close")
    async with running_server() as server:
        received = await server.send(request(method + b" / HTTP/1.1", *body) + b"GET ")
    assert received.startswith(b"HTTP/1.1 405 ")
    assert b"Allow: GET, HEAD\r\n" in received


@pytest.mark.parametrize("malformed", [b"\0\0\r\n\r\n", b"GET", b"GET / FTP/1.1\r\n\r\n"])
async def test_malformed_requests(malformed: bytes) -> None:
    """Earlier requests get their responses, then a 400 follows and the connection closes."""
    async with running_server() as server:
        received = await server.send(request(b"GET / HTTP/1.1") + malformed + b"\r\n\0\r\n")
    assert received.count(b"HTTP/1.1 200 OK") == 1
    assert received.count(b"HTTP/1.1 400 Bad Request") == 1


@pytest.mark.parametrize("request_line", [b"GET http://a:x/ HTTP/1.1", b"GET /\xff HTTP/1.1"])
async def test_a_malformed_request_target(request_line: bytes) -> None:
    """The response is 400; other connections are not affected."""
    async with running_server() as server:
        received = await server.send(request(request_line, b"Connection: close"))
        assert received.startswith(b"HTTP/1.1 400 ")
        assert (await server.send(LAST)).endswith(b"last=1")


async def test_an_oversized_request() -> None:
    """A head or a body of more than `MAX_REQUEST_BYTES` gets a 400; the connection closes."""
    async with running_server() as server:
        received = await server.send(
            b"GET / HTTP/1.1\r\nX: ", *[b"x" * 4096] * (MAX_REQUEST_BYTES // 4096)
        )
        assert received.startswith(b"HTTP/1.1 400 ")
        body = request(b"POST / HTTP/1.1", b"Content-Length: 10000000")
        received = await server.send(body, *[b"x" * 4096] * (MAX_REQUEST_BYTES // 4096))
        assert received.startswith(b"HTTP/1.1 400 ")


async def test_a_handler_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 500, the exception is logged, and the next request is served."""
    async with running_server() as server:
        received = await server.send(request(b"GET /bug HTTP/1.1") + LAST)
    assert received.startswith(b"HTTP/1.1 500 ")
    assert received.endswith(b"last=1")
    assert "ZeroDivisionError" in caplog.text


def test_an_idle_connection_is_closed() -> None:
    """A connection closes after `IDLE_S` without a request; an incomplete one does not count."""

    async def story() -> None:
        server = HttpServer({"/": echo}, {})
        silent, active = FakeTransport(), FakeTransport()
        silent.attach(server.connect())
        connection = active.attach(server.connect())
        complete = request(b"GET / HTTP/1.1")
        await asyncio.sleep(IDLE_S - 1)
        connection.data_received(complete)  # restarts the timeout
        await asyncio.sleep(IDLE_S - 1)
        connection.data_received(complete[:10])  # does not
        assert (silent.aborted, active.aborted) == (True, False)
        await asyncio.sleep(2)
        assert (silent.aborted, active.aborted) == (True, True)
        server.close()

    run_virtual(story())


async def test_too_many_pipelined_requests() -> None:
    """More than `MAX_PIPELINED` at once would block the loop: the client is disconnected."""
    handled = 0

    def count(_: Mapping[str, str]) -> Response:
        nonlocal handled
        handled += 1
        return Response(b"")

    connection = HttpServer({"/": count}, {}).connect()
    transport = FakeTransport()
    transport.attach(connection)
    connection.data_received(request(b"HEAD / HTTP/1.1") * MAX_PIPELINED)
    assert handled == MAX_PIPELINED
    assert not transport.aborted
    connection.data_received(request(b"HEAD / HTTP/1.1") * (MAX_PIPELINED + 1))
    assert handled == MAX_PIPELINED
    assert transport.aborted


def test_a_client_that_does_not_read() -> None:
    """More requests while responses are unread: disconnected, so that they do not fill memory."""

    async def story() -> None:
        server = HttpServer({"/": echo}, {})
        transport = FakeTransport(high_water=1)
        connection = transport.attach(server.connect())
        connection.data_received(request(b"GET / HTTP/1.1"))
        assert transport.written.count(b"HTTP/1.1 200") == 1
        assert transport.paused
        connection.resume_writing()
        assert not transport.paused
        connection.data_received(request(b"GET / HTTP/1.1") * 3)
        assert transport.aborted
        assert transport.written.count(b"HTTP/1.1 200") == 2
        server.close()

    run_virtual(story())
