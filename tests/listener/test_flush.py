"""`POST /v1/flush`: what a 200 and a 202 promise, whatever else goes on (docs/api.md).

The loop's clock skips idle time, so waits can be long and times are exact.
"""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from sidecar.demo.stand_in import Answer, Delay, Gate
from tests.support.faults import World, end, fast, for_ids, now, span, start, world
from tests.support.world import Reply

# Nothing is sent of its own accord within the wait of a flush; a retry is.
SLOW: dict[str, Any] = {"queue__start_hold_s": 1800, "sgp__linger_s": 60, "retry__max_s": 2}
FLUSH = b"POST /v1/flush?wait_s=30 HTTP/1.1\r\nHost: localhost\r\n\r\n"
QUERIES = ("", "wait_s=0.5", "wait_s=30", "until=disk&wait_s=1.05e1")


async def flushed(w: World, query: str = "wait_s=30", **options: Any) -> Reply:
    """The response to a flush."""
    return await w.running.request("POST", f"/v1/flush?{query}", **options)


def stored(w: World) -> tuple[set[str], set[str]]:
    """The ids of the rows of both upstreams."""
    return set(w.agentex.spans), {id_ for _, id_ in w.sgp.spans}


@pytest.mark.parametrize("query", QUERIES)
@fast
async def test_200_means_that_it_stands_in_the_rows(query: str) -> None:
    """Neither the hold of an old START nor the linger of an END delays what a flush waits for."""
    async with world(**SLOW) as w:
        made = [span(f"s{number}") for number in range(300)]
        await w.post(*(start(each) for each in made[:200]))
        await asyncio.sleep(1)
        await w.post(*(end(each) for each in made[100:]))
        began = now()
        reply = await flushed(w, query)
        assert (reply.status, reply.body) == (200, {"left": {}})
        assert reply.headers["Content-Type"] == "application/json"
        assert now() - began < 0.5
        assert stored(w) == ({each["id"] for each in made},) * 2
        await w.post(*(end(each) for each in made[:100]))
        assert (await flushed(w)).status == 200
        await w.finish()


@fast
async def test_nothing_to_wait_for() -> None:
    """A flush of nothing is a 200 at once, also without any upstream."""
    async with world() as w:
        assert (await flushed(w, "wait_s=0")).body == {"left": {}}
        await w.post(end(span("s")))
        await w.drained()
        assert (await flushed(w, "wait_s=0")).status == 200
    without = ("AGENTEX_BASE_URL", "SGP_CLIENT_BASE_URL")
    async with world(without=without) as w:
        assert (await flushed(w, "until=disk")).status == 200


@fast
async def test_a_young_start_waits_for_its_end() -> None:
    """A START is not released before it is 100 ms old: if its END comes by then, one write goes."""
    async with world(**SLOW) as w:
        joined, alone = span("joined"), span("alone")
        await w.post(start(joined), start(alone))
        began = now()
        waiting = asyncio.create_task(flushed(w))
        await asyncio.sleep(0.05)
        await w.post(end(joined))
        assert (await waiting).status == 200
        assert 0.09 < now() - began < 0.2
        assert stored(w) == ({"joined", "alone"},) * 2
        assert w.agentex.spans["joined"]["output"] == joined["output"]
        assert w.agentex.spans["alone"]["end_time"] is None
        assert w.app.lanes[0].accounting.forwarded.total() == 2


@fast
async def test_202_counts_what_is_left_by_upstream() -> None:
    """When the wait is over, each upstream that is behind is named with its number of writes."""
    async with world(**SLOW) as w:
        w.sgp.rule = lambda _: 503
        await w.post(*(end(span(f"s{number}")) for number in range(12)), start(span("held")))
        for wait_s in (5, 0.5):
            began = now()
            reply = await flushed(w, f"wait_s={wait_s}")
            assert (reply.status, reply.body) == (202, {"left": {"sgp": 13}})
            assert wait_s <= now() - began < wait_s + 0.2
        assert len(w.agentex.spans) == 13
        w.sgp.rule = None
        assert (await flushed(w)).status == 200
        assert len(w.sgp.spans) == 13


