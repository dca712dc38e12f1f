"""What a refusal or a failure says: is it the write that is bad, or the upstream?

Three small judges, one of each a lane. They count; they do not act (that is the drain's).
"""

from collections import deque

from sidecar.drain.retry_queue import Batch


class PoisonDetector:
    """Whether a failing batch is bad, compared with what else was sent (D8).

    A 500 counts against a batch only when something got through since it failed last, and when
    most of the last first attempts did: a half-broken upstream proves nothing. With a quarter of
    all requests failing at random, eight in a row against one write happen once in 65,000 writes.
    """

    RECENT = 50
    SHARE = 0.75

    def __init__(self) -> None:
        self._firsts: deque[bool] = deque(maxlen=self.RECENT)
        self._successes = 0

    def succeeded(self, *, first: bool) -> None:
        """A batch got through; `first`: at its first attempt."""
        self._successes += 1
        if first:
            self._firsts.append(True)

    def against(self, batch: Batch, *, first: bool) -> bool:
        """Whether this failure speaks against `batch`; `first`: it is its first one."""
        if first:
            self._firsts.append(False)
            batch.successes_seen = self._successes
            return False
        since = self._successes > batch.successes_seen
        batch.successes_seen = self._successes
        # Its own first failure is among them, and is no neighbour of its own.
        return since and sum(self._firsts) >= self.SHARE * (len(self._firsts) - 1)


class CircuitBreaker:
    """Stops the lane before a wrong setting empties the queue into the dead letters (D17).

    On when, of the last writes that were decided, more were refused than taken, and not just a few.
    """

    RECENT = 100
    TOLERATED = 10

    def __init__(self) -> None:
        self._decided: deque[bool] = deque(maxlen=self.RECENT)
        self.on = False

    def forwarded(self, writes: int) -> None:
        """The upstream took so many writes: whatever was wrong is right again."""
        if self.on:
            self.on = False
            self._decided.clear()
        self._decided.extend([True] * min(writes, self.RECENT))

    def refused(self) -> bool:
        """One write alone was refused; whether it must be kept because the brake is on."""
        if not self.on:
            refusals = len(self._decided) - sum(self._decided)
            self.on = refusals >= self.TOLERATED and 2 * refusals > len(self._decided)
        if not self.on:
            self._decided.append(False)
        return self.on


class BatchSizeLimit:
    """How many bytes an upstream takes at once, learnt from its 413s.

    Grows back by a sixteenth after a hundred good batches: limits of proxies do change.
    """

    GOOD_BATCHES = 100

    def __init__(self, most: int) -> None:
        self._max = most
        self._good = 0
        self.max_bytes = most

    def too_large(self, size: int) -> None:
        """A batch of `size` bytes was too large."""
        self.max_bytes = max(1, min(self.max_bytes, size // 2))
        self._good = 0

    def taken(self) -> None:
        """A batch was taken."""
        if self.max_bytes == self._max:
            return
        self._good += 1
        if self._good >= self.GOOD_BATCHES:
            self.max_bytes = min(self._max, self.max_bytes + self.max_bytes // 16 + 1)
            self._good = 0
