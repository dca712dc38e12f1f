"""Asks an HTTP proxy for a tunnel: `CONNECT` (RFC 9110, 9.3.6)."""

import asyncio
import re
import socket
from http import HTTPStatus

from sidecar.network.proxies import Proxy

MAX_HEAD_BYTES = 64 * 1024
_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.\d (\d{3})(?: |\r?\n)")
_INFORMATIONAL, _SUCCESS = range(100, 200), range(200, 300)


class NoTunnel(Exception):
    """The proxy opens no tunnel; the message says why, and nothing of the credential."""


async def open_tunnel(sock: socket.socket, proxy: Proxy, authority: str, agent: str) -> None:
    """Ask `proxy`, to which `sock` is connected, for a tunnel to `authority` (host and port).

    `sock` must be non-blocking. Afterwards, it is as if it were connected to the upstream. Raises
    `NoTunnel` or `OSError`. There is no time limit: that is up to the caller.
    """
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}", f"User-Agent: {agent}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization.reveal()}")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, "\r\n".join([*lines, "\r\n"]).encode())
    received, total = b"", 0
    while True:
        end = _END.search(received)
        if end is None:
            if total > MAX_HEAD_BYTES:
                raise NoTunnel("its response is too long")
            chunk = await loop.sock_recv(sock, MAX_HEAD_BYTES)
            if not chunk:
                raise NoTunnel("it ended the connection")
            received += chunk
            total += len(chunk)
            continue
        found = _STATUS.match(received)
        if found is None:
            raise NoTunnel("its response is not HTTP")
        status = int(found[1])
        if status in _INFORMATIONAL:
            received = received[end.end() :]
            continue
        if status not in _SUCCESS:
            raise NoTunnel(refusal(status, has_credential=bool(proxy.authorization)))
        if len(received) > end.end():
            raise NoTunnel("it sent more than a response")  # TLS servers wait for the client
        return


def refusal(status: int, *, has_credential: bool) -> str:
    """What a status of the proxy's own means, in words."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        what = "refuses the credential in its URL" if has_credential else "requires a credential"
        return f"HTTP {status}: it {what}"
    return f"HTTP {status}"