@fast
async def test_wait_0_starts_the_delivery() -> None:
    """A flush that does not wait says what is left, which is then sent without delay."""
    async with world(**SLOW) as w:
        await w.post(end(span("ended")), start(span("held")))
        reply = await flushed(w, "wait_s=0")
        assert (reply.status, reply.body) == (202, {"left": {"agentex": 2, "sgp": 2}})
        await asyncio.sleep(1)
        assert stored(w) == ({"ended", "held"},) * 2


@fast
async def test_neither_back_off_nor_pace_is_skipped() -> None:
    """A flush sends nothing to an upstream that asked for a pause."""
    async with world(**SLOW) as w:
        w.sgp.rule = lambda _: Answer(429, headers={"Retry-After": "20"})
        await w.post(end(span("s")))
        assert (await flushed(w, "wait_s=1")).status == 202
        requests = w.sgp.requests_total
        for _ in range(5):
            assert (await flushed(w, "wait_s=1")).body == {"left": {"sgp": 1}}
        assert w.sgp.requests_total == requests
        w.sgp.rule = None
        assert (await flushed(w, "wait_s=30")).status == 200


@fast
async def test_a_refused_write_is_not_left() -> None:
    """A dead letter is a final decision."""
    async with world(**SLOW) as w:
        w.sgp.rule = for_ids({"bad"}, Answer(422, b'{"detail": "no"}'))
        await w.post(end(span("bad")), end(span("good")))
        assert (await flushed(w)).body == {"left": {}}
        assert w.dead() == {("sgp", "bad"): 1}
        await w.finish(dead={("sgp", "bad")})


@fast
async def test_what_comes_later_is_not_waited_for() -> None:
    """Under a steady load, also of spans that never get through, a flush ends."""
    async with world() as w:
        w.sgp.rule = for_ids({f"later{number}" for number in range(1000)}, 503)
        await w.post(*(end(span(f"s{number}")) for number in range(20)))
        waiting = asyncio.create_task(flushed(w))
        await asyncio.sleep(0)
        feeding = asyncio.create_task(w.feed(3, per_s=200, prefix="other"))
        assert (await waiting).status == 200
        assert not feeding.done()
        assert {f"s{number}" for number in range(20)} <= set(w.agentex.spans)
        await feeding
        await w.finish()


@fast
async def test_a_write_that_replaces_one_is_waited_for() -> None:
    """If an END takes the place of an open write, a 200 means that the span's row is there.

    The open write fails and is superseded, but what it said is not upstream before the END is.
    """
    async with world(**SLOW) as w:
        made, gate = span("s"), asyncio.Event()
        w.sgp.rule = lambda _: Gate(gate, 503)
        await w.post(start(made))
        waiting = asyncio.create_task(flushed(w))
        await asyncio.sleep(1)  # the open write is in flight
        await w.post(end(made))
        w.sgp.rule = lambda request: 503 if request.at < 10 else None
        gate.set()
        assert (await waiting).status == 200
        assert now() > 10
        assert w.sgp.spans["trace", "s"]["input"] == made["input"]


@fast
async def test_a_crowd_shares_two_rounds() -> None:
    """A thousand waiters of many moments look at the queues three times, not a thousand times."""
    async with world(**SLOW) as w:
        marks: list[float] = []
        mark, waits = w.app.lanes[1].branches[0].queue.marked, w.app.listener._flush
        begin = mark.set

        def counted(done: Callable[[], None]) -> None:
            marks.append(now())
            begin(done)

        def waiting(count: int) -> bool:
            return waits.waiting == count

        mark.set = counted  # type: ignore[method-assign]
        w.sgp.rule = lambda request: 503 if request.at < 15 else None
        await w.post(end(span("s")))
        async with asyncio.TaskGroup() as tasks:
            crowd = []
            for size in range(99, 991, 99):
                crowd += [tasks.create_task(w.running.raw(FLUSH)) for _ in range(99)]
                await w.until(partial(waiting, size))
                await w.post(end(span(f"later{size}")))
        assert {each.result() for each in crowd} == {(200, b'{"left":{}}')}
        assert len(w.sgp.spans) == 11
        assert len(marks) <= 3


