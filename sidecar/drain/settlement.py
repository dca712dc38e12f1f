"""Applies the outcome of a request: settles its writes, retries them, or gives up on them.

In: a batch, and a `SinkError` or none. Out: settled writes, batches in the retry queue, writes to
give up on, and an up-to-date throttle.
"""

from collections.abc import Callable, Sequence

from sidecar.drain.evidence import Evidence
from sidecar.drain.failures import DeadLetter, Hold, RetryAt, RetryPolicy, Split, meaning
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.throttle import Throttle
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import RouteGone, SinkError
from sidecar.spans.span import Span
from sidecar.telemetry.metrics import LaneMetrics
from sidecar.telemetry.outcomes import SinkState


class Settlement:
    """Settles the writes of one lane.

    `wake` is called when the upstream has recovered. `backlog` returns how many requests have to
    be made.
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
        backlog: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._retry_queue = retry_queue
        self._throttle = throttle
        self._evidence = evidence
        self._policy = policy
        self._metrics = metrics
        self._wake = wake
        self._backlog = backlog
        # Since when the upstream has said nothing but that it has no such route, in loop time.
        self.route_gone_since: float | None = None
        self._route_gone_logged = False
        self._failing_since = 0.0  # when the first of the consecutive failures was sent

    def succeeded(
        self, batch: Batch, sent_at: float, now: float, in_flight: int, unkept: int = 0
    ) -> None:
        """The upstream accepted `batch`, sent at loop time `sent_at`.

        `in_flight` requests were in flight at that time, this one included. It says that it did not
        keep `unkept` of the writes, but not which.
        """
        self._throttle.sample(now, len(batch.spans), in_flight, now - sent_at)
        self._evidence.succeeded(batch)
        for span in batch.spans:
            self._queue.settle(span)
        self._metrics.forwarded(batch.spans, now, unkept)
        self._responded(now, sent_at)
        self._throttle.asked()

    def failed(
        self, batch: Batch, error: SinkError, sent_at: float, now: float
    ) -> list[tuple[Sequence[Span], str]]:
        """The upstream did not accept `batch`, sent at loop time `sent_at`.

        Returns writes to give up on, each group with a reason: for `give_up`.
        """
        self._metrics.failed(batch.spans, error.outcome, str(error), now)
        findings = self._evidence.failed(batch, error)
        if findings.failures == 1:
            self._failing_since = sent_at
        batch.attempts += 1
        batch.failures += 1
        throttle, policy = self._throttle, self._policy
        delay = policy.backoff.delay(batch.failures, policy.jitter())
        at = now + max(min(delay, throttle.max_wait_s), error.retry_after)
        outcome = meaning(
            error,
            batch,
            findings,
            at=at,
            max_attempts=policy.max_attempts,
            probing=throttle.probing,
        )
        given_up: list[tuple[Sequence[Span], str]] = []
        if error.holds is None and not error.about_content:
            given_up.append((self._take_expired(batch, now), "expired"))
        match outcome:
            case Hold(state, seconds):
                throttle.hold(now, sent_at, state, seconds, since=self._failing_since)
                if throttle.probing:  # and not a late failure, after others got through
                    self._note_route(error, now)
                pause_s = throttle.paused_until - now
                self._metrics.state_changed(
                    throttle.state, now, str(error), pause_s, account=self._queue.account
                )
                # Once the pause is over, it may be the probe.
                self._again(now if throttle.probing else at, batch)
            case Split(at):
                # At once means before any other retry, so that a bad write is soon alone.
                self._again(at, *batch.halves())
            case RetryAt(at):
                self._again(at, batch)
            case DeadLetter(reason):
                given_up.append((batch.spans, reason))
        if error.about_content and not isinstance(outcome, Hold):
            self._responded(now, sent_at)
        if error.status:
            throttle.asked()
        return given_up

    def give_up(self, spans: Sequence[Span], reason: str, status: int, now: float) -> None:
        """Settle writes that are dead letters now."""
        for span in spans:
            self._queue.settle(span)
        self._metrics.dead_lettered(spans, reason, status, now)

    def _note_route(self, error: SinkError, now: float) -> None:
        if not isinstance(error, RouteGone):
            self.route_gone_since = None
        elif self.route_gone_since is None:
            self.route_gone_since = now
            if not self._route_gone_logged:
                self._route_gone_logged = True
                self._metrics.route_gone(str(error), now)

    def _responded(self, now: float, sent_at: float) -> None:
        """The upstream accepted or refused a batch, so it is up."""
        self.route_gone_since, self._route_gone_logged = None, False
        if self._throttle.is_lifted_by(sent_at):
            self._throttle.responded(now, self._backlog())
            self._metrics.state_changed(SinkState.UP, now, account=self._queue.account)
            self._retry_queue.bring_forward(now, suspects=False)
            self._wake()

    def _again(self, not_before: float, *batches: Batch) -> None:
        left = [batch for batch in batches if batch.spans]  # the others have expired
        for batch in left:
            batch.not_before = not_before
        self._retry_queue.add(*left)
        if left:
            self._metrics.retried()

    def _take_expired(self, batch: Batch, now: float) -> list[Span]:
        oldest = now - self._policy.max_age_s
        expired = [span for span in batch.spans if span.accepted_at < oldest]
        if expired:
            batch.spans = [span for span in batch.spans if span.accepted_at >= oldest]
        return expired
