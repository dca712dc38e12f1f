"""Many sidecars, one lane each, whose upstream goes away and comes back, in virtual time.

The drains are real; the agents and the upstream are simulated, and every random number is seeded.
"""

import asyncio
import random
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from sidecar.drain.failures import RetryPolicy
from sidecar.drain.throttle import Backoff, Throttle
from sidecar.drain.workers import Drain
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import SinkError, Unavailable
from sidecar.spans.span import Span
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import LaneAccounting
from sidecar.telemetry.metrics import LaneMetrics
from sidecar.telemetry.recent import Recent
from tests.support.spans import make_span
from tests.support.virtual_time import run_virtual

LATENCY_S = 0.02
SAMPLE_S = 0.25  # how often a backlog is looked at
CALM_S = 10.0


class LaneKind(NamedTuple):
    """What one upstream's lane is configured to do by default."""

    max_batch: int
    linger_s: float
    max_concurrency: int


SGP = LaneKind(500, 0.1, 8)
AGENTEX = LaneKind(1, 0.0, 64)


class FakeUpstream:
    """The upstream that all sidecars share.

    `mode`: it is "up", "refuses" connections, "fails" (503), "hangs" until the client's timeout, or
    "asks" for `retry_after` seconds (503). `arrivals`: when each request reached it, in order;
    `writes`: how many writes that had. `attempts` also counts refused connections.
    """

    def __init__(self, *, timeout_s: float = 10.0, retry_after: float = 30.0) -> None:
        self.mode = "up"
        self.timeout_s, self.retry_after = timeout_s, retry_after
        self.arrivals: list[float] = []
        self.writes: list[int] = []
        self.attempts = 0
        self.stored = 0

    async def request(self, writes: int) -> None:
        """One request."""
        mode = self.mode
        self.attempts += 1
        if mode == "refuses":
            await asyncio.sleep(0.001)
            raise Unavailable("refused", reached=False)
        self.arrivals.append(asyncio.get_running_loop().time())
        self.writes.append(writes)
        if mode == "hangs":
            await asyncio.sleep(self.timeout_s)
            raise Unavailable("timed out")
        await asyncio.sleep(LATENCY_S)
        if mode == "fails":
            raise Unavailable("HTTP 503", 503)
        if mode == "asks":
            raise Unavailable("HTTP 503", 503, retry_after=self.retry_after)
        self.stored += writes

    def requests(self, since: float, until: float) -> int:
        """Requests that reached it in this time."""
        return bisect_left(self.arrivals, until) - bisect_left(self.arrivals, since)

    def peak(self, since: float, until: float) -> int:
        """The most requests that reached it in any second of this time."""
        times = self.arrivals[bisect_left(self.arrivals, since) : bisect_left(self.arrivals, until)]
        first = most = 0
        for last, at in enumerate(times):
            while times[first] <= at - 1.0:
                first += 1
            most = max(most, last - first + 1)
        return most


@dataclass
class LaneSink:
    """The sink of one lane: passes batches on to the fake upstream."""

    upstream: FakeUpstream
    max_batch: int
    name: str = "fake"
    max_batch_bytes: int = 2**20
    data_follows: bool = False

    def skips(self, span: Span) -> str | None:
        """Nothing is skipped."""
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:
        """Make one request."""
        await self.upstream.request(len(batch))

    def stopping(self) -> None:
        """Nothing changes."""

    async def close(self) -> None:
        """Nothing to close."""


