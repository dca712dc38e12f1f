"""For tests of the sinks' client: upstreams that the test plays itself, byte by byte."""

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import pytest
import uvloop

from sidecar.credentials import Credentials, Secret
from sidecar.http.client import HttpClient
from sidecar.process.addresses import bracketed
from sidecar.sinks.http import Response, UpstreamClient

P = ParamSpec("P")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DONE = Response(200, b"", 0.0)
TIMEOUT_S = 40.0
# Of the wall clock: a hang fails instead of hanging.
DEADLINE_S = 30.0


def on_both_loops(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test of a coroutine function: once in asyncio's own loop, once in uvloop's."""

    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        bugs: list[dict[str, Any]] = []

        async def within_deadline() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, bug: bugs.append(bug))
            async with asyncio.timeout(DEADLINE_S):
                await story(*args, **kwargs)

        new_loop: Any = kwargs.pop("new_loop")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(within_deadline())
        assert bugs == []  # the app would end

    given = inspect.signature(story)
    added = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = given.replace(  # type: ignore[attr-defined]
        parameters=[*given.parameters.values(), added]
    )
    test.__name__, test.__doc__ = story.__name__, story.__doc__
    loops = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    marked: Callable[P, None] = loops(test)
    return marked


@dataclass
class Line:
    """An accepted connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def header(self) -> bytes:
        """The next request's request line and headers."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> bytes:
        """The next request, whole."""
        header = await self.header()
        length = int(header.rpartition(b"Content-Length: ")[2])
        return header + await self.reader.readexactly(length)

    async def serve(self, answer: bytes = OK) -> bytes:
        """Answer the next request."""
        request = await self.request()
        self.writer.write(answer)
        return request

    async def ended(self) -> bool:
        """Wait for the client to end it; whether nothing came before."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    def hang_up(self) -> None:
        """End it from this side."""
        self.writer.close()


@dataclass
class Far:
    """An upstream, and a client for it with the outcomes of its requests."""

    url: str
    client: UpstreamClient
    lines: asyncio.Queue[Line]
    outcomes: list[str] = field(default_factory=list)

    def ask(self, body: bytes = b"{}", method: bytes = b"POST") -> asyncio.Task[Response]:
        """Begin a request."""
        target = self.client.target("/spans")
        return asyncio.create_task(self.client.request(method, target, body))

    async def line(self) -> Line:
        """The next connection of the client."""
        return await self.lines.get()

    async def used(self) -> Line:
        """A new connection that has answered once, and is idle."""
        asking = self.ask()
        line = await self.line()
        await line.serve()
        assert await asking == DONE
        return line


def new_client(url: str, outcomes: list[str], most: int = 4, **headers: str) -> UpstreamClient:
    """A client with these headers for credentials."""
    return UpstreamClient(
        HttpClient(url, timeout_s=TIMEOUT_S, max_connections=most),
        Credentials(
            {name: Secret(text) for name, text in headers.items()},
            key_header="key",
            relay=False,
            required=True,
        ),
        lambda outcome, _seconds, _size: outcomes.append(outcome),
    )


@asynccontextmanager
async def far(
    most: int = 4, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Far]:
    """A listening upstream; nobody is answered unless the test does it."""
    lines: asyncio.Queue[Line] = asyncio.Queue()
    accepted: list[Line] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(Line(reader, writer))
        lines.put_nowait(accepted[-1])

    server = await asyncio.start_server(accept, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    url = f"https://localhost:{port}" if tls else f"http://{bracketed(host)}:{port}"
    outcomes: list[str] = []
    client = new_client(url, outcomes, most)
    try:
        yield Far(url, client, lines, outcomes)
    finally:
        await client.close()
        for line in accepted:
            line.writer.transport.abort()
        server.close()
        await server.wait_closed()
