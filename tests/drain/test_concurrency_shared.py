"""Many sidecars at one upstream: no sockets, no clock, seeded random numbers."""

import random
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

import pytest

from sidecar.drain.concurrency import ConcurrencyLimit

SIDECARS = 50
SECONDS, COUNTED_FROM = 600.0, 120.0


def agentex(workers: int) -> Callable[[int], float]:
    """Writes per second by requests in flight: docs/upstreams.md A7, interpolated per worker."""
    points = ((0, 0.0), (1, 128.0), (10, 121.0), (50, 100.0), (10**6, 60.0))

    def rate(in_flight: int) -> float:
        each = in_flight / workers
        for (x0, y0), (x1, y1) in pairwise(points):
            if each <= x1:
                return workers * (y0 + (y1 - y0) * (each - x0) / (x1 - x0))
        raise AssertionError(in_flight)

    return rate


class Sidecar:
    """A sidecar that always uses up its limit; `done` counts its writes by second."""

    def __init__(self, number: int, starts_at: float) -> None:
        self.number = number
        self.starts_at = starts_at
        self.limit = ConcurrencyLimit(64, watch_latency=True)
        self.in_flight = 0
        self.done: Counter[int] = Counter()


def share(
    upstream: Callable[[int], float], starts: list[float], *, link_s: float = 0.002
) -> list[Sidecar]:
    """Run sidecars that start at `starts` and send as much as they may, to one shared upstream."""
    rng = random.Random(11)
    sidecars = [Sidecar(number, at) for number, at in enumerate(starts)]
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
    while sidecar.in_flight < sidecar.limit.value:
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
