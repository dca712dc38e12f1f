"""Playbooks: on these bytes, expect these responses, however the bytes are cut."""

import asyncio
import gzip
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.http.heads import MAX_HEAD_BYTES
from sidecar.http.messages import StreamedResponse, Truncated
from sidecar.http.server_connection import HEAD_S, LINGER_S, MAX_PENDING
from tests.support.playbook import BODY_S, IDLE_S, Port, Wire, chunks_of, sent
from tests.support.virtual_time import run_virtual

GET = sent(b"GET /a HTTP/1.1")
CHUNKED = b"Transfer-Encoding: chunked"
LONG = b"x" * MAX_HEAD_BYTES
# Name: the bytes, the statuses of the responses, and whether the server then closes its side.
PLAYBOOKS: dict[str, tuple[bytes, list[int], bool]] = {
    "a request": (GET, [200], False),
    "a body": (sent(b"POST /b HTTP/1.1", body=b"{}"), [200], False),
    "an empty body": (sent(b"POST /b HTTP/1.1", b"Content-Length: 0"), [200], False),
    "chunks": (sent(b"POST /b HTTP/1.1", CHUNKED) + b"2\r\n{}\r\n0\r\n\r\n", [200], False),
    "chunks with an extension and a trailer": (
        sent(b"POST /b HTTP/1.1", CHUNKED) + b"2;n=v\r\n{}\r\n0\r\nHost: b\r\n\r\n" + GET,
        [200, 200],
        False,
    ),
    "pipelined": (GET * 3 + sent(b"POST /b HTTP/1.1", body=b"{}") + GET, [200] * 5, False),
    "empty lines between requests": (GET + b"\r\n\r\n" + GET, [200, 200], False),
    "HEAD": (sent(b"HEAD /a HTTP/1.1") + GET, [200, 200], False),
    "an unusual method": (sent(b"PROPFIND /a HTTP/1.1"), [200], False),
    "an absolute target": (sent(b"GET http://b:1/a HTTP/1.1"), [200], False),
    "close": (sent(b"GET /a HTTP/1.1", b"Connection: close") + GET, [200], True),
    "HTTP/1.0": (b"GET /a HTTP/1.0\r\n\r\n", [200], True),
    "HTTP/1.0 with keep-alive": (
        b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2,
        [200, 200],
        False,
    ),
    "Expect": (
        sent(b"POST /b HTTP/1.1", b"Expect: 100-continue", body=b"{}"),
        [100, 200],
        False,
    ),
    "Expect, refused by the head": (
        sent(b"POST /refused HTTP/1.1", b"Expect: 100-continue", body=b"{}") + GET,
        [403],
        True,
    ),
    "Expect, refused by the head, and a malformed request": (
        sent(b"POST /refused HTTP/1.1", b"Expect: 100-continue", body=b"{}")
        + sent(b"GET /a HTTP/1.1", b"Host: b"),
        [403],
        True,
    ),
    "another expectation": (
        sent(b"POST /b HTTP/1.1", b"Expect: rain", body=b"{}") + GET,
        [200, 200],
        False,
    ),
    "Expect in HTTP/1.0": (
        b"POST /b HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
        [200],
        True,
    ),
    "refused by the head": (sent(b"POST /refused HTTP/1.1", body=b"{}") + GET, [403, 200], False),
    "an offer of HTTP/2": (
        sent(
            b"POST /b HTTP/1.1",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABk",
            body=b"{}",
        )
        + GET,
        [200, 200],
        False,
    ),
    "an offer on the last request": (
        sent(b"GET /a HTTP/1.1", b"Connection: close, Upgrade", b"Upgrade: h2c") + GET,
        [200],
        True,
    ),
    "an offer in HTTP/1.0": (
        b"GET /a HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        [200],
        True,
    ),
    "an offer in HTTP/0.9": (
        b"GET /a\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        [400],
        True,
    ),
    "an offer of WebSocket": (
        sent(b"GET /a HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket") + GET,
        [200, 200],
        False,
    ),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400], True),
    "CONNECT": (sent(b"CONNECT a:1 HTTP/1.1"), [400], True),
    "a target without a path": (sent(b"OPTIONS * HTTP/1.1"), [400], True),
    "a target that is not ASCII": (sent(b"GET /\xff HTTP/1.1"), [400], True),
    "no Host": (b"GET /a HTTP/1.1\r\n\r\n", [400], True),
    "two Hosts": (sent(b"GET /a HTTP/1.1", b"host: b"), [400], True),
    "two lengths": (
        sent(b"POST /b HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2") + b"{}",
        [400],
        True,
    ),
    "a length and chunks": (
        sent(b"POST /b HTTP/1.1", CHUNKED, b"Content-Length: 2") + b"2\r\n{}\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "another transfer coding": (
        sent(b"POST /b HTTP/1.1", b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
        [400],
        True,
    ),
    "two transfer codings": (
        sent(b"POST /b HTTP/1.1", CHUNKED, CHUNKED) + b"0\r\n\r\n",
        [400],
        True,
    ),
    "chunks in HTTP/1.0": (
        b"POST /b HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        [400],
        True,
    ),
    "another version": (b"GET /a HTTP/3.0\r\nHost: a\r\n\r\n", [400], True),
    "a space before the colon": (sent(b"GET /a HTTP/1.1", b"X : y"), [400], True),
    "a folded header": (sent(b"GET /a HTTP/1.1", b"X: y\r\n z"), [400], True),
    "a NUL in a header": (sent(b"GET /a HTTP/1.1", b"X: \0"), [400], True),
    "bare line feeds": (b"GET /a HTTP/1.1\nHost: a\n\n", [400], True),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00", [400], True),
    "garbage after a request": (GET + b"\0\r\n\r\n" + GET, [200, 400], True),
    "a broken chunk": (sent(b"POST /b HTTP/1.1", CHUNKED) + b"zz\r\n{}\r\n", [400], True),
    "a long target": (sent(b"GET /" + LONG + b" HTTP/1.1"), [400], True),
    "a long header": (sent(b"GET /a HTTP/1.1", b"X: " + LONG), [400], True),
    "many headers": (sent(b"GET /a HTTP/1.1", *[b"X: y"] * 3000), [400], True),
    "an endless chunk extension": (
        sent(b"POST /b HTTP/1.1", CHUNKED) + b"2;" + LONG + LONG,
        [400],
        True,
    ),
    "an endless trailer": (
        sent(b"POST /b HTTP/1.1", CHUNKED) + b"0\r\nX: " + LONG + LONG,
        [400],
        True,
    ),
    "endless empty lines": (b"\r\n" * MAX_HEAD_BYTES, [400], True),
}
each_playbook = pytest.mark.parametrize("name", PLAYBOOKS)


