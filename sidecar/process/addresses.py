"""Network addresses: base URLs, names of hosts and of this machine, listening on several."""

import asyncio
import errno
import os
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import quote, unquote, urlsplit

# Connections that may wait to be accepted: as many as a port has at most. Others would be tried
# again by their client's kernel, a second later.
BACKLOG = 1024

DEFAULT_PORTS = {"http": 80, "https": 443}
# Everything that RFC 3986 allows in a path, and "%": what is encoded already stays as it is.
_PATH = "/%:@!$&'()*+,;=~"
# The user name and the password in a URL, also where they have an "@" or a "/" in them.
_USER = re.compile(r"^(\w+://)?.*@")
_MAX_LABEL = 63  # RFC 1035, 2.3.4; in TLS, no longer name can even be asked for
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


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
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def credential(self) -> str:
        """The value of an `Authorization` header with the user and the password, "" for none."""
        if not (self.user or self.password):
            return ""
        return "Basic " + b64encode(f"{self.user or ''}:{self.password or ''}".encode()).decode()


def parse_base_url(text: str) -> BaseUrl:
    """Parse an http or https URL; raises `ValueError`, whose text has no part of the URL in it."""
    if "?" in text or "#" in text:
        raise ValueError("must have no query and no fragment (? or #)")
    if not text.isprintable() or " " in text:
        raise ValueError("must have no spaces or control characters")
    try:
        url = urlsplit(text)
        default = DEFAULT_PORTS.get(url.scheme)
        port = default if url.port is None else url.port
        host = url.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode()
    except ValueError:  # it quotes the URL, which may have a password in it
        default = port = host = None
    if not (default and port and host):
        raise ValueError("must be a URL such as http://host:port/path") from None
    if not all(0 < len(label) <= _MAX_LABEL for label in host.removesuffix(".").split(".")):
        raise ValueError("must have a host whose names between dots have 1 to 63 characters")
    if "@" in url.path:  # from http://user:12/3@host, the rest of the password
        raise ValueError("must have %2F for a / in its password, and %40 for an @ in its path")
    user, password = (each and unquote(each) for each in (url.username, url.password))
    return BaseUrl(url.scheme, host, port, quote(url.path, safe=_PATH), user, password)


def masked(url: str) -> str:
    """`url` with `***` for a user name and a password; it need not be valid."""
    return _USER.sub(r"\1***@", url)


def canonical_host(host: str) -> str:
    """The one form for all spellings of a host, for comparisons.

    Lower case, without brackets and without the dot at the end, as ASCII; an address in any
    notation is written the usual way.
    """
    host = host.lower().removesuffix(".")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host.isascii():
        with suppress(UnicodeError):
            host = host.encode("idna").decode()
    address = _address(host)
    return host if address is None else str(address)


def is_host(text: str) -> bool:
    """Whether it is a name or an address, possibly in brackets, and nothing else."""
    if any(each.isspace() for each in text) or "%" in text or ("[" in text and ":" not in text):
        return False
    host = canonical_host(text)
    return _address(host) is not None or all(map(_LABEL.fullmatch, host.split(".")))


def is_loopback(host: str) -> bool:
    """Whether `host`, in any notation, is a name or an address that only this machine has."""
    host = canonical_host(host)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def is_local(host: str, ours: Collection[str]) -> bool:
    """Whether `host` is this machine, in any notation; `ours` are the hosts we listen on."""
    host = canonical_host(host)
    if is_loopback(host) or host in map(canonical_host, ours):
        return True
    address = _address(host)
    return address is not None and address.is_unspecified


def _address(host: str) -> IPv4Address | IPv6Address | None:
    with suppress(OSError, ValueError):
        host = socket.inet_ntoa(socket.inet_aton(host))  # 127.1 and 2130706433 are 127.0.0.1
    try:
        address = ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def bracketed(host: str) -> str:
    """`host` as written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


class ListenError(Exception):
    """Cannot listen on an address; the message gives the address and the reason.

    `number`: the `errno`, or what the resolver says about the host's name. `twice`: another of the
    hosts has the address.
    """

    def __init__(self, host: str, port: int, error: OSError, *, twice: bool = False) -> None:
        self.number, self.twice = error.errno or 0, twice
        # asyncio's and uvloop's own texts repeat the address.
        reason = os.strerror(self.number) if self.number > 0 else error.strerror or error
        super().__init__(f"{bracketed(host)}:{port}: {reason}")


async def listen(
    connect: Callable[[], asyncio.BaseProtocol],
    hosts: Sequence[str | None],
    port: int,
    *,
    serve: bool = True,
) -> tuple[list[asyncio.Server], int]:
    """Listen on every host, all on the same port; return the servers and that port.

    `port` 0 means any free one. Without `serve`, only occupy the port. Raises `ListenError`.
    """
    servers: list[asyncio.Server] = []
    taken: list[IPv4Address | IPv6Address] = []
    for host in hosts:
        try:
            server = await _server(connect, host, port, taken, serve=serve)
        except ListenError:
            for each in servers:
                each.close()
            raise
        if server is None:
            continue  # the machine has no IPv6
        servers.append(server)
        taken += _addresses(server)
        port = port or server.sockets[0].getsockname()[1]
    return servers, port


async def _server(
    connect: Callable[[], asyncio.BaseProtocol],
    host: str | None,
    port: int,
    taken: Collection[IPv4Address | IPv6Address],
    *,
    serve: bool,
) -> asyncio.Server | None:
    """A server at one host, None for `::1` on a machine without IPv6."""
    try:
        server = await asyncio.get_running_loop().create_server(
            connect, host, port, start_serving=serve, backlog=BACKLOG
        )
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        if host == "::1" and not in_use:
            return None
        address = _address(canonical_host(host or ""))
        twice = in_use and address is not None and any(_overlap(address, each) for each in taken)
        raise ListenError(host or "*", port, error, twice=twice) from None
    except ValueError:  # of a name that can't be one, or has a NUL in it
        raise ListenError(host or "*", port, OSError(0, "not a host")) from None
    # Sockets that only occupy the port do not exclude each other.
    if any(_overlap(one, other) for one in _addresses(server) for other in taken):
        server.close()
        raise ListenError(host or "*", port, OSError(errno.EADDRINUSE, ""), twice=True)
    return server


def _addresses(server: asyncio.Server) -> list[IPv4Address | IPv6Address]:
    return [ip_address(each.getsockname()[0].partition("%")[0]) for each in server.sockets]


def _overlap(one: IPv4Address | IPv6Address, other: IPv4Address | IPv6Address) -> bool:
    same = one == other or one.is_unspecified or other.is_unspecified
    return same and one.version == other.version
