"""The drain of one lane: takes batches from the queue, sends them, settles every write.

In: a `SpanQueue` and a `Sink`. Out: nothing but settled writes: forwarded, superseded, or dead
letters. It is the only place that retries (design.md D7). A batch that failed stays in hand, its
spans in flight, so that nothing of theirs overtakes it; it is sent again later, or in halves.

Workers are equal and made when there is work for one more; while all are busy, writes pile up in
the queue and batches grow. One timer a lane, never one for a write.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from sidecar.metrics import LaneMetrics
from sidecar.sinks import (
    Misdirected,
    Refused,
    Sink,
    SinkError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from sidecar.span_queue import SpanQueue
from sidecar.spans import Span
from sidecar.throttle import Backoff, SinkState, Throttle

_order = count()


@dataclass(slots=True)
class Batch:
    """Writes that are sent together; `not_before` is loop time in seconds."""

    spans: list[Span]
    attempts: int = 0
    suspicion: int = 0
    successes_seen: int = 0
    not_before: float = 0.0
    order: int = field(default_factory=lambda: next(_order))

    def __lt__(self, other: "Batch") -> bool:
        return (self.not_before, self.order) < (other.not_before, other.order)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again, and when no more. Seconds, and failures (design.md D7, D8)."""

    backoff: Backoff
    max_age_s: float
    max_attempts: int