@fast
async def test_waiters_that_leave_do_not_hold_up_others() -> None:
    """A round that nobody waits for any more makes way for the next one."""
    async with world(**SLOW) as w:
        w.sgp.rule = for_ids({"stuck"}, 503)
        await w.post(end(span("stuck")))
        first = asyncio.create_task(flushed(w, "wait_s=5"))
        await asyncio.sleep(1)
        second = asyncio.create_task(flushed(w, "wait_s=20"))
        await asyncio.sleep(1)
        assert (await first).body == {"left": {"sgp": 1}}
        await w.post(end(span("more")))
        assert (await second).body == {"left": {"sgp": 1}}


@fast
async def test_too_many_waiters() -> None:
    """Agents keep places of their own: of too many waiters, the last ones get 429."""
    async with world(**SLOW) as w:
        waits = w.app.listener._flush
        places = w.app.listener.server.max_connections
        assert 0.9 * places < waits.max_waiters < places
        waits.max_waiters = 3
        w.sgp.rule = lambda _: 503
        await w.post(end(span("s")))
        waiting = [asyncio.create_task(flushed(w, "wait_s=5")) for _ in range(3)]
        await asyncio.sleep(1)
        reply = await flushed(w)
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert reply.body == {"error": "3 requests wait for a flush already: try again later"}
        assert [(await each).status for each in waiting] == [202] * 3
        assert (await flushed(w, "wait_s=0")).status == 202
        counted = w.app.status()["intake"]["flushes_by_outcome"]
        assert counted == {"delivered": 0, "left": 4, "refused": 1}


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("wait_s=31", "wait_s must be a number of seconds from 0 to 30"),
        ("wait_s=-1", "wait_s must be a number of seconds from 0 to 30"),
        ("wait_s=nan", "wait_s must be a number of seconds from 0 to 30"),
        ("wait_s=", "wait_s must be a number of seconds from 0 to 30"),
        ("wait_s=5s", "wait_s must be a number of seconds from 0 to 30"),
        ("until=delivered", "until must be disk, or left out"),
        ("wait_s=1e999", "wait_s must be a number of seconds from 0 to 30"),
        ("wait_s=1_0", "wait_s must be a number of seconds from 0 to 30"),
        ("wait_s=1&wait_s=2", "a parameter is there twice"),
        ("timeout=3", "the only parameters are wait_s and until"),
        ("&".join(["wait_s=1"] * 20), "it has too many parameters"),
    ],
)
@fast
async def test_400(query: str, error: str) -> None:
    """A bad query gets a 400 that says what is wrong with it."""
    async with world() as w:
        reply = await flushed(w, query)
        assert (reply.status, reply.body) == (400, {"error": f"the query of the URL: {error}"})


@fast
async def test_other_methods_hosts_and_origins() -> None:
    """Only POST, and only from a client that may also post events; a body is ignored."""
    async with world() as w:
        for method in ("GET", "PUT", "DELETE"):
            reply = await w.running.request(method, "/v1/flush")
            assert (reply.status, reply.headers["Allow"]) == (405, "POST")
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert (await flushed(w, headers=headers)).status == 403
        assert (await flushed(w, data=b"x" * 100_000)).status == 200