def check(port: Port, wire: Wire, name: str) -> None:
    """Compare what the server did with the playbook."""
    _, statuses, ends = PLAYBOOKS[name]
    assert wire.responses.statuses == statuses
    assert (wire.eof or wire.closed) == ends
    assert port.bugs == []
    server_made = [s for s in statuses if s == 400 and not port.receivers_lost()]
    assert port.refused == server_made


@each_playbook
async def test_playbooks(name: str) -> None:
    """Whole, in two pieces or byte by byte: the same responses, and the same state at the end."""
    data = PLAYBOOKS[name][0]
    cuts = {len(data) // 2, data.find(b"\r\n\r\n") + 4, 1, len(data) - 1}
    plays = [[data], *([data[:at], data[at:]] for at in sorted(cuts))]
    if len(data) < 1000:
        plays.append([data[at : at + 1] for at in range(len(data))])
    for pieces in plays:
        port = Port()
        check(port, port.play(pieces), name)


# What is between two bodies is bounded for each read, so these depend on how the bytes are cut.
JOINED = sorted(name for name in PLAYBOOKS if "endless" not in name)


@given(st.lists(st.sampled_from(JOINED), min_size=1, max_size=4), st.data())
def test_playbooks_in_a_row_cut_anywhere(names: list[str], data: st.DataObject) -> None:
    """Playbooks that leave the connection open can be joined, whatever the pieces."""
    names = [*(name for name in names[:-1] if not PLAYBOOKS[name][2]), names[-1]]
    whole = b"".join(PLAYBOOKS[name][0] for name in names)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=6)))
    edges = [0, *cuts, len(whole)]

    async def story() -> None:
        port = Port()
        pieces = [whole[a:b] for a, b in itertools.pairwise(edges) if a < b]
        wire = port.play(pieces)
        assert wire.responses.statuses == [s for name in names for s in PLAYBOOKS[name][1]]
        assert port.bugs == []

    run_virtual(story())