class Drain:
    """Forwards one lane's writes. `linger_s`: how long a batch may wait to fill."""

    def __init__(
        self,
        sink: Sink,
        queue: SpanQueue,
        throttle: Throttle,
        policy: RetryPolicy,
        metrics: LaneMetrics,
        *,
        linger_s: float,
        jitter: Callable[[], float],
    ) -> None:
        self._sink = sink
        self._queue = queue
        self._throttle = throttle
        self._policy = policy
        self._metrics = metrics
        self._linger_s = linger_s
        self._jitter = jitter
        self._loop = asyncio.get_running_loop()
        self._retries: list[Batch] = []  # a heap by not_before
        self._idle: deque[asyncio.Future[Batch]] = deque()
        self._workers = 0
        self._sending = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pump_due = False
        self._closing = False
        self._done = asyncio.Event()
        self._evidence = Evidence()

    def abandon(self) -> list[Span]:
        """Give up what is left, at the end of the process; returns it."""
        self._done.set()
        self._stop_timer()
        return self._queue.abandon()

    async def run(self) -> None:
        """Forward until the queue is closed and empty; a bug in here ends the process (D13)."""
        async with asyncio.TaskGroup() as self._tasks:
            self.wake()
            await self._done.wait()
            for worker in self._idle:
                worker.cancel()
            self._stop_timer()

    def put(self, span: Span) -> None:
        """Queue a write, unless the sink has a reason to skip it."""
        reason = self._sink.skips(span)
        if reason is not None:
            self._metrics.skipped(reason)
            return
        self._queue.put(span)
        self.wake()

    def wake(self) -> None:
        """Look for work in the next round of the loop: something changed."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def close(self) -> None:
        """No more writes will come: forward what is left without lingering, then end `run`."""
        self._closing = True
        self._throttle.resume()
        for batch in self._retries:
            batch.not_before = 0.0
        heapq.heapify(self._retries)
        self.wake()

    def probe(self) -> None:
        """Try a held upstream now: it may answer differently, say with a new credential."""
        self._throttle.resume()
        self.wake()

    # How batches come to workers.

    def _pump(self) -> None:
        self._pump_due = False
        if self._tasks is None or self._done.is_set():
            return
        while (batch := self._next()) is not None:
            if self._idle:
                self._idle.popleft().set_result(batch)
            else:
                self._workers += 1
                self._tasks.create_task(self._work(batch))
        if self._closing and not self._queue.depth:
            self._done.set()

    def _next(self) -> Batch | None:
        """The batch to send now, or None, with the timer set for when there may be one."""
        if self._sending >= self._throttle.limit:
            return None  # whoever comes back looks again
        now = self._loop.time()
        if now < self._throttle.paused_until:
            self._wake_at(self._throttle.paused_until)
            return None
        batch = self._take(now)
        if batch is not None:
            self._sending += 1
        return batch

    def _take(self, now: float) -> Batch | None:
        probing = self._throttle.probing
        if self._retries and self._retries[0].not_before <= now:
            batch = heapq.heappop(self._retries)
            self._drop_overtaken(batch)
            if not batch.spans:
                return self._take(now)
            if probing and len(batch.spans) > 1:
                # A probe is one write: it costs an upstream that comes back as little as can be,
                # and a bad write in a batch does not keep the others from being the probe.
                rest = Batch(batch.spans[1:], batch.attempts, batch.suspicion)
                heapq.heappush(self._retries, rest)
                batch.spans = batch.spans[:1]
            return batch
        first = self._queue.first
        if first is None:
            if self._retries:
                self._wake_at(self._retries[0].not_before)
            return None
        sink = self._sink
        full = (
            self._queue.waiting >= sink.max_batch
            or self._queue.waiting_bytes >= sink.max_batch_bytes
        )
        if not (full or self._closing):
            ripe_at = first.accepted_at + self._linger_s
            if ripe_at > now:
                retry_at = self._retries[0].not_before if self._retries else ripe_at
                self._wake_at(min(ripe_at, retry_at))
                return None
        return Batch(self._queue.take(1 if probing else sink.max_batch, sink.max_batch_bytes))

    def _drop_overtaken(self, batch: Batch) -> None:
        overtaken = [span for span in batch.spans if self._queue.overtaken(span)]
        for span in overtaken:
            batch.spans.remove(span)
            self._queue.settle(span)
            self._metrics.superseded()

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._pump()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # What a worker does with a batch.

    async def _work(self, batch: Batch) -> None:
        while True:
            await self._forward(batch)
            self._sending -= 1
            following = self._next()
            if following is None:
                if self._closing and not self._queue.depth:
                    self._done.set()
                    return
                waiter: asyncio.Future[Batch] = self._loop.create_future()
                self._idle.append(waiter)
                try:
                    following = await waiter
                except asyncio.CancelledError:
                    if self._done.is_set():
                        return
                    raise
            else:
                # The limit may have grown by more than one.
                self.wake()
            batch = following

    async def _forward(self, batch: Batch) -> None:
        sent_at = self._loop.time()
        in_flight = self._sending
        try:
            await self._sink.send(batch.spans, suspicion=batch.suspicion)
        except SinkError as error:
            now = self._loop.time()
            self._failed(batch, error, now, sent_at)
            return
        now = self._loop.time()
        self._evidence.succeeded(first=batch.attempts == 0)
        self._throttle.sample(now - sent_at, in_flight)
        self._up_again(now)
        for span in batch.spans:
            self._queue.settle(span)
        self._metrics.forwarded(batch.spans, now)

    def _up_again(self, now: float) -> None:
        """The upstream answered: if it was away, what waits for it may go now."""
        if not self._throttle.probing:
            self._throttle.answered()
            return
        self._throttle.answered()
        self._metrics.state_changed(SinkState.UP, None, 0.0)
        for batch in self._retries:
            if not batch.suspicion:
                batch.not_before = min(batch.not_before, now)
        heapq.heapify(self._retries)
        self.wake()

    def _failed(self, batch: Batch, error: SinkError, now: float, sent_at: float) -> None:
        first = batch.attempts == 0
        batch.attempts += 1
        if isinstance(error, Unauthorized | Misdirected):
            unauthorized = isinstance(error, Unauthorized)
            state = SinkState.UNAUTHORIZED if unauthorized else SinkState.DOWN
            self._throttle.hold(now, sent_at, state)
            self._metrics.state_changed(state, error, self._throttle.paused_until - now)
            self._again(batch, now)
        elif isinstance(error, TooLarge | Refused):
            self._up_again(now)
            if len(batch.spans) > 1:
                self._halve(batch, now)
            else:
                reason = "too_large" if isinstance(error, TooLarge) else "refused"
                self._dead_letter(batch.spans, reason, error)
        elif isinstance(error, Unavailable):
            self._unavailable(batch, error, now, sent_at, first=first)

    def _unavailable(
        self, batch: Batch, error: Unavailable, now: float, sent_at: float, *, first: bool
    ) -> None:
        self._throttle.failed(
            now, sent_at, retry_after=error.retry_after, first=first, outage=error.outage
        )
        state = self._throttle.state
        self._metrics.state_changed(state, error, self._throttle.paused_until - now)
        born_before = now - self._policy.max_age_s
        expired = [span for span in batch.spans if span.accepted_at < born_before]
        if expired:
            batch.spans = [span for span in batch.spans if span.accepted_at >= born_before]
            self._dead_letter(expired, "expired", error)
            if not batch.spans:
                return
        if error.suspect and self._evidence.against(batch, first=first):
            batch.suspicion += 1
            if len(batch.spans) > 1:
                self._halve(batch, now)
                return
            if batch.suspicion >= self._policy.max_attempts:
                self._dead_letter(batch.spans, "failing", error)
                return
        delay = self._policy.backoff.delay(batch.attempts, self._jitter())
        self._again(batch, now + max(delay, error.retry_after))

    def _again(self, batch: Batch, not_before: float) -> None:
        batch.not_before = not_before
        heapq.heappush(self._retries, batch)
        self._metrics.retried()

    def _halve(self, batch: Batch, now: float) -> None:
        middle = len(batch.spans) // 2
        for half in (batch.spans[:middle], batch.spans[middle:]):
            heapq.heappush(self._retries, Batch(half, 1, batch.suspicion, not_before=now))
        self._metrics.retried()

    def _dead_letter(self, spans: Sequence[Span], reason: str, error: SinkError) -> None:
        for span in spans:
            self._queue.settle(span)
        self._metrics.dead_lettered(spans, reason, error)


class Evidence:
    """Whether a failing batch is bad, or the upstream is: compared with what else was sent (D8).

    A 500 counts against a batch only when something got through since it failed last, and when
    nearly all of the last first attempts did: a half-broken upstream proves nothing.
    """

    RECENT = 50
    SHARE = 0.75

    def __init__(self) -> None:
        self._firsts: deque[bool] = deque(maxlen=self.RECENT)
        self._successes = 0

    def succeeded(self, *, first: bool) -> None:
        """A batch got through; `first`: at its first attempt."""
        self._successes += 1
        if first:
            self._firsts.append(True)

    def against(self, batch: Batch, *, first: bool) -> bool:
        """Whether this failure speaks against `batch`."""
        if first:
            self._firsts.append(False)
            batch.successes_seen = self._successes
            return False
        since = self._successes > batch.successes_seen
        batch.successes_seen = self._successes
        # Its own first failure is one of them, and no neighbour of its own.
        return since and sum(self._firsts) >= self.SHARE * (len(self._firsts) - 1)
