"""Metrics as plain numbers, updated by methods named after what happened.

The hot path only increments integers (accounting.py, histogram.py); operate/prometheus.py reads
them at scrape time. No metric is labelled with anything from a span's content (D19).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from sidecar.credentials import Accounts
from sidecar.spans.decode import Rejection
from sidecar.spans.span import Span
from sidecar.telemetry.accounting import KINDS, IntakeAccounting, LaneAccounting, zeros
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.histogram import Histogram
from sidecar.telemetry.log_rate_limiter import LogRateLimiter
from sidecar.telemetry.outcomes import (
    FLUSH_OUTCOMES,
    OUTCOMES,
    PASS_THROUGH_OUTCOMES,
    PORTS,
    REJECT_REASONS,
    REPAIR_REASONS,
    STATUS_CODES,
    SinkState,
)
from sidecar.telemetry.refusal_lines import RefusalLines

# The upper bounds of the delays that a scrape has (seconds).
DELAY_S = (0.1, 0.5, 2, 5, 60, 600)

log = structlog.get_logger()


class Failure(NamedTuple):
    """Why an upstream did not accept a batch, and when (loop time)."""

    kind: str
    text: str  # never the text of the response (D19)
    at: float


class LaneMetrics:
    """Metrics of one lane. `account_id` returns the id of an account, given its number."""

    def __init__(
        self,
        sink: str,
        accounting: LaneAccounting,
        decisions: Decisions,
        account_id: Callable[[int], str] = lambda _: "",
    ) -> None:
        self.sink = sink
        self._note, self._code = decisions.note, partial(decisions.code, sink)
        self._forwarded, self._superseded = self._code("forwarded"), self._code("superseded")
        self.accounting = accounting
        self.account_id = account_id
        self.states: dict[int, SinkState] = {}  # of the accounts that are not up
        self.failure: Failure | None = None  # the most recent one
        self.held: dict[int, str] = {}  # why an account is not up, in our words
        self.retries = 0
        self.repaired = zeros(REPAIR_REASONS)
        self.requests = zeros(OUTCOMES)
        self.request_seconds = Histogram(0.001, 600)
        self.request_bytes = 0
        self.delay = Histogram(0.005, 86400, DELAY_S)
        self._log = log.bind(sink=sink)
        self._dead_letter_lines = LogRateLimiter()
        self._state_lines = LogRateLimiter()
        self._route_lines = LogRateLimiter(max_lines=1)
        self._not_taken_lines = LogRateLimiter(max_lines=1)
        self._partial_lines = LogRateLimiter(max_lines=1)

    def superseded(self, span: Span, now: float) -> None:
        """An open write was replaced by the complete write of its span."""
        self.accounting.superseded += 1
        self._note((span,), self._superseded, now)

    def forwarded(self, batch: Sequence[Span], now: float, unkept: int = 0) -> None:
        """The upstream accepted `batch`, except for `unkept` writes; `now` is loop time."""
        observe, ended = self.delay.observe, 0
        for span in batch:
            ended += span.end_time is not None
            observe(now - span.accepted_at)
        for kind, count in zip(KINDS, (len(batch) - ended, ended), strict=True):
            self.accounting.forwarded[kind] += count
        if unkept:
            self._partly_kept(batch, ended, unkept, now)
        else:
            self._note(batch, self._forwarded, now)

    def _partly_kept(self, batch: Sequence[Span], ended: int, unkept: int, now: float) -> None:
        """Count writes that the upstream did not keep as lost: it does not say which they are."""
        complete = min(unkept, ended)
        for kind, count in zip(KINDS, (unkept - complete, complete), strict=True):
            self.accounting.forwarded[kind] -= count
        self.accounting.lost["partial_success"] += unkept
        self._note(batch, self._code("partly kept"), now)
        if (suppressed := self._partial_lines.admit(now)) is not None:
            not_logged = {"not_logged": suppressed} if suppressed else {}
            self._log.warning("writes_not_kept", count=unkept, of=len(batch), **not_logged)

    def skipped(self, span: Span, reason: str, now: float) -> None:
        """A write is deliberately not sent to this upstream."""
        self._note((span,), self._code("skipped", reason), now)

    def not_taken(self, span: Span, reason: str, now: float) -> None:
        """The lane has no room for a write; `reason` is one of `NOT_TAKEN_REASONS`."""
        self.accounting.not_taken[reason] += 1
        self._note((span,), self._code("not taken", reason), now)
        if (suppressed := self._not_taken_lines.admit(now)) is not None:
            not_logged = {"not_logged": suppressed} if suppressed else {}
            self._log.error("writes_not_taken", reason=reason, **not_logged)

    def failed(self, batch: Sequence[Span], outcome: str, text: str, now: float) -> None:
        """The upstream did not accept `batch`; `outcome` is one of `OUTCOMES`."""
        self.failure = Failure(outcome, text, now)
        self._note(batch, self._code("not accepted", text), now)

    def unreachable(self, text: str, now: float) -> None:
        """The upstream can't be reached, before anything was sent to it."""
        self.failure = Failure("connection", text, now)
        self._log.warning("upstream_unreachable", error=text)

    def reachable(self, steps: Sequence[str]) -> None:
        """The upstream can be reached, before anything was sent to it, in these steps."""
        self._log.info("upstream_reachable", steps=steps)

    def dead_lettered(self, spans: Sequence[Span], reason: str, status: int, now: float) -> None:
        """The lane gave up on these writes: count and log them, here and nowhere else."""
        self.accounting.dead_lettered[reason] += len(spans)
        self._note(spans, self._code("dead letter", reason), now)
        for span in spans:
            if (suppressed := self._dead_letter_lines.admit(now)) is None:
                continue
            self._log.error(
                "write_dead_lettered",
                reason=reason,
                status=status,
                span_id=span.id,
                kind=span.kind,
                **({"not_logged": suppressed} if suppressed else {}),
            )

    def kept(self, spans: Sequence[Span], reason: str, now: float) -> None:
        """The process ended before these writes were delivered, but they are dead letters now."""
        self.accounting.dead_lettered[reason] += len(spans)
        self._note(spans, self._code("dead letter", reason), now)
        if spans:
            self._log.warning("dead_letters_kept", count=len(spans), reason=reason)

    def lost(self, count: int, reason: str) -> None:
        """Accepted writes were lost: count and log them."""
        self.accounting.lost[reason] += count
        if count:
            self._log.error("writes_lost", count=count, reason=reason)

    def retried(self) -> None:
        """A batch will be sent again, whole or in halves."""
        self.retries += 1

    def request_ended(self, outcome: str, seconds: float, size: int) -> None:
        """One HTTP request with a body of `size` bytes ended after `seconds`."""
        self.requests[outcome] += 1
        self.request_seconds.observe(seconds)
        self.request_bytes += size

    def state_changed(
        self,
        state: SinkState,
        now: float,
        error: str = "",
        pause_s: float = 0.0,
        *,
        account: int = 0,
    ) -> None:
        """The upstream is in `state` for an account.

        Logged only if that is a change, and at a bounded rate.
        """
        self.held[account] = error
        if state is self.states.get(account, SinkState.UP):
            return
        self.states[account] = state
        if (suppressed := self._state_lines.admit(now)) is None:
            return
        not_logged: dict[str, object] = {"not_logged": suppressed} if suppressed else {}
        if account:
            not_logged["account"] = self.account_id(account)
        if state is SinkState.UP:
            self._log.info("upstream_up", **not_logged)
        else:
            wait_s = round(max(pause_s, 0), 1)
            self._log.warning(f"upstream_{state}", error=error, next_attempt_s=wait_s, **not_logged)

    def route_gone(self, error: str, now: float) -> None:
        """The upstream has no such route any more; said once, until it responds otherwise."""
        if (suppressed := self._route_lines.admit(now)) is not None:
            not_logged = {"not_logged": suppressed} if suppressed else {}
            self._log.error("upstream_route_gone", error=error, **not_logged)

    def repaired_write(self, reason: str) -> None:
        """A write needed more than one request; `reason` is one of `REPAIR_REASONS`."""
        self.repaired[reason] += 1