async def test_what_the_service_gets() -> None:
    """Method, target, path, headers in lower case and the exact body."""
    port = Port()
    headers = (b"X-Two: 1", b"x-two:\t2 ", b"Cookie: a=1", b"Cookie: b=2", b"X-Bytes: \xc3\xa9")
    port.play([sent(b"PUT /p%2F?q=1?2 HTTP/1.1", *headers, body=b"\0\xff")])
    ((request, body),) = port.heard
    assert (request.method, request.target, request.path) == ("PUT", "/p%2F?q=1?2", "/p%2F")
    assert [request.header(n) for n in (b"x-two", b"cookie", b"x-bytes", b"none")] == [
        "1, 2",
        "a=1; b=2",
        "é",
        "",
    ]
    assert body == b"\0\xff"


async def test_an_absolute_target_names_the_host() -> None:
    """The host in the target replaces the header (RFC 9112, 3.2.2)."""
    port = Port()
    port.play([sent(b"GET http://evil:1/a?b HTTP/1.1")])
    assert port.heard[0].request.header(b"host") == "evil:1"
    assert port.heard[0].request.target == "/a?b"


async def test_a_response() -> None:
    """Status, type, length and date; no name of a library; HEAD has no body."""
    port = Port()
    raw = port.play([GET]).responses.raw
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert [line.split(b":")[0] for line in lines[1:]] == [
        b"Content-Type",
        b"Content-Length",
        b"Date",
    ]
    assert body == b"GET /a "
    head_only = port.play([sent(b"HEAD /a HTTP/1.1")]).responses.raw
    assert b"Content-Length: 8\r\n" in head_only
    assert head_only.endswith(b"\r\n\r\n")


