"""Requests of agents on a connection: cut anywhere, pipelined, refused, ended early."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.playbook import Responses, Wire
from tests.support.spans import make_event
from tests.support.spool import until
from tests.support.world import Running, running_app, upstream

DEADLINE_S = 10.0


def plain(id_: str, *, size: int = 10, headers: tuple[bytes, ...] = ()) -> bytes:
    """A plain request with one event of `size` bytes of input."""
    body = orjson.dumps(make_event(id_, input={"p": "x" * size}))
    return requested(body, headers=headers)


def requested(body: bytes, *, headers: tuple[bytes, ...] = ()) -> bytes:
    """A request with `body`."""
    lines = [
        b"POST /v1/spans HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
        *headers,
        b"Content-Length: %d" % len(body),
    ]
    return b"\r\n".join([*lines, b"", body])


def chunked(body: bytes) -> bytes:
    """A request with a chunked body."""
    head = requested(b"", headers=(b"Transfer-Encoding: chunked",)).replace(
        b"Content-Length: 0\r\n", b""
    )
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def connected(app: Running) -> Wire:
    """A connection to the agents' port, without a socket."""
    wire = Wire()
    wire.connection = app.app.listener.server.connect()
    wire.connection.connection_made(wire)
    return wire


async def talk(port: int, *pieces: bytes, responses: int) -> Responses:
    """Write `pieces` to one connection; return what the server wrote, up to `responses` of them."""
    got = Responses()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            while len(got.statuses) < responses:
                if not (data := await reader.read(65536)):
                    break
                got.feed(data)
    finally:
        writer.close()
    return got


@pytest.fixture
async def app() -> AsyncIterator[Running]:
    """An app that accepts bodies of at most 64 KiB, within 0.05 s."""
    async with running_app(listener__max_body="64KiB", listener__body_timeout_s=0.05) as running:
        yield running


@given(
    st.lists(st.sampled_from([0, 1, 300, 5000]), min_size=1, max_size=4),
    st.sets(st.integers(1, 6000), max_size=8),
)
def test_requests_can_be_cut_anywhere(sizes: list[int], cuts: set[int]) -> None:
    """However the bytes are cut, each request gets one response, in order."""
    sent = b"".join(plain(f"s{n}", size=size) for n, size in enumerate(sizes))
    edges = [0, *sorted(cut for cut in cuts if cut < len(sent))]

    async def story() -> None:
        async with running_app() as app:
            wire = connected(app)
            for start, end in zip(edges, [*edges[1:], len(sent)], strict=True):
                wire.connection.data_received(sent[start:end])
            assert wire.responses.statuses == [202] * len(sizes)
            assert app.app.accounting.received == len(sizes)
            assert app.app.budget.reading == 0
            wire.abort()

    asyncio.run(story())


async def test_a_head_in_pieces(app: Running) -> None:
    """A head that arrives in pieces is accepted, and so is the next request on its connection."""
    request = plain("a")
    got = await talk(
        app.port,
        *(request[at : at + 7] for at in range(0, len(request), 7)),
        plain("b"),
        responses=2,
    )
    assert got.statuses == [202, 202]
    assert app.app.accounting.received == 2


async def test_all_kinds_of_requests_mixed(app: Running) -> None:
    """Requests of all kinds, pipelined on one connection, get their responses in order."""
    event = orjson.dumps(make_event("c"))
    got = await talk(
        app.port,
        plain("a")
        + plain("b")
        + chunked(event)
        + b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        + requested(b"{")
        + plain("d"),
        responses=6,
    )
    assert got.statuses == [202, 202, 202, 200, 400, 202]
    assert app.app.accounting.received == 4


async def test_refusals_keep_the_connection(app: Running) -> None:
    """A bad body gets 400 with the reason, and the next request is accepted."""
    got = await talk(app.port, requested(b"{") + requested(b"[]") + plain("a"), responses=3)
    assert got.statuses == [400, 400, 202]
    assert orjson.loads(got.bodies[0])["rejected"][0]["index"] == 0


async def test_a_body_that_does_not_fit() -> None:
    """It is read to its end but not kept, gets 429, and the connection stays usable."""
    async with running_app(queue__max_bytes="64KiB") as app:
        request = plain("large", size=200_000)
        pieces = [request[at : at + 20_000] for at in range(0, len(request), 20_000)]
        wire = connected(app)
        held = []
        for piece in [*pieces, plain("small")]:
            wire.connection.data_received(piece)
            held.append(app.app.budget.reading)
        assert wire.responses.statuses == [429, 202]
        assert max(held) <= 64 * 1024
        assert held[-1] == 0
        assert app.app.accounting.received == 1


