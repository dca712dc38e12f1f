"""Adaptive concurrency against simulated upstreams: no sockets, no clock, seeded noise."""

import random
from collections.abc import Callable

import pytest

from sidecar.concurrency import ConcurrencyLimit

# Writes a second that an upstream answers when so many requests are out.
Upstream = Callable[[int], float]


def simulate(
    upstream: Upstream, seconds: float, *, noise: float = 0.0, maximum: int = 64
) -> tuple[ConcurrencyLimit, float]:
    """Keep the limit used up for so long; the limit, and goodput in the second half."""
    chance = random.Random(7)
    limit = ConcurrencyLimit(maximum)
    now, late, late_from = 0.0, 0, seconds / 2
    while now < seconds:
        rate = upstream(limit.value) * (1 + noise * chance.uniform(-1, 1))
        now += 1 / rate
        late += now > late_from
        limit.sample(now, 1, limit.value)
    return limit, late / (seconds - late_from)


def linear(latency_s: float) -> Upstream:
    """An upstream with room for all: the rate is requests over latency."""
    return lambda out: out / latency_s


def kneed(capacity: float, latency_s: float, slope: float = 0.0) -> Upstream:
    """It answers `capacity` at most, and less the more requests wait above its knee."""

    def rate(out: int) -> float:
        knee = capacity * latency_s
        return min(out / latency_s, capacity * max(0.2, 1 - slope * max(0.0, out - knee)))

    return rate


@pytest.mark.parametrize("latency_s", [0.005, 0.15, 0.33])
def test_room_for_all_is_used(latency_s: float) -> None:
    """A fast one and a slow link alike: the limit grows to the maximum."""
    limit, _ = simulate(linear(latency_s), 400 * latency_s + 2)
    assert limit.value == 64


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_real_agentex_server(noise: float) -> None:
    """128 writes/s with one request out, less with many (agentex.md 7): stays near the knee."""
    table = kneed(125, 0.0078, slope=0.004)
    limit, goodput = simulate(table, 120, noise=noise)
    assert limit.value <= 10
    assert goodput >= 0.9 * 125


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_a_steep_knee(noise: float) -> None:
    """An upstream that breaks down beyond 20 requests is kept near them."""
    limit, goodput = simulate(kneed(200, 0.1, slope=0.05), 240, noise=noise)
    assert limit.value <= 32
    assert goodput >= 0.85 * 200


def test_what_is_not_used_up_does_not_grow() -> None:
    """Nothing is learnt from a limit that was not reached."""
    limit = ConcurrencyLimit(64)
    for number in range(10_000):
        limit.sample(number / 100, 1, 1)
    assert limit.value == ConcurrencyLimit.START


def test_never_above_the_maximum_and_never_below_one() -> None:
    """Whatever happens."""
    limit, _ = simulate(linear(0.01), 5, maximum=3)
    assert limit.value == 3
    for _ in range(50):
        limit.refused()
    assert limit.value == 1


def test_a_refusal_takes_a_fifth_off() -> None:
    """At once; it grows again while more gets through."""
    limit, _ = simulate(linear(0.01), 5)
    limit.refused()
    assert limit.value == 51
