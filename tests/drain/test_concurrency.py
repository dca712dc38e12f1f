"""Adaptive concurrency against simulated upstreams: no sockets, no clock, seeded noise."""

import random
from collections.abc import Callable

import pytest

from sidecar.drain.concurrency import ConcurrencyLimit

# Writes a second that an upstream answers when so many requests are out.
Upstream = Callable[[int], float]


def simulate(
    upstream: Upstream,
    seconds: float,
    *,
    noise: float = 0.0,
    maximum: int = 64,
    watch_latency: bool = True,
    limit: ConcurrencyLimit | None = None,
) -> tuple[ConcurrencyLimit, float]:
    """Keep the limit used up for so long; the limit, and goodput in the second half."""
    chance = random.Random(7)
    limit = limit or ConcurrencyLimit(maximum, watch_latency=watch_latency)
    now, late, late_from = 0.0, 0, seconds / 2
    while now < seconds:
        out = limit.value
        rate = upstream(out) * (1 + noise * chance.uniform(-1, 1))
        now += 1 / rate
        late += now > late_from
        # Little's law; a link's jitter only adds.
        limit.sample(now, 1, out, out / rate * (1 + noise * chance.random()))
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


@pytest.mark.parametrize("watch_latency", [False, True])
@pytest.mark.parametrize("latency_s", [0.005, 0.15, 0.33, 2.0])
def test_room_for_all_is_used(latency_s: float, watch_latency: bool) -> None:
    """A fast one and a slow link alike: the limit grows to the maximum, within seconds."""
    limit, _ = simulate(linear(latency_s), 400 * latency_s + 2, watch_latency=watch_latency)
    assert limit.value == 64


def test_jitter_is_no_crowd() -> None:
    """A link whose latency wavers by half has room all the same."""
    limit, goodput = simulate(linear(0.2), 120, noise=0.5)
    assert limit.value >= 48
    assert goodput >= 0.75 * 64 / 0.2


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_real_agentex_server(noise: float) -> None:
    """128 writes/s with one request out, less with many (docs/upstreams.md A7): at the knee."""
    table = kneed(125, 0.0078, slope=0.004)
    limit, goodput = simulate(table, 120, noise=noise)
    assert limit.value <= 10
    assert goodput >= 0.9 * 125


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(("watch_latency", "share"), [(False, 0.85), (True, 0.8)])
def test_a_steep_knee(noise: float, watch_latency: bool, share: float) -> None:
    """An upstream that breaks down beyond 20 requests is kept near them."""
    upstream = kneed(200, 0.1, slope=0.05)
    limit, goodput = simulate(upstream, 240, noise=noise, watch_latency=watch_latency)
    assert limit.value <= 32
    assert goodput >= share * 200


def test_a_shallow_knee() -> None:
    """An upstream that only stops getting faster is kept busy, and not far beyond its knee."""
    limit, goodput = simulate(kneed(200, 0.1), 240, noise=0.1)
    assert 10 <= limit.value <= 40
    assert goodput >= 0.8 * 200


def test_drops_at_high_concurrency() -> None:
    """An upstream that refuses more than 20 requests at once is kept busy below that."""
    chance = random.Random(3)
    limit = ConcurrencyLimit(64)
    now, done, refused, old, limits = 0.0, 0, 0, 0, []
    while now < 120:
        out = limit.value
        now += 0.1 / min(out, 20)
        limits.append(out)
        old -= 1
        if out > 20 and chance.random() < 1 - 20 / out:
            refused += 1
            if old <= 0:  # what left before the pause says nothing new (throttle.py)
                limit.refused()
                old = out
        else:
            done += 1
            limit.sample(now, 1, out, 0.1)
    assert done >= 0.75 * 120 * 200
    assert refused <= 0.05 * done
    assert max(limits[len(limits) // 2 :]) <= 32


def test_429_at_a_rate() -> None:
    """An upstream that takes 100 writes a second, ten at once, gets most, and few too many."""
    limit = ConcurrencyLimit(64)
    now, tokens, done, refused = 0.0, 10.0, 0, 0
    while now < 120:
        step = 0.05 / limit.value
        now += step
        tokens = min(10.0, tokens + 100 * step)
        if tokens >= 1:
            tokens -= 1
            done += 1
            limit.sample(now, 1, limit.value, 0.05)
        else:
            refused += 1
            limit.refused()
            now += 0.1  # the pause that it asked for; nothing is sent, tokens come back
            tokens = min(10.0, tokens + 10)
    assert done >= 0.6 * 120 * 100
    assert refused <= 0.1 * done


def test_after_an_outage_it_is_found_again() -> None:
    """Refusals push the limit down; when the upstream is back, it climbs to where it was."""
    limit, _ = simulate(linear(0.02), 20)
    for _ in range(20):
        limit.refused()
    assert limit.value == 1
    limit, _ = simulate(linear(0.02), 60, limit=limit)
    assert limit.value >= 48


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
