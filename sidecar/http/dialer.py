"""Opens TCP and TLS connections to the host of one URL."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohappyeyeballs import AddrInfoType, start_connection

from sidecar.http.failures import NoResponse
from sidecar.process.addresses import BaseUrl, parse_base_url
from sidecar.process.blocking import BlockingThread, Stalled
from sidecar.process.descriptors import is_out_of_descriptors

LOOKUP_S = 5.0
CONNECT_S = 5.0
# RFC 8305: how long to wait for one address before the next is tried concurrently.
NEXT_ADDRESS_S = 0.25


def tls_context(base_url: str) -> ssl.SSLContext | None:
    """What a connection to an https URL needs; None for http. Reads the system's certificates."""
    if parse_base_url(base_url).scheme != "https":
        return None
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class Dialer:
    """Opens connections to the host and port of `url`, over TLS if there is a context for it.

    Names are looked up on a thread of its own, because the C library's lookup can hang: those for
    another upstream must not wait for it.
    """

    def __init__(self, url: BaseUrl, tls: ssl.SSLContext | None) -> None:
        self._host, self._port = url.host, url.port
        self._tls: dict[str, Any] = {}
        if tls is not None:
            self._tls = {"ssl": tls, "server_hostname": url.host.rstrip(".")}
        # An IP address needs no lookup, except that an interface can change its number.
        self._literal: Sequence[AddrInfoType] = []
        if "%" not in url.host:
            with suppress(OSError):
                self._literal = socket.getaddrinfo(
                    url.host.encode(),
                    url.port,
                    type=socket.SOCK_STREAM,
                    flags=socket.AI_NUMERICHOST,
                )
        self.resolver = BlockingThread(f"DNS lookup of {url.host}")
        self._lookup: asyncio.Future[Sequence[AddrInfoType]] | None = None

    async def dial(self, protocol: asyncio.Protocol) -> None:
        """Connect `protocol`.

        Raises `TimeoutError` after `CONNECT_S`, and `NoResponse` for any other failure. The latter
        names only the exception's class, because the text may repeat what was sent, or says that
        the fault is this process's own. A lookup that takes longer than `LOOKUP_S` is a failure,
        too.
        """
        try:
            addresses = self._literal or await self._look_up()
            async with asyncio.timeout(CONNECT_S):
                sock = await start_connection(
                    addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1
                )
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: protocol, sock=sock, **self._tls)
        except Stalled:
            raise NoResponse("the DNS lookup timed out", outage=True) from None
        except (OSError, RuntimeError, UnicodeError) as error:
            # A TimeoutError with an errno is the kernel's (ETIMEDOUT) and an ordinary failure.
            if isinstance(error, TimeoutError) and error.errno is None:
                raise
            ours = is_out_of_descriptors(error)
            what = "out of file descriptors" if ours else type(error).__name__
            raise NoResponse(what, outage=True) from None

    async def _look_up(self) -> Sequence[AddrInfoType]:
        """The host's addresses; concurrent callers share one lookup."""
        if self._lookup is None or self._lookup.done():
            self._lookup = self.resolver.start(self._addresses)
        return await self.resolver.result(self._lookup, LOOKUP_S)

    def _addresses(self) -> Sequence[AddrInfoType]:
        # As bytes, because for a string Python would load its IDNA codec. AI_ADDRCONFIG omits the
        # address families for which this machine has no address.
        return socket.getaddrinfo(
            self._host.encode(), self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
