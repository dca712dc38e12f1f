"""Connections that end while they are being opened: nobody keeps them, and nothing else is hit."""

import asyncio
import socket
import struct
from typing import Any

import pytest
from aiohappyeyeballs import start_connection

from sidecar.network import dialer as dialers
from sidecar.network.certificates import CertificateFiles
from sidecar.network.dialer import Dialer, Unreachable
from tests.support.tls import Authority
from tests.support.upstream_connection import (
    AcceptedConnection,
    new_dialer,
    new_http_client,
    on_both_loops,
    raw_upstream,
)

MAX_STEPS = 40


def reset_next(listening: socket.socket) -> None:
    """Accept the connection that was just opened, and reset it."""
    accepted, _ = listening.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()


@on_both_loops
async def test_a_reset_before_the_handshake(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No socket is left with a number that may be another connection's by now.

    When such a socket is freed, Python closes that number, whoever has it.
    """
    opened: list[socket.socket] = []

    async def keep(*arguments: Any, **options: Any) -> socket.socket:
        opened.append(await start_connection(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(dialers, "start_connection", keep)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        dialer = new_dialer(url, CertificateFiles(str(authority.path)))
        with pytest.raises(Unreachable):
            await dialer.dial(asyncio.Protocol(), lambda _: reset_next(listening))
    for _ in range(MAX_STEPS):
        await asyncio.sleep(0)
    assert [each.fileno() for each in opened] == [-1]


@pytest.mark.parametrize("secure", [False, True])
@on_both_loops
async def test_a_request_that_is_cancelled(secure: bool, authority: Authority) -> None:
    """Wherever it is cancelled, `close` ends, because no connection is left."""
    files = CertificateFiles(str(authority.path))
    async with raw_upstream(tls=authority.server() if secure else None) as upstream:
        url = upstream.url.replace("127.0.0.1", "localhost")
        for steps in range(MAX_STEPS):
            client = new_http_client(new_dialer(url, files))
            head = client.head(b"GET", client.target("/"), {}, 0)
            request = asyncio.create_task(client.exchange(head, b""))
            for _ in range(steps):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.wait([request])
            async with asyncio.timeout(1):
                await client.close()
            assert not client._connections, steps


@pytest.mark.parametrize("secure", [False, True])
@on_both_loops
async def test_a_visit_that_is_cancelled_at_its_end(secure: bool, authority: Authority) -> None:
    """No callback fails while the connection closes: that would end the process."""
    loop = asyncio.get_running_loop()
    files = CertificateFiles(str(authority.path))

    class Cancelled(dialers._Listening):
        async def end(self) -> None:
            loop.call_soon(visit.cancel)
            await super().end()

    patch = pytest.MonkeyPatch()
    patch.setattr(dialers, "_Listening", Cancelled)
    patch.setattr(dialers, "ALERT_S", 0.01)
    try:
        async with raw_upstream(tls=authority.server() if secure else None) as upstream:
            url = upstream.url.replace("127.0.0.1", "localhost")
            visit = asyncio.create_task(new_dialer(url, files).listen())
            await asyncio.wait([visit])
            connection: AcceptedConnection = await upstream.accept()
            await connection.closed_by_client()
            for _ in range(MAX_STEPS):
                await asyncio.sleep(0)
    finally:
        patch.undo()


def reaching(*addresses: str) -> Dialer:
    """A dialer for a name with these addresses, on a port on which nobody listens."""
    dialer = new_dialer("http://far.test:9")
    dialer.resolver.known = [
        (
            socket.AF_INET6 if ":" in each else socket.AF_INET,
            socket.SOCK_STREAM,
            socket.IPPROTO_TCP,
            "",
            (each, 9),
        )
        for each in addresses
    ]
    return dialer


@pytest.mark.parametrize("addresses", [("fe80::1", "127.0.0.1"), ("127.0.0.1", "fe80::1")])
@on_both_loops
async def test_addresses_that_fail_differently(addresses: tuple[str, str]) -> None:
    """The text has a reason, and not the name of an exception."""
    with pytest.raises(Unreachable) as failed:
        await reaching(*addresses).listen()
    assert "Error" not in str(failed.value)
