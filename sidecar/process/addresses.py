"""Network addresses: recognizing this machine, and listening on several addresses."""

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ipaddress import ip_address


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