async def test_keep_alive_is_said_where_it_is_not_the_default() -> None:
    """HTTP/1.0 clients are told that the connection stays open; others when it closes."""
    port = Port()
    old = port.play([b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"])
    assert b"\r\nConnection: keep-alive\r\n" in old.responses.raw
    closing = port.play([sent(b"GET /a HTTP/1.1", b"Connection: close")])
    assert b"\r\nConnection: close\r\n" in closing.responses.raw


async def test_responses_keep_the_order_of_their_requests() -> None:
    """A response that is ready waits for those before it, and reading stops meanwhile."""
    port = Port()
    wire = port.play([sent(b"GET /later HTTP/1.1"), GET])
    await asyncio.sleep(0)
    assert wire.responses.statuses == []
    assert not wire.reading
    port.gate.set()
    await settled(wire)
    assert wire.responses.bodies == [b"GET /later ", b"GET /a "]
    assert wire.reading


async def settled(wire: Wire) -> None:
    """Wait for the pending responses of a connection."""
    while (answering := wire.writer.task) is not None:
        await asyncio.wait([answering])


async def test_requests_that_wait_are_bounded() -> None:
    """One more than `MAX_PENDING` gets 429 after the others, and the connection ends."""
    port = Port()
    wire = port.play([sent(b"GET /later HTTP/1.1") * (MAX_PENDING + 5)])
    port.gate.set()
    await settled(wire)
    assert wire.responses.statuses == [200] * MAX_PENDING + [429]
    assert wire.eof
    assert port.refused == [429]


async def test_a_client_that_does_not_read() -> None:
    """Its next requests wait until it reads; nothing more is written or read until then."""
    port = Port()
    wire = port.connect(high_water=1)
    wire.connection.data_received(GET * 3)
    await asyncio.sleep(0)
    assert wire.responses.statuses == [200]
    assert not wire.reading
    for expected in (2, 3):
        wire.read()
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(wire.responses.statuses) == expected
    wire.read()
    await settled(wire)
    assert wire.reading


async def test_half_closed_clients_get_their_responses() -> None:
    """A client that sends nothing more still gets what it asked for; then the connection closes."""
    port = Port()
    wire = port.play([sent(b"GET /later HTTP/1.1") + GET])
    assert wire.connection.eof_received()
    port.gate.set()
    await settled(wire)
    assert wire.responses.statuses == [200, 200]
    assert wire.closed
    assert port.play([GET]).connection.eof_received()


@pytest.mark.parametrize(
    "part", [b"GET /a HT", sent(b"POST /b HTTP/1.1", body=b"{}")[:-1], b"GET /a HTTP/1.1\r\nX"]
)
async def test_a_request_that_ends_early(part: bytes) -> None:
    """A client that closes its side in the middle of a request gets a 400."""
    port = Port()
    wire = port.play([part])
    wire.connection.eof_received()
    assert wire.responses.statuses == [400]
    assert wire.closed


async def test_a_client_that_leaves() -> None:
    """Its body is given up; what has arrived whole is still answered, for nobody."""
    port = Port()
    wire = port.play([sent(b"GET /later HTTP/1.1")])
    wire.abort()
    port.gate.set()
    await settled(wire)
    assert [each.was_lost for each in port.receivers] == [[]]
    wire = port.play([sent(b"POST /b HTTP/1.1", body=b"{}")[:-1]])
    wire.abort()
    assert port.receivers[-1].was_lost == [False]
    assert port.bugs == []


async def test_a_bug_in_a_service_is_reported() -> None:
    """The exception reaches `failed`, and the connection is aborted."""
    port = Port()
    wire = port.play([sent(b"GET /bug HTTP/1.1")])
    assert [type(bug) for bug in port.bugs] == [ZeroDivisionError]
    assert wire.closed


# Streamed responses


def streaming(
    port: Port, *chunks: bytes, headers: list[tuple[str, str]], gate: asyncio.Event | None
) -> None:
    """Let `/stream` respond with `chunks`."""

    async def respond() -> StreamedResponse:
        return StreamedResponse(200, "Fine", headers, chunks_of(*chunks, gate=gate))

    port.streams["/stream"] = respond


@pytest.mark.parametrize(
    ("line", "headers", "closes"),
    [
        (b"GET /stream HTTP/1.1", [], False),
        (b"GET /stream HTTP/1.1", [("Content-Length", "4")], False),
        (b"GET /stream HTTP/1.0", [], True),
        (b"GET /stream HTTP/1.0", [("content-length", "4")], True),
    ],
)
async def test_the_framing_of_a_streamed_response(
    line: bytes, headers: list[tuple[str, str]], closes: bool
) -> None:
    """By its length if it has one, in chunks, or by the end of the connection in HTTP/1.0."""
    port = Port()
    streaming(port, b"ab", b"cd", headers=headers, gate=None)
    wire = port.play([sent(line)])
    await settled(wire)
    assert wire.responses.bodies == [b"abcd"]
    assert wire.responses.raw.startswith(b"HTTP/1.1 200 Fine\r\n")
    assert (b"chunked" in wire.responses.raw) == (line.endswith(b"1") and not headers)
    assert wire.eof == closes


async def test_a_streamed_response_in_http_1_0_is_the_last() -> None:
    """Its end may be the end of the connection, so no request after it is read."""
    port = Port()
    streaming(port, b"ab", headers=[], gate=None)
    wire = port.play([b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2])
    await settled(wire)
    assert wire.responses.bodies == [b"ab"]
    assert wire.eof
    assert port.bugs == []


async def test_a_streamed_response_waits_for_its_reader() -> None:
    """The next chunk is asked for once the client has read the one before."""
    port = Port()
    streaming(port, b"ab", b"cd", headers=[], gate=None)
    wire = port.connect(high_water=1)
    wire.connection.data_received(sent(b"GET /stream HTTP/1.1"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert wire.responses.bodies == [b"ab"]
    while wire.writer.task is not None:
        wire.read()
        await asyncio.sleep(0)
    assert wire.responses.bodies == [b"abcd"]


@pytest.mark.parametrize("leave", ["eof_received", "abort"])
async def test_a_client_that_leaves_a_streamed_response(leave: str) -> None:
    """Its receiver is told, whether the client closes one side or both."""
    port, gate = Port(), asyncio.Event()
    streaming(port, b"ab", b"cd", headers=[], gate=gate)
    wire = port.play([sent(b"GET /stream HTTP/1.1")])
    for _ in range(5):
        await asyncio.sleep(0)
    target = wire if leave == "abort" else wire.connection
    getattr(target, leave)()
    assert wire.closed
    assert port.receivers[0].was_lost == [False]
    gate.set()
    await settled(wire)
    assert port.bugs == []


async def test_a_truncated_stream_breaks_the_connection() -> None:
    """The client can tell that the body is incomplete."""

    async def broken() -> StreamedResponse:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"ab"
            raise Truncated

        return StreamedResponse(200, "", [], chunks())

    port = Port()
    port.streams["/stream"] = broken
    wire = port.play([sent(b"GET /stream HTTP/1.1")])
    await settled(wire)
    assert wire.closed
    assert not wire.responses.raw.endswith(b"0\r\n\r\n")
    assert port.bugs == []


async def test_a_receiver_can_pause_its_client() -> None:
    """Nothing is read from a client whose receiver can't take more."""
    port = Port()
    streaming(port, b"ab", headers=[], gate=None)
    wire = port.play([sent(b"POST /stream HTTP/1.1", body=b"{}")[:-1]])
    flow = port.receivers[0].flow
    flow.pause_reading()
    assert not wire.reading
    flow.resume_reading()
    assert wire.reading


# Timeouts, in virtual time


def after(seconds: float, *pieces: bytes, pause_s: float = 0.0) -> Wire:
    """Play `pieces`, `pause_s` apart, then let `seconds` pass."""

    async def story() -> Wire:
        port = Port()
        wire = port.connect()
        for piece in pieces:
            wire.connection.data_received(piece)
            await asyncio.sleep(pause_s)
        await asyncio.sleep(seconds - pause_s)
        await port.server.close(0)
        return wire

    return run_virtual(story())


@pytest.mark.parametrize(
    ("pieces", "limit_s", "statuses"),
    [
        ((), HEAD_S, []),
        ((b"GET /a",), HEAD_S, [408]),
        ((GET,), IDLE_S, [200]),
        ((GET + b"GET /a",), IDLE_S, [200]),
        ((sent(b"POST /b HTTP/1.1", body=b"{}")[:-1],), BODY_S, [408]),
    ],
)
def test_a_client_that_stalls(
    pieces: tuple[bytes, ...], limit_s: float, statuses: list[int]
) -> None:
    """A client has its time for a head, a body and the next request; then it is disconnected."""

    async def story() -> None:
        port = Port()
        wire = port.play(pieces)
        await asyncio.sleep(limit_s - 1)
        assert not wire.eof
        assert not wire.closed
        await asyncio.sleep(2)
        assert wire.responses.statuses == statuses
        assert wire.eof or wire.closed
        await asyncio.sleep(LINGER_S)
        assert wire.closed

    run_virtual(story())


def test_a_trickle_does_not_extend_the_time() -> None:
    """A byte a second does not keep a head or a body alive."""

    async def story() -> None:
        for data, limit_s in ((GET, HEAD_S), (sent(b"POST / HTTP/1.1", body=b"x" * 99), BODY_S)):
            port = Port()
            begun = data.find(b"\r\n\r\n") + 4 if limit_s == BODY_S else 1
            wire = port.play([data[:begun]])
            for at in range(begun, begun + int(limit_s) + 2):
                await asyncio.sleep(1)
                wire.connection.data_received(data[at : at + 1])
            assert wire.responses.statuses == [408]

    run_virtual(story())


def test_a_streamed_body_may_take_any_time() -> None:
    """A body that is streamed has a timeout between its pieces only."""

    async def story() -> None:
        port = Port()
        streaming(port, b"ab", headers=[], gate=None)
        wire = port.play([sent(b"POST /stream HTTP/1.1", body=b"x" * 10)[:-10]])
        for _ in range(9):
            await asyncio.sleep(IDLE_S - 1)
            wire.connection.data_received(b"x")
        assert not wire.closed
        await asyncio.sleep(IDLE_S + 1)
        assert wire.closed
        assert port.receivers[0].was_lost == [False]

    run_virtual(story())


def test_a_client_that_never_reads_is_disconnected() -> None:
    """Unread responses are kept for the idle time."""

    async def story() -> None:
        port = Port()
        wire = port.connect(high_water=1)
        wire.connection.data_received(GET)
        await asyncio.sleep(IDLE_S - 1)
        assert not wire.closed
        await asyncio.sleep(2)
        assert wire.closed

    run_virtual(story())


def test_no_timeout_while_the_client_waits_for_us() -> None:
    """A response may take any time."""

    async def story() -> None:
        port = Port()
        wire = port.play([sent(b"GET /later HTTP/1.1")])
        await asyncio.sleep(10 * IDLE_S)
        port.gate.set()
        await settled(wire)
        assert wire.responses.statuses == [200]

    run_virtual(story())


def test_a_slow_response_is_not_a_late_body() -> None:
    """Each body has its own time: a request that follows another one starts anew."""
    half = sent(b"POST /b HTTP/1.1", body=b"{}")
    wire = after(BODY_S - 6, half[:-1], half[-1:] + half[:-1], half[-1:], pause_s=5)
    assert wire.responses.statuses == [200, 200]


def test_gzip_is_the_services_business() -> None:
    """The server passes an encoded body on as it is."""

    async def story() -> None:
        port = Port()
        body = gzip.compress(b"{}")
        port.play([sent(b"POST /b HTTP/1.1", b"Content-Encoding: gzip", body=body)])
        assert port.heard[0].body == body

    run_virtual(story())
