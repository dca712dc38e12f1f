"""Simulated upstreams: writes per second by the number of requests in flight."""

from collections.abc import Callable
from itertools import pairwise

Upstream = Callable[[int], float]


def linear(latency_s: float) -> Upstream:
    """An upstream with unlimited capacity: the rate is requests in flight over latency."""
    return lambda in_flight: in_flight / latency_s


def kneed(capacity: float, latency_s: float, slope: float = 0.0) -> Upstream:
    """At most `capacity` writes/s; above the knee, each request lowers that by `slope`."""

    def rate(in_flight: int) -> float:
        knee = capacity * latency_s
        excess = max(0.0, in_flight - knee)
        return min(in_flight / latency_s, capacity * max(0.2, 1 - slope * excess))

    return rate


def agentex(workers: int) -> Upstream:
    """Writes per second by requests in flight: docs/upstreams.md A7, interpolated per worker."""
    points = ((0, 0.0), (1, 128.0), (10, 121.0), (50, 100.0), (10**6, 60.0))

    def rate(in_flight: int) -> float:
        each = in_flight / workers
        for (x0, y0), (x1, y1) in pairwise(points):
            if each <= x1:
                return workers * (y0 + (y1 - y0) * (each - x0) / (x1 - x0))
        raise AssertionError(in_flight)

    return rate
