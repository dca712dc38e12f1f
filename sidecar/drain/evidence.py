"""What a lane learns from outcomes: poison detector, circuit breaker and batch size limit.

In: every batch that succeeded or failed. Out: `Findings` about a failure, from which failures.py
concludes what to do. They only count.
"""

from collections import deque
from typing import NamedTuple

from sidecar.drain.retry_queue import Batch
from sidecar.sinks import Refused, SinkError, TooLarge, Unavailable
from sidecar.spans.span import total_size


class Findings(NamedTuple):
    """What speaks against a batch that failed, or against the lane's settings."""

    counts_against: bool = False  # others got through: the batch is suspected
    breaker_is_open: bool = False  # most writes are refused: the settings are suspected


class Evidence:
    """The evidence of one lane, whose batches have at most `max_batch_bytes`."""

    def __init__(self, max_batch_bytes: int) -> None:
        self._poison_detector = PoisonDetector()
        self._breaker = CircuitBreaker()
        self.size_limit = BatchSizeLimit(max_batch_bytes)

    def succeeded(self, batch: Batch) -> None:
        """The upstream accepted `batch`."""
        self._poison_detector.succeeded(first=batch.attempts == 0)
        self._breaker.forwarded(len(batch.spans))
        self.size_limit.succeeded()

    def failed(self, batch: Batch, error: SinkError) -> Findings:
        """Record a failure of `batch`, and whether that counts against it."""
        if isinstance(error, TooLarge):
            self.size_limit.too_large(total_size(batch.spans))
        elif isinstance(error, Refused) and len(batch.spans) == 1:
            return Findings(breaker_is_open=self._breaker.refused())
        elif isinstance(error, Unavailable) and error.suspect:
            against = self._poison_detector.counts_against(batch, first=batch.attempts == 0)
            batch.suspicion += against
            return Findings(counts_against=against)
        return Findings()


class PoisonDetector:
    """Tells a bad batch from a failing upstream by what else has succeeded (D8).

    A 5xx counts against a batch only if another batch has succeeded since its last failure, and if
    most recent first attempts succeeded: a half-broken upstream proves nothing. If a quarter of all
    requests fail at random, eight consecutive failures hit one write in 65,000.
    """

    WINDOW = 50  # first attempts
    MIN_SUCCESS_SHARE = 0.75

    def __init__(self) -> None:
        self._first_attempts: deque[bool] = deque(maxlen=self.WINDOW)  # True: succeeded
        self._successes = 0

    def succeeded(self, *, first: bool) -> None:
        """A batch succeeded; `first`: on its first attempt."""
        self._successes += 1
        if first:
            self._first_attempts.append(True)

    def counts_against(self, batch: Batch, *, first: bool) -> bool:
        """Record a failure of `batch`; return whether it counts against it. `first`: its first."""
        if first:
            self._first_attempts.append(False)
            batch.successes_seen = self._successes
            return False
        another_succeeded = self._successes > batch.successes_seen
        batch.successes_seen = self._successes
        # Minus one: the batch's own first failure is in the window.
        others = len(self._first_attempts) - 1
        return another_succeeded and sum(self._first_attempts) >= self.MIN_SUCCESS_SHARE * others


class CircuitBreaker:
    """Stops the lane before a wrong setting turns the whole queue into dead letters (D17).

    It opens when more of the recent writes were refused than accepted, and more than
    `TOLERATED_REFUSALS` of them (DECISIONS.md 9).
    """

    WINDOW = 100  # writes that were accepted or refused
    TOLERATED_REFUSALS = 10

    def __init__(self) -> None:
        self._accepted: deque[bool] = deque(maxlen=self.WINDOW)
        self.is_open = False

    def forwarded(self, writes: int) -> None:
        """The upstream accepted `writes`: close the breaker."""
        if self.is_open:
            self.is_open = False
            self._accepted.clear()
        self._accepted.extend([True] * min(writes, self.WINDOW))

    def refused(self) -> bool:
        """A write sent alone was refused; return whether to keep it, as the breaker is open."""
        if not self.is_open:
            refusals = len(self._accepted) - sum(self._accepted)
            self.is_open = refusals >= self.TOLERATED_REFUSALS and 2 * refusals > len(
                self._accepted
            )
        if not self.is_open:
            self._accepted.append(False)
        return self.is_open


class BatchSizeLimit:
    """How many bytes a batch may contain, learned from the upstream's 413s.

    It grows back by a sixteenth after every hundred successful batches: proxies' limits change.
    """

    SUCCESSES_TO_GROW = 100

    def __init__(self, max_bytes: int) -> None:
        self._configured_max = max_bytes
        self._successes = 0
        self.max_bytes = max_bytes

    def too_large(self, size: int) -> None:
        """A batch of `size` bytes was too large."""
        self.max_bytes = max(1, min(self.max_bytes, size // 2))
        self._successes = 0

    def succeeded(self) -> None:
        """A batch succeeded."""
        if self.max_bytes == self._configured_max:
            return
        self._successes += 1
        if self._successes >= self.SUCCESSES_TO_GROW:
            grown = self.max_bytes + self.max_bytes // 16 + 1
            self.max_bytes = min(self._configured_max, grown)
            self._successes = 0
