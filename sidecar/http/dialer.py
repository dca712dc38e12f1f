"""Opens TCP and TLS connections to the host of one URL."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from ipaddress import ip_address

from aiohappyeyeballs import AddrInfoType, start_connection

from sidecar.http.failures import NoResponse
from sidecar.process.addresses import BaseUrl

CONNECT_S = 5.0
# RFC 8305: how long to wait for one address before the next is tried concurrently.
NEXT_ADDRESS_S = 0.25


class Dialer:
    """Opens connections to the host and port of `url`, over TLS if its scheme is https."""

    def __init__(self, url: BaseUrl) -> None:
        self._host, self._port = url.host, url.port
        self._tls = _tls() if url.scheme == "https" else None
        self._literal = _literal_address(self._host, self._port)
        self._lookup: asyncio.Task[Sequence[AddrInfoType]] | None = None

    async def dial(self, protocol: asyncio.Protocol) -> None:
        """Connect `protocol`.

        Raises `TimeoutError` after `CONNECT_S`, and `NoResponse` for any other failure. The latter
        names only the exception's class, because the text may repeat what was sent.
        """
        try:
            addresses = self._literal or await self._look_up()
            async with asyncio.timeout(CONNECT_S):
                await self._connect(protocol, addresses)
        except (OSError, RuntimeError, UnicodeError) as error:
            # A TimeoutError with an errno is the kernel's (ETIMEDOUT) and an ordinary failure.
            if isinstance(error, TimeoutError) and error.errno is None:
                raise
            raise NoResponse(type(error).__name__, outage=True) from None

    async def _connect(self, protocol: asyncio.Protocol, addresses: Sequence[AddrInfoType]) -> None:
        sock = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().create_connection(
            lambda: protocol,
            sock=sock,
            ssl=self._tls,
            server_hostname=self._host.rstrip(".") if self._tls else None,
        )

    async def _look_up(self) -> Sequence[AddrInfoType]:
        """The host's addresses; concurrent callers share one lookup."""
        if self._lookup is None:
            self._lookup = asyncio.create_task(self._addresses())
            self._lookup.add_done_callback(self._looked_up)
        return await asyncio.shield(self._lookup)

    async def _addresses(self) -> Sequence[AddrInfoType]:
        # AI_ADDRCONFIG omits the address families for which this machine has no address.
        return await asyncio.get_running_loop().getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )

    def _looked_up(self, lookup: asyncio.Task[Sequence[AddrInfoType]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            # Mark the exception as retrieved, in case every waiter was cancelled.
            lookup.exception()


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _literal_address(host: str, port: int) -> Sequence[AddrInfoType]:
    """The address if `host` is an IP address, which needs no lookup; otherwise empty."""
    try:
        version = ip_address(host).version
    except ValueError:
        return []
    if "%" in host:
        return []  # only the resolver can turn an IPv6 zone into an interface number
    stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    if version == 4:  # noqa: PLR2004
        return [(socket.AF_INET, *stream, (host, port))]
    return [(socket.AF_INET6, *stream, (host, port, 0, 0))]
