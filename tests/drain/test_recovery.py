"""An upstream goes away and comes back: a thousand sidecars must not cause its next outage.

Drains are real, time is virtual. In most tests a hundred sidecars have to do: then peaks are the
highest of any ten seconds, because so few agents vary as much in that time as a thousand in one.
"""

import asyncio
import random
from typing import NamedTuple

import pytest

from sidecar.telemetry.decisions import Decisions
from tests.support.recovery import (
    AGENTEX,
    SGP,
    STEADY_S,
    UP,
    Agent,
    Clock,
    LaneKind,
    Phase,
    Recovery,
    Sidecar,
    Upstream,
    caught_up,
    mixed_agents,
    recovery,
    running,
)
from tests.support.virtual_time import run_virtual

REFUSED = Phase("refuses", 60.0)
both_kinds = pytest.mark.parametrize("kind", [SGP, AGENTEX], ids=["sgp", "agentex"])
FEW_S = 10.0  # in which a hundred sidecars send as much as a thousand in a second


def check(kind: LaneKind, measured: Recovery, outage_s: float) -> None:
    """Requests that take batches stay at the steady rate; single writes at most double it."""
    batches = kind.max_batch > 1
    assert measured.calm <= 1.2
    assert measured.peak <= (1.2 if batches else 2.0)
    assert measured.seconds <= (2 if batches else 3) * outage_s


@both_kinds
def test_the_request_rate_stays_low_after_an_outage(kind: LaneKind) -> None:
    """A hundred sidecars deliver what is waiting soon, but hardly strain the upstream."""
    measured = recovery(kind, mixed_agents(100, 1), [REFUSED], seed=1, window_s=FEW_S)
    check(kind, measured, REFUSED.seconds)


@pytest.mark.slow
@both_kinds
def test_the_request_rate_of_a_thousand_sidecars(kind: LaneKind) -> None:
    """The rate is limited in every second."""
    check(kind, recovery(kind, mixed_agents(1000, 1), [REFUSED], seed=1), REFUSED.seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "outage"),
    [
        (SGP, Phase("refuses", 8.0)),
        (AGENTEX, Phase("refuses", 8.0)),
        (SGP, Phase("refuses", 300.0)),
        (SGP, Phase("fails", 60.0)),
        (AGENTEX, Phase("fails", 60.0, retry_after=30.0)),
        (AGENTEX, Phase("hangs", 60.0)),
    ],
    ids=["sgp short", "agentex short", "sgp long", "sgp 503", "agentex pause", "agentex timeout"],
)
def test_the_kind_and_length_of_an_outage_do_not_matter(kind: LaneKind, outage: Phase) -> None:
    """The limits also hold after a short or long one, and when it fails, hangs or asks to wait."""
    measured = recovery(kind, mixed_agents(100, 2), [outage], seed=2, window_s=FEW_S)
    check(kind, measured, outage.seconds)


@pytest.mark.slow
@both_kinds
def test_agents_that_post_in_bursts(kind: LaneKind) -> None:
    """The rates of single agents vary a lot, but not that of all of them."""
    agents = mixed_agents(100, 3, burst=2)
    check(kind, recovery(kind, agents, [REFUSED], seed=3, window_s=FEW_S), REFUSED.seconds)


@pytest.mark.slow
@both_kinds
def test_sidecars_that_start_during_the_outage(kind: LaneKind) -> None:
    """They do not know a steady rate, but what has arrived suggests one."""
    rng = random.Random(4)
    agents = [
        Agent(each.rate, starts_at=STEADY_S + rng.uniform(0.0, 50.0) if number % 2 else 0.0)
        for number, each in enumerate(mixed_agents(100, 4))
    ]
    check(kind, recovery(kind, agents, [REFUSED], seed=4, window_s=FEW_S), REFUSED.seconds)


@pytest.mark.slow
@both_kinds
def test_an_upstream_that_comes_back_for_a_moment_only(kind: LaneKind) -> None:
    """A backlog is not mistaken for what has arrived since the upstream was there last."""
    phases = [REFUSED, Phase("up", 5.0), Phase("refuses", 5.0)]
    measured = recovery(kind, mixed_agents(100, 5), phases, seed=5, window_s=FEW_S)
    check(kind, measured, sum(phase.seconds for phase in phases))


class Delivery(NamedTuple):
    """Requests since the outage began, and how long it took after the upstream was back."""

    requests: int
    seconds: float


async def deliver_batches(rate: float, seed: int) -> Delivery:
    """SGP is away for 8 s, and an agent that had posted at `rate` now posts 2,000 spans of 1 KB."""
    clock = Clock()
    upstream = Upstream(clock)
    rng = random.Random(seed)
    sidecar = Sidecar("s", SGP, Agent(rate), clock, upstream, rng, Decisions())
    async with running([sidecar]):
        await asyncio.sleep(STEADY_S)
        sidecar.agent = Agent(0.0)
        upstream.phase, before = Phase("refuses", 8.0), upstream.attempts
        for _ in range(100):
            sidecar.post(20, b'"%b"' % (b"x" * 1022))
            await asyncio.sleep(0.08)
        upstream.phase, back = UP, clock.now()
        await caught_up([sidecar])
        return Delivery(upstream.attempts - before, clock.now() - back)


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0, 20.0])
def test_few_requests_deliver_many_waiting_spans(rate: float) -> None:
    """After 8 s, 2,000 spans take 60 requests and 15 s, whatever the rate was before."""
    deliveries = [run_virtual(deliver_batches(rate, seed)) for seed in range(10)]
    assert max(each.requests for each in deliveries) <= 60
    assert max(each.seconds for each in deliveries) <= 15.0


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_few_requests_deliver_many_waiting_spans_by_any_chance(rate: float) -> None:
    """The same holds for fifty seeds at the rates that take longest."""
    deliveries = [run_virtual(deliver_batches(rate, seed)) for seed in range(10, 60)]
    assert max(each.requests for each in deliveries) <= 60
    assert max(each.seconds for each in deliveries) <= 15.0
