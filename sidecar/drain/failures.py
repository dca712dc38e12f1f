"""What the outcome of a request means for its writes and for its lane.

In: a batch, and a `SinkError` or none; only the sinks know HTTP statuses. Out: settled writes,
dead letters, batches in the retry queue, and an up-to-date throttle.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.drain.evidence import BatchSizeLimit, CircuitBreaker, PoisonDetector
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.throttle import Backoff, Throttle
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import (
    Misdirected,
    Refused,
    SinkError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from sidecar.spans.span import Span, total_size
from sidecar.telemetry.metrics import LaneMetrics
from sidecar.telemetry.outcomes import SinkState


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When to retry, and when to give up (D7, D8).

    `max_age_s`: seconds since a write was accepted. `max_attempts`: failures that count against it.
    `jitter` returns a number in [0, 1).
    """

    backoff: Backoff
    max_age_s: float
    max_attempts: int
    jitter: Callable[[], float]


class Settlement:
    """Settles the writes that one lane sent, retries them, or gives up on them.

    `dead_letter` is called with each write given up on, the reason, and the error. `wake`
    is called when the upstream has recovered.
    """

    def __init__(
        self,
        queue: SpanQueue,
        retry_queue: RetryQueue,
        throttle: Throttle,
        size_limit: BatchSizeLimit,
        policy: RetryPolicy,
        metrics: LaneMetrics,
        *,
        clock: Callable[[], float],
        wake: Callable[[], None],
        dead_letter: Callable[[Span, str, SinkError], None],
    ) -> None:
        self._queue = queue
        self._retry_queue = retry_queue
        self._throttle = throttle
        self._size_limit = size_limit
        self._poison_detector = PoisonDetector()
        self._breaker = CircuitBreaker()
        self._policy = policy
        self._metrics = metrics
        self._clock = clock
        self._wake = wake
        self._dead_letter = dead_letter

    def succeeded(self, batch: Batch, sent_at: float, in_flight: int) -> None:
        """The upstream accepted `batch`, sent at loop time `sent_at`.

        `in_flight` requests were in flight at that time, this one included.
        """
        now = self._clock()
        self._throttle.sample(now, len(batch.spans), in_flight, now - sent_at)
        self._responded(now)
        self._poison_detector.succeeded(first=batch.attempts == 0)
        self._breaker.forwarded(len(batch.spans))
        self._size_limit.succeeded()
        for span in batch.spans:
            self._queue.settle(span)
        self._metrics.forwarded(batch.spans, now)

    def failed(self, batch: Batch, error: SinkError, sent_at: float) -> None:
        """The upstream did not accept `batch`, sent at loop time `sent_at`."""
        now = self._clock()
        first = batch.attempts == 0
        batch.attempts += 1
        self._metrics.failed(batch.spans, error.outcome, str(error), now)
        if isinstance(error, Unavailable):
            self._unavailable(batch, error, now, sent_at, first=first)
        elif isinstance(error, Unauthorized):
            self._hold(batch, error, now, sent_at, SinkState.UNAUTHORIZED)
        elif isinstance(error, Misdirected):
            self._hold(batch, error, now, sent_at, SinkState.DOWN)
        elif isinstance(error, TooLarge | Refused):
            self._refused(batch, error, now, sent_at)
        else:
            raise error  # an unknown kind of `SinkError` is a bug

    def _responded(self, now: float) -> None:
        """The upstream accepted or refused a batch, so it is up."""
        if self._throttle.responded(now):
            self._metrics.state_changed(SinkState.UP)
            self._retry_queue.bring_forward(now, suspects=False)
            self._wake()

    def _refused(self, batch: Batch, error: SinkError, now: float, sent_at: float) -> None:
        if isinstance(error, TooLarge):
            self._size_limit.too_large(total_size(batch.spans))
        if len(batch.spans) > 1:
            self._responded(now)
            self._halve(batch)
        elif isinstance(error, TooLarge):
            self._responded(now)
            self._give_up(batch.spans, "too_large", error)
        elif self._breaker.refused():
            self._hold(batch, error, now, sent_at, SinkState.BRAKED)
        else:
            self._responded(now)
            self._give_up(batch.spans, "refused", error)

    def _unavailable(
        self, batch: Batch, error: Unavailable, now: float, sent_at: float, *, first: bool
    ) -> None:
        self._throttle.failed(
            now, sent_at, retry_after=error.retry_after, first=first, outage=error.outage
        )
        self._report_state(error, now)
        oldest = now - self._policy.max_age_s
        expired = [span for span in batch.spans if span.accepted_at < oldest]
        batch.spans = [span for span in batch.spans if span.accepted_at >= oldest]
        self._give_up(expired, "expired", error)
        if not batch.spans:
            return
        if error.suspect and self._poison_detector.counts_against(batch, first=first):
            batch.suspicion += 1
            if len(batch.spans) > 1:
                self._halve(batch)
                return
            if batch.suspicion >= self._policy.max_attempts:
                self._give_up(batch.spans, "failing", error)
                return
        delay = self._policy.backoff.delay(batch.attempts, self._policy.jitter())
        delay = min(delay, self._throttle.max_wait_s)
        self._retry(batch, now + max(delay, error.retry_after))

    def _hold(
        self, batch: Batch, error: SinkError, now: float, sent_at: float, state: SinkState
    ) -> None:
        """The upstream refuses everything, not just `batch`: keep the batch, pause, then probe."""
        self._throttle.hold(now, sent_at, state)
        self._report_state(error, now)
        self._retry(batch, now)

    def _report_state(self, error: SinkError, now: float) -> None:
        throttle = self._throttle
        self._metrics.state_changed(throttle.state, str(error), throttle.paused_until - now)

    def _retry(self, batch: Batch, not_before: float) -> None:
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
        self._metrics.dead_lettered(spans, reason, error.status, self._clock())
