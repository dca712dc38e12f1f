"""Hosts and ports: which is this machine, and listening on several at once."""

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from ipaddress import ip_address


def is_here(host: str, ours: Collection[str]) -> bool:
    """Whether `host` is this machine, however it is spelt; `ours` are hosts that we listen on."""
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
    """`host` as it is in a URL."""
    return f"[{host}]" if ":" in host else host


class CanNotListen(Exception):
    """An address can't be listened on; says which and why."""


async def listen(
    connect: Callable[[], asyncio.BaseProtocol], hosts: Sequence[str | None], port: int
) -> tuple[list[asyncio.Server], int]:
    """Listen on every host at the same port; the servers, and the port that it is. 0 means any."""
    servers: list[asyncio.Server] = []
    for host in hosts:
        try:
            server = await asyncio.get_running_loop().create_server(connect, host, port)
        except OSError as error:
            if host != "::1" or error.errno == errno.EADDRINUSE:
                for each in servers:
                    each.close()
                message = f"{host or '*'}:{port}: {error.strerror or error}"
                raise CanNotListen(message) from None
            continue  # a pod without IPv6
        servers.append(server)
        port = port or server.sockets[0].getsockname()[1]
    return servers, port
