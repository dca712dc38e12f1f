"""How many connections a port has, who goes when it is full, and how it closes."""

import asyncio

import pytest

from sidecar.http.server_connection import HEAD_S
from tests.support.playbook import IDLE_S, Port, Wire, sent
from tests.support.virtual_time import run_virtual

GET = sent(b"GET /a HTTP/1.1")
LATER = sent(b"GET /later HTTP/1.1")
BODY = sent(b"POST /b HTTP/1.1", body=b"{}")


def open_with(port: Port, *sent_by_each: bytes) -> list[Wire]:
    """A connection for each, which has sent these bytes."""
    wires = [port.connect() for _ in sent_by_each]
    for wire, data in zip(wires, sent_by_each, strict=True):
        if data:
            wire.connection.data_received(data)
    return wires


@pytest.mark.parametrize(
    ("states", "goes"),
    [
        ([GET, b"GET /a", b"", b"GET"], 1),  # an incomplete head, before an idle client
        ([GET, GET, LATER], 0),  # idle for longest
        ([LATER, BODY[:-1], GET], 2),  # idle, before an incomplete body
        ([LATER, BODY[:-1], BODY[:-1]], 1),
        ([b"\0\r\n", b"GET", GET], 0),  # refused, and still open
    ],
)
async def test_who_goes_when_all_places_are_taken(states: list[bytes], goes: int) -> None:
    """The client that has kept us waiting longest, and first those that never sent a request."""
    port = Port(max_connections=len(states))
    wires = open_with(port, *states)
    assert port.crowds == 0
    new = port.connect()
    assert [wire.closed for wire in wires] == [number == goes for number in range(len(states))]
    assert port.crowds == 1
    new.connection.data_received(GET)
    assert new.responses.statuses == [200]
    port.gate.set()


async def test_nobody_goes_while_all_wait_for_us() -> None:
    """If every client waits for its response, the new connection is closed."""
    port = Port(max_connections=2)
    wires = open_with(port, LATER, LATER)
    assert port.connect().closed
    assert not any(wire.closed for wire in wires)
    port.gate.set()


async def test_a_crowd_of_new_connections() -> None:
    """However many come, there are never more than the limit, and those that are served stay."""
    port = Port(max_connections=10)
    (served,) = open_with(port, GET)
    wires = [port.connect() for _ in range(5000)]
    assert sum(not wire.closed for wire in [served, *wires]) == 10
    served.connection.data_received(GET)
    assert served.responses.statuses == [200, 200]


async def test_an_active_client_is_not_the_one_that_waits_longest() -> None:
    """Each request starts the idle time again."""
    port = Port(max_connections=2)
    first, second = open_with(port, GET, GET)
    first.connection.data_received(GET)
    port.connect()
    assert (first.closed, second.closed) == (False, True)


def test_a_place_is_free_again() -> None:
    """A connection that closes or times out leaves its place."""

    async def story() -> None:
        port = Port(max_connections=2)
        (first, _) = open_with(port, GET, b"")
        first.abort()
        port.connect()
        assert port.crowds == 0
        await asyncio.sleep(HEAD_S + 1)
        open_with(port, GET, GET)
        await asyncio.sleep(IDLE_S + 1)
        open_with(port, GET, GET)
        assert port.crowds == 0

    run_virtual(story())


def test_closing() -> None:
    """Connections without a pending response close at once, the others when they have it."""

    async def story() -> None:
        port = Port()
        idle, body, later = open_with(port, GET, BODY[:-1], LATER)
        closing = asyncio.create_task(port.server.close(5.0))
        await asyncio.sleep(1)
        assert (idle.closed, body.closed, later.closed) == (True, True, False)
        port.gate.set()
        await closing
        assert later.responses.statuses == [200]
        assert later.closed

    run_virtual(story())


def test_closing_does_not_wait_for_ever() -> None:
    """A response that is not ready in time is given up."""

    async def story() -> None:
        port = Port()
        (later,) = open_with(port, LATER)
        await port.server.close(5.0)
        assert later.closed
        assert later.responses.statuses == []
        assert asyncio.get_running_loop().time() == pytest.approx(5.0)

    run_virtual(story())
