"""The pool of the sinks' client: connections kept, replaced and ended, turns and deadlines."""

import asyncio

import pytest

from sidecar.http.pool import KEEPALIVE_S
from sidecar.http.request_deadline import Deadline
from sidecar.http.timeouts import Deadlines
from sidecar.sinks import Unavailable
from sidecar.sinks.http import Response
from tests.support.faults import fast, now
from tests.support.upstream_connection import DONE, OK, TIMEOUT_S, far, on_both_loops
from tests.support.world import run_virtual


@on_both_loops
async def test_a_connection_is_used_again() -> None:
    """One after the other: one connection."""
    async with far() as upstream:
        line = await upstream.used()
        for _ in range(3):
            asking = upstream.ask()
            await line.serve()
            assert await asking == DONE
        assert upstream.lines.empty()
        assert upstream.outcomes == ["ok"] * 4


@on_both_loops
async def test_the_newest_idle_connection_comes_first() -> None:
    """So that those that are not needed grow old."""
    async with far() as upstream:
        asking = [upstream.ask(), upstream.ask()]
        older, newer = await upstream.line(), await upstream.line()
        for line in (older, newer):
            await line.serve()
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*asking)
        for _ in range(2):
            again = upstream.ask()
            await newer.serve()
            assert await again == DONE


@fast
async def test_an_idle_connection_ends_before_its_server_ends_it() -> None:
    """After `KEEPALIVE_S`, and it is not used any more."""
    async with far() as upstream:
        line = await upstream.used()
        await asyncio.sleep(KEEPALIVE_S - 1)
        asking = upstream.ask()
        await line.serve()
        await asking
        idle_since = now()
        assert await line.ended()
        assert now() - idle_since == pytest.approx(KEEPALIVE_S)
        assert await upstream.used() is not line


@pytest.mark.parametrize("surplus", [b"", OK, b"x"])
@on_both_loops
async def test_an_idle_connection_that_moves_is_dropped(surplus: bytes) -> None:
    """Its end, an answer that nobody asked for, or anything: the next request gets a new one."""
    async with far() as upstream:
        line = await upstream.used()
        if surplus:
            line.writer.write(surplus)
            assert await line.ended()
        else:
            line.hang_up()
            await line.writer.wait_closed()
            await asyncio.sleep(0)
        assert await upstream.used() is not line


@on_both_loops
async def test_a_stale_connection_costs_one_more_try() -> None:
    """Closed by its server at the moment of the request: sent again, whole, on a new one."""
    async with far() as upstream:
        line = await upstream.used()
        asking = upstream.ask(b'{"n":1}', b"PUT")
        first = await line.request()
        line.hang_up()
        line = await upstream.line()
        assert await line.serve() == first
        assert await asking == DONE
        assert upstream.outcomes == ["ok", "ok"]


@on_both_loops
async def test_a_stale_connection_costs_no_third_try() -> None:
    """The new connection ends, too: that is an error."""
    async with far() as upstream:
        stale = await upstream.used()
        asking = upstream.ask()
        await stale.request()
        stale.hang_up()
        new = await upstream.line()
        await new.request()
        new.hang_up()
        with pytest.raises(Unavailable, match="connection ended"):
            await asking
        assert upstream.lines.empty()


@on_both_loops
async def test_an_answer_before_the_end_of_the_body() -> None:
    """It counts, but the rest of the body is not sent, nor is the connection used again."""
    body = b"x" * 16 * 2**20
    async with far() as upstream:
        asking = upstream.ask(body)
        line = await upstream.line()
        await line.header()
        line.writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert (await asking).status == 413
        seen = 0
        try:
            while part := await line.reader.read(2**16):
                seen += len(part)
        except ConnectionResetError:
            pass
        assert seen < len(body)
        assert await upstream.used() is not line


@on_both_loops
async def test_a_body_larger_than_any_buffer_arrives_whole() -> None:
    """Megabytes, in one request."""
    body = bytes(range(256)) * 2**14
    async with far() as upstream:
        asking = upstream.ask(body)
        line = await upstream.line()
        assert (await line.serve()).endswith(b"\r\n\r\n" + body)
        assert await asking == DONE


@on_both_loops
async def test_never_more_connections_than_allowed() -> None:
    """More requests wait, and get their turns in order."""
    async with far(most=1) as upstream:
        asking = [upstream.ask(b"%d" % number) for number in range(4)]
        line = await upstream.line()
        for number in range(4):
            assert (await line.serve()).endswith(b"\r\n\r\n%d" % number)
        await asyncio.gather(*asking)
        assert upstream.lines.empty()


@on_both_loops
async def test_the_next_in_line_gets_the_place_of_a_broken_connection() -> None:
    """A connection that ends makes room for a new one."""
    async with far(most=1) as upstream:
        broken, waiting = upstream.ask(b"1"), upstream.ask(b"2")
        line = await upstream.line()
        await line.request()
        line.hang_up()
        line = await upstream.line()
        assert (await line.serve()).endswith(b"2")
        assert await waiting == DONE
        with pytest.raises(Unavailable):
            await broken


