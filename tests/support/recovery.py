"""Many sidecars, one lane each, whose upstream goes away and comes back, in virtual time.

The drains are real; agents and upstream are simulated, and all random numbers are seeded.
"""

import asyncio
import random
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from math import ceil, inf
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
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import LaneMetrics
from tests.support.spans import make_span
from tests.support.virtual_time import run_virtual

LATENCY_S, TICK_S = 0.02, 0.01
STEADY_S = 120.0  # how long the upstream is up before the outage
CALM_S = 10.0
AFTERWARDS_S = 5.0  # how long to go on after the last backlog is gone
SAMPLE_S = 0.25  # how often backlogs are looked at
GIVE_UP_S = 3600.0


class LaneKind(NamedTuple):
    """What a lane is configured to do (config.py)."""

    max_batch: int
    linger_s: float
    max_concurrency: int


SGP, AGENTEX = LaneKind(500, 0.1, 8), LaneKind(1, 0.0, 64)


class Clock:
    """Timers that ring at multiples of `TICK_S`: many of them in one iteration of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._due: dict[int, list[Callable[[], object]]] = {}

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` after `seconds`, or up to a tick later."""
        tick = ceil((self.now() + seconds) / TICK_S - 1e-6)
        if tick in self._due:
            self._due[tick].append(callback)
        else:
            self._due[tick] = [callback]
            self._loop.call_at(tick * TICK_S, self._ring, tick)

    def _ring(self, tick: int) -> None:
        for callback in self._due.pop(tick):
            callback()

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, or up to a tick longer."""
        future = self._loop.create_future()
        self.call_later(seconds, partial(_wake, future))
        await future


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Phase(NamedTuple):
    """For `seconds`, the upstream is "up", "refuses" connections, "fails" (503) or "hangs".

    A 503 asks for a pause of `retry_after`, if not 0. A request that hangs ends after `timeout_s`.
    """

    mode: str
    seconds: float
    retry_after: float = 0.0
    timeout_s: float = 10.0


UP = Phase("up", inf)


class Upstream:
    """The upstream that all sidecars share.

    `arrivals`: when each request reached it; `attempts` also counts refused connections.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.phase = UP
        self.arrivals: list[float] = []
        self.attempts = 0

    async def request(self) -> None:
        """Make one request."""
        phase = self.phase
        self.attempts += 1
        if phase.mode == "refuses":
            raise Unavailable("refused", reached=False)
        self.arrivals.append(self._clock.now())
        if phase.mode == "hangs":
            await self._clock.sleep(phase.timeout_s)
            raise Unavailable("timed out")
        await self._clock.sleep(LATENCY_S)
        if phase.mode == "fails":
            raise Unavailable("HTTP 503", 503, retry_after=phase.retry_after)

    def peak(self, since: float, until: float, window_s: float) -> float:
        """The most requests per second in any `window_s` of this time."""
        first, end = bisect_left(self.arrivals, since), bisect_left(self.arrivals, until)
        most = 0
        for last in range(first, end):
            while self.arrivals[first] <= self.arrivals[last] - window_s:
                first += 1
            most = max(most, last - first + 1)
        return most / window_s


class LaneSink:
    """The sink of one lane."""

    name, max_batch_bytes, data_follows = "fake", 2**20, False
    reasons, repairs = frozenset[str](), False

    def __init__(self, upstream: Upstream, max_batch: int) -> None:
        self._upstream = upstream
        self.max_batch = max_batch

    def skips(self, span: Span) -> str | None:
        """Nothing is skipped."""
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
        """Make one request."""
        await self._upstream.request()
        return 0

    async def try_out(self) -> bool:
        """Nothing is tried out here."""
        return True

    def stopping(self) -> None:
        """Nothing changes."""

    async def close(self) -> None:
        """Nothing to close."""


class Agent(NamedTuple):
    """Posts `burst` writes at a time, at random times, on average `rate` writes per second.

    `starts_at`: when it and its sidecar start, in seconds.
    """

    rate: float
    burst: int = 1
    starts_at: float = 0.0


