"""The drain of one lane: takes batches from the queue, sends them, settles every write.

In: a `SpanQueue` and a `Sink`. Out: nothing but settled writes: forwarded, superseded, or dead
letters. It is the only place that retries (D7). A batch that failed stays in hand, its
spans in flight, so that nothing of theirs overtakes it; it is sent again later, or in halves.

Workers are equal and made when there is work for one more; while all are busy, writes pile up in
the queue and batches grow. One timer a lane, never one for a write.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.drain.evidence import BatchSizeLimit, CircuitBreaker, PoisonDetector
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.throttle import HURRIED_S, Backoff, SinkState, Throttle
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import (
    Misdirected,
    Refused,
    Sink,
    SinkError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from sidecar.spans.span import Span, total_size
from sidecar.telemetry.metrics import LaneMetrics


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to try again, and when no more. Seconds, and failures (D7, D8)."""

    backoff: Backoff
    max_age_s: float
    max_attempts: int
    jitter: Callable[[], float]


class Drain:
    """Forwards one lane's writes.

    `linger_s`: how long a batch may wait to fill. `dead_letter` is told of every write that the
    upstream will never take, with the reason and the error.
    """

    def __init__(
        self,
        sink: Sink,
        queue: SpanQueue,
        throttle: Throttle,
        policy: RetryPolicy,
        metrics: LaneMetrics,
        *,
        linger_s: float,
        dead_letter: Callable[[Span, str, SinkError], None],
    ) -> None:
        self._sink = sink
        self._queue = queue
        self.bit = queue.bit  # the lane's in `Span.lanes`
        self.ready = queue.ready  # what waits in memory
        self._throttle = throttle
        self._policy = policy
        self._metrics = metrics
        self._linger_s = linger_s
        self._dead_letter = dead_letter
        self._loop = asyncio.get_running_loop()
        self._retry_queue = RetryQueue()
        self._poison_detector = PoisonDetector()
        self._breaker = CircuitBreaker()
        self._size_limit = BatchSizeLimit(sink.max_batch_bytes)
        self._idle: deque[asyncio.Future[Batch]] = deque()
        self._sending = 0
        self._workers: asyncio.TaskGroup | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._pump_due = False
        self._refilling = False
        self._fresh_first = False
        self._closing = False
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Forward until `close` was called and nothing is left; a bug ends the process (D13)."""
        async with asyncio.TaskGroup() as workers:
            self._workers = workers
            try:
                self.wake()
                await self._done.wait()
                for waiter in self._idle:
                    waiter.cancel()
            finally:
                self._workers = None  # no more of them, also when we are cancelled
                self._stop_timer()

    def put(self, span: Span) -> None:
        """Queue a write, unless the sink has a reason to skip it."""
        reason = self._sink.skips(span)
        if reason is not None:
            self._queue.skip(span, reason)
            self._metrics.skipped(span, reason, self._loop.time())
            return
        self._queue.put(span)
        ripe_at = span.accepted_at + self._linger_s
        if self._timer is None or self._timer_due > ripe_at or self._is_full:
            self.wake()  # or else the timer looks in time

    @property
    def unused_share(self) -> int:
        """Bytes that the lane may still bring into memory from disk."""
        return self._queue.unused_share

    @property
    def backlog(self) -> int:
        """Writes waiting although the upstream is healthy: we may not get round to sending."""
        return 0 if self._throttle.probing else len(self.ready)

    def wake(self) -> None:
        """Look for work in the next round of the loop: something changed."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def probe(self) -> None:
        """Try a held upstream now: it may answer differently, say with a new credential."""
        self._throttle.resume()
        self._retry_queue.bring_forward(self._loop.time(), suspects=True)
        self.wake()

    def close(self) -> None:
        """No more writes will come: forward what is left without lingering, then end `run`."""
        self._closing = True
        self._throttle.hurry()
        self.probe()

    def waits_for(self, id_: str) -> dict[str, Any] | None:
        """What a write of the span `id_` waits for, None where there is none in memory."""
        now = self._loop.time()
        for batch in self._retry_queue:
            if any(span.id == id_ for span in batch.spans):
                due = max(batch.not_before, self._throttle.paused_until)
                return {
                    "waits_for": "another try",
                    "failures": batch.attempts,
                    "next_attempt_s": round(max(0.0, due - now), 3),
                }
        where = self._queue.where(id_)
        return None if where is None else {"waits_for": where}

    def abandon(self) -> int:
        """Give up at the end of the process; how many writes are nowhere else."""
        self._done.set()
        self._stop_timer()
        return self._queue.abandon()

    # How batches come to workers.

    def _pump(self) -> None:
        self._pump_due = False
        if self._workers is None or self._done.is_set():
            return
        if self._queue.spooled:
            self._refill(self._workers)
        while self._may_send and (batch := self._next()) is not None:
            if self._idle:
                self._idle.popleft().set_result(batch)
            else:
                self._workers.create_task(self._work(batch))
        if self._closing and not self._queue.depth:
            self._done.set()

    def _refill(self, tasks: asyncio.TaskGroup) -> None:
        if self._queue.wants_more and not self._refilling:
            self._refilling = True
            tasks.create_task(self._bring_back())

    async def _bring_back(self) -> None:
        while self._queue.wants_more:
            await self._queue.refill()
            self.wake()
        self._refilling = False
        self.wake()

    @property
    def _may_send(self) -> bool:
        """Whether there is anything that `_next` has to think about."""
        return bool(self.ready or self._retry_queue.heap or self._throttle.pace.active)

    def _next(self) -> Batch | None:
        """The batch to send now, or None; then something will wake us when there may be one."""
        throttle = self._throttle
        if self._sending >= throttle.limit:
            return None  # whoever comes back looks again
        now = self._loop.time()
        if now < throttle.paused_until:
            self._wake_at(throttle.paused_until)
            return None
        probing = throttle.probing
        most = 1 if probing else self._sink.max_batch
        pace = throttle.pace
        if pace.active and not probing and not self._closing:
            if not self._retry_queue.heap and not self.ready:
                pace.caught_up()
            elif (allowed := pace.allowance(now)) < 1:
                self._wake_at(pace.next_at(now))
                return None
            else:
                most = min(most, allowed)
        # A probe that keeps failing may be a bad write: what is new has its turn too.
        self._fresh_first = probing and not self._fresh_first
        if self._fresh_first:
            batch = self._fresh(now, most) or self._retry(now, most)
        else:
            batch = (self._retry(now, most) if self._retry_queue.heap else None) or self._fresh(
                now, most
            )
        if batch is not None:
            self._sending += 1
            if not probing:
                pace.sent(now, len(batch.spans))
        return batch

    def _retry(self, now: float, most: int) -> Batch | None:
        while (due := self._retry_queue.next_due) is not None and due <= now:
            batch = self._retry_queue.pop()
            self._drop_overtaken(batch)
            if len(batch.spans) > (most := min(most, self._fitting(batch))):
                # A probe is one write: it costs an upstream that comes back as little as can be,
                # and a bad write in a batch does not keep the others from being the probe.
                batch, rest = batch.split(most)
                self._retry_queue.add(rest)
            if batch.spans:
                return batch
        return None

    def _fresh(self, now: float, most: int) -> Batch | None:
        queue = self._queue
        due = self._retry_queue.next_due if self._retry_queue.heap else None
        first = queue.first if self.ready else None
        if first is not None:
            ripe_at = first.accepted_at + self._linger_s
            if ripe_at <= now or self._is_full or self._closing:
                return Batch(queue.take(most, self._size_limit.max_bytes))
            due = ripe_at if due is None else min(due, ripe_at)
        if due is not None:
            self._wake_at(due)
        return None

    @property
    def _is_full(self) -> bool:
        """Whether what waits fills a batch."""
        full = len(self.ready) >= self._sink.max_batch
        return full or self._queue.waiting_bytes >= self._size_limit.max_bytes

    def _fitting(self, batch: Batch) -> int:
        """How many writes of a batch are as large as the upstream takes by now; at least one."""
        size = 0
        for count, span in enumerate(batch.spans):
            size += span.size
            if size > self._size_limit.max_bytes:
                return max(1, count)
        return max(1, len(batch.spans))

    def _drop_overtaken(self, batch: Batch) -> None:
        for span in [span for span in batch.spans if self._queue.overtaken(span)]:
            batch.spans.remove(span)
            self._queue.settle(span)
            self._metrics.superseded(span, self._loop.time())

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer_due <= when:
                return
            self._timer.cancel()
        # Kept apart: uvloop's handle of a time that has come does not know it.
        self._timer_due = when
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
            await self._send(batch)
            self._sending -= 1
            following = self._next() if self._may_send else None
            if following is not None or (self._queue.spooled and self._queue.wants_more):
                self.wake()  # there may be work for more of us: a limit that grew, or halves
            if following is not None:
                batch = following
                continue
            if self._closing and not self._queue.depth:
                self._done.set()
                return
            del batch  # or its payloads would stay for as long as there is nothing to do
            try:
                batch = await self._another()
            except asyncio.CancelledError:
                if self._done.is_set():
                    return
                raise

    async def _another(self) -> Batch:
        # A frame of its own: what a future brought stays with it.
        waiter: asyncio.Future[Batch] = self._loop.create_future()
        self._idle.append(waiter)
        return await waiter

    async def _send(self, batch: Batch) -> None:
        sent_at = self._loop.time()
        in_flight = self._sending
        try:
            await self._sink.send(batch.spans, suspicion=batch.suspicion)
        except SinkError as error:
            self._failed(batch, error, self._loop.time(), sent_at)
            return
        now = self._loop.time()
        self._throttle.sample(now, len(batch.spans), in_flight, now - sent_at)
        if self._throttle.answered(now):
            self._came_back(now)
        self._poison_detector.succeeded(first=batch.attempts == 0)
        self._breaker.forwarded(len(batch.spans))
        self._size_limit.taken()
        for span in batch.spans:
            self._queue.settle(span)
        self._metrics.forwarded(batch.spans, now)

    def _answered(self, now: float) -> None:
        if self._throttle.answered(now):
            self._came_back(now)

    def _came_back(self, now: float) -> None:
        """What waits for an upstream that was away may go now."""
        self._metrics.state_changed(SinkState.UP, None, 0.0)
        self._retry_queue.bring_forward(now, suspects=False)
        self.wake()

    def _failed(self, batch: Batch, error: SinkError, now: float, sent_at: float) -> None:
        first = batch.attempts == 0
        batch.attempts += 1
        self._metrics.failed(batch.spans, error, now)
        if isinstance(error, Unavailable):
            self._unavailable(batch, error, now, sent_at, first=first)
        elif isinstance(error, Unauthorized):
            self._hold(batch, error, now, sent_at, SinkState.UNAUTHORIZED)
        elif isinstance(error, Misdirected):
            self._hold(batch, error, now, sent_at, SinkState.DOWN)
        elif isinstance(error, TooLarge | Refused):
            self._refused(batch, error, now, sent_at)
        else:
            raise error  # a decision that nobody taught us is a bug

    def _refused(self, batch: Batch, error: SinkError, now: float, sent_at: float) -> None:
        if isinstance(error, TooLarge):
            self._size_limit.too_large(total_size(batch.spans))
        if len(batch.spans) > 1:
            self._answered(now)
            self._halve(batch)
        elif isinstance(error, TooLarge):
            self._answered(now)
            self._give_up(batch.spans, "too_large", error)
        elif self._breaker.refused():
            self._hold(batch, error, now, sent_at, SinkState.BRAKED)
        else:
            self._answered(now)
            self._give_up(batch.spans, "refused", error)

    def _unavailable(
        self, batch: Batch, error: Unavailable, now: float, sent_at: float, *, first: bool
    ) -> None:
        self._throttle.failed(
            now, sent_at, retry_after=error.retry_after, first=first, outage=error.outage
        )
        self._say_state(error, now)
        born_before = now - self._policy.max_age_s
        expired = [span for span in batch.spans if span.accepted_at < born_before]
        batch.spans = [span for span in batch.spans if span.accepted_at >= born_before]
        self._give_up(expired, "expired", error)
        if not batch.spans:
            return
        if error.suspect and self._poison_detector.against(batch, first=first):
            batch.suspicion += 1
            if len(batch.spans) > 1:
                self._halve(batch)
                return
            if batch.suspicion >= self._policy.max_attempts:
                self._give_up(batch.spans, "failing", error)
                return
        delay = self._policy.backoff.delay(batch.attempts, self._policy.jitter())
        if self._closing:
            delay = min(delay, HURRIED_S)
        self._again(batch, now + max(delay, error.retry_after))

    def _hold(
        self, batch: Batch, error: SinkError, now: float, sent_at: float, state: SinkState
    ) -> None:
        """The upstream refuses us, not this batch: keep it, pause, probe with another one."""
        self._throttle.hold(now, sent_at, state)
        self._say_state(error, now)
        self._again(batch, now)

    def _say_state(self, error: SinkError, now: float) -> None:
        self._metrics.state_changed(self._throttle.state, error, self._throttle.paused_until - now)

    def _again(self, batch: Batch, not_before: float) -> None:
        batch.not_before = not_before
        self._retry_queue.add(batch)
        self._metrics.retried()

    def _halve(self, batch: Batch) -> None:
        batch.not_before = 0.0
        self._retry_queue.add(*batch.split(len(batch.spans) // 2))
        self._metrics.retried()

    def _give_up(self, spans: Sequence[Span], reason: str, error: SinkError) -> None:
        for span in spans:
            self._dead_letter(span, reason, error)
            self._queue.settle(span)
        self._metrics.dead_lettered(spans, reason, error, self._loop.time())