class Sidecar:
    """One lane and its agent, which posts `burst` writes at once, on average `rate` a second."""

    def __init__(
        self,
        name: str,
        upstream: FakeUpstream,
        kind: LaneKind,
        rng: random.Random,
        recent: Recent,
        *,
        rate: float = 0.0,
        burst: int = 1,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._rng = rng
        self._name, self.posted = name, 0
        self.rate, self._burst = rate, burst
        accounting = LaneAccounting()
        self.accounting = accounting
        backoff = Backoff(0.5, 30.0)
        self.queue = SpanQueue(MemoryBudget(2**40), accounting, 1, spool=Spool())
        alike = kind.max_batch == 1
        self.throttle = Throttle(backoff, kind.max_concurrency, rng.random, watch_latency=alike)
        self.drain = Drain(
            LaneSink(upstream, kind.max_batch),
            self.queue,
            self.throttle,
            RetryPolicy(backoff, 86_400.0, 8, rng.random),
            LaneMetrics("fake", accounting, recent),
            linger_s=kind.linger_s,
            dead_letter=_not_called,
        )

    def start_agent(self) -> None:
        """Post from now on."""
        if self.rate:
            pause_s = self._rng.expovariate(self.rate / self._burst)
            self._loop.call_later(pause_s, self._on_timer)

    def _on_timer(self) -> None:
        self.post(self._burst)
        self.start_agent()

    def post(self, writes: int, payload: bytes = b"1") -> None:
        """The agent posts now."""
        now = self._loop.time()
        for _ in range(writes):
            self.posted += 1
            self.drain.put(make_span(f"{self._name}-{self.posted}", accepted_at=now, input=payload))


def _not_called(span: Span, reason: str, error: SinkError) -> None:
    raise AssertionError(f"{span.id} was given up: {reason}") from error


@asynccontextmanager
async def running(sidecars: Sequence[Sidecar]) -> AsyncIterator[None]:
    """Run their drains and agents; an exception in a drain fails the test."""
    async with asyncio.TaskGroup() as group:
        drains = [group.create_task(each.drain.run()) for each in sidecars]
        for each in sidecars:
            each.start_agent()
        yield
        for each in sidecars:
            each.rate = 0.0
        for drain in drains:
            drain.cancel()


def mixed_rates(count: int, rng: random.Random) -> list[float]:
    """Writes per second of so many agents: from 0.2 to 3, with a mean of 1."""
    return [0.2 * 15.0 ** rng.random() for _ in range(count)]


@dataclass(frozen=True)
class Outage:
    """What happens: the upstream is up for `steady_s`, then is not for `seconds`.

    `mode`: see `FakeUpstream`. `late`: the share of sidecars that start during the outage.
    `watch_s`: how long to go on after it is back; 0 for as long as any sidecar has a backlog.
    """

    seconds: float = 60.0
    mode: str = "refuses"
    steady_s: float = 120.0
    retry_after: float = 30.0
    timeout_s: float = 10.0
    late: float = 0.0


@dataclass
class Recovery:
    """What the upstream saw: requests per second before, and the peaks after it was back.

    `calm`: the most in any of the first 10 seconds, `later`: in any second after that, both
    relative to `steady`. `seconds`: until the last backlog was gone.
    """

    steady: float
    noise: float
    calm: float
    later: float
    seconds: list[float]
    attempts: int


async def _recovery(kind: LaneKind, rates: Sequence[float], outage: Outage, seed: int, burst: int) -> Recovery:
    loop = asyncio.get_running_loop()
    upstream, recent = FakeUpstream(timeout_s=outage.timeout_s, retry_after=outage.retry_after), Recent()
    sidecars = [
        Sidecar(str(number), upstream, kind, random.Random(f"{seed} {number}"), recent, rate=rate, burst=burst)
        for number, rate in enumerate(rates)
    ]
    async with running(sidecars):
        await asyncio.sleep(outage.steady_s)
        steady = upstream.requests(0.0, loop.time()) / outage.steady_s
        noise = upstream.peak(0.0, loop.time()) / steady
        upstream.mode = outage.mode
        await asyncio.sleep(outage.seconds)
        upstream.mode = "up"
        back = loop.time()
        waiting = dict.fromkeys(sidecars, inf)
        done = []
        while waiting and loop.time() < back + 4 * outage.seconds + 60:
            for each in list(waiting):
                if not each.queue.depth:
                    del waiting[each]
                    done.append(loop.time() - back)
            await asyncio.sleep(SAMPLE_S)
        done += [inf] * len(waiting)
        await asyncio.sleep(20.0)
    calm = upstream.peak(back, back + CALM_S) / steady
    later = upstream.peak(back + CALM_S, loop.time()) / steady
    return Recovery(steady, noise, calm, later, done, upstream.attempts)


def recovery(kind: LaneKind, rates: Sequence[float], outage: Outage, *, seed: int = 1, burst: int = 1) -> Recovery:
    """Simulate an outage."""
    return run_virtual(_recovery(kind, rates, outage, seed, burst))
