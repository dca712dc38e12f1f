"""The client's connections: reuse, stale connections, the bound, deadlines, closing."""

import asyncio

import pytest

from sidecar.http.client import KEEPALIVE_S
from sidecar.sinks import Unavailable
from tests.support.faults import fast, now
from tests.support.upstream_connection import (
    DONE,
    OK,
    TIMEOUT_S,
    AcceptedConnection,
    on_both_loops,
    raw_upstream,
)


@on_both_loops
async def test_a_connection_is_reused() -> None:
    """Sequential requests share one connection."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        for _ in range(3):
            sending = upstream.send()
            await connection.serve()
            assert await sending == DONE
        assert upstream.connections.empty()
        assert upstream.outcomes == ["ok"] * 4


@on_both_loops
async def test_the_newest_idle_connection_comes_first() -> None:
    """The newest idle connection is used first, so that surplus connections expire."""
    async with raw_upstream() as upstream:
        sending = [upstream.send(), upstream.send()]
        older, newer = await upstream.accept(), await upstream.accept()
        for connection in (older, newer):
            await connection.serve()
            await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*sending)
        for _ in range(2):
            again = upstream.send()
            await newer.serve()
            assert await again == DONE


@fast
async def test_an_idle_connection_expires_before_the_server_closes_it() -> None:
    """An idle connection expires after `KEEPALIVE_S` and is not used again."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        await asyncio.sleep(KEEPALIVE_S - 1)
        sending = upstream.send()
        await connection.serve()
        await sending
        idle_since = now()
        assert await connection.closed_by_client()
        assert now() - idle_since == pytest.approx(KEEPALIVE_S)
        assert await upstream.idle_connection() is not connection


@pytest.mark.parametrize("surplus", [b"", OK, b"x"])
@on_both_loops
async def test_an_idle_connection_that_receives_anything_is_discarded(surplus: bytes) -> None:
    """EOF, an unsolicited response or any byte: the next request opens a new connection."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        if surplus:
            connection.writer.write(surplus)
            assert await connection.closed_by_client()
        else:
            connection.close()
            await connection.writer.wait_closed()
            await asyncio.sleep(0)
        assert await upstream.idle_connection() is not connection


@on_both_loops
async def test_a_request_on_a_stale_connection_is_resent() -> None:
    """The server closes as the request is sent: it is sent again, whole, on a new connection."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        sending = upstream.send(b'{"n":1}', b"PUT")
        first = await connection.request()
        connection.close()
        connection = await upstream.accept()
        assert await connection.serve() == first
        assert await sending == DONE
        assert upstream.outcomes == ["ok", "ok"]


@on_both_loops
async def test_a_request_is_resent_only_once() -> None:
    """If the new connection closes as well, the request fails."""
    async with raw_upstream() as upstream:
        stale = await upstream.idle_connection()
        sending = upstream.send()
        await stale.request()
        stale.close()
        new = await upstream.accept()
        await new.request()
        new.close()
        with pytest.raises(Unavailable, match="connection ended"):
            await sending
        assert upstream.connections.empty()


@on_both_loops
async def test_a_response_before_the_end_of_the_request() -> None:
    """An early response counts; the rest of the body is not sent, the connection not reused."""
    body = b"x" * 16 * 2**20
    async with raw_upstream() as upstream:
        sending = upstream.send(body)
        connection = await upstream.accept()
        await connection.head()
        connection.writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert (await sending).status == 413
        seen = 0
        try:
            while part := await connection.reader.read(2**16):
                seen += len(part)
        except ConnectionResetError:
            pass
        assert seen < len(body)
        assert await upstream.idle_connection() is not connection


@on_both_loops
async def test_a_body_larger_than_the_socket_buffers_arrives_whole() -> None:
    """Four megabytes in one request."""
    body = bytes(range(256)) * 2**14
    async with raw_upstream() as upstream:
        sending = upstream.send(body)
        connection = await upstream.accept()
        assert (await connection.serve()).endswith(b"\r\n\r\n" + body)
        assert await sending == DONE


@on_both_loops
async def test_requests_are_bounded() -> None:
    """More requests at once than the lane allows are a bug, and none of them waits."""
    async with raw_upstream(max_requests=1) as upstream:
        sending = upstream.send(b"1")
        connection = await upstream.accept()
        with pytest.raises(RuntimeError, match="more than 1 requests"):
            await upstream.send(b"2")
        await connection.serve()
        assert await sending == DONE
        again = upstream.send(b"3")
        assert (await connection.serve()).endswith(b"3")
        assert await again == DONE


