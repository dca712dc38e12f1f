"""Network addresses: base URLs, recognizing this machine, listening on several addresses."""

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Everything that RFC 3986 allows in a path, and "%": what is encoded already stays as it is.
_PATH = "/%:@!$&'()*+,;=~"


class BaseUrl(NamedTuple):
    """A parsed base URL: the host without brackets, the path percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str
    user: str | None
    password: str | None

    @property
    def authority(self) -> str:
        """Host and port as in a `Host` header: the port only if it is not the default."""
        host = bracketed(self.host)
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_base_url(text: str) -> BaseUrl:
    """Parse an http or https URL; raises `ValueError`."""
    url = urlsplit(text)
    if url.scheme not in _DEFAULT_PORTS or not url.hostname or url.port == 0:
        raise ValueError("not an http or https URL with a host and a port")
    if not text.isprintable() or " " in text:
        raise ValueError("a URL has no spaces or control characters")
    port = url.port or _DEFAULT_PORTS[url.scheme]
    host = url.hostname if url.hostname.isascii() else url.hostname.encode("idna").decode()
    path = quote(url.path, safe=_PATH) + (
        f"?{quote(url.query, safe=_PATH + '?')}" if url.query else ""
    )
    user, password = (each and unquote(each) for each in (url.username, url.password))
    return BaseUrl(url.scheme, host, port, path, user, password)


def is_local(host: str, ours: Collection[str]) -> bool:
    """Whether `host` is this machine, in any notation; `ours` are the hosts we listen on."""
    host = host.lower().removesuffix(".")
    if host == "localhost" or host in ours:
        return True
    with suppress(OSError):
        host = socket.inet_ntoa(socket.inet_aton(host))  # 127.1 and 2130706433 are 127.0.0.1
    try:
        address = ip_address(host)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def bracketed(host: str) -> str:
    """`host` as written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


class ListenError(Exception):
    """Cannot listen on an address; the message gives the address and the reason."""


async def listen(
    connect: Callable[[], asyncio.BaseProtocol], hosts: Sequence[str | None], port: int
) -> tuple[list[asyncio.Server], int]:
    """Listen on every host, all on the same port; return the servers and that port.

    `port` 0 means any free one. Raises `ListenError`.
    """
    servers: list[asyncio.Server] = []
    for host in hosts:
        try:
            server = await asyncio.get_running_loop().create_server(connect, host, port)
        except OSError as error:
            if host != "::1" or error.errno == errno.EADDRINUSE:
                for each in servers:
                    each.close()
                message = f"{host or '*'}:{port}: {error.strerror or error}"
                raise ListenError(message) from None
            continue  # the machine has no IPv6
        servers.append(server)
        port = port or server.sockets[0].getsockname()[1]
    return servers, port