async def test_a_body_that_stalls(app: Running) -> None:
    """It gets 408 after `body_timeout_s`, and the connection is closed."""
    got = await talk(app.port, plain("a", size=1000)[:-500], responses=2)
    assert got.statuses == [408]
    assert app.app.budget.reading == 0


async def test_a_body_that_is_too_large(app: Running) -> None:
    """A length above `listener.max_body` gets 413 after the body, and the connection stays."""
    got = await talk(app.port, plain("a") + requested(b"x" * 65537) + plain("b"), responses=3)
    assert got.statuses == [202, 413, 202]


async def test_an_agent_that_closes_in_the_middle_of_a_body(app: Running) -> None:
    """Nothing of the body stays in memory, and no event is accepted."""
    wire = connected(app)
    wire.connection.data_received(plain("a", size=1000)[:-500])
    assert app.app.budget.reading > 0
    wire.abort()
    assert app.app.budget.reading == 0
    assert app.app.accounting.received == 0


async def test_a_response_while_the_agent_still_sends(app: Running) -> None:
    """An agent that was too slow can still read its 408: further input is ignored."""
    request = plain("a", size=60_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    async with asyncio.timeout(DEADLINE_S):
        writer.write(request[:1000])
        head = await reader.readuntil(b"\r\n\r\n")
        for at in range(1000, len(request), 1000):
            writer.write(request[at : at + 1000])
            await writer.drain()
        body = await reader.read()
    writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"Connection: close\r\n" in head
    assert b"within" in body
    assert app.app.accounting.received == 0


async def test_an_upgrade_is_not_accepted(app: Running) -> None:
    """A client that offers HTTP/2 gets an HTTP/1.1 response."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk")
    got = await talk(app.port, plain("a", headers=offer), responses=1)
    assert got.statuses == [202]


@pytest.mark.parametrize("following", [b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"half"])
async def test_an_agent_that_closes_before_its_response(tmp_path: Path, following: bytes) -> None:
    """Input after a request that waits for the disk is dropped; other agents are not affected."""
    if following == b"half":
        following = plain("b", size=5000)[:-100]
    async with running_app(spool__path=tmp_path, spool__max_bytes="16MiB") as app:
        for number in range(10):
            _, writer = await asyncio.open_connection("127.0.0.1", app.port)
            writer.write(plain(f"a{number}") + following)
            await writer.drain()
            writer.transport.abort()
        assert (await app.post(make_event("last"))).status == 202
        await until(lambda: not app.app.budget.reading)
        assert not app.task.done()


async def test_stopping_waits_for_responses(tmp_path: Path) -> None:
    """A request that waits for the disk when the process stops gets its response."""
    spool = {"spool__path": tmp_path, "spool__max_bytes": "16MiB"}
    async with (
        upstream() as agentex,
        running_app({"AGENTEX_BASE_URL": agentex.url}, **spool) as app,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(plain("a"))
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: app.app.accounting.received)
            app.app.stop()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 202 ")
        writer.close()
        assert await app.task


async def test_responses_wait_for_the_spool(tmp_path: Path) -> None:
    """With a spool, pipelined requests get their responses in order, once they are on disk."""
    async with running_app(spool__path=tmp_path, spool__max_bytes="16MiB") as app:
        sent = b"".join(plain(f"s{n}", size=400 * n) for n in range(50))
        got = await talk(app.port, sent, responses=50)
        assert got.statuses == [202] * 50
        assert app.app.accounting.received == 50
        assert app.app.spool.status().writes == 50


async def test_the_last_credential_is_used() -> None:
    """The last key is used, also if it was used before."""
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
        for number, key in enumerate([b"k1", b"k2", b"k1"]):
            body = orjson.dumps(make_event(f"s{number}", kind="end"))
            request = requested(body, headers=(b"x-agent-api-key: " + key,))
            got = await talk(app.port, request, responses=1)
            assert got.statuses == [202]
            async with asyncio.timeout(DEADLINE_S):
                await agentex.asked.wait()
            agentex.asked.clear()
        sent = [request.headers["x-agent-api-key"] for request in agentex.requests]
        assert sent == ["k1", "k2", "k1"]
