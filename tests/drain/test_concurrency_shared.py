"""Many sidecars at one upstream: no sockets, no clock, seeded random numbers."""

import random
from collections import Counter, deque

import pytest

from sidecar.drain.concurrency import ConcurrencyLimit
from tests.support.concurrency import Upstream, agentex, kneed

SIDECARS = 50
SECONDS, COUNTED_FROM = 600.0, 120.0
# When all but one leave, and when that one has got over it.
LEFT_AT, RECOVERED_AT = 120.0, 360.0


class Sidecar:
    """A sidecar that always uses up its limit; `done` counts its writes by second."""

    def __init__(self, number: int, starts_at: float) -> None:
        self.number = number
        self.starts_at = starts_at
        self.leaves_at = SECONDS
        self.limit = ConcurrencyLimit(64, watch_latency=True)
        self.in_flight = 0
        self.done: Counter[int] = Counter()


def share(
    upstream: Upstream, starts: list[float], *, link_s: float = 0.002, left_at: float = SECONDS
) -> list[Sidecar]:
    """Run sidecars that start at `starts` and send as much as they may, to one shared upstream.

    At `left_at` all but the first leave.
    """
    rng = random.Random(11)
    sidecars = [Sidecar(number, at) for number, at in enumerate(starts)]
    for sidecar in sidecars[1:]:
        sidecar.leaves_at = left_at
    queue: deque[tuple[Sidecar, float]] = deque()
    waiting = deque(sidecars)
    now = 0.0
    while now < SECONDS:
        while waiting and waiting[0].starts_at <= now:
            _fill(queue, waiting.popleft(), now)
        now += rng.uniform(0.5, 1.5) / upstream(len(queue))
        # Workers run in parallel: any of the first requests may be the next one to complete.
        place = rng.randrange(min(len(queue), 10))
        queue.rotate(-place)
        sidecar, sent_at = queue.popleft()
        queue.rotate(place)
        sidecar.limit.sample(now, 1, sidecar.in_flight, now - sent_at + link_s)
        sidecar.in_flight -= 1
        sidecar.done[int(now)] += 1
        _fill(queue, sidecar, now)
    return sidecars


def _fill(queue: deque[tuple[Sidecar, float]], sidecar: Sidecar, now: float) -> None:
    while sidecar.in_flight < sidecar.limit.value and now < sidecar.leaves_at:
        sidecar.in_flight += 1
        queue.append((sidecar, now))


def shares(sidecars: list[Sidecar]) -> list[int]:
    """Writes of each sidecar after the limits have converged."""
    return [sum(n for at, n in s.done.items() if at >= COUNTED_FROM) for s in sidecars]


@pytest.mark.parametrize("apart_s", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_fifty_share_one_upstream(apart_s: float) -> None:
    """Shares are even and the upstream is busy, whether all start together or one by one."""
    upstream = agentex(workers=10)
    sidecars = share(upstream, [number * apart_s for number in range(SIDECARS)])
    got = shares(sidecars)
    fair = sum(got) / SIDECARS
    assert sum(got) / (SECONDS - COUNTED_FROM) >= 0.9 * 1280
    assert max(abs(each - fair) for each in got) <= 0.2 * fair
    for sidecar in sidecars:  # none is starved, not even for five seconds
        seconds = range(int(COUNTED_FROM), int(SECONDS) - 5)
        fewest = min(sum(sidecar.done[at + n] for n in range(5)) for at in seconds)
        assert fewest >= 0.25 * 5 * fair / (SECONDS - COUNTED_FROM)


@pytest.mark.parametrize("others", [9, 49])
@pytest.mark.parametrize(
    "upstream",
    [agentex(workers=1), kneed(200, 0.1), kneed(200, 0.1, slope=0.05)],
    ids=["agentex", "shallow", "steep"],
)
def test_a_lane_that_was_crowded_once(upstream: Upstream, others: int) -> None:
    """Four minutes after the others have left, it is as fast as if it had always been alone."""
    alone, *_ = share(upstream, [0.0])
    left, *_ = share(upstream, [0.0] * (1 + others), left_at=LEFT_AT)
    rates = [sum(n for at, n in s.done.items() if at >= RECOVERED_AT) for s in (left, alone)]
    assert rates[0] >= 0.95 * rates[1]
    best = max(upstream(in_flight) for in_flight in range(1, 65))
    assert rates[0] >= 0.9 * best * (SECONDS - RECOVERED_AT)