@fast
async def test_the_end_of_the_process_ends_the_wait() -> None:
    """SIGTERM lets a waiter have its 200 within the grace period, or a 202 when that is over."""
    async with world(**SLOW, shutdown__grace_s=20) as w:
        w.sgp.rule = lambda request: 503 if request.at < 3 else None
        await w.post(end(span("s")), start(span("held")))
        waiting = asyncio.create_task(flushed(w))
        await asyncio.sleep(1)
        w.app.stop()
        assert (await waiting).body == {"left": {}}
        assert now() < 6
        assert stored(w) == ({"s", "held"},) * 2
    async with world(**SLOW, shutdown__grace_s=5) as w:
        w.sgp.rule = lambda _: 503
        await w.post(end(span("s")))
        waiting = asyncio.create_task(flushed(w))
        await asyncio.sleep(1)
        w.app.stop()
        await asyncio.sleep(1)
        reply = await flushed(w)
        assert (reply.status, reply.body) == (503, {"error": "the sidecar is stopping"})
        assert (await waiting).body == {"left": {"sgp": 1}}
        await w.running.task


@fast
async def test_a_flush_behind_another_one_delays_nothing() -> None:
    """While one waits for a span that is stuck, holds and linger end for the next one as well."""
    async with world(**SLOW) as w:
        w.sgp.rule = for_ids({"stuck"}, 503)
        await w.post(end(span("stuck")))
        stuck = asyncio.create_task(flushed(w))
        await asyncio.sleep(1)
        await w.post(start(span("held")), end(span("ended")))
        reply = await flushed(w, "wait_s=5")
        assert reply.body["left"].keys() == {"sgp"}
        assert stored(w) == ({"stuck", "held", "ended"}, {"held", "ended"})
        assert (await stuck).body == {"left": {"sgp": 1}}


@fast
async def test_a_later_write_of_a_span_is_not_waited_for() -> None:
    """A span that is posted again and again does not keep a flush from ending."""
    async with world(**SLOW) as w:
        made, gate = span("s"), asyncio.Event()
        w.sgp.rule = lambda _: Gate(gate)
        await w.post(end(made))
        waiting = asyncio.create_task(flushed(w))
        await asyncio.sleep(1)  # it is in flight
        w.sgp.rule = lambda _: 503
        await w.post(end(made | {"output": {"text": "another"}}))
        gate.set()
        began = now()
        assert (await waiting).status == 200
        assert now() - began < 1


@fast
async def test_a_client_that_hangs_up() -> None:
    """It waits no longer: its place is free, and those behind it get their turn."""
    async with world(**SLOW) as w:
        waits = w.app.listener._flush
        waits.max_waiters = 1
        w.sgp.rule = lambda _: 503
        await w.post(end(span("s")))
        for head in (FLUSH, FLUSH[:-2] + b"Content-Length: 1\r\n\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", w.running.port)
            writer.write(head)
            await asyncio.sleep(1)
            assert waits.waiting == (head is FLUSH)
            writer.close()
            await asyncio.sleep(1)
            assert waits.waiting == 0
        assert (await flushed(w, "wait_s=1")).status == 202


@fast
async def test_bodies_that_come_later_do_not_exceed_the_limit() -> None:
    """How many may wait is checked when a request is complete, not only by its head."""
    async with world(**SLOW) as w:
        w.app.listener._flush.max_waiters = 2
        w.sgp.rule = lambda _: 503
        await w.post(end(span("s")))
        head = FLUSH[:-2] + b"Content-Length: 1\r\n\r\n"
        clients = [await asyncio.open_connection("127.0.0.1", w.running.port) for _ in range(5)]
        for part in (head, b"x"):
            for _, writer in clients:
                writer.write(part)
            await asyncio.sleep(1)
        assert w.app.listener._flush.waiting == 2
        lines = [await reader.readline() for reader, _ in clients]
        assert (
            sorted(lines)
            == [b"HTTP/1.1 202 Accepted\r\n"] * 2 + [b"HTTP/1.1 429 Too Many Requests\r\n"] * 3
        )
        for _, writer in clients:
            writer.close()


