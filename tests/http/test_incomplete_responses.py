"""Responses whose body does not arrive: the head of a 2xx is enough, an error must be complete."""

import asyncio
import ssl
from collections.abc import Callable

import pytest

from sidecar.http import client_connection
from sidecar.http.client_connection import RawResponse
from sidecar.http.failures import NoResponse
from tests.support.faults import fast, now
from tests.support.upstream_connection import (
    OK,
    TIMEOUT_S,
    AcceptedConnection,
    RawUpstream,
    on_both_loops,
    raw_upstream,
)

INCOMPLETE = {
    "no byte of the body": b"Content-Length: 9\r\n\r\n",
    "a part of the body": b"Content-Length: 9\r\n\r\nok",
    "no chunk": b"Transfer-Encoding: chunked\r\n\r\n",
    "a part of a chunk": b"Transfer-Encoding: chunked\r\n\r\n9\r\nok",
    "no last chunk": b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "a part of the trailers": b"Transfer-Encoding: chunked \r\n\r\n0\r\nTransfer-Encoding: x\r\n",
}
End = Callable[[AcceptedConnection], None]
ENDS: dict[str, End] = {
    "closed": AcceptedConnection.close,
    "reset": AcceptedConnection.reset,
}
each_end = pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
# Status, and whether the caller asks for the body.
COUNTS_AT_ONCE = [(200, False), (202, False)]
MUST_BE_COMPLETE = [(200, True), (302, False), (400, False), (503, False)]
each_kind = pytest.mark.parametrize(("status", "keep_body"), COUNTS_AT_ONCE + MUST_BE_COMPLETE)


def head(status: int) -> bytes:
    """A status line, after an informational response."""
    return b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 %d S\r\n" % status


async def respond(upstream: RawUpstream, connection: AcceptedConnection, response: bytes) -> None:
    """Respond to the next request, and wait until the client has read that."""
    await connection.serve(response)
    await upstream.received(len(response))


async def assert_outcome(sending: asyncio.Task[RawResponse], status: int, keep_body: bool) -> None:
    """It has its response if it counts at once, otherwise none."""
    if (status, keep_body) in COUNTS_AT_ONCE:
        assert await sending == RawResponse(status, b"", {})
    else:
        with pytest.raises(NoResponse):
            await sending


@each_kind
@each_end
@pytest.mark.parametrize("case", INCOMPLETE)
@on_both_loops
async def test_the_connection_ends(case: str, end: End, status: int, keep_body: bool) -> None:
    """The 2xx counts, the error does not, and neither is sent again; the next request works."""
    async with raw_upstream() as upstream:
        sending = upstream.exchange(keep_body=keep_body)
        connection = await upstream.accept()
        await respond(upstream, connection, head(status) + INCOMPLETE[case])
        end(connection)
        await assert_outcome(sending, status, keep_body)
        assert upstream.connections.empty()
        await upstream.idle_connection()


@each_kind
@pytest.mark.parametrize("chunk", [b"zz\r\n", b"2\r\nokk", b"0\r\n" + b"X: y\r\n" * 100_000])
@on_both_loops
async def test_malformed_chunks(chunk: bytes, status: int, keep_body: bool) -> None:
    """The 2xx counts, the error does not; the client closes the connection at once."""
    async with raw_upstream() as upstream:
        sending = upstream.exchange(keep_body=keep_body)
        connection = await upstream.accept()
        await connection.serve(head(status) + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        await assert_outcome(sending, status, keep_body)
        assert await connection.closed_by_client()
        await upstream.idle_connection()


@each_kind
@pytest.mark.parametrize("reused", [False, True])
@fast
async def test_the_body_hangs(reused: bool, status: int, keep_body: bool) -> None:
    """At the time-out, the 2xx counts and the error is a time-out; the connection closes."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection() if reused else None
        started = now()
        sending = upstream.exchange(keep_body=keep_body)
        connection = connection or await upstream.accept()
        await connection.serve(head(status) + INCOMPLETE["a part of a chunk"])
        if (status, keep_body) in COUNTS_AT_ONCE:
            assert await sending == RawResponse(status, b"", {})
        else:
            with pytest.raises(TimeoutError):
                await sending
        assert await connection.closed_by_client()
        assert now() - started == pytest.approx(TIMEOUT_S, abs=0.01)
        assert await upstream.idle_connection() is not connection


@each_kind
@pytest.mark.parametrize("reused", [False, True])
@on_both_loops
async def test_the_client_closes(reused: bool, status: int, keep_body: bool) -> None:
    """A request whose 2xx has begun ends with it; one with an error does not."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection() if reused else None
        sending = upstream.exchange(keep_body=keep_body)
        connection = connection or await upstream.accept()
        await respond(upstream, connection, head(status) + INCOMPLETE["a part of a chunk"])
        await upstream.client.close()
        await assert_outcome(sending, status, keep_body)


@each_end
@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r",
    ],
)
@on_both_loops
async def test_an_incomplete_head(received: bytes, end: End) -> None:
    """An informational response is none, and neither is a 2xx before the last byte of its head."""
    async with raw_upstream() as upstream:
        sending = upstream.exchange()
        connection = await upstream.accept()
        await respond(upstream, connection, received)
        end(connection)
        with pytest.raises(NoResponse):
            await sending


