"""Looks up the addresses of one host."""

import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from sidecar.process.addresses import canonical_host, is_loopback
from sidecar.process.blocking import BlockingThread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from aiohappyeyeballs import AddrInfoType

LOOKUP_S = 5.0
_LOOPBACK = (socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")


class Resolver:
    """Looks up the addresses of `host`, on a thread of its own. Create it inside a running loop.

    The C library's lookup can hang, and those for another upstream must not wait for it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        # Known without a lookup.
        self.known: Sequence[AddrInfoType] = []
        name = canonical_host(host)
        if name == "localhost" or name.endswith(".localhost"):
            # Whatever addresses the pod has: AI_ADDRCONFIG would omit 127.0.0.1 in one that has
            # IPv6 only. These names need no DNS (RFC 6761, 6.3).
            tcp = socket.SOCK_STREAM, socket.IPPROTO_TCP, ""
            self.known = [(family, *tcp, (address, port)) for family, address in _LOOPBACK]
        elif "%" not in host:  # an interface can change the number that is its zone
            with suppress(OSError, UnicodeError):
                self.known = self._look_up(socket.AI_NUMERICHOST)
        self.thread = BlockingThread(f"DNS lookup of {host}")
        self._lookup: asyncio.Future[Sequence[AddrInfoType]] | None = None

    async def addresses(self) -> "Sequence[AddrInfoType]":
        """The addresses, in the order in which to try them; concurrent callers share one lookup.

        Raises `Stalled` after `LOOKUP_S`, or the lookup's own `OSError` or `UnicodeError`.
        """
        if self.known:
            return self.known
        if self._lookup is None or self._lookup.done():
            self._lookup = self.thread.start(self._look_up_all)
        return await self.thread.result(self._lookup, LOOKUP_S)

    def _look_up_all(self) -> "Sequence[AddrInfoType]":
        started_at = monotonic()
        try:
            # Without the families of which this machine has no address.
            found = self._look_up(socket.AI_ADDRCONFIG)
            if not all(is_loopback(str(each[4][0])) for each in found):
                return found
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN or monotonic() - started_at > LOOKUP_S / 2:
                raise
        # A hosts file may name a loopback address of another family, which is there all the same:
        # it is left out, or has even become the other family's.
        return self._look_up(0)

    def _look_up(self, flags: int) -> "Sequence[AddrInfoType]":
        # As bytes, because for a string Python would load its IDNA codec.
        return socket.getaddrinfo(
            self._host.encode(), self._port, type=socket.SOCK_STREAM, flags=flags
        )