@on_both_loops
async def test_a_truncated_response_on_a_reused_connection() -> None:
    """The connection was not stale, so the request is not resent."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        sending = upstream.send()
        await connection.serve(OK[:20])
        connection.close()
        with pytest.raises(Unavailable, match="connection ended"):
            await sending
        assert upstream.connections.empty()


@on_both_loops
async def test_the_upstream_closes_before_the_end_of_the_request() -> None:
    """The request fails immediately, although most of its body is unsent."""
    async with raw_upstream() as upstream:
        sending = upstream.send(b"x" * 16 * 2**20)
        connection = await upstream.accept()
        await connection.head()
        connection.writer.write_eof()
        with pytest.raises(Unavailable):
            await sending


@on_both_loops
async def test_an_expired_connection_is_not_used_when_the_timer_is_late() -> None:
    """A delayed event loop closes it instead of using it."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        due = upstream.client._http._idle._due
        for pooled in due:
            due[pooled] -= KEEPALIVE_S
        assert await upstream.idle_connection() is not connection
        assert await connection.closed_by_client()


@on_both_loops
async def test_a_cancelled_request() -> None:
    """Its connection closes, so that a late response can't be taken for another request's."""
    async with raw_upstream(max_requests=1) as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.request()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert await connection.closed_by_client()
        assert upstream.outcomes == ["connection"]
        await upstream.idle_connection()


@fast
async def test_a_request_times_out() -> None:
    """`timeout_s` runs from a request's own start, on a new connection and on a reused one."""
    async with raw_upstream(max_requests=2) as upstream:
        reused = await upstream.idle_connection()
        sending = []
        for connection in (reused, None):
            sending.append(upstream.send())
            await (connection or await upstream.accept()).request()
            await asyncio.sleep(3)
        for number, task in enumerate(sending):
            with pytest.raises(Unavailable, match="timed out"):
                await task
            assert now() == pytest.approx(number * 3 + TIMEOUT_S, abs=0.01)
        assert upstream.outcomes == ["ok", "timeout", "timeout"]
        assert await upstream.idle_connection() is not reused


@fast
async def test_a_deadline_ends_with_its_request() -> None:
    """The next request on the connection has its own."""
    async with raw_upstream() as upstream:
        connection: AcceptedConnection | None = None
        for _ in range(3):
            sending = upstream.send()
            connection = connection or await upstream.accept()
            await asyncio.sleep(TIMEOUT_S - 1)
            await connection.serve()
            assert await sending == DONE


@fast
async def test_a_resent_request_keeps_its_deadline() -> None:
    """The time on the stale connection counts: the request ends `timeout_s` after its start."""
    async with raw_upstream() as upstream:
        stale = await upstream.idle_connection()
        sending = upstream.send()
        await stale.request()
        await asyncio.sleep(3)
        stale.close()
        await (await upstream.accept()).request()
        with pytest.raises(Unavailable, match="timed out"):
            await sending
        assert now() == pytest.approx(TIMEOUT_S, abs=0.01)


@fast
async def test_a_response_that_never_ends_times_out() -> None:
    """One byte per second does not extend the deadline of an error response."""
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.serve(b"HTTP/1.1 503 S\r\nContent-Length: 1000\r\n\r\n")
        while not sending.done():
            connection.writer.write(b"x")
            await asyncio.sleep(1)
        with pytest.raises(Unavailable, match="timed out"):
            await sending
        assert now() == pytest.approx(TIMEOUT_S, abs=2)


@on_both_loops
async def test_closing_the_pool() -> None:
    """Every connection closes, every request fails, and no new one starts."""
    async with raw_upstream() as upstream:
        idle_connection = await upstream.idle_connection()
        sending = upstream.send()
        await idle_connection.request()
        second = upstream.send()
        connection = await upstream.accept()
        await connection.request()
        connecting = upstream.send()
        await asyncio.sleep(0)
        await upstream.client.close()
        for task in (sending, second, connecting, upstream.send()):
            with pytest.raises(Unavailable):
                await task
        assert await connection.closed_by_client()
        assert await idle_connection.closed_by_client()
