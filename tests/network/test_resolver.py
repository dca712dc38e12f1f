"""Looking up names: loopback names need no lookup, and a family without an address is no reason."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.network.dialer import Unreachable
from sidecar.network.resolver import Resolver
from tests.support.upstream_connection import (
    DONE,
    new_client,
    new_dialer,
    on_both_loops,
    raw_upstream,
)

Lookup = Callable[[int], list[Any]]


def never(*_: object, **__: object) -> list[Any]:
    pytest.fail("this name was looked up")


def lookups(monkeypatch: pytest.MonkeyPatch, found: Lookup) -> list[int]:
    """Look names up with `found`, which gets the flags; returns the flags of each lookup."""
    real, asked = socket.getaddrinfo, list[int]()

    def look_up(host: bytes, port: int, **options: Any) -> list[Any]:
        if options["flags"] == socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "a name")
        asked.append(options["flags"])
        return found(options["flags"]) or real(b"127.0.0.1", port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "a.localhost"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@on_both_loops
async def test_loopback_names_need_no_lookup(
    name: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are both families' own address, whatever addresses the pod has, and without DNS."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, 0), family=family).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with raw_upstream(host=host) as upstream:
        monkeypatch.setattr(Resolver, "_look_up", never)
        client = new_client(f"http://{name}:{upstream.url.rpartition(':')[2]}", [])
        sending = asyncio.create_task(client.request(b"POST", client.target("/"), b"{}"))
        await (await upstream.accept()).serve()
        assert await sending == DONE
        await client.close()


@on_both_loops
async def test_a_name_of_a_family_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hosts file may say 127.0.0.1 in a pod that has IPv6 only: then it is looked up as it is."""

    def found(flags: int) -> list[Any]:
        if flags == socket.AI_ADDRCONFIG:
            raise socket.gaierror(socket.EAI_NONAME, "no such family")
        return []

    asked = lookups(monkeypatch, found)
    addresses = await Resolver("hosts.test", 80).addresses()
    assert [each[4] for each in addresses] == [("127.0.0.1", 80)]
    assert asked == [socket.AI_ADDRCONFIG, 0]


@pytest.mark.parametrize(
    ("number", "text", "attempts"),
    [
        (socket.EAI_NONAME, "DNS knows no a.test", 2),
        (socket.EAI_AGAIN, "DNS has no answer for a.test", 1),
        (socket.EAI_FAIL, "the DNS lookup of a.test failed: broken", 2),
    ],
)
@on_both_loops
async def test_why_a_lookup_fails(
    number: int, text: str, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text has the name. A server that does not answer is not asked twice."""

    def found(_: int) -> list[Any]:
        raise socket.gaierror(number, "broken")

    asked = lookups(monkeypatch, found)
    with pytest.raises(Unreachable) as failed:
        await new_dialer("http://a.test").listen()
    assert str(failed.value) == text
    assert len(asked) == attempts
