"""What a lane learns from outcomes: poison detector, circuit breaker and batch size limit.

In: every batch that succeeded or failed. Out: `Findings` about a failure, from which failures.py
concludes what to do. They only count.
"""

from collections import deque
from typing import NamedTuple

from sidecar.drain.retry_queue import Batch
from sidecar.sinks import Refused, SinkError, TooLarge
from sidecar.spans.span import total_size


class Findings(NamedTuple):
    """What speaks against a batch that failed, against the upstream, or against the settings.

    `contradicted`: another batch has succeeded since this one last failed. `failures`: the lane's
    consecutive ones that were not contradicted; `new_failures`: the consecutive ones of batches
    that had not failed before. `breaker_is_open`: most writes are refused, so the settings are
    suspected.
    """

    contradicted: bool = False
    failures: int = 1
    new_failures: int = 1
    breaker_is_open: bool = False


class Evidence:
    """The evidence of one lane, whose batches have at most `max_batch_bytes`."""

    def __init__(self, max_batch_bytes: int) -> None:
        self._poison_detector = PoisonDetector()
        self._breaker = CircuitBreaker()
        self._failures = self._new_failures = 0
        self.size_limit = BatchSizeLimit(max_batch_bytes)

    def succeeded(self, batch: Batch) -> None:
        """The upstream accepted `batch`."""
        self._failures = self._new_failures = 0
        self._poison_detector.succeeded(batch)
        self._breaker.forwarded(len(batch.spans))
        if self.size_limit.learning:
            self.size_limit.succeeded(total_size(batch.spans))

    def failed(self, batch: Batch, error: SinkError) -> Findings:
        """Record a failure of `batch`. Its `suspicion` grows if the failure counts against it."""
        alone = len(batch.spans) == 1
        if not (alone or isinstance(error, Refused)) and error.reached:
            certain = isinstance(error, TooLarge)
            self.size_limit.failed(total_size(batch.spans), certain=certain)
        if error.about_content:
            self._failures = self._new_failures = 0  # the upstream responds
            self._poison_detector.refused(batch)
            counts = alone and isinstance(error, Refused | TooLarge)
            return Findings(breaker_is_open=counts and self._breaker.refused())
        poison = self._poison_detector
        contradicted = poison.failed(batch) and error.reached
        self._failures += not contradicted
        self._new_failures += not batch.failures
        if contradicted and alone and poison.most_succeed:
            batch.suspicion += 1
        return Findings(contradicted, self._failures, self._new_failures)


class PoisonDetector:
    """Tells a bad batch from a failing upstream by what else has succeeded (D8, D23).

    A failure counts against a write only if another batch has succeeded since its last failure, and
    if most requests succeed: a half-broken upstream proves nothing. If a quarter of all requests
    fail at random, eight consecutive failures hit one write in 65,000. Batches of several that
    fail are not counted: one bad write is enough for that, however healthy the upstream is.
    """

    WINDOW = 50  # requests
    MIN_SUCCESS_SHARE = 0.75

    def __init__(self) -> None:
        self._outcomes: deque[bool] = deque(maxlen=self.WINDOW)  # True: succeeded
        self._successes = 0

    def succeeded(self, batch: Batch) -> None:
        """A batch succeeded."""
        self._successes += 1
        if len(batch.spans) > 1 or not batch.failures:  # otherwise its failure was counted
            self._outcomes.append(True)

    def failed(self, batch: Batch) -> bool:
        """Record a failure of `batch`; whether another one has succeeded since its last one."""
        if len(batch.spans) == 1 and not batch.failures:
            self._outcomes.append(False)
        another_succeeded = bool(batch.attempts) and self._successes > batch.successes_seen
        batch.successes_seen = self._successes
        return another_succeeded

    def refused(self, batch: Batch) -> None:
        """`batch` failed for what is in it, which proves nothing about others."""
        batch.successes_seen = self._successes

    @property
    def most_succeed(self) -> bool:
        """Whether most requests succeeded, except for the one that fails now."""
        return sum(self._outcomes) >= self.MIN_SUCCESS_SHARE * (len(self._outcomes) - 1)


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
    """How many bytes a batch may contain.

    After a failure, smaller batches are sent, because its size may have been the cause; after one
    that gets through, larger ones again. Only contrast teaches a size: if a larger batch fails
    right after smaller ones have passed, then twice as many of these have to pass before the next
    trial, because gateways' limits rarely change. A 413 says itself that it is the size.
    """

    MAX_PATIENCE = 128  # batches
    CERTAIN_PATIENCE = 32

    def __init__(self, max_bytes: int) -> None:
        self._configured_max = max_bytes
        self._patience, self._passed = 1, 0  # batches that have to pass, and those that have
        self._on_trial = False  # nothing of about this size has passed yet
        self.max_bytes = max_bytes

    @property
    def learning(self) -> bool:
        """Whether it needs to know of successes."""
        return self.max_bytes < self._configured_max or self._on_trial or self._patience > 1

    def failed(self, size: int, *, certain: bool) -> None:
        """A batch of several writes, `size` bytes together, failed; `certain`: for its size."""
        half = max(1, size // 2)
        if half >= self.max_bytes:
            return  # it was formed under an earlier limit
        if self._on_trial:
            self._patience = min(self.MAX_PATIENCE, 2 * self._patience)
        if certain:
            self._patience = max(self.CERTAIN_PATIENCE, self._patience)
        self.max_bytes = half
        self._passed, self._on_trial = 0, False

    def succeeded(self, size: int) -> None:
        """A batch of `size` bytes succeeded."""
        if 2 * size <= self.max_bytes:
            return  # it would have passed under half of the limit, too
        if self._on_trial:
            self._on_trial = False
            self._patience = max(1, self._patience // 2)
        self._passed += 1
        if self._passed >= self._patience and self.max_bytes < self._configured_max:
            self.max_bytes = min(self._configured_max, 2 * self.max_bytes)
            self._passed, self._on_trial = 0, True
        elif self._passed >= self._patience:
            self._passed, self._patience = 0, max(1, self._patience // 2)
