"""The drain of one account in one lane: workers send the batches that the scheduler forms.

In: a `SpanQueue` and a `Sink`. Every write is settled in the end: it is forwarded, superseded, or
becomes a dead letter. Nothing else in the sidecar retries (D7). The spans of a failed batch stay in
flight, so that nothing overtakes them; the batch is sent again later, whole or in halves.

Workers are interchangeable and started on demand; while all are busy, writes accumulate in the
queue and batches grow. One timer per lane, never one per write.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from sidecar.drain.evidence import Evidence
from sidecar.drain.failures import RetryPolicy
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.scheduler import Scheduler
from sidecar.drain.settlement import Settlement
from sidecar.drain.throttle import Throttle
from sidecar.process.alarm import Alarm
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import Sink, SinkError
from sidecar.spans.span import Key, Span
from sidecar.telemetry.metrics import LaneMetrics

# How long an upstream may say that it has no such route before new writes are not taken for it.
ROUTE_GONE_S = 600.0


class Drain:
    """Forwards the writes of one queue.

    `linger_s`: how long a batch may wait to fill, in seconds. `dead_letter` keeps a write that is
    given up on, with the reason and the error; the write is settled afterwards.
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
        dead_letter: Callable[[Span, str, SinkError], Awaitable[None]],
    ) -> None:
        self._sink = sink
        self._dead_letter = dead_letter
        self._queue = queue
        self._throttle = throttle
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._retry_queue = RetryQueue()
        evidence = Evidence(sink.max_batch_bytes)
        self._scheduler = Scheduler(
            queue,
            self._retry_queue,
            throttle,
            evidence.size_limit,
            metrics,
            max_batch=sink.max_batch,
            linger_s=linger_s,
        )
        self._settlement = Settlement(
            queue,
            self._retry_queue,
            throttle,
            evidence,
            policy,
            metrics,
            wake=self.wake,
            backlog=lambda: self._scheduler.backlog,
        )
        self._idle: deque[asyncio.Future[Batch]] = deque()
        self._workers: asyncio.TaskGroup | None = None
        self._alarm = Alarm(self._pump)
        self._pump_due = False
        self._refilling = False
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Forward until `close` is called and no write is left; raises only on a bug (D13)."""
        async with asyncio.TaskGroup() as workers:
            self._workers = workers
            try:
                self.wake()
                await self._done.wait()
                for waiter in self._idle:
                    waiter.cancel()
            finally:
                self._workers = None  # start no more workers, even if this task is cancelled
                self._alarm.cancel()

    def put(self, span: Span) -> None:
        """Queue a write, unless the sink has a reason to skip it."""
        reason = self._sink.skips(span)
        if self._settlement.route_gone_since is not None and self._gives_up_on(span):
            reason = "route_gone"
        if reason is not None:
            self._queue.skip(span, reason)
            self._metrics.skipped(span, reason, self._loop.time())
            return
        self._queue.put(span)
        scheduler, accepted_at = self._scheduler, span.accepted_at
        lingers_until = accepted_at + scheduler.linger_s
        if (
            self._alarm.due > lingers_until
            or accepted_at <= scheduler.flushed_at
            or scheduler.is_full
        ):
            self.wake()  # otherwise the alarm rings in time

    def _gives_up_on(self, span: Span) -> bool:
        """Whether the route has been gone for so long that new writes would only fill the queue."""
        since = self._settlement.route_gone_since
        gone = since is not None and self._loop.time() - since >= ROUTE_GONE_S
        return gone and not self._queue.has(span)  # an END takes the place of its open write

    @property
    def backlog(self) -> int:
        """Writes that are waiting although the upstream is up: the drain may lack CPU time."""
        return 0 if self._throttle.probing else len(self._queue.ready)

    @property
    def sending(self) -> int:
        """Requests in flight."""
        return self._scheduler.sending

    @property
    def retrying(self) -> int:
        """Writes that failed and wait for their next attempt."""
        return sum([len(batch.spans) for batch in self._retry_queue])

    def wake(self) -> None:
        """Look for work in the next iteration of the event loop."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def probe(self) -> None:
        """Send now what is waiting for a retry: a new credential, say, may change the outcome."""
        self._throttle.resume()
        self._retry_queue.bring_forward(self._loop.time(), suspects=True)
        self.wake()

    def flush(self) -> None:
        """Send what is waiting without lingering, as back-off and pace allow."""
        self._scheduler.flushed_at = self._loop.time()
        self.wake()

    def close(self) -> None:
        """No more writes will come: forward those left without lingering, then end `run`."""
        self._scheduler.closing = True
        self._throttle.shorten_waits()
        self.probe()

    def waits_for(self, key: Key) -> dict[str, Any] | None:
        """What the write of a span is waiting for; None if no such write is in memory."""
        where = self._queue.contents.where(key)
        if where is None:
            return None
        for batch in self._retry_queue:
            if any(span.key == key for span in batch.spans):
                due = max(batch.not_before, self._throttle.paused_until)
                return {
                    "waits_for": "a retry",
                    "failures": batch.attempts,
                    "next_attempt_s": round(max(0.0, due - self._loop.time()), 3),
                }
        return {"waits_for": where}

    def abandon(self) -> tuple[list[Span], int]:
        """Give up when the process ends; returns what is not on disk (`SpanQueue.abandon`)."""
        self._done.set()
        self._alarm.cancel()
        return self._queue.abandon()

    # How batches reach workers.

    def _pump(self) -> None:
        self._pump_due = False
        if self._workers is None or self._done.is_set():
            return
        if self._queue.needs_refill and not self._refilling:
            self._refilling = True
            self._workers.create_task(self._load_from_disk())
        while (batch := self._next()) is not None:
            if self._idle:
                self._idle.popleft().set_result(batch)
            else:
                self._workers.create_task(self._work(batch))
        if self._scheduler.closing and not self._queue.depth:
            self._done.set()

    def _next(self) -> Batch | None:
        step = self._scheduler.next(self._loop.time())
        if isinstance(step, float):
            self._alarm.set(step)
            return None
        return step

    async def _load_from_disk(self) -> None:
        while self._queue.needs_refill:
            await self._queue.refill()
            self.wake()
        self._refilling = False
        self.wake()

    # What a worker does with a batch.

    async def _work(self, batch: Batch) -> None:
        scheduler = self._scheduler
        while True:
            await self._send(batch)
            scheduler.sending -= 1
            next_batch = self._next()
            if next_batch is not None or self._queue.needs_refill:
                self.wake()  # the limit may have risen, or a batch been split: use more workers
            if next_batch is not None:
                batch = next_batch
                continue
            if scheduler.closing and not self._queue.depth:
                self._done.set()
                return
            del batch  # frees its payloads while this worker is idle
            try:
                batch = await self._next_batch()
            except asyncio.CancelledError:
                if self._done.is_set():
                    return
                raise

    async def _next_batch(self) -> Batch:
        # A separate frame, so that the future, which holds the batch, is freed on return.
        waiter: asyncio.Future[Batch] = self._loop.create_future()
        self._idle.append(waiter)
        return await waiter

    async def _send(self, batch: Batch) -> None:
        sent_at = self._loop.time()
        in_flight = self._scheduler.sending
        try:
            unkept = await self._sink.send(batch.spans, suspicion=batch.suspicion)
        except SinkError as error:
            now = self._loop.time()
            for spans, reason in self._settlement.failed(batch, error, sent_at, now):
                for span in spans:
                    await self._dead_letter(span, reason, error)
                self._settlement.give_up(spans, reason, error.status, now)
        else:
            self._settlement.succeeded(batch, sent_at, self._loop.time(), in_flight, unkept)