@fast
async def test_a_body_that_never_comes() -> None:
    """A request that is cut off gets a 400 in JSON."""
    async with world() as w:
        head = FLUSH[:-2] + b"Content-Length: 10\r\n\r\n"
        status, body = await w.running.raw(head + b"x", eof=True)
        assert (status, body) == (400, b'{"error":"the request did not arrive whole"}')


@fast
async def test_accounts() -> None:
    """A flush waits for the writes of every account."""
    async with world(without=("SGP_API_KEY", "SGP_ACCOUNT_ID"), sgp__relay="true", **SLOW) as w:
        for account in ("one", "two"):
            made = end(span(account, trace_id=account))
            await w.post(made, x_api_key=f"key of {account}", x_selected_account_id=account)
        w.sgp.rule = for_ids({"two"}, 503)
        assert (await flushed(w, "wait_s=5")).body == {"left": {"sgp": 1}}
        w.sgp.rule = None
        assert (await flushed(w)).status == 200
        assert {id_ for _, id_ in w.sgp.spans} == {"one", "two"}


@fast
async def test_a_flush_without_waiting_does_not_hold_up_others() -> None:
    """`wait_s=0` marks nothing, so what a later flush waits for includes what came in between."""
    async with world(**SLOW) as w:
        w.sgp.rule = lambda _: 503
        await w.post(end(span("a")))
        assert (await flushed(w, "wait_s=0")).status == 202
        assert (await flushed(w, "wait_s=1")).body == {"left": {"sgp": 1}}
        await w.post(end(span("b")))
        assert (await flushed(w, "wait_s=1")).body == {"left": {"sgp": 2}}
        w.sgp.rule = None
        assert (await flushed(w)).status == 200
        assert not any(lane.branches[0].queue.marked.is_set for lane in w.app.lanes)


@fast
async def test_the_end_of_the_process_ends_every_wait() -> None:
    """Those of the round under way and of the next one get their 202, whatever their number."""
    async with world(**SLOW, shutdown__grace_s=5) as w:
        w.sgp.rule = lambda _: 503
        await w.post(end(span("s")))
        waiting = []
        for _ in range(3):
            waiting += [asyncio.create_task(w.running.raw(FLUSH)) for _ in range(40)]
            await asyncio.sleep(0.5)
        w.app.stop()
        assert {await each for each in waiting} == {(202, b'{"left":{"sgp":1}}')}
        assert now() < 10
        await w.running.task


@pytest.mark.parametrize("seed", range(3))
@fast
async def test_200_under_load_and_failures(seed: int) -> None:
    """Whatever another agent posts and however upstreams fail, a 200 means rows for all before."""
    chance = random.Random(seed)
    async with world(queue__start_hold_s=2, sgp__linger_s=1) as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: chance.choice(
                [*[None] * 30, 503, 429, Delay(0.3, 500), Delay(0.2)]
            )
        feeding = asyncio.create_task(w.feed(20, per_s=40, prefix="other"))
        seen = 0
        for number in range(20):
            mine = span(f"mine{number}")
            await w.post(start(mine))
            await asyncio.sleep(chance.choice([0, 0.01, 0.2]))
            if chance.random() < 0.7:
                await w.post(end(mine))
            before = {*w.accepted, *w.opened}
            ended = set(w.accepted)
            if (await flushed(w, f"wait_s={chance.choice([1, 30])}")).status == 200:
                seen += 1
                for rows in stored(w):
                    assert before <= rows
                assert all(w.agentex.spans[each]["end_time"] for each in ended)
                assert all(w.sgp.spans["trace", each]["end_timestamp"] for each in ended)
        assert seen > 5
        feeding.cancel()
        await asyncio.wait([feeding])
        for upstream in w.upstreams:
            upstream.rule = None
        assert (await flushed(w)).status == 200
