"""What a failed request means for its batch: a pure function (D5 to D8, D17).

In: the sink's decision, the batch, and what the lane has learned from earlier outcomes. Out: retry
at a time, split, give up on it, or hold the lane. Only the sinks know HTTP statuses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.drain.evidence import Findings
from sidecar.drain.retry_queue import Batch
from sidecar.drain.throttle import Backoff
from sidecar.sinks import SinkError, Unavailable
from sidecar.telemetry.outcomes import SinkState


class RetryAt(NamedTuple):
    """Send the batch again at this loop time, except for writes that are too old by now."""

    at: float


class Split(NamedTuple):
    """Send it again at once, in halves."""


class DeadLetter(NamedTuple):
    """Give up on its only write; `reason` is one of accounting.DEAD_LETTER_REASONS."""

    reason: str


class Hold(NamedTuple):
    """The upstream refuses everything, not just this batch: keep it, pause the lane, then probe."""

    state: SinkState


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


def meaning(
    error: SinkError, batch: Batch, findings: Findings, *, at: float, max_attempts: int
) -> RetryAt | Split | DeadLetter | Hold:
    """What `error` means for `batch`; a retry is due `at` a loop time."""
    alone = len(batch.spans) == 1
    if error.holds is not None:
        return Hold(error.holds)
    if findings.breaker_is_open:
        return Hold(SinkState.BRAKED)
    if isinstance(error, Unavailable) and not (
        findings.counts_against and (not alone or batch.suspicion >= max_attempts)
    ):
        return RetryAt(at)
    return DeadLetter(error.dead_letter) if alone else Split()
