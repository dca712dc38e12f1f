"""Hosts and ports: which is this machine, and listening on several at once."""

import errno
import socket
from collections.abc import Collection, Sequence
from contextlib import suppress
from ipaddress import ip_address

from aiohttp import web


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


async def listen(runner: web.BaseRunner, hosts: Sequence[str | None], port: int) -> int:
    """Listen on every host at the same port; the port that it is. 0 means any."""
    for host in hosts:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            if host != "::1" or error.errno == errno.EADDRINUSE:
                message = f"{host or '*'}:{port}: {error.strerror or error}"
                raise CanNotListen(message) from None
            continue  # a pod without IPv6
        port = port or runner.addresses[0][1]
    return port
