"""How hard to push an upstream: concurrency, pauses and back-off. Arithmetic, no I/O, no clock.

In: what became of each request, with loop times in seconds. Out: how many requests may be in
flight (`limit`), until when none may be sent (`paused_until`), and the state that operators see.
The real Agentex server gets slower beyond about 10 requests at once (contracts/agentex.md 7), so
the limit is found from latency and stays near the knee.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

# So many failures in a row, each of a write that had not failed before, are an outage.
DOWN_AFTER = 3


class SinkState(StrEnum):
    """What an operator sees of an upstream."""

    UP = "up"
    THROTTLED = "throttled"
    DOWN = "down"
    UNAUTHORIZED = "unauthorized"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter (design.md D7)."""

    initial_s: float
    max_s: float

    def delay(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after `attempt` (from 1) failed; `jitter` is in [0, 1)."""
        # The exponent is capped because a float overflows long before an outage of a week ends.
        return min(self.max_s, self.initial_s * 2.0 ** min(attempt - 1, 60)) * jitter


class ConcurrencyLimit:
    """Finds the concurrency at which an upstream is busy but requests do not queue up there.

    The idea is TCP Vegas': with `base` the latency of an idle upstream and `latency` the one seen
    now, `limit * (1 - base / latency)` requests wait in the upstream's own queue. Few waiting: one
    more may be sent. Many: one less. A refusal takes a fifth off at once.
    """

    START = 4
    FEW = 3.0
    MANY = 6.0
    # Latency drifts (another pod, another hour): the base is the least of this many windows.
    WINDOWS = 20

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.value = min(self.START, maximum)
        self._growing_fast = True
        self._minima: list[float] = []
        self._begin_window()

    def _begin_window(self) -> None:
        self._sum = 0.0
        self._count = 0
        self._least = float("inf")
        self._busiest = 0

    def sample(self, latency_s: float, in_flight: int) -> None:
        """A request took `latency_s` while `in_flight` were out, itself included."""
        self._sum += latency_s
        self._count += 1
        self._least = min(self._least, latency_s)
        self._busiest = max(self._busiest, in_flight)
        if self._count >= max(8, self.value):
            self._end_window()

    def _end_window(self) -> None:
        self._minima = [*self._minima[1 - self.WINDOWS :], self._least]
        base = min(self._minima)
        average = self._sum / self._count
        waiting = self.value * (1 - base / average) if average > 0 else 0.0
        if waiting > self.MANY:
            self._growing_fast = False
            self.value = max(1, self.value - 1)
        elif self._busiest >= self.value:
            # Not used up means not tested: only a limit that was reached may grow.
            if waiting < self.FEW:
                step = self.value if self._growing_fast else 1
                self.value = min(self.maximum, self.value + step)
            else:
                self._growing_fast = False
        self._begin_window()

    def refused(self) -> None:
        """The upstream could not take what was sent."""
        self._growing_fast = False
        self.value = max(1, int(self.value * 0.8))
        self._begin_window()


class Throttle:
    """What one lane may send now."""

    def __init__(
        self, backoff: Backoff, max_concurrency: int, jitter: Callable[[], float]
    ) -> None:
        self._backoff = backoff
        self._jitter = jitter
        self._concurrency = ConcurrencyLimit(max_concurrency)
        self.state = SinkState.UP
        self.paused_until = 0.0
        self._paused_at = float("-inf")
        self._failed_in_a_row = 0
        self._pauses = 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight; one, a probe, until an upstream is known to be back."""
        return self._concurrency.value if self.state is SinkState.UP else 1

    @property
    def probing(self) -> bool:
        """Whether the next request only finds out if the upstream is back."""
        return self.state is not SinkState.UP

    def sample(self, latency_s: float, in_flight: int) -> None:
        """A batch got through in `latency_s` while `in_flight` were out, itself included."""
        if not self.probing:
            self._concurrency.sample(latency_s, in_flight)

    def answered(self) -> None:
        """The upstream looked at a batch and decided: it is there."""
        self._failed_in_a_row = 0
        if self.probing:
            self.state = SinkState.UP
            self.resume()

    def failed(
        self, now: float, sent_at: float, *, retry_after: float, first: bool, outage: bool
    ) -> None:
        """A request was not taken, for a reason that will pass.

        `retry_after`: seconds the upstream asked for, 0 for none. `first`: the write had not
        failed before, so that one bad write alone never looks like an outage. `outage`: the
        failure leaves no doubt (nobody listens there).
        """
        if sent_at < self._paused_at:
            return  # sent before the pause that we are in: says nothing new
        self._failed_in_a_row += first
        if retry_after > 0:
            self._concurrency.refused()
            # Up to a tenth more, so that a thousand sidecars do not come back in one moment.
            self._pause(now, SinkState.THROTTLED, retry_after * (1 + 0.1 * self._jitter()))
        elif outage or self.probing or self._failed_in_a_row >= DOWN_AFTER:
            self._concurrency.refused()
            self._pauses += 1
            self._pause(now, SinkState.DOWN, self._backoff.delay(self._pauses, self._jitter()))

    def hold(self, now: float, sent_at: float, state: SinkState) -> None:
        """The upstream refuses us, not a write: wait longer each time, but keep probing."""
        if sent_at < self._paused_at:
            return
        self._pauses += 1
        self._pause(now, state, self._backoff.delay(self._pauses, self._jitter()))

    def _pause(self, now: float, state: SinkState, seconds: float) -> None:
        self.state = state
        self._paused_at = now
        self.paused_until = max(self.paused_until, now + seconds)

    def resume(self) -> None:
        """Probe at once: something changed (a new credential, or the process stops)."""
        self.paused_until = 0.0
        self._pauses = 0
