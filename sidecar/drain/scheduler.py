"""Decides what one lane sends next: a batch, or nothing until a given time.

In: the writes in the queue, the batches to be retried, and what the throttle allows. Out: a `Batch`
whose spans are in flight from now on. No I/O and no waiting: `wake_at` is called with the loop time
at which there may be more to send.
"""

from collections.abc import Callable

from sidecar.drain.evidence import BatchSizeLimit
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.throttle import Throttle
from sidecar.queue.span_queue import SpanQueue
from sidecar.telemetry.metrics import LaneMetrics


class Scheduler:
    """Forms the batches of one lane.

    `max_batch`: writes in one request. `linger_s`: how long a batch may wait to fill, in seconds.
    `clock`: loop time in seconds.
    """

    def __init__(
        self,
        queue: SpanQueue,
        retry_queue: RetryQueue,
        throttle: Throttle,
        size_limit: BatchSizeLimit,
        metrics: LaneMetrics,
        *,
        max_batch: int,
        linger_s: float,
        clock: Callable[[], float],
        wake_at: Callable[[float], None],
    ) -> None:
        self._queue = queue
        self._ready = queue.ready
        self._retry_queue = retry_queue
        self._throttle = throttle
        self._size_limit = size_limit
        self._metrics = metrics
        self._max_batch = max_batch
        self.linger_s = linger_s
        self._clock = clock
        self._wake_at = wake_at
        self._new_batch_first = False
        self.sending = 0  # requests in flight
        self.closing = False  # no more writes will come: nothing lingers

    @property
    def has_work(self) -> bool:
        """Whether calling `next` can have any effect."""
        return bool(self._ready or self._retry_queue.heap or self._throttle.pace.active)

    @property
    def is_full(self) -> bool:
        """Whether the waiting writes fill a batch."""
        full = len(self._ready) >= self._max_batch
        return full or self._queue.waiting_bytes >= self._size_limit.max_bytes

    def next(self) -> Batch | None:
        """Return the batch to send now, or None; the lane is then woken when there may be one."""
        throttle = self._throttle
        if self.sending >= throttle.limit:
            return None  # the worker whose request ends next calls again
        now = self._clock()
        if now < throttle.paused_until:
            self._wake_at(throttle.paused_until)
            return None
        probing = throttle.probing
        max_writes = 1 if probing else self._max_batch
        pace = throttle.pace
        if pace.active and not probing and not self.closing:
            if not self._retry_queue.heap and not self._ready:
                pace.stop()
            elif (allowed := pace.allowance(now)) < 1:
                self._wake_at(pace.next_at(now))
                return None
            else:
                max_writes = min(max_writes, allowed)
        # A probe that keeps failing may be a bad write: new writes take turns with it.
        self._new_batch_first = probing and not self._new_batch_first
        if self._new_batch_first:
            batch = self._new_batch(now, max_writes) or self._due_retry(now, max_writes)
        else:
            retry = self._due_retry(now, max_writes) if self._retry_queue.heap else None
            batch = retry or self._new_batch(now, max_writes)
        if batch is not None:
            self.sending += 1
            if not probing:
                pace.sent(now, len(batch.spans))
        return batch

    def _due_retry(self, now: float, max_writes: int) -> Batch | None:
        while (due := self._retry_queue.next_due) is not None and due <= now:
            batch = self._retry_queue.pop()
            self._drop_superseded(batch)
            max_writes = min(max_writes, self._count_fitting(batch))
            if len(batch.spans) > max_writes:
                # A probe is one write: it costs a recovering upstream as little as possible, and a
                # bad write can't make the rest of its batch fail with it.
                batch, rest = batch.split(max_writes)
                self._retry_queue.add(rest)
            if batch.spans:
                return batch
        return None

    def _new_batch(self, now: float, max_writes: int) -> Batch | None:
        queue = self._queue
        due = self._retry_queue.next_due if self._retry_queue.heap else None
        first = queue.first if self._ready else None
        if first is not None:
            lingers_until = first.accepted_at + self.linger_s
            if lingers_until <= now or self.is_full or self.closing:
                return Batch(queue.take(max_writes, self._size_limit.max_bytes))
            due = lingers_until if due is None else min(due, lingers_until)
        if due is not None:
            self._wake_at(due)
        return None

    def _count_fitting(self, batch: Batch) -> int:
        """How many writes of `batch` fit in one request; at least one."""
        size = 0
        for count, span in enumerate(batch.spans):
            size += span.size
            if size > self._size_limit.max_bytes:
                return max(1, count)
        return max(1, len(batch.spans))

    def _drop_superseded(self, batch: Batch) -> None:
        for span in [span for span in batch.spans if self._queue.is_superseded(span)]:
            batch.spans.remove(span)
            self._queue.settle(span)
            self._metrics.superseded(span, self._clock())
