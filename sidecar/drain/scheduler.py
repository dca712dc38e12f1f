"""Decides what one lane sends next: a batch, or nothing until a given time, or nothing for now.

In: the writes in the queue, the batches to be retried, and what the throttle allows. Out: a `Batch`
whose spans are in flight from now on. No I/O, no clock and no waiting.
"""

from sidecar.drain.evidence import BatchSizeLimit
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.throttle import Grant, Throttle
from sidecar.queue.span_queue import SpanQueue
from sidecar.spans.span import Span
from sidecar.telemetry.metrics import LaneMetrics


class Scheduler:
    """Forms the batches of one lane.

    `max_batch`: writes in one request. `linger_s`: how long a batch may wait to fill, in seconds.
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
    ) -> None:
        self._queue = queue
        self._ready = queue.ready
        self._retry_queue = retry_queue
        self._throttle = throttle
        self._pace = throttle.pace
        self._size_limit = size_limit
        self._metrics = metrics
        self._max_batch = max_batch
        self.linger_s = linger_s
        self._new_batch_first = False
        self.sending = 0  # requests in flight
        self.closing = False  # no more writes will come: nothing lingers
        self.flushed_at = float("-inf")  # what was accepted by this loop time does not linger

    @property
    def is_full(self) -> bool:
        """Whether the waiting writes fill a batch."""
        full = len(self._ready) >= self._max_batch
        return full or self._queue.waiting_bytes >= self._size_limit.max_bytes

    def next(self, now: float) -> Batch | float | None:
        """The batch to send now, or the loop time at which there may be one.

        None: not before a request ends or a write comes.
        """
        if not self._ready:
            if self._pace.active:
                self._stop_pace_if_caught_up(now)
            if not self._retry_queue.heap:
                return None
        grant = self._throttle.grant(now, self.sending, paced=not self.closing)
        if not isinstance(grant, Grant):
            return grant
        max_writes = min(self._max_batch, grant.max_writes)
        step: Batch | float | None = None
        if not self._new_batch_first and self._retry_queue.heap:
            step = self._due_retry(now, max_writes)
        if step is None:
            step = self._new_batch(now, max_writes)
            self._new_batch_first = False
        else:
            # Retries may fail again, and for ever: new writes take turns with them.
            self._new_batch_first = True
        if not isinstance(step, Batch) and self._retry_queue.heap:
            step = self._due_retry(now, max_writes) or step
        if isinstance(step, Batch):
            self.sending += 1
            if self._pace.active and not self._throttle.probing:
                self._pace.sent()
        return step

    def _stop_pace_if_caught_up(self, now: float) -> None:
        retries = self._retry_queue.heap
        # A write that keeps failing waits most of the time: it is no backlog.
        if not self._queue.on_disk and (not retries or retries[0].not_before > now):
            self._pace.stop(now)

    @property
    def backlog(self) -> float:
        """About how many requests it takes to send everything."""
        per_request = float(self._max_batch)
        if waiting := len(self._ready):
            mean = max(1.0, self._queue.waiting_bytes / waiting)
            per_request = min(per_request, max(1.0, self._size_limit.max_bytes / mean))
        return self._queue.depth / per_request

    def _due_retry(self, now: float, max_writes: int) -> Batch | None:
        queue = self._retry_queue
        while (due := queue.next_due) is not None and due <= now:
            batch = queue.pop()
            while batch.mergeable and queue.heap and queue.heap[0].mergeable:
                other = queue.heap[0]
                if other.not_before > now or len(batch.spans) + len(other.spans) > max_writes:
                    break
                batch.merge(queue.pop())
            self._drop_superseded(batch, now)
            fitting = min(max_writes, self._count_fitting(batch))
            if len(batch.spans) > fitting:
                # A probe is one write: it costs a recovering upstream as little as possible, and a
                # bad write can't make the rest of its batch fail with it.
                batch, rest = batch.split(fitting)
                queue.add(rest)
            if batch.spans:
                return batch
        return None

    def _new_batch(self, now: float, max_writes: int) -> Batch | float | None:
        queue = self._queue
        due = self._retry_queue.next_due if self._retry_queue.heap else None
        first = queue.first if self._ready else None
        if first is None:
            return due
        lingers_until = first.accepted_at + self.linger_s
        if lingers_until <= now or self.is_full or self.closing or self._is_flushed(first):
            return Batch(queue.take(max_writes, self._size_limit.max_bytes))
        return lingers_until if due is None else min(due, lingers_until)

    def _is_flushed(self, span: Span) -> bool:
        """Whether a flush is about this write, or about one that it replaces."""
        marked = self._queue.marked
        return span.accepted_at <= self.flushed_at or (marked.is_set and span.key in marked)

    def _count_fitting(self, batch: Batch) -> int:
        """How many writes of `batch` fit in one request; at least one."""
        size = 0
        for count, span in enumerate(batch.spans):
            size += span.size
            if size > self._size_limit.max_bytes:
                return max(1, count)
        return max(1, len(batch.spans))

    def _drop_superseded(self, batch: Batch, now: float) -> None:
        for span in [span for span in batch.spans if self._queue.is_superseded(span)]:
            batch.spans.remove(span)
            self._queue.settle(span, replaced=True)
            self._metrics.superseded(span, now)
