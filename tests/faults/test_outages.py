"""Upstreams that are down, hang or lose responses: every accepted span arrives complete."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from sidecar.demo.stand_in import Answer, Hang, Recorded, Reset, ResetMidBody, Scripted
from tests.support.faults import end, fast, for_a_while, now, span, start, world


def unavailable(retry_after: str | None) -> Answer:
    """A 503, with or without `Retry-After`."""
    return Answer(503, headers={} if retry_after is None else {"Retry-After": retry_after})


@pytest.mark.parametrize("retry_after", [None, "2", "120", "date"])
@pytest.mark.parametrize("seconds", [5, 60])
@fast
async def test_503(seconds: int, retry_after: str | None) -> None:
    """Both upstreams respond 503 for a while: nothing is lost, and Retry-After is respected."""
    async with world() as w:
        if retry_after == "date":
            retry_after = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
        for upstream in w.upstreams:
            upstream.rule = for_a_while(seconds, unavailable(retry_after))
        await w.feed(seconds + 5, per_s=4)
        await w.finish()
        for upstream in w.upstreams:
            refused = [request.at for request in upstream.requests if request.status == 503]
            assert refused
            if retry_after in {"2", "120"}:
                pause = float(retry_after)
                later = [r.at for r in upstream.requests if r.at > refused[0] + 0.5]
                assert later[0] >= refused[0] + pause


@fast
async def test_refused_connections() -> None:
    """Both upstreams refuse connections for 10 s."""
    async with world() as w:
        feeding = asyncio.create_task(w.feed(20))
        await asyncio.sleep(5)
        for upstream in w.upstreams:
            await upstream.stop()
        await asyncio.sleep(10)
        assert w.lane("agentex")["state"] == w.lane("sgp")["state"] == "down"
        for upstream in w.upstreams:
            await upstream.start(upstream.port)
        await feeding
        await w.finish()


@fast
async def test_upstreams_that_start_later() -> None:
    """The sidecar starts ten minutes before its upstreams."""
    async with world() as w:
        for upstream in w.upstreams:
            await upstream.stop()
        await w.feed(5)
        await asyncio.sleep(600)
        for upstream in w.upstreams:
            await upstream.start(upstream.port)
        await w.finish()


@pytest.mark.parametrize("fault", [ResetMidBody(), Reset(after_apply=True), Reset()])
@fast
async def test_lost_responses(fault: Scripted) -> None:
    """Every third response is lost for 30 s, to open writes, complete ones and batches alike."""

    def every_third(_: Recorded) -> Scripted:
        count[0] += 1
        return fault if count[0] % 3 == 0 and now() < 30 else None

    count = [0]
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = every_third
        await w.feed(30)
        await w.finish()
        assert w.agentex.late_opens == w.sgp.late_opens == 0


@fast
async def test_every_response_lost() -> None:
    """Writes are stored, but no response arrives for 10 s: no span is stored twice."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(10, Reset(after_apply=True))
        await w.feed(10)
        await w.finish()
        assert len(w.agentex.spans) == len(w.sgp.spans) == len(w.accepted)


@fast
async def test_hang() -> None:
    """Both upstreams accept requests and do not respond for two minutes."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(120, Hang())
        await w.feed(60, per_s=3)
        assert w.agentex.peak_in_flight <= 64
        assert w.sgp.peak_in_flight <= 8
        await w.finish()


@fast
async def test_one_connection_hangs() -> None:
    """A single hanging request delays only its own spans."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.script = [Hang()]
        held = [span(f"h{number}") for number in range(3)]
        await w.post(*map(end, held))
        await asyncio.sleep(1)
        await w.feed(10)
        await w.until(lambda: w.lane("agentex")["depth"] == 1)
        await w.until(lambda: w.lane("sgp")["depth"] == len(held))
        assert now() < 40
        await w.finish()


@pytest.mark.parametrize("status", [500, 502, 504, 408, 429])
@fast
async def test_other_transient_failures(status: int) -> None:
    """A database is down (500), or a proxy fails: nothing is lost, and there is no dead letter."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(30, status)
        await w.feed(35, per_s=3)
        await w.finish()


@fast
async def test_responses_that_are_not_http() -> None:
    """A server that does not speak HTTP has the upstreams' ports for a while."""

    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\xffHELO who is there?\r\n\r\n")
        await writer.drain()
        writer.close()

    async with world() as w:
        for upstream in w.upstreams:
            await upstream.stop()
        babblers = [
            await asyncio.start_server(babble, "127.0.0.1", upstream.port)
            for upstream in w.upstreams
        ]
        await w.feed(10)
        for babbler in babblers:
            babbler.close()
            await babbler.wait_closed()
        for upstream in w.upstreams:
            await upstream.start(upstream.port)
        await w.finish()


@pytest.mark.parametrize("sick", ["agentex", "sgp"])
@fast
async def test_a_slow_upstream_delays_only_its_own_lane(sick: str) -> None:
    """With 20 s per request at one upstream, the other one still gets everything promptly."""
    async with world() as w:
        slow, healthy = w.upstreams if sick == "agentex" else w.upstreams[::-1]
        slow.latency_s = 20.0
        other = "sgp" if sick == "agentex" else "agentex"
        await w.feed(20)
        await w.until(lambda: not w.app.accounting.held and not w.lane(other)["depth"])
        assert w.lane(sick)["depth"] > 0
        assert healthy.complete == set(w.accepted)
        slow.latency_s = 0.0
        await w.finish()


def _most_per_second(arrivals: list[float], since: float, until: float) -> int:
    """The most requests that arrived within a second of that time."""
    return max(
        sum(first <= at < first + 1 for at in arrivals)
        for first in arrivals
        if since <= first < until - 1
    )


@pytest.mark.slow
@pytest.mark.parametrize("hangs", [False, True])
@fast
async def test_recovery_is_paced(hangs: bool) -> None:
    """After an outage of 60 s an upstream gets hardly more requests than before, for 10 s."""
    async with world(queue__start_hold_s="60", agentex__timeout_s="5", sgp__timeout_s="5") as w:
        per_s = 5.0
        feeding = asyncio.create_task(w.feed(120, per_s=per_s))
        await asyncio.sleep(20)
        for upstream in w.upstreams:
            upstream.rule = for_a_while(60, Hang() if hangs else 503)
        await feeding
        await w.finish()
        for upstream in w.upstreams:
            arrivals = [request.at for request in upstream.requests if request.status == 200]
            back = min(at for at in arrivals if at > 75)
            assert _most_per_second(arrivals, back, back + 10) <= 1.2 * per_s + 2
            assert _most_per_second(arrivals, back + 10, back + 60) <= 2 * per_s + 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@fast
async def test_all_faults_together(seed: int) -> None:
    """For two minutes any request can meet any fault."""
    chance = random.Random(seed)
    faults: list[Scripted] = [
        503, 500, 429, 401, 404, 502, Hang(), Reset(), Reset(after_apply=True), ResetMidBody(),
        unavailable("7"),
    ]  # fmt: skip

    def storm(_: Recorded) -> Scripted:
        return chance.choice(faults) if now() < 120 and chance.random() < 0.4 else None

    async with world(retry__max_attempts="1000") as w:
        for upstream in w.upstreams:
            upstream.rule = storm
        await w.feed(60, per_s=4)
        lonely = [span(f"open{number}") for number in range(20)]
        await w.post(*map(start, lonely))
        await w.finish()
