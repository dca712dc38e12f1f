"""Metrics as plain numbers, updated by methods named after what happened.

The hot path only increments integers (accounting.py) and small histograms; operate/prometheus.py
reads them at scrape time. No metric is labelled with anything from a span's content (D19).
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import structlog

from sidecar.credentials import Accounts
from sidecar.spans.span import Span
from sidecar.telemetry.accounting import KINDS, IntakeAccounting, LaneAccounting, zeros
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
from sidecar.telemetry.recent import Recent

UPSTREAM_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.33, 0.5, 1, 2.5, 5, 10, 30, 60)
INGEST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
DELAY_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400)
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
BATCH_SPANS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)
BATCH_BYTES = tuple(1024 * 4**power for power in range(9))

log = structlog.get_logger()


class Failure(NamedTuple):
    """Why an upstream did not accept a batch, and when (loop time)."""

    kind: str
    text: str  # never the text of the response (D19)
    at: float


class Histogram:
    """A histogram of plain integers; `bounds` are inclusive upper bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, in the form that Prometheus expects."""
        names = [str(float(bound)) for bound in self.bounds] + ["+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class LaneMetrics:
    """Metrics of one lane. `account_id` returns the id of an account, given its number."""

    def __init__(
        self,
        sink: str,
        accounting: LaneAccounting,
        recent: Recent,
        account_id: Callable[[int], str] = lambda _: "",
    ) -> None:
        self.sink = sink
        self._note = recent.note
        self.accounting = accounting
        self.account_id = account_id
        self.states: dict[int, SinkState] = {}  # of the accounts that are not up
        self.failure: Failure | None = None  # the most recent one
        self.retries = 0
        self.repaired = zeros(REPAIR_REASONS)
        self.requests = zeros(OUTCOMES)
        self.request_seconds = Histogram(UPSTREAM_S)
        self.batch_spans = Histogram(BATCH_SPANS)
        self.batch_bytes = Histogram(BATCH_BYTES)
        self.delay = Histogram(DELAY_S)
        self._log = log.bind(sink=sink)
        self._dead_letter_lines = LogRateLimiter()
        self._state_lines = LogRateLimiter()
        self._route_lines = LogRateLimiter(max_lines=1)
        self._not_taken_lines = LogRateLimiter(max_lines=1)

    def superseded(self, span: Span, now: float) -> None:
        """An open write was replaced by the complete write of its span."""
        self.accounting.superseded += 1
        self._note((now, span.id, "superseded", self.sink, span.kind, span.account))

    def forwarded(self, batch: Sequence[Span], now: float) -> None:
        """The upstream accepted `batch`; `now` is loop time in seconds."""
        self.batch_spans.observe(len(batch))
        for span in batch:
            kind = KINDS[span.end_time is not None]
            self.accounting.forwarded[kind] += 1
            self.delay.observe(now - span.accepted_at)
            self._note((now, span.key[1], "forwarded", self.sink, kind, span.account))

    def skipped(self, span: Span, reason: str, now: float) -> None:
        """A write is deliberately not sent to this upstream."""
        self._note((now, span.id, "skipped", self.sink, reason, span.account))

    def not_taken(self, span: Span, reason: str, now: float) -> None:
        """The lane has no room for a write; `reason` is one of `NOT_TAKEN_REASONS`."""
        self.accounting.not_taken[reason] += 1
        self._note((now, span.id, "not taken", self.sink, reason, span.account))
        if (suppressed := self._not_taken_lines.admit(now)) is not None:
            not_logged = {"not_logged": suppressed} if suppressed else {}
            self._log.error("writes_not_taken", reason=reason, **not_logged)

    def failed(self, batch: Sequence[Span], outcome: str, text: str, now: float) -> None:
        """The upstream did not accept `batch`; `outcome` is one of `OUTCOMES`."""
        self.failure = Failure(outcome, text, now)
        for span in batch:
            self._note((now, span.id, "not accepted", self.sink, text, span.account))

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
        for span in spans:
            self._note((now, span.id, "dead letter", self.sink, reason, span.account))
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
        for span in spans:
            self._note((now, span.id, "dead letter", self.sink, reason, span.account))
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
        self.batch_bytes.observe(size)

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
    recent: Recent
    refusing: bool = False
    rejected: Counter[str] = field(default_factory=lambda: zeros(REJECT_REASONS))
    requests: Counter[str] = field(default_factory=lambda: zeros(STATUS_CODES))
    passed: Counter[str] = field(default_factory=lambda: zeros(PASS_THROUGH_OUTCOMES))
    flushes: Counter[str] = field(default_factory=lambda: zeros(FLUSH_OUTCOMES))
    displaced: Counter[str] = field(default_factory=lambda: zeros(PORTS))
    seconds: Histogram = field(default_factory=lambda: Histogram(INGEST_S))
    _refusals: LogRateLimiter = field(default_factory=lambda: LogRateLimiter(max_lines=1))
    _displacements: LogRateLimiter = field(default_factory=lambda: LogRateLimiter(max_lines=1))

    def accepted(self, spans: Sequence[Span], now: float) -> None:
        """The valid events of a request were accepted; `now` is loop time in seconds."""
        if self.refusing:
            self.refusing = False
            log.info("intake_taking")
        for span in spans:
            event = "start" if span.end_time is None else "end"
            self.recent.note((now, span.key[1], "accepted", "", event, span.account))

    def watch(self, accounts: Accounts) -> None:
        """Log each account that comes, and each that the configured one overrides, once."""

        def seen(_: int, id_: str) -> None:
            log.info("account_seen", account=id_, accounts=len(accounts.ids))

        accounts.seen = seen
        accounts.replaced = lambda id_: log.warning("account_overridden", account=id_)

    def refused(self, reason: str, now: float) -> None:
        """A request was refused, possibly before its body was read."""
        if reason == "not_ours":
            return  # it held no events; the status of its response is counted
        self.rejected[reason] += 1
        if reason != "no_room":
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
