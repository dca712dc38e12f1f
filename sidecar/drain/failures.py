"""What a failed request means for its batch: a pure function (D5 to D8, D17, D23).

In: the sink's decision, the batch, and what the lane has learned from earlier outcomes. Out: retry
at a time, split, give up on it, or hold the lane. Only the sinks know HTTP statuses.

The rule behind it: every write that the upstream would take alone is delivered. So no failure is
believed to be about the upstream while other batches get through, and none to be about a write
before it has failed alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.drain.evidence import Findings
from sidecar.drain.retry_queue import Batch
from sidecar.drain.throttle import Backoff
from sidecar.sinks import SinkError
from sidecar.telemetry.outcomes import SinkState

# An outage: this many consecutive failures, each of a batch that had not failed before.
DOWN_AFTER = 3
# The lane is held if this many consecutive failures say that the upstream refuses everything.
HOLD_AFTER = 2


class RetryAt(NamedTuple):
    """Send the batch again at this loop time, except for writes that are too old by now."""

    at: float


class Split(NamedTuple):
    """Send it again in halves; not before `at`, 0 for at once."""

    at: float = 0.0


class DeadLetter(NamedTuple):
    """Give up on its only write; `reason` is one of accounting.DEAD_LETTER_REASONS."""

    reason: str


class Hold(NamedTuple):
    """The upstream takes nothing now, this batch or any other: pause the lane, then probe.

    The pause is at least `seconds` long.
    """

    state: SinkState
    seconds: float = 0.0


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


def meaning(  # noqa: PLR0911 (a table)
    error: SinkError,
    batch: Batch,
    findings: Findings,
    *,
    at: float,
    max_attempts: int,
    probing: bool = False,
) -> RetryAt | Split | DeadLetter | Hold:
    """What `error` means for `batch`; a retry is due `at` a loop time.

    `probing`: the lane is held already.
    """
    alone = len(batch.spans) == 1
    if findings.breaker_is_open:
        return Hold(SinkState.BRAKED)
    if error.about_content:
        return DeadLetter(error.dead_letter) if alone else Split()
    suspected = alone and batch.suspicion and error.reached
    if suspected and batch.suspicion >= max_attempts:
        return DeadLetter("failing")
    if suspected and not probing:
        return RetryAt(at)  # others get through: it says nothing about the upstream
    outage = findings.new_failures >= DOWN_AFTER or not error.reached or probing
    if findings.contradicted and not outage and not alone:
        return Split(at)
    if error.retry_after:
        return Hold(SinkState.THROTTLED, error.retry_after)
    if error.holds is not None:
        believed = findings.failures >= HOLD_AFTER or outage
        return Hold(error.holds) if believed else RetryAt(at)
    if outage:
        return Hold(SinkState.DOWN)
    return RetryAt(at) if alone else Split(at)
