"""Plain requests on a connection: cut anywhere, pipelined, mixed with requests for aiohttp."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httptools
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.listener.head_cache import HeadCache
from sidecar.listener.routes import Request
from sidecar.listener.routes.ingest import IngestRoute
from tests.support.spool import until
from tests.support.upstream_connection import on_both_loops
from tests.support.world import Running, make_event, running_app, upstream

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
    """A request with a chunked body, which aiohttp serves."""
    head = requested(b"", headers=(b"Transfer-Encoding: chunked",)).replace(
        b"Content-Length: 0\r\n", b""
    )
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


class Responses:
    """Parses what the server writes."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.statuses.append(self._parser.get_status_code())
        self.bodies.append(b"")

    def on_body(self, data: bytes) -> None:
        self.bodies[-1] += data

    def feed(self, data: bytes) -> None:
        """Parse bytes that the server wrote."""
        self._parser.feed_data(data)


class Wire(asyncio.Transport):
    """A transport whose peer is the test."""

    def __init__(self, responses: Responses) -> None:
        super().__init__()
        self._responses = responses
        self.protocol: asyncio.BaseProtocol | None = None
        self.closed = False

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        self._responses.feed(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def write_eof(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


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
    # A head in two pieces moves the connection to aiohttp, which this transport can't serve.
    heads = [range(at, at + len(plain("s0")) - 80) for at in _beginnings(sent)]
    edges = [0, *sorted(c for c in cuts if c < len(sent) and not any(c in h for h in heads))]

    async def story() -> None:
        async with running_app() as app:
            responses = Responses()
            wire = Wire(responses)
            connection = app.app.listener.connect()
            connection.connection_made(wire)
            for start, end in zip(edges, [*edges[1:], len(sent)], strict=True):
                connection.data_received(sent[start:end])
            assert responses.statuses == [202] * len(sizes)
            assert app.app.accounting.received == len(sizes)
            assert app.app.budget.reading == 0
            assert wire.protocol is None
            connection.connection_lost(None)

    asyncio.run(story())


def _beginnings(sent: bytes) -> Iterator[int]:
    at = sent.find(b"POST ")
    while at >= 0:
        yield at
        at = sent.find(b"POST ", at + 1)


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


async def test_plain_and_other_requests_mixed(app: Running) -> None:
    """Plain requests and others, pipelined on one connection, get their responses in order."""
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
        connection = app.app.listener.connect()
        responses = Responses()
        connection.connection_made(Wire(responses))
        held = []
        for piece in [*pieces, plain("small")]:
            connection.data_received(piece)
            held.append(app.app.budget.reading)
        assert responses.statuses == [429, 202]
        assert max(held) <= 64 * 1024
        assert held[-1] == 0
        assert app.app.accounting.received == 1


async def test_a_body_that_stalls(app: Running) -> None:
    """It gets 408 after `body_timeout_s`, and the connection is closed."""
    got = await talk(app.port, plain("a", size=1000)[:-500], responses=2)
    assert got.statuses == [408]
    assert app.app.budget.reading == 0


async def test_a_cached_head_with_another_length(app: Running) -> None:
    """A length above `listener.max_body` gets 413 before the body, also with a cached head."""
    request = plain("a")
    longer = request.partition(b"Content-Length")[0] + b"Content-Length: 65537\r\n\r\n"
    got = await talk(app.port, request + longer, responses=2)
    assert got.statuses == [202, 413]


async def test_an_agent_that_closes_in_the_middle_of_a_body(app: Running) -> None:
    """Nothing of the body stays in memory, and no event is accepted."""
    connection = app.app.listener.connect()
    connection.connection_made(Wire(Responses()))
    connection.data_received(plain("a", size=1000)[:-500])
    assert app.app.budget.reading > 0
    connection.connection_lost(None)
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


async def test_aiohttp_after_a_request_that_waited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that waited for the disk can move to aiohttp, and no task is left over."""
    async with running_app(spool__path=tmp_path, spool__max_bytes="16MiB") as app:
        readyz = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        got = await talk(app.port, plain("a") + readyz + plain("b"), responses=3)
        assert got.statuses == [202, 200, 202]
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


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
        assert app.app.spool is not None
        assert app.app.spool.rows == 50


async def test_a_credential_in_a_cached_head() -> None:
    """The last key is used, also when its head was cached before."""
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


OWN = IngestRoute(lambda _: None)
NOT_PLAIN = [
    b"POST /v1/spans HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans?x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /v1/spans HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nContent-Length: +2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b"POST /v1/spans HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /spans HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: a\r\nContent-Length: 0\r\n\r\n",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nX: y\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nX: caf\xe9\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nX : y\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\r\nX: \x00\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nHost: a\nContent-Length: 2\r\n\r\n{}",
    b"POST /v1/spans HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\nContent-Length: 2\r\n\r\n{}",
]


@pytest.mark.parametrize("received", NOT_PLAIN)
def test_what_is_not_plain(received: bytes) -> None:
    """`find` returns None for a request that is not plain."""
    assert HeadCache(lambda _: OWN).find(received) is None


READYZ = b"GET /readyz HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 5",
        b"Content-Length:5",
        b"CONTENT-LENGTH: 5",
        b"Content-Length: 0000000000005",
        b"Content-Length: ",
        b"Content-Length: 5 ",
        b"Transfer-Encoding: chunked",
    ],
)
def test_a_readiness_probe_with_a_body_is_not_plain(line: bytes) -> None:
    """A GET /readyz with a body is left to aiohttp: the body could hide a second request."""
    heads = HeadCache(lambda _: OWN)
    assert heads.find(READYZ + line + b"\r\n\r\n") is None
    found = heads.find(READYZ + b"\r\n" + READYZ)
    assert found is not None
    assert found[1:] == (len(READYZ) + 2, 0)


def test_a_head_is_parsed_once() -> None:
    """Heads that differ only in Content-Length are parsed once; any other one is a new head."""
    parsed: list[Request] = []

    def route_of(request: Request) -> IngestRoute:
        parsed.append(request)
        return OWN

    heads = HeadCache(route_of)
    first, second = heads.find(plain("a")), heads.find(plain("b", size=500))
    other = heads.find(plain("a", headers=(b"x-agent-api-key: k",)))
    assert first is not None
    assert second is not None
    assert other is not None
    assert first[0] is second[0]
    _, start, length = second
    assert orjson.loads(plain("b", size=500)[start : start + length])["span"]["id"] == "b"
    assert other[0].request.headers["X-Agent-Api-Key"] == "k"
    assert len(parsed) == 2


def test_the_cache_is_bounded() -> None:
    """An agent whose heads all differ is served, and at most 64 heads are cached."""
    heads = HeadCache(lambda _: OWN)
    for number in range(1000):
        assert heads.find(plain("a", headers=(b"traceparent: %d" % number,))) is not None
    assert len(heads) <= 64


def test_a_refused_head_is_not_cached() -> None:
    """A head that its route refuses is left to aiohttp each time."""
    heads = HeadCache(lambda _: None)
    assert heads.find(plain("a")) is None
    assert len(heads) == 0


@on_both_loops
async def test_agents_that_wait_for_aiohttp() -> None:
    """While aiohttp loads, plain requests are accepted; others wait, even if their peer closes."""
    async with running_app() as app:
        state = app.app.listener._state
        load, may_load, loads = state.load_aiohttp, asyncio.Event(), 0

        async def load_late() -> None:
            nonlocal loads
            loads += 1
            await may_load.wait()
            await load()

        state.load_aiohttp = load_late
        writers = []
        for name in "abc":
            _, writer = await asyncio.open_connection("127.0.0.1", app.port)
            writer.write(chunked(orjson.dumps(make_event(name))))
            writers.append(writer)
        writers[0].close()
        writers[1].write_eof()
        await until(lambda: loads == 3)
        assert (await talk(app.port, plain("d"), responses=1)).statuses == [202]
        assert app.app.accounting.received == 1
        may_load.set()
        assert (
            await talk(app.port, chunked(orjson.dumps(make_event("e"))), responses=1)
        ).statuses == [202]
        await until(lambda: app.app.accounting.received == 5)
        for writer in writers:
            writer.close()


@pytest.mark.slow
@on_both_loops
async def test_a_stop_while_aiohttp_loads() -> None:
    """Connections that wait for it are closed, and the app stops in order."""
    async with running_app() as app:
        state = app.app.listener._state
        loading = asyncio.Event()

        async def never() -> None:
            loading.set()
            await asyncio.Event().wait()

        state.load_aiohttp = never
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(chunked(orjson.dumps(make_event("a"))))
        await loading.wait()
        await app.stop()
        assert await reader.read() == b""
        writer.close()