@fast
async def test_an_informational_response_and_nothing_else() -> None:
    """The request times out."""
    async with raw_upstream() as upstream:
        sending = upstream.exchange()
        await (await upstream.accept()).serve(b"HTTP/1.1 100 Continue\r\n\r\n")
        with pytest.raises(TimeoutError):
            await sending


@on_both_loops
async def test_a_2xx_does_not_count_for_the_next_request() -> None:
    """A reused connection that ends without a response: the request is sent again."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        sending = upstream.exchange()
        await connection.request()
        connection.reset()
        await (await upstream.accept()).serve(b"HTTP/1.1 400 B\r\nContent-Length: 2\r\n\r\nno")
        assert await sending == RawResponse(400, b"no", {})


@each_kind
@on_both_loops
async def test_a_body_that_ends_with_the_connection(status: int, keep_body: bool) -> None:
    """It is complete when the connection is closed, but not when it is reset."""
    async with raw_upstream() as upstream:
        for end in ENDS.values():
            sending = upstream.exchange(keep_body=keep_body)
            connection = await upstream.accept()
            await respond(upstream, connection, head(status) + b"\r\nbody")
            end(connection)
            if end is AcceptedConnection.close:
                body = b"" if (status, keep_body) in COUNTS_AT_ONCE else b"body"
                assert await sending == RawResponse(status, body, {})
            else:
                await assert_outcome(sending, status, keep_body)


@pytest.mark.process
@each_kind
@on_both_loops
async def test_tls_without_close_notify(
    trusted_tls: ssl.SSLContext, status: int, keep_body: bool
) -> None:
    """Anyone could have ended the TCP connection: a body that it ends is incomplete."""
    async with raw_upstream(tls=trusted_tls) as upstream:
        for framing in (b"\r\nbody", b"Transfer-Encoding: gzip\r\n\r\nx", *INCOMPLETE.values()):
            for end in (AcceptedConnection.cut, AcceptedConnection.reset):
                sending = upstream.exchange(keep_body=keep_body)
                connection = await upstream.accept()
                await respond(upstream, connection, head(status) + framing)
                end(connection)
                await assert_outcome(sending, status, keep_body)
        assert upstream.connections.empty()


@pytest.mark.process
@on_both_loops
async def test_complete_errors_over_tls(trusted_tls: ssl.SSLContext) -> None:
    """A body is complete with its Content-Length or, without one, with close_notify."""
    async with raw_upstream(tls=trusted_tls) as upstream:
        close, cut = AcceptedConnection.close, AcceptedConnection.cut
        for end, framing in ((close, b"\r\nno"), (cut, b"Content-Length: 2\r\n\r\nno")):
            sending = upstream.exchange()
            connection = await upstream.accept()
            await respond(upstream, connection, head(400) + framing)
            end(connection)
            assert await sending == RawResponse(400, b"no", {})
            await connection.closed_by_client()


@on_both_loops
async def test_an_endless_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond `MAX_RESPONSE_BYTES`, even an error is cut off: what is kept of it is there."""
    monkeypatch.setattr(client_connection, "MAX_RESPONSE_BYTES", 100_000)
    async with raw_upstream() as upstream:
        sending = upstream.exchange()
        connection = await upstream.accept()
        await connection.serve(head(400) + b"\r\n" + b"x" * 200_000)
        kept = b"x" * client_connection.MAX_KEPT_BODY_BYTES
        assert await sending == RawResponse(400, kept, {})
        assert await connection.closed_by_client()


@on_both_loops
async def test_a_complete_response_before_the_end() -> None:
    """However the connection ends after a complete error, the error counts."""
    async with raw_upstream() as upstream:
        for end in ENDS.values():
            sending = upstream.exchange()
            connection = await upstream.accept()
            await respond(upstream, connection, head(503) + OK.partition(b"\r\n")[2])
            end(connection)
            assert await sending == RawResponse(503, b"ok", {})
            await connection.closed_by_client()
