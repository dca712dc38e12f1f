"""A forward proxy for tests: it opens tunnels and forwards requests, or does what it is told."""

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from sidecar.network.proxies import Proxy, parse_proxy

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
REQUIRED = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n"
    b"Content-Type: text/html\r\nContent-Length: 2\r\n\r\nno"
)
_END = b"\r\n\r\n"


class ForwardProxy:
    """Its URL is `url`. `heads` are those of the requests to it.

    `user`: it requires "name:password". `answer`: it responds with this and nothing else; with an
    empty one, it says nothing.
    """

    def __init__(self) -> None:
        self.url = ""
        self.user = ""
        self.answer: bytes | None = None
        self.heads: list[bytes] = []
        self.asked = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def proxy(self) -> Proxy:
        """It, with its credential, as the client needs it."""
        url = self.url.replace("://", f"://{self.user}@") if self.user else self.url
        return parse_proxy(url, "network.proxy")

    @property
    def targets(self) -> list[str]:
        """Method and target of each request."""
        return [" ".join(head.decode().split(" ")[:2]) for head in self.heads]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._serving.add(asyncio.create_task(self._serve_one(reader, writer)))

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(_END)
        self.heads.append(head)
        self.asked.set()
        if self.answer is not None:
            writer.write(self.answer)
            await reader.read()
            return
        credential = b"Proxy-Authorization: Basic " + b64encode(self.user.encode()) + b"\r\n"
        if self.user and credential not in head:
            writer.write(REQUIRED)
            await reader.read()
            return
        method, target, _ = head.split(b" ", 2)
        if method == b"CONNECT":
            _, _, port = target.decode().rpartition(":")
            head = b""
            writer.write(ESTABLISHED)
        else:
            url = urlsplit(target.decode())
            port = str(url.port or 80)
            head = head.replace(target, f"{url.path}?{url.query}".rstrip("?").encode(), 1)
            head = head.replace(credential, b"")
        # Only addresses of this machine are ever connected to, whatever the name.
        there = await asyncio.open_connection("127.0.0.1", int(port))
        self._writers.add(there[1])
        there[1].write(head)
        try:
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        finally:
            there[1].transport.abort()
            self._writers.discard(there[1])

    def close(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def closed(self) -> None:
        """Close all connections, and wait for their end."""
        self.close()
        await asyncio.gather(*self._serving)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(2**16):
            writer.write(chunk)
    writer.transport.abort()


@asynccontextmanager
async def forward_proxy(user: str = "") -> AsyncIterator[ForwardProxy]:
    """A running proxy, which requires `user` ("name:password") if it is given."""
    made = ForwardProxy()
    made.user = user
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()
        await made.closed()
