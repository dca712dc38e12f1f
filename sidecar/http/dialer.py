"""Opens TCP and TLS connections to the host of one URL."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

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
        self._tls: dict[str, Any] = {}
        if url.scheme == "https":
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            self._tls = {"ssl": context, "server_hostname": url.host.rstrip(".")}
        # An IP address needs no lookup, except that an interface can change its number.
        self._literal: Sequence[AddrInfoType] = []
        if "%" not in url.host:
            with suppress(OSError):
                # As bytes, because for a string Python would load its IDNA codec.
                self._literal = socket.getaddrinfo(
                    url.host.encode(),
                    url.port,
                    type=socket.SOCK_STREAM,
                    flags=socket.AI_NUMERICHOST,
                )
        self._lookup: asyncio.Task[Sequence[AddrInfoType]] | None = None

    async def dial(self, protocol: asyncio.Protocol) -> None:
        """Connect `protocol`.

        Raises `TimeoutError` after `CONNECT_S`, and `NoResponse` for any other failure. The latter
        names only the exception's class, because the text may repeat what was sent.
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
        except (OSError, RuntimeError, UnicodeError) as error:
            # A TimeoutError with an errno is the kernel's (ETIMEDOUT) and an ordinary failure.
            if isinstance(error, TimeoutError) and error.errno is None:
                raise
            raise NoResponse(type(error).__name__, outage=True) from None

    async def _look_up(self) -> Sequence[AddrInfoType]:
        """The host's addresses; concurrent callers share one lookup."""
        if self._lookup is None or self._lookup.done():
            # AI_ADDRCONFIG omits the address families for which this machine has no address.
            addresses = asyncio.get_running_loop().getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
            )
            self._lookup = asyncio.create_task(addresses)
            # Marks its exception as retrieved, in case every waiter is cancelled.
            self._lookup.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._lookup)
