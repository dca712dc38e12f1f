"""Opens TCP and TLS connections to the host of one URL, directly or through a proxy."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast

from aiohappyeyeballs import AddrInfoType, start_connection

from sidecar import __version__
from sidecar.network import reasons
from sidecar.network.certificates import CertificateError, Certificates
from sidecar.network.proxies import Proxy
from sidecar.network.resolver import Resolver
from sidecar.network.tunnel import NoTunnel, open_tunnel
from sidecar.process.addresses import BaseUrl, bracketed
from sidecar.process.blocking import Stalled
from sidecar.process.descriptors import is_out_of_descriptors

# Time limits in seconds. A proxy has to look up the name, and to connect, itself.
CONNECT_S = TLS_S = 5.0
TUNNEL_S = 10.0
ALERT_S = 1.0
# RFC 8305: how long to wait for one address before the next is tried concurrently.
NEXT_ADDRESS_S = 0.25
USER_AGENT = f"trace-sidecar/{__version__}"

Step = Callable[[str], None]


class Unreachable(Exception):
    """No connection could be opened; the message says why. `late`: it took too long."""

    def __init__(self, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.late = late


def _ignore(_: str) -> None:
    """Nobody needs to know."""


class _Listening(asyncio.Protocol):
    """Sends nothing, and waits for the connection to end."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():  # or else whoever waited for it was cancelled
            self.ended.set_result(exc)

    async def end(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()
            await self.ended


class Dialer:
    """Opens connections to the host and port of `url`. Create it inside a running loop.

    `certificates`: for TLS, if the URL is an https one. `proxy`: connections go through it.
    """

    def __init__(
        self, url: BaseUrl, certificates: Certificates, proxy: Proxy | None = None
    ) -> None:
        self.url, self.certificates, self.proxy = url, certificates, proxy
        self._is_secure = url.scheme == "https"
        self._is_asking = False
        hop = url if proxy is None else proxy
        self._hop_host, self._hop = hop.host, f"{bracketed(hop.host)}:{hop.port}"
        if proxy is not None:
            self._hop = f"the proxy {proxy}"
        # In TLS, a name has no final dot (RFC 6066, 3).
        self._name = url.host.rstrip(".")
        self.resolver = Resolver(hop.host, hop.port)

    @property
    def forwards(self) -> bool:
        """Whether the proxy forwards each request, which needs the whole URL and the credential."""
        return self.proxy is not None and not self._is_secure

    async def dial(self, protocol: asyncio.BaseProtocol, step: Step = _ignore) -> None:
        """Connect `protocol`; raises `Unreachable`. `step` is told in words what has succeeded."""
        if self._is_secure and self.certificates.context is None:
            raise Unreachable("the files with the certificates can't be read")
        sock = await self._connect(await self._look_up(step), step)
        if self._is_secure:
            if self.proxy is not None:
                await self._tunnel(sock, self.proxy, step)
            await self._secure(sock, protocol, step)
            return
        try:
            await _open(sock, protocol)
        except (OSError, RuntimeError) as error:
            raise self._failed(reasons.connect_failed(self._hop, error), error) from None
        if self.proxy is not None:
            step(f"proxy: {self.proxy} is asked for {self._name} with each request")

    async def why_ended(self) -> str:
        """Why an upstream ends a connection after the handshake, "" if it does not say.

        In TLS 1.3, that is when it says what it thinks of the client's certificate, but its word
        is lost in the reset that the first request is answered with. So nothing is sent here.
        """
        if not self._is_secure or self._is_asking:
            return ""
        self._is_asking = True  # once is enough, however many connections have ended
        try:
            return await self.listen() or ""
        except Unreachable:
            return ""
        finally:
            self._is_asking = False

    async def listen(self, step: Step = _ignore) -> str | None:
        """Connect, send nothing, and close the connection; raises `Unreachable`.

        Returns why the upstream has ended it before that, if it has.
        """
        protocol = _Listening()
        try:
            await self.dial(protocol, step)
            if self._is_secure:
                await asyncio.wait([protocol.ended], timeout=ALERT_S)
                if protocol.ended.done():
                    return reasons.unwelcome(self._name, protocol.ended.result())
        finally:
            await protocol.end()
        return None

    async def refresh(self) -> bool:
        """Read files with certificates again if they have changed; whether they have."""
        return await self.certificates.refresh()

    def close(self) -> None:
        """Look up no more names."""
        self.resolver.thread.close()

    async def _look_up(self, step: Step) -> list[AddrInfoType]:
        host = self._hop_host
        try:
            found = list(await self.resolver.addresses())
        except Stalled:
            raise Unreachable(f"the DNS lookup of {host} timed out", late=True) from None
        except (OSError, UnicodeError) as error:
            raise self._failed(reasons.lookup_failed(host, error), error) from None
        if not self.resolver.known:
            step(f"DNS: {host} is {', '.join(dict.fromkeys(str(each[4][0]) for each in found))}")
        return found

    async def _connect(self, addresses: list[AddrInfoType], step: Step) -> socket.socket:
        try:
            async with asyncio.timeout(CONNECT_S):
                sock = await start_connection(
                    addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1
                )
        except (OSError, RuntimeError) as error:
            text = reasons.connect_failed(self._hop, error)
            raise self._failed(text, error, f"{self._hop} does not answer") from None
        where = self._hop
        with suppress(OSError):  # it has ended already, and what comes next will notice
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host, port = sock.getpeername()[:2]
            where = f"{bracketed(host)}:{port}"
        step(f"TCP: connected to {where}")
        return sock

    async def _tunnel(self, sock: socket.socket, proxy: Proxy, step: Step) -> None:
        where = f"{bracketed(self.url.host)}:{self.url.port}"
        try:
            async with asyncio.timeout(TUNNEL_S):
                await open_tunnel(sock, proxy, where, USER_AGENT)
        except NoTunnel as error:
            sock.close()
            raise Unreachable(f"the proxy {proxy} refuses a tunnel to {where}: {error}") from None
        except OSError as error:
            sock.close()
            text = f"the proxy {proxy} opens no tunnel to {where}"
            late = f"{text} within {TUNNEL_S:g} s"
            raise self._failed(f"{text}: {reasons.ended(where, error)}", error, late) from None
        except BaseException:
            sock.close()
            raise
        step(f"proxy: {proxy} has opened a tunnel to {where}")

    async def _secure(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        step: Step,
    ) -> None:
        certificates = self.certificates
        try:
            transport = await self._handshake(sock, protocol, certificates.context)
        except (OSError, RuntimeError) as error:
            text = reasons.tls_failed(self._name, error, has_certificate=certificates.has_own)
            if getattr(error, "verify_code", 0) == reasons.EXPIRED:
                text = await self._when_expired(certificates) or text
            late = f"TLS with {self._name} failed: no answer within {TLS_S:g} s"
            raise self._failed(text, error, late) from None
        found = transport.get_extra_info("ssl_object")
        until = _end_of_validity(found.getpeercert())
        step(f"TLS: {found.version()}, the certificate of {self._name} is valid until {until}")

    async def _handshake(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        context: ssl.SSLContext | None,
    ) -> asyncio.BaseTransport:
        async with asyncio.timeout(TLS_S):
            return await _open(sock, protocol, ssl=context, server_hostname=self._name)

    async def _when_expired(self, certificates: Certificates) -> str:
        """When the certificate expired: to be told, it takes a handshake that ignores the time."""
        with suppress(OSError, RuntimeError, CertificateError, Unreachable):
            context = await certificates.regardless_of_time()
            sock = await self._connect(await self._look_up(_ignore), _ignore)
            if self.proxy is not None:
                await self._tunnel(sock, self.proxy, _ignore)
            protocol = _Listening()
            transport = await self._handshake(sock, protocol, context)
            found = transport.get_extra_info("ssl_object").getpeercert()
            await protocol.end()
            if ssl.cert_time_to_seconds(found["notAfter"]) < datetime.now(UTC).timestamp():
                return f"certificate of {self._name} expired {_end_of_validity(found)}"
        return ""

    def _failed(self, text: str, error: Exception, if_late: str = "") -> Unreachable:
        """`if_late`: what to say if it is our own time limit that has passed."""
        # A TimeoutError with a number is the kernel's (ETIMEDOUT), and has a reason like others.
        if isinstance(error, TimeoutError) and error.errno is None:
            return Unreachable(if_late, late=True)
        if is_out_of_descriptors(error) or reasons.errors_of(error) & {errno.EMFILE, errno.ENFILE}:
            return Unreachable("out of file descriptors")
        return Unreachable(text)


async def _open(
    sock: socket.socket, protocol: asyncio.BaseProtocol, **tls: Any
) -> asyncio.BaseTransport:
    """Make a transport of a connected socket, which it owns from now on, also if that fails."""
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock, **tls)
    except BaseException:
        # uvloop has closed the descriptor, or will; but the socket can still have its number, which
        # soon belongs to another connection. Freeing the socket would close that one.
        if type(loop).__module__.startswith("uvloop"):
            sock.detach()
        raise
    return transport


def _end_of_validity(certificate: Mapping[str, Any]) -> str:
    """The last day of a certificate that was verified, in UTC."""
    seconds = ssl.cert_time_to_seconds(certificate["notAfter"])
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