@dataclass(slots=True)
class IntakeMetrics:
    """Metrics of the listener."""

    accounting: IntakeAccounting
    refusing: bool = False
    rejected: Counter[str] = field(default_factory=lambda: zeros(REJECT_REASONS))
    requests: Counter[str] = field(default_factory=lambda: zeros(STATUS_CODES))
    passed: Counter[str] = field(default_factory=lambda: zeros(PASS_THROUGH_OUTCOMES))
    flushes: Counter[str] = field(default_factory=lambda: zeros(FLUSH_OUTCOMES))
    displaced: Counter[str] = field(default_factory=lambda: zeros(PORTS))
    seconds: Histogram = field(default_factory=lambda: Histogram(0.0001, 60))
    _lines: RefusalLines = field(default_factory=RefusalLines)
    _refusals: LogRateLimiter = field(default_factory=lambda: LogRateLimiter(max_lines=1))
    _displacements: LogRateLimiter = field(default_factory=lambda: LogRateLimiter(max_lines=1))

    def accepted(self) -> None:
        """The valid events of a request were accepted, the first after one that was `refused`."""
        self.refusing = False
        log.info("intake_taking")

    def watch(self, accounts: Accounts) -> None:
        """Log each account that comes, and each that the configured one overrides, once."""

        def seen(_: int, id_: str) -> None:
            log.info("account_seen", account=id_, accounts=len(accounts.ids))

        accounts.seen = seen
        accounts.replaced = lambda id_: log.warning("account_overridden", account=id_)

    def event_rejected(self, rejection: Rejection, now: float) -> None:
        """An event of a request that was read was not accepted."""
        self.rejected[rejection.reason] += 1
        self._lines.event(rejection, now)

    def refused(self, reason: str, status: int, now: float) -> None:
        """A request was refused, possibly before its body was read."""
        if reason != "not_ours":  # or else it held no events; its status is counted
            self.rejected[reason] += 1
        if reason != "no_room":
            if reason != "stopping":  # which the log says already
                self._lines.request(status, reason, now)
            return
        self.refusing = True
        if (suppressed := self._refusals.admit(now)) is not None:
            log.warning("intake_refusing", reason=reason, not_logged=suppressed)

    def crowded(self, port: str, now: float) -> None:
        """A new connection to one of `PORTS` found all places taken."""
        self.displaced[port] += 1
        if (suppressed := self._displacements.admit(now)) is not None:
            log.warning("connections_full", port=port, not_logged=suppressed)

    def responded(self, status: int, seconds: float) -> None:
        """The response to one request was sent after `seconds`."""
        self.requests[str(status)] += 1
        self.seconds.observe(seconds)
