"""Opens TCP and TLS connections to the host of one URL."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from ipaddress import ip_address

from aiohappyeyeballs import AddrInfoType, start_connection
from yarl import URL

from sidecar.http.failures import NoResponse

CONNECT_S = 5.0
# RFC 8305: when to try the next address beside one that does not answer.
NEXT_ADDRESS_S = 0.25


class Dialer:
    """Opens connections to the host and port of `url`, with TLS where its scheme says so."""

    def __init__(self, url: URL) -> None:
        self._host = url.raw_host or ""
        self._port = url.port or 0
        self._tls = _tls() if url.scheme == "https" else None
        self._known = _literal(self._host, self._port)
        self._lookup: asyncio.Task[Sequence[AddrInfoType]] | None = None

    async def dial(self, protocol: asyncio.Protocol) -> None:
        """Connect `protocol`.

        Raises `TimeoutError` after `CONNECT_S`, and `NoResponse` with the class of whatever else
        went wrong: texts of errors may repeat what was sent.
        """
        try:
            addresses = self._known or await self._look_up()
            async with asyncio.timeout(CONNECT_S):
                await self._connect(protocol, addresses)
        except (OSError, RuntimeError, UnicodeError) as error:
            # The kernel's own time-out has a number, and is one of many errors.
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
        """The host's addresses: one question, however many connections wait for it."""
        if self._lookup is None:
            self._lookup = asyncio.create_task(self._addresses())
            self._lookup.add_done_callback(self._looked_up)
        return await asyncio.shield(self._lookup)

    async def _addresses(self) -> Sequence[AddrInfoType]:
        # Without the addresses of a family that this machine does not have.
        return await asyncio.get_running_loop().getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )

    def _looked_up(self, lookup: asyncio.Task[Sequence[AddrInfoType]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # seen, also when nobody waits for it any more


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _literal(host: str, port: int) -> Sequence[AddrInfoType]:
    """The address that `host` is, if it is one: there is nothing to look up then."""
    try:
        version = ip_address(host).version
    except ValueError:
        return []
    if "%" in host:
        return []  # only the resolver knows the number of an interface
    kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
    if version == 4:  # noqa: PLR2004
        return [(socket.AF_INET, *kind, (host, port))]
    return [(socket.AF_INET6, *kind, (host, port, 0, 0))]
