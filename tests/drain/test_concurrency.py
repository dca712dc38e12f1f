"""Adaptive concurrency against simulated upstreams: no sockets, no clock, seeded noise."""

import random
from heapq import heappop, heappush
from math import exp

import pytest

from sidecar.drain.concurrency import ConcurrencyLimit
from tests.support.concurrency import Upstream, kneed, linear


def simulate(
    upstream: Upstream,
    seconds: float,
    *,
    noise: float = 0.0,
    maximum: int = 64,
    watch_latency: bool = True,
    limit: ConcurrencyLimit | None = None,
) -> tuple[ConcurrencyLimit, float]:
    """Use up the limit for `seconds`; return it, and the throughput of the second half."""
    rng = random.Random(7)
    limit = limit or ConcurrencyLimit(maximum, watch_latency=watch_latency)
    now, counted, counted_from = 0.0, 0, seconds / 2
    while now < seconds:
        in_flight = limit.value
        rate = upstream(in_flight) * (1 + noise * rng.uniform(-1, 1))
        now += 1 / rate
        counted += now > counted_from
        # Little's law; network jitter only adds latency.
        limit.sample(now, 1, in_flight, in_flight / rate * (1 + noise * rng.random()))
    return limit, counted / (seconds - counted_from)


@pytest.mark.parametrize("watch_latency", [False, True])
@pytest.mark.parametrize("latency_s", [0.005, 0.15, 0.33, 2.0])
def test_unlimited_capacity_is_used(latency_s: float, watch_latency: bool) -> None:
    """The limit reaches the maximum quickly, whatever the latency."""
    limit, _ = simulate(linear(latency_s), 400 * latency_s + 2, watch_latency=watch_latency)
    assert limit.value == 64


def test_jitter_is_not_congestion() -> None:
    """Latency that varies by half does not keep the limit down."""
    limit, throughput = simulate(linear(0.2), 120, noise=0.5)
    assert limit.value >= 48
    assert throughput >= 0.75 * 64 / 0.2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("median_s", [0.2, 0.25, 0.5, 1.0])
def test_latency_that_spreads_is_not_congestion(median_s: float, sigma: float, seed: int) -> None:
    """A lane alone uses all of an upstream with unlimited capacity whose latency varies."""
    rng = random.Random(seed)
    limit = ConcurrencyLimit(64, watch_latency=True)
    now, done, in_flight = 0.0, 0, 0
    responses: list[tuple[float, float, int]] = []  # when, sent at, in flight
    while now < 120:
        while in_flight < limit.value:
            in_flight += 1
            latency_s = median_s * rng.lognormvariate(0, sigma)
            heappush(responses, (now + latency_s, now, in_flight))
        now, sent_at, used = heappop(responses)
        in_flight -= 1
        done += now >= 60
        limit.sample(now, 1, used, now - sent_at)
    mean_s = median_s * exp(sigma**2 / 2)
    assert done / 60 >= 0.9 * 64 / mean_s


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_real_agentex_server(noise: float) -> None:
    """The limit stays at the knee of the real server (docs/upstreams.md A7)."""
    upstream = kneed(125, 0.0078, slope=0.004)
    limit, throughput = simulate(upstream, 120, noise=noise)
    assert limit.value <= 10
    assert throughput >= 0.9 * 125


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize(("watch_latency", "share"), [(False, 0.85), (True, 0.8)])
def test_a_steep_knee(noise: float, watch_latency: bool, share: float) -> None:
    """If throughput collapses beyond 20 requests in flight, the limit stays near 20."""
    upstream = kneed(200, 0.1, slope=0.05)
    limit, throughput = simulate(upstream, 240, noise=noise, watch_latency=watch_latency)
    assert limit.value <= 32
    assert throughput >= share * 200


def test_a_shallow_knee() -> None:
    """If throughput only levels off, the upstream stays busy and the limit near the knee."""
    limit, throughput = simulate(kneed(200, 0.1), 240, noise=0.1)
    assert 10 <= limit.value <= 40
    assert throughput >= 0.8 * 200


def test_drops_at_high_concurrency() -> None:
    """If the upstream refuses more than 20 concurrent requests, the limit stays near that."""
    rng = random.Random(3)
    limit = ConcurrencyLimit(64)
    now, done, refused, outdated, limits = 0.0, 0, 0, 0, []
    while now < 120:
        in_flight = limit.value
        now += 0.1 / min(in_flight, 20)
        limits.append(in_flight)
        outdated -= 1
        if in_flight > 20 and rng.random() < 1 - 20 / in_flight:
            refused += 1
            if outdated <= 0:  # the throttle ignores failures of requests sent before the pause
                limit.refused()
                outdated = in_flight
        else:
            done += 1
            limit.sample(now, 1, in_flight, 0.1)
    assert done >= 0.75 * 120 * 200
    assert refused <= 0.05 * done
    assert max(limits[len(limits) // 2 :]) <= 32


def test_rate_limit_with_429() -> None:
    """At an upstream with a token bucket, most of its rate is used and few requests get a 429."""
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
            now += 0.1  # the pause that it asked for, in which its bucket refills
            tokens = min(10.0, tokens + 10)
    assert done >= 0.6 * 120 * 100
    assert refused <= 0.1 * done


def test_the_limit_recovers_after_an_outage() -> None:
    """Failures lower the limit; once the upstream has recovered, it rises again."""
    limit, _ = simulate(linear(0.02), 20)
    for _ in range(20):
        limit.refused()
    assert limit.value == 1
    limit, _ = simulate(linear(0.02), 60, limit=limit)
    assert limit.value >= 48


def test_an_unused_limit_does_not_grow() -> None:
    """A limit that is never reached stays where it is."""
    limit = ConcurrencyLimit(64)
    for number in range(10_000):
        limit.sample(number / 100, 1, 1)
    assert limit.value == ConcurrencyLimit.START


def test_never_above_the_maximum_and_never_below_one() -> None:
    """The limit stays within its bounds under constant success and constant failure."""
    limit, _ = simulate(linear(0.01), 5, maximum=3)
    assert limit.value == 3
    for _ in range(50):
        limit.refused()
    assert limit.value == 1


def test_a_refusal_lowers_the_limit_by_a_fifth() -> None:
    """One refusal has an immediate effect."""
    limit, _ = simulate(linear(0.01), 5)
    limit.refused()
    assert limit.value == 51


def test_batches_of_different_sizes() -> None:
    """If large batches take longer, that does not lower the limit."""
    rng = random.Random(5)
    limit = ConcurrencyLimit(64)
    now, done, in_flight = 0.0, 0, 0
    responses: list[tuple[float, int, float, int]] = []  # when, writes, sent at, in flight
    while now < 300:
        while in_flight < limit.value:
            in_flight += 1
            # By turns, for ten seconds each, a backlog is sent and there is little to send.
            writes = rng.randint(500, 1000) if now % 20 < 10 else rng.randint(1, 20)
            heappush(responses, (now + 0.05 + writes * 0.0005, writes, now, in_flight))
        now, writes, sent_at, used = heappop(responses)
        in_flight -= 1
        done += writes * (now >= 60)
        limit.sample(now, writes, used, now - sent_at)
    best = 64 * (750 / 0.425 + 10.5 / 0.05525) / 2
    assert done / 240 >= 0.95 * best