@on_both_loops
async def test_a_stale_connection_is_replaced_at_the_next_turn() -> None:
    """Where the pool is full: before those that came later and still wait."""
    async with far(most=1) as upstream:
        line = await upstream.used()
        asking = [upstream.ask(b"%d" % number) for number in range(3)]
        await line.request()
        line.hang_up()
        line = await upstream.line()  # goes to the first that waits, when the old one is gone
        assert [(await line.serve())[-1:] for _ in range(3)] == [b"1", b"0", b"2"]
        assert list(await asyncio.gather(*asking)) == [DONE] * 3


@on_both_loops
async def test_half_an_answer_on_a_used_connection() -> None:
    """It was not stale: nothing is sent again here."""
    async with far() as upstream:
        line = await upstream.used()
        asking = upstream.ask()
        await line.serve(OK[:20])
        line.hang_up()
        with pytest.raises(Unavailable, match="connection ended"):
            await asking
        assert upstream.lines.empty()


@on_both_loops
async def test_an_end_before_the_end_of_the_body() -> None:
    """The upstream hangs up on a body that it does not read: known at once."""
    async with far() as upstream:
        asking = upstream.ask(b"x" * 16 * 2**20)
        line = await upstream.line()
        await line.header()
        line.writer.write_eof()
        with pytest.raises(Unavailable):
            await asking


@on_both_loops
async def test_an_old_connection_is_not_used_by_a_late_loop() -> None:
    """What should have been ended, had there been time, is ended now."""
    async with far() as upstream:
        line = await upstream.used()
        idle = upstream.client._http._pool._idle  # type: ignore[union-attr]
        for connection in idle:
            idle[connection] -= KEEPALIVE_S
        assert await upstream.used() is not line
        assert await line.ended()


@on_both_loops
async def test_a_caller_that_gives_up() -> None:
    """Its connection ends: the answer, if it came, would be taken for another's."""
    async with far(most=1) as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.request()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await line.ended()
        assert upstream.outcomes == ["connection"]
        await upstream.used()


@on_both_loops
async def test_a_caller_that_gives_up_waiting_for_its_turn() -> None:
    """Whether it still waits or was just given its turn: the next one gets it."""
    async with far(most=1) as upstream:
        asking = [upstream.ask(b"%d" % number) for number in range(4)]
        line = await upstream.line()
        asking[1].cancel()

        def answered(outcome: str, _seconds: float, _size: int) -> None:
            if outcome == "ok":
                asking[2].cancel()  # it has the connection of the first, and has not run yet

        upstream.client._requested = answered
        await line.serve()
        assert (await line.serve()).endswith(b"3")
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(result) for result in results] == [
            Response,
            asyncio.CancelledError,
            asyncio.CancelledError,
            Response,
        ]


@fast
async def test_a_request_has_its_time() -> None:
    """Without an answer it ends after `timeout_s`, each by its own beginning; the lane goes on."""
    async with far(most=2) as upstream:
        asking = []
        for _ in range(2):
            asking.append(upstream.ask())
            line = await upstream.line()
            await line.request()
            await asyncio.sleep(7)
        asking.append(upstream.ask())  # waits for a place, which counts too
        for number, task in enumerate(asking):
            with pytest.raises(Unavailable, match="timed out"):
                await task
            assert now() == pytest.approx(number * 7 + TIMEOUT_S, abs=0.01)
        assert upstream.outcomes == ["timeout"] * 3
        await upstream.line()  # of the third, once the first gave up its place
        await upstream.used()


@fast
async def test_an_answer_that_never_ends_has_its_time_too() -> None:
    """A byte a second keeps nothing alive."""
    async with far() as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.serve(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not asking.done():
            line.writer.write(b"x")
            await asyncio.sleep(1)
        with pytest.raises(Unavailable, match="timed out"):
            await asking
        assert now() == pytest.approx(TIMEOUT_S, abs=2)


@on_both_loops
async def test_closing_ends_everything() -> None:
    """Idle, asked, waiting: every connection and every request; and nothing begins after it."""
    async with far(most=2) as upstream:
        idle = upstream.ask()
        idle_line = await upstream.line()
        asking = upstream.ask()
        line = await upstream.line()
        await line.request()
        await idle_line.serve()
        await idle
        third = upstream.ask()
        await idle_line.request()
        waiting = upstream.ask()
        await asyncio.sleep(0)
        await upstream.client.close()
        for task in (asking, third, waiting, upstream.ask()):
            with pytest.raises(Unavailable):
                await task
        assert await line.ended()
        assert await idle_line.ended()
        assert upstream.lines.empty()


def test_a_deadline_that_is_over_bounds_what_begins_later() -> None:
    """As the second try of a request."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(TIMEOUT_S, Deadline.expire)
        deadline = Deadline(loop.time() + TIMEOUT_S)
        deadlines.add(deadline)
        await asyncio.sleep(TIMEOUT_S + 1)
        with pytest.raises(TimeoutError):
            await deadline.bound(loop.create_future())
        deadlines.close()

    run_virtual(story())
