"""SIGTERM during faults: within the grace period everything is delivered or counted as lost.

Where there are dead letters, what is left goes there: see test_dead_letters.py. At its end `world`
checks that `App.run` returned False exactly if something was lost.
"""

import asyncio
import json
from typing import Any

import pytest
import structlog

from sidecar.demo.stand_in import Answer, Hang
from tests.support.faults import World, end, fast, for_a_while, now, span, start, world

GRACE_S = 25.0
# Closing the ports comes on top of the grace period.
CLOSE_S = 3.0


async def stopped(w: World) -> bool:
    """Stop the sidecar; return whether nothing was lost."""
    began = now()
    w.app.stop()
    await asyncio.wait([w.running.task])
    assert now() - began <= GRACE_S + CLOSE_S
    return w.running.task.result()


def accounted_for(w: World) -> int:
    """Check that what is not upstream is counted as lost; return the number of lost writes."""
    lost = 0
    for upstream, lane in zip(w.upstreams, w.app.lanes, strict=True):
        totals = lane.totals()
        assert (totals["depth"], totals["imbalance"], totals["dead_lettered"]) == (0, 0, 0)
        assert len(set(w.accepted) - upstream.complete) <= totals["lost"]
        assert len(set(w.opened) - set(upstream.history)) <= totals["lost"]
        assert upstream.late_opens == 0
        lost += totals["lost"]
    return lost


@pytest.mark.parametrize("spans", [10, 1000])
@fast
async def test_slow_upstreams(spans: int) -> None:
    """At 5 s per request, ten spans are delivered in time; of a thousand, the rest is lost."""
    async with world(shutdown__grace_s=GRACE_S, dead_letters__path="") as w:
        for upstream in w.upstreams:
            upstream.latency_s = 5.0
        await w.post(*[end(span(f"s{number}")) for number in range(spans)])
        good = await stopped(w)
        lost = accounted_for(w)
        assert good is (lost == 0) is (spans == 10)


@fast
async def test_hung_upstreams() -> None:
    """The upstreams hang: the process ends after the grace period and reports what is lost."""
    async with world(shutdown__grace_s=GRACE_S, dead_letters__path="") as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: Hang()
        await w.feed(5)
        assert not await stopped(w)
        assert accounted_for(w) >= 2 * len(w.accepted)


@fast
async def test_the_last_log_line_says_what_is_lost() -> None:
    """It has a sentence with the number of lost writes, what to do, and each upstream's part."""
    with structlog.testing.capture_logs() as lines:
        async with world(shutdown__grace_s=GRACE_S, dead_letters__path="") as w:
            w.upstreams[1].rule = lambda _: Hang()
            await w.post(end(span("s")))
            assert not await stopped(w)
    assert lines[-1]["text"] == (
        "stopped: 1 write was lost (raise shutdown.grace_s, or set spool.path or "
        "dead_letters.path); 1 event received; agentex: 1 write forwarded; "
        "sgp: 0 writes forwarded, 1 lost"
    )


@fast
async def test_a_second_signal() -> None:
    """A second signal ends the process immediately; further ones are harmless."""
    async with world(shutdown__grace_s=3600, dead_letters__path="") as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: Hang()
        await w.feed(5)
        w.app.stop()
        await asyncio.sleep(5)
        assert not w.running.task.done()
        again = now()
        w.app.stop()
        await asyncio.sleep(0)
        w.app.stop()
        await asyncio.wait([w.running.task])
        assert now() - again <= CLOSE_S
        w.app.stop()
        assert accounted_for(w) >= 2 * len(w.accepted)


@fast
async def test_two_signals_together() -> None:
    """Two signals before the loop runs end the process immediately."""
    async with world(shutdown__grace_s=3600) as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: Hang()
        await w.feed(5)
        began = now()
        w.app.stop()
        w.app.stop()
        await asyncio.wait([w.running.task])
        assert now() - began <= CLOSE_S


@fast
async def test_the_last_ends_come_after_the_signal() -> None:
    """The port stays open while agents still send; then new events are refused, not lost."""
    async with world(shutdown__grace_s=GRACE_S, shutdown__quiet_s=2) as w:
        for upstream in w.upstreams:
            upstream.latency_s = 3.0
        running = [span(f"s{number}") for number in range(6)]
        await w.post(*map(start, running))
        w.app.stop()
        for made in running:
            await asyncio.sleep(1)
            await w.post(end(made))
        await asyncio.sleep(2.5)
        reply = await w.send(json.dumps(end(span("late"))).encode())
        assert (reply.status, reply.headers["Retry-After"]) == (503, "1")
        assert await w.running.task
        assert accounted_for(w) == 0
        assert "late" not in w.agentex.spans