class Sidecar:
    """One lane and its agent."""

    def __init__(
        self,
        name: str,
        kind: LaneKind,
        agent: Agent,
        clock: Clock,
        upstream: Upstream,
        rng: random.Random,
        decisions: Decisions,
    ) -> None:
        self._name, self._posted, self.agent = name, 0, agent
        self._clock, self._rng = clock, rng
        backoff, accounting = Backoff(0.5, 30.0), LaneAccounting()
        self.accounting = accounting
        self.queue = SpanQueue(MemoryBudget(2**40), accounting, 1, spool=Spool())
        alike = kind.max_batch == 1
        self.drain = Drain(
            LaneSink(upstream, kind.max_batch),
            self.queue,
            Throttle(backoff, kind.max_concurrency, rng.random, watch_latency=alike),
            RetryPolicy(backoff, 86_400.0, 8, rng.random),
            LaneMetrics("fake", accounting, decisions),
            linger_s=kind.linger_s,
            dead_letter=_not_expected,
        )
        clock.call_later(agent.starts_at, self._wait)

    def _wait(self) -> None:
        if self.agent.rate:
            pause_s = self._rng.expovariate(self.agent.rate / self.agent.burst)
            self._clock.call_later(pause_s, self._on_timer)

    def _on_timer(self) -> None:
        self.post(self.agent.burst)
        self._wait()

    def post(self, writes: int, payload: bytes = b"1") -> None:
        """The agent posts now."""
        now = self._clock.now()
        for _ in range(writes):
            self._posted += 1
            id_ = f"{self._name}-{self._posted}"
            self.drain.put(make_span(id_, accepted_at=now, input=payload))


async def _not_expected(span: Span, reason: str, error: SinkError) -> None:
    raise AssertionError(f"{span.id} was given up: {reason}") from error


@asynccontextmanager
async def running(sidecars: Sequence[Sidecar]) -> AsyncIterator[None]:
    """Run their drains; an exception in one fails the test."""
    async with asyncio.TaskGroup() as group:
        drains = [group.create_task(each.drain.run()) for each in sidecars]
        yield
        for each in sidecars:
            assert each.accounting.imbalance(each.queue.depth) == 0
        for drain in drains:
            drain.cancel()


async def caught_up(sidecars: Sequence[Sidecar]) -> None:
    """Wait until each of them has had nothing to deliver at some moment."""
    async with asyncio.timeout(GIVE_UP_S):
        while sidecars := [each for each in sidecars if each.queue.depth]:  # noqa: ASYNC110
            await asyncio.sleep(SAMPLE_S)


class Recovery(NamedTuple):
    """What the upstream got once it was back.

    `calm`: the most requests per second in the first 10 seconds; `peak`: ever since it was back for
    the first time. Both are multiples of what all agents together caused before the outage, or
    would have. `seconds`: how long it took until the last backlog was gone.
    """

    calm: float
    peak: float
    seconds: float


def mixed_agents(count: int, seed: int, *, rate: float = 1.0, burst: int = 1) -> list[Agent]:
    """So many agents, whose rates range from a fifth of the mean rate to three times that."""
    rng = random.Random(seed)
    return [Agent(rate * 0.2 * 15.0 ** rng.random(), burst) for _ in range(count)]


def recovery(
    kind: LaneKind,
    agents: Sequence[Agent],
    phases: Sequence[Phase],
    *,
    seed: int,
    window_s: float = 1.0,
) -> Recovery:
    """Simulate an outage, which consists of `phases`; the rates are the highest in `window_s`."""
    return run_virtual(_recovery(kind, agents, phases, seed, window_s))


async def _recovery(
    kind: LaneKind, agents: Sequence[Agent], phases: Sequence[Phase], seed: int, window_s: float
) -> Recovery:
    clock, decisions = Clock(), Decisions()
    upstream = Upstream(clock)
    sidecars = [
        Sidecar(str(n), kind, agent, clock, upstream, random.Random(f"{seed} {n}"), decisions)
        for n, agent in enumerate(agents)
    ]
    early = sum(agent.rate for agent in agents if not agent.starts_at)
    async with running(sidecars):
        await asyncio.sleep(STEADY_S)
        steady = len(upstream.arrivals) / STEADY_S
        steady *= sum(agent.rate for agent in agents) / early
        first_back = inf
        for phase in [*phases, UP]:
            upstream.phase = phase
            if phase.mode == "up":
                first_back = min(first_back, clock.now())
            if phase is not UP:
                await asyncio.sleep(phase.seconds)
        back = clock.now()
        await caught_up(sidecars)
        seconds = clock.now() - back
        await asyncio.sleep(AFTERWARDS_S)
    calm = upstream.peak(back, back + CALM_S, window_s) / steady
    peak = upstream.peak(first_back, clock.now(), window_s) / steady
    return Recovery(calm, peak, seconds)
