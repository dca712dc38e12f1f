"""Connecting: host names, addresses that refuse or do not respond, IPv6, TLS."""

import asyncio
import resource
import socket
import ssl
from typing import Any

import pytest

from sidecar.network.dialer import CONNECT_S, NEXT_ADDRESS_S
from sidecar.sinks import Unavailable
from tests.support.faults import fast, now
from tests.support.upstream_connection import (
    DONE,
    RawUpstream,
    new_client,
    on_both_loops,
    raw_upstream,
)


def full_backlog() -> tuple[socket.socket, socket.socket]:
    """A listening socket with a full backlog, so that connecting hangs; and what fills it."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    return listening, socket.create_connection(listening.getsockname())


@fast
async def test_connecting_times_out() -> None:
    """Connecting times out after `CONNECT_S`, long before the request itself would."""
    listening, filler = full_backlog()
    outcomes: list[str] = []
    with listening, filler:
        client = new_client(f"http://127.0.0.1:{listening.getsockname()[1]}", outcomes)
        with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:\d+ does not answer$"):
            await client.request(b"POST", client.target("/"), b"{}")
        assert now() == pytest.approx(CONNECT_S, abs=0.01)
        assert outcomes == ["timeout"]
        await client.close()


@on_both_loops
async def test_a_refused_connection() -> None:
    """A refused connection is an outage; the error says who refuses it."""
    outcomes: list[str] = []
    client = new_client("http://127.0.0.1:1", outcomes)
    with pytest.raises(Unavailable, match=r"^127\.0\.0\.1:1 refuses connections$") as failed:
        await client.request(b"POST", client.target("/"), b"{}")
    assert not failed.value.reached
    assert outcomes == ["connection"]
    await client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "a.test"])
@on_both_loops
async def test_no_descriptor_is_left(host: str) -> None:
    """For a connection or a lookup: the error says that the fault is our own."""
    client = new_client(f"http://{host}:1", [])
    target = client.target("/")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Unavailable, match=r"^out of file descriptors$"):
            await client.request(b"POST", target, b"{}")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await client.close()


@on_both_loops
async def test_a_host_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unresolvable name is an outage; concurrent requests share one lookup."""
    lookups = 0

    def fail(*_: object, **__: object) -> list[Any]:
        nonlocal lookups
        lookups += 1
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    client = new_client("http://unknown.test:1", [])
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    target = client.target("/")
    for expected in (1, 2):
        requests = [client.request(b"POST", target, b"{}") for _ in range(3)]
        for error in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(error, Unavailable)
            assert (str(error), error.reached) == ("DNS knows no unknown.test", False)
        assert lookups == 2 * expected  # with and without AI_ADDRCONFIG
    await client.close()


@on_both_loops
async def test_a_host_name_is_resolved() -> None:
    """`localhost` reaches the upstream."""
    async with raw_upstream() as upstream:
        client = new_client(upstream.url.replace("127.0.0.1", "localhost"), [])
        sending = asyncio.create_task(client.request(b"POST", client.target("/"), b"{}"))
        assert b"\r\nHost: localhost:" in await (await upstream.accept()).serve()
        assert await sending == DONE
        await client.close()


def put_addresses_before(
    upstream: RawUpstream, monkeypatch: pytest.MonkeyPatch, *first: tuple[str, int]
) -> None:
    """Make the host resolve to these addresses, then to the upstream's own."""
    port = int(upstream.url.rpartition(":")[2])
    monkeypatch.setattr(
        upstream.client._http._dialer.resolver,
        "known",
        [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (host, at),
            )
            for host, at in (*first, ("127.0.0.1", port))
        ],
    )


@on_both_loops
async def test_a_host_with_an_address_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client falls back from the IPv6 address to the IPv4 one."""
    async with raw_upstream() as upstream:
        put_addresses_before(upstream, monkeypatch, ("::1", 1))
        await upstream.idle_connection()


@fast
async def test_a_host_with_an_address_that_does_not_respond() -> None:
    """The next address is tried concurrently after `NEXT_ADDRESS_S`."""
    listening, filler = full_backlog()
    with listening, filler, pytest.MonkeyPatch.context() as monkeypatch:
        async with raw_upstream() as upstream:
            put_addresses_before(upstream, monkeypatch, listening.getsockname())
            started = now()
            await upstream.idle_connection()
            assert now() - started == pytest.approx(NEXT_ADDRESS_S, abs=0.01)


@on_both_loops
async def test_ipv6() -> None:
    """The address is in brackets, in the URL and in the Host header."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with raw_upstream(host="::1") as upstream:
        sending = upstream.send()
        host = upstream.url.removeprefix("http://").encode()
        assert b"\r\nHost: %b\r\n" % host in await (await upstream.accept()).serve()
        assert host.startswith(b"[::1]:")
        assert await sending == DONE


@pytest.mark.process
@on_both_loops
async def test_tls(trusted_tls: ssl.SSLContext) -> None:
    """With a trusted certificate: a large body, a stale connection, a response until EOF."""
    async with raw_upstream(tls=trusted_tls) as upstream:
        connection = await upstream.idle_connection()
        body = b"x" * 2**20
        sending = upstream.send(body)
        assert (await connection.serve()).endswith(b"\r\n\r\n" + body)
        assert await sending == DONE
        sending = upstream.send()
        await connection.request()
        connection.close()  # stale
        connection = await upstream.accept()
        await connection.serve(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        connection.close()
        assert await sending == DONE


@pytest.mark.process
@on_both_loops
async def test_an_untrusted_certificate(tls: ssl.SSLContext) -> None:
    """An untrusted certificate is an outage that names the error; nothing is sent."""
    async with raw_upstream(tls=tls) as upstream:
        with pytest.raises(
            Unavailable, match=r"^certificate of localhost is not trusted: "
        ) as failed:
            await upstream.send()
        assert not failed.value.reached
        assert upstream.connections.empty()


@fast
async def test_closing_while_connecting() -> None:
    """The request fails immediately instead of after `CONNECT_S`."""
    listening, filler = full_backlog()
    with listening, filler:
        client = new_client(f"http://127.0.0.1:{listening.getsockname()[1]}", [])
        sending = asyncio.create_task(client.request(b"POST", client.target("/"), b"{}"))
        await asyncio.sleep(1)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await sending
        assert now() < CONNECT_S