@fast
async def test_held_starts_are_written() -> None:
    """A held START whose END never comes is written open before the process ends."""
    async with world(shutdown__grace_s=GRACE_S, queue__start_hold_s=600) as w:
        await w.post(*[start(span(f"s{number}")) for number in range(50)])
        assert await stopped(w)
        assert w.agentex.history == w.sgp.history == {f"s{n}": ["open"] for n in range(50)}


@fast
async def test_stop_during_a_retry_after() -> None:
    """The signal cuts short a pause of two minutes: the upstreams are tried immediately."""
    async with world(shutdown__grace_s=GRACE_S) as w:
        for upstream in w.upstreams:
            upstream.script = [Answer(503, headers={"Retry-After": "120"})] * 10
        await w.feed(5)
        assert w.lane("sgp")["state"] == w.lane("agentex")["state"] == "throttled"
        for upstream in w.upstreams:
            upstream.script = []
        assert await stopped(w)
        assert accounted_for(w) == 0


@fast
async def test_an_outage_that_ends_in_time() -> None:
    """Upstreams recover within the grace period: waiting writes are sent without pacing."""
    # By default one back-off can be longer than the whole grace period.
    async with world(shutdown__grace_s=GRACE_S, retry__max_s=5) as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(72, 503)
        for number in range(15):
            await w.post(*[end(span(f"{number}-{n}")) for n in range(100)])
        await asyncio.sleep(60 - now())
        assert await stopped(w)
        assert accounted_for(w) == 0


@fast
async def test_stop_during_an_outage() -> None:
    """The upstreams refuse connections: all waiting writes are counted as lost."""
    async with world(shutdown__grace_s=GRACE_S, dead_letters__path="") as w:
        for upstream in w.upstreams:
            await upstream.stop()
        await w.feed(10)
        assert not await stopped(w)
        assert accounted_for(w) >= 2 * len(w.accepted)


@fast
async def test_stop_with_an_incomplete_body() -> None:
    """An agent that never completes its body does not delay the stop."""
    async with world(shutdown__grace_s=GRACE_S) as w:
        _, writer = await asyncio.open_connection("127.0.0.1", w.running.port)
        writer.write(b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
        writer.write(b"Content-Type: application/json\r\n\r\n{")
        await w.feed(3)
        assert await stopped(w)
        assert accounted_for(w) == 0
        writer.close()
        await writer.wait_closed()


@fast
async def test_stop_of_an_idle_sidecar() -> None:
    """An idle sidecar stops after the quiet period."""
    async with world(shutdown__grace_s=GRACE_S, shutdown__quiet_s=1) as w:
        began = now()
        assert await stopped(w)
        assert now() - began <= 1 + CLOSE_S


@fast
async def test_agents_that_never_stop() -> None:
    """Half of the grace period is for them; what they have sent by then is delivered."""
    async with world(shutdown__grace_s=GRACE_S, shutdown__quiet_s=1) as w:
        began = now()
        w.app.stop()
        number = 0
        while (await w.send(json.dumps(end(span(f"s{number}"))).encode())).status == 202:
            number += 1
            await asyncio.sleep(0.5)
        assert GRACE_S / 2 <= now() - began <= GRACE_S / 2 + 1.0
        assert await w.running.task
        assert len(w.agentex.complete) == len(w.sgp.complete) == number


@pytest.mark.parametrize("letters", [True, False])
@fast
async def test_starts_that_are_still_held_at_the_end(letters: bool) -> None:
    """A grace period that is over at once leaves no START uncounted."""
    settings: dict[str, Any] = {"shutdown__grace_s": 0, "shutdown__quiet_s": 5}
    if not letters:
        settings["dead_letters__path"] = ""
    async with world(queue__start_hold_s=600, **settings) as w:
        await w.post(*[start(span(f"s{number}")) for number in range(5)])
        nothing_lost = await stopped(w)
        assert nothing_lost is letters
        for lane in w.app.lanes:
            totals = lane.totals()
            done = totals["forwarded"] + totals["dead_lettered" if letters else "lost"]
            assert (done, totals["imbalance"]) == (5, 0)
        assert w.app.accounting.held == 0
