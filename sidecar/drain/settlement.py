"""Applies the outcome of a request: settles its writes, retries them, or gives up on them.

In: a batch, and a `SinkError` or none. Out: settled writes, dead letters, batches in the retry
queue, and an up-to-date throttle.
"""

from collections.abc import Callable, Sequence

from sidecar.drain.evidence import Evidence
from sidecar.drain.failures import DeadLetter, Hold, RetryAt, RetryPolicy, Split, meaning
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.throttle import Throttle
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import SinkError, Unavailable
from sidecar.spans.span import Span
from sidecar.telemetry.metrics import LaneMetrics
from sidecar.telemetry.outcomes import SinkState


class Settlement:
    """Settles the writes of one lane.

    `dead_letter` is called with each write given up on, the reason, and the error. `wake`
    is called when the upstream has recovered.
    """

    def __init__(
        self,
        queue: SpanQueue,
        retry_queue: RetryQueue,
        throttle: Throttle,
        evidence: Evidence,
        policy: RetryPolicy,
        metrics: LaneMetrics,
        *,
        wake: Callable[[], None],
        dead_letter: Callable[[Span, str, SinkError], None],
    ) -> None:
        self._queue = queue
        self._retry_queue = retry_queue
        self._throttle = throttle
        self._evidence = evidence
        self._policy = policy
        self._metrics = metrics
        self._wake = wake
        self._dead_letter = dead_letter

    def succeeded(self, batch: Batch, sent_at: float, now: float, in_flight: int) -> None:
        """The upstream accepted `batch`, sent at loop time `sent_at`.

        `in_flight` requests were in flight at that time, this one included.
        """
        self._throttle.sample(now, len(batch.spans), in_flight, now - sent_at)
        self._responded(now)
        self._evidence.succeeded(batch)
        for span in batch.spans:
            self._queue.settle(span)
        self._metrics.forwarded(batch.spans, now)

    def failed(self, batch: Batch, error: SinkError, sent_at: float, now: float) -> None:
        """The upstream did not accept `batch`, sent at loop time `sent_at`."""
        self._metrics.failed(batch.spans, error.outcome, str(error), now)
        first, findings = batch.attempts == 0, self._evidence.failed(batch, error)
        batch.attempts += 1
        throttle, policy = self._throttle, self._policy
        at = now
        if isinstance(error, Unavailable):
            throttle.failed(
                now, sent_at, retry_after=error.retry_after, first=first, outage=error.outage
            )
            delay = policy.backoff.delay(batch.attempts, policy.jitter())
            at += max(min(delay, throttle.max_wait_s), error.retry_after)
            self._give_up_expired(batch, error, now)
        outcome = None
        if batch.spans:
            outcome = meaning(error, batch, findings, at=at, max_attempts=policy.max_attempts)
        if isinstance(outcome, Hold):
            throttle.hold(now, sent_at, outcome.state)
        if isinstance(outcome, Hold) or isinstance(error, Unavailable):
            pause_s = throttle.paused_until - now
            self._metrics.state_changed(throttle.state, str(error), pause_s)
        else:
            self._responded(now)
        match outcome:
            case Split():
                # Due before any other retry, so that a bad write is soon alone.
                self._again(0.0, *batch.split(len(batch.spans) // 2))
            case Hold():
                self._again(now, batch)
            case RetryAt():
                self._again(outcome.at, batch)
            case DeadLetter():
                self._give_up(batch.spans, outcome.reason, error, now)

    def _responded(self, now: float) -> None:
        """The upstream accepted or refused a batch, so it is up."""
        if self._throttle.responded(now):
            self._metrics.state_changed(SinkState.UP)
            self._retry_queue.bring_forward(now, suspects=False)
            self._wake()

    def _again(self, not_before: float, *batches: Batch) -> None:
        for batch in batches:
            batch.not_before = not_before
        self._retry_queue.add(*batches)
        self._metrics.retried()

    def _give_up_expired(self, batch: Batch, error: SinkError, now: float) -> None:
        oldest = now - self._policy.max_age_s
        if expired := [span for span in batch.spans if span.accepted_at < oldest]:
            batch.spans = [span for span in batch.spans if span.accepted_at >= oldest]
            self._give_up(expired, "expired", error, now)

    def _give_up(self, spans: Sequence[Span], reason: str, error: SinkError, now: float) -> None:
        for span in spans:
            self._dead_letter(span, reason, error)
            self._queue.settle(span)
        self._metrics.dead_lettered(spans, reason, error.status, now)
