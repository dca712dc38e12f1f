"""Upstreams for tests of the sinks' HTTP client: the test reads and writes their raw bytes."""

import asyncio
import inspect
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import pytest
import uvloop

from sidecar.credentials import Credentials, Secret
from sidecar.http.client import HttpClient
from sidecar.http.client_connection import RawResponse
from sidecar.network.certificates import CertificateFiles, Certificates
from sidecar.network.dialer import Dialer
from sidecar.network.proxies import Proxy
from sidecar.process.addresses import bracketed, parse_base_url
from sidecar.sinks.http import Response, UpstreamClient

P = ParamSpec("P")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
DONE = Response(200)
TIMEOUT_S = 40.0
# Wall-clock time after which a test that hangs fails.
DEADLINE_S = 30.0


def on_both_loops(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a coroutine function as a test, once on asyncio's event loop and once on uvloop."""

    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        bugs: list[dict[str, Any]] = []

        async def within_deadline() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, bug: bugs.append(bug))
            async with asyncio.timeout(DEADLINE_S):
                await story(*args, **kwargs)

        new_loop: Any = kwargs.pop("new_loop")
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(within_deadline())
        assert bugs == [], bugs  # each would end the app

    signature = inspect.signature(story)
    new_loop = inspect.Parameter("new_loop", inspect.Parameter.KEYWORD_ONLY)
    test.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), new_loop]
    )
    test.__name__, test.__doc__ = story.__name__, story.__doc__
    loops = pytest.mark.parametrize(
        "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
    )
    marked: Callable[P, None] = loops(test)
    return marked


@dataclass
class AcceptedConnection:
    """A connection that the upstream has accepted."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def head(self) -> bytes:
        """The request line and headers of the next request."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def request(self) -> bytes:
        """The next request, including its body."""
        head = await self.head()
        length = int(head.rpartition(b"Content-Length: ")[2])
        return head + await self.reader.readexactly(length)

    async def serve(self, response: bytes = OK) -> bytes:
        """Respond to the next request and return it."""
        request = await self.request()
        self.writer.write(response)
        return request

    async def closed_by_client(self) -> bool:
        """Wait until the client closes the connection; whether it sent nothing before that."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close the connection on the upstream's side; over TLS, with close_notify."""
        self.writer.close()

    def cut(self) -> None:
        """Close the TCP connection; over TLS, without close_notify."""
        self.writer.transport.abort()

    def reset(self) -> None:
        """Reset the TCP connection."""
        linger = struct.pack("ii", 1, 0)
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.cut()


@dataclass
class RawUpstream:
    """An upstream, a client for it, and the outcomes of the client's requests."""

    url: str
    client: UpstreamClient
    connections: asyncio.Queue[AcceptedConnection]
    outcomes: list[str] = field(default_factory=list)

    def send(self, body: bytes = b"{}", method: bytes = b"POST") -> asyncio.Task[Response]:
        """Start a request of the client."""
        target = self.client.target("/spans")
        return asyncio.create_task(self.client.request(method, target, body))

    def exchange(self, *, keep_body: bool = False) -> asyncio.Task[RawResponse]:
        """Start a request of the HTTP client itself."""
        http = self.client._http
        head = http.head(b"POST", http.target("/spans"), {}, 2)
        return asyncio.create_task(http.exchange(head, b"{}", keep_body=keep_body))

    async def accept(self) -> AcceptedConnection:
        """The next connection that the client opens."""
        return await self.connections.get()

    async def received(self, size: int) -> None:
        """Wait until the client has read `size` bytes of a response."""
        connections = self.client._http._connections
        while not any(one.response_bytes >= size for one in connections):  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def idle_connection(self) -> AcceptedConnection:
        """A new connection that has served one request and is idle."""
        sending = self.send()
        connection = await self.accept()
        await connection.serve()
        assert await sending == DONE
        return connection


def new_dialer(
    url: str, files: CertificateFiles | None = None, proxy: Proxy | None = None
) -> Dialer:
    """What reaches `url`, with its certificates already read."""
    parsed = parse_base_url(url)
    secure = parsed.scheme == "https"
    certificates = Certificates("test", files or CertificateFiles(), secure=secure)
    if secure:
        certificates._watched.read()
    return Dialer(parsed, certificates, proxy)


def new_http_client(
    url: str | Dialer,
    *,
    timeout_s: float = TIMEOUT_S,
    max_requests: int = 4,
    max_age_s: float = 300.0,
) -> HttpClient:
    """A client for a URL, or for what a dialer reaches."""
    dialer = new_dialer(url) if isinstance(url, str) else url
    return HttpClient(dialer, timeout_s=timeout_s, max_requests=max_requests, max_age_s=max_age_s)


def new_client(
    url: str | Dialer, outcomes: list[str], max_requests: int = 4, **headers: str
) -> UpstreamClient:
    """A client with `headers` as its credentials."""
    return UpstreamClient(
        new_http_client(url, max_requests=max_requests),
        Credentials(
            {name: Secret(value) for name, value in headers.items()},
            relay=False,
            required=True,
        ),
        lambda outcome, _seconds, _size: outcomes.append(outcome),
    )


@asynccontextmanager
async def raw_upstream(
    max_requests: int = 4, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[RawUpstream]:
    """A listening upstream that responds only when the test makes it."""
    connections: asyncio.Queue[AcceptedConnection] = asyncio.Queue()
    accepted: list[AcceptedConnection] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(AcceptedConnection(reader, writer))
        connections.put_nowait(accepted[-1])

    server = await asyncio.start_server(accept, host, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    url = f"https://localhost:{port}" if tls else f"http://{bracketed(host)}:{port}"
    outcomes: list[str] = []
    client = new_client(url, outcomes, max_requests)
    try:
        yield RawUpstream(url, client, connections, outcomes)
    finally:
        await client.close()
        for connection in accepted:
            connection.writer.transport.abort()
        server.close()
        await server.wait_closed()
