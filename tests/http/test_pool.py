"""The connection pool: reuse, stale connections, the bound and its queue, deadlines, closing."""

import asyncio

import pytest

from sidecar.http.pool import KEEPALIVE_S
from sidecar.http.request_deadline import RequestDeadline
from sidecar.http.timeouts import Deadlines
from sidecar.sinks import Unavailable
from sidecar.sinks.http import Response
from tests.support.faults import fast, now
from tests.support.upstream_connection import DONE, OK, TIMEOUT_S, on_both_loops, raw_upstream
from tests.support.world import run_virtual


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
async def test_connections_are_bounded() -> None:
    """Further requests wait and are sent in FIFO order."""
    async with raw_upstream(max_connections=1) as upstream:
        sending = [upstream.send(b"%d" % number) for number in range(4)]
        connection = await upstream.accept()
        for number in range(4):
            assert (await connection.serve()).endswith(b"\r\n\r\n%d" % number)
        await asyncio.gather(*sending)
        assert upstream.connections.empty()


@on_both_loops
async def test_the_first_waiter_gets_the_slot_of_a_broken_connection() -> None:
    """A connection that closes makes room for a new one."""
    async with raw_upstream(max_connections=1) as upstream:
        broken, waiting = upstream.send(b"1"), upstream.send(b"2")
        connection = await upstream.accept()
        await connection.request()
        connection.close()
        connection = await upstream.accept()
        assert (await connection.serve()).endswith(b"2")
        assert await waiting == DONE
        with pytest.raises(Unavailable):
            await broken


@on_both_loops
async def test_a_resent_request_is_first_in_the_queue() -> None:
    """When the pool is full, a resent request waits ahead of those that came after it."""
    async with raw_upstream(max_connections=1) as upstream:
        connection = await upstream.idle_connection()
        sending = [upstream.send(b"%d" % number) for number in range(3)]
        await connection.request()
        connection.close()
        connection = await upstream.accept()  # opened by the first waiter, in the freed slot
        assert [(await connection.serve())[-1:] for _ in range(3)] == [b"1", b"0", b"2"]
        assert list(await asyncio.gather(*sending)) == [DONE] * 3


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
async def test_an_expired_connection_is_not_used_when_the_sweep_is_late() -> None:
    """A delayed event loop closes it instead of using it."""
    async with raw_upstream() as upstream:
        connection = await upstream.idle_connection()
        idle = upstream.client._http._pool._idle  # type: ignore[union-attr]
        for pooled in idle:
            idle[pooled] -= KEEPALIVE_S
        assert await upstream.idle_connection() is not connection
        assert await connection.closed_by_client()


@on_both_loops
async def test_a_cancelled_request() -> None:
    """Its connection closes, so that a late response can't be taken for another request's."""
    async with raw_upstream(max_connections=1) as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.request()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert await connection.closed_by_client()
        assert upstream.outcomes == ["connection"]
        await upstream.idle_connection()


@on_both_loops
async def test_a_request_cancelled_while_waiting() -> None:
    """If a waiter is cancelled, queued or just given a connection, the next one is served."""
    async with raw_upstream(max_connections=1) as upstream:
        sending = [upstream.send(b"%d" % number) for number in range(4)]
        connection = await upstream.accept()
        sending[1].cancel()

        def cancel_next(outcome: str, _seconds: float, _size: int) -> None:
            if outcome == "ok":
                sending[2].cancel()  # it was given the connection but has not run since

        upstream.client._requested = cancel_next
        await connection.serve()
        assert (await connection.serve()).endswith(b"3")
        results = await asyncio.gather(*sending, return_exceptions=True)
        assert [type(result) for result in results] == [
            Response,
            asyncio.CancelledError,
            asyncio.CancelledError,
            Response,
        ]


@fast
async def test_a_request_times_out() -> None:
    """`timeout_s` runs from a request's own start, queue time included; the pool stays usable."""
    async with raw_upstream(max_connections=2) as upstream:
        sending = []
        for _ in range(2):
            sending.append(upstream.send())
            connection = await upstream.accept()
            await connection.request()
            await asyncio.sleep(7)
        sending.append(upstream.send())  # waits for a slot
        for number, task in enumerate(sending):
            with pytest.raises(Unavailable, match="timed out"):
                await task
            assert now() == pytest.approx(number * 7 + TIMEOUT_S, abs=0.01)
        assert upstream.outcomes == ["timeout"] * 3
        await upstream.accept()  # opened by the third, in the slot of the first
        await upstream.idle_connection()


@fast
async def test_a_response_that_never_ends_times_out() -> None:
    """One byte per second does not extend the deadline."""
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not sending.done():
            connection.writer.write(b"x")
            await asyncio.sleep(1)
        with pytest.raises(Unavailable, match="timed out"):
            await sending
        assert now() == pytest.approx(TIMEOUT_S, abs=2)


@on_both_loops
async def test_closing_the_pool() -> None:
    """Every connection closes, every request fails, sent or queued, and no new one starts."""
    async with raw_upstream(max_connections=2) as upstream:
        idle = upstream.send()
        idle_connection = await upstream.accept()
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.request()
        await idle_connection.serve()
        await idle
        third = upstream.send()
        await idle_connection.request()
        waiting = upstream.send()
        await asyncio.sleep(0)
        await upstream.client.close()
        for task in (sending, third, waiting, upstream.send()):
            with pytest.raises(Unavailable):
                await task
        assert await connection.closed_by_client()
        assert await idle_connection.closed_by_client()
        assert upstream.connections.empty()


def test_an_expired_deadline_fails_later_waits() -> None:
    """A later wait, such as the resending of a request, fails immediately."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(TIMEOUT_S, RequestDeadline.expire)
        deadline = RequestDeadline(loop.time() + TIMEOUT_S)
        deadlines.add(deadline)
        await asyncio.sleep(TIMEOUT_S + 1)
        with pytest.raises(TimeoutError):
            await deadline.apply(loop.create_future())
        deadlines.close()

    run_virtual(story())
