"""How hard to push an upstream: pauses, back-off and pace. Arithmetic, no I/O, no clock.

In: what became of each request, with loop times in seconds. Out: how many requests may be in
flight (`limit`), until when none may be sent (`paused_until`), how many writes may go now
(`allowance`), and the state that operators see.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sidecar.drain.concurrency import ConcurrencyLimit
from sidecar.drain.pace import Pace
from sidecar.telemetry.outcomes import SinkState

# So many failures in a row, each of a write that had not failed before, are an outage.
DOWN_AFTER = 3
# The longest back-off while the process stops.
HURRIED_S = 1.0
# An absence shorter than this has left no backlog worth pacing.
OUTAGE_S = 2.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter (D7)."""

    initial_s: float
    max_s: float

    def delay(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after `attempt` (from 1) failed; `jitter` is in [0, 1)."""
        # The exponent is capped because a float overflows long before an outage of a week ends.
        return min(self.max_s, self.initial_s * 2.0 ** min(attempt - 1, 60)) * jitter


class Throttle:
    """What one lane may send now."""

    def __init__(
        self,
        backoff: Backoff,
        max_concurrency: int,
        jitter: Callable[[], float],
        *,
        watch_latency: bool = False,
    ) -> None:
        self._backoff = backoff
        self._jitter = jitter
        self._concurrency = ConcurrencyLimit(max_concurrency, watch_latency=watch_latency)
        self.pace = Pace()
        self.state = SinkState.UP
        # Whether the next request only finds out if the upstream is back.
        self.probing = False
        self.paused_until = 0.0
        self._away_since = 0.0
        self._paused_at = float("-inf")
        self._failed_in_a_row = 0
        self._pauses = 0
        self._max_s = float("inf")

    @property
    def limit(self) -> int:
        """Requests that may be in flight; one, a probe, until an upstream is known to be back."""
        return 1 if self.probing else self._concurrency.value

    def sample(self, now: float, writes: int, in_flight: int, seconds: float) -> None:
        """A batch of `writes` got through in `seconds`; `in_flight` were out, itself included."""
        if not self.probing:
            self._concurrency.sample(now, writes, in_flight, seconds)

    def answered(self, now: float) -> bool:
        """The upstream looked at a batch and decided: it is there. Whether it was away."""
        self._failed_in_a_row = 0
        if not self.probing:
            return False
        if now - self._away_since > OUTAGE_S:
            self.pace.came_back(now)
        self.state = SinkState.UP
        self.probing = False
        self.resume()
        return True

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
            self.hold(now, sent_at, SinkState.DOWN)

    def hold(self, now: float, sent_at: float, state: SinkState) -> None:
        """The upstream is of no use now: wait longer each time, but keep probing."""
        if sent_at < self._paused_at:
            return
        self._pauses += 1
        delay = self._backoff.delay(self._pauses, self._jitter())
        self._pause(now, state, min(delay, self._max_s))

    def _pause(self, now: float, state: SinkState, seconds: float) -> None:
        if not self.probing:
            self._away_since = now
        self.state = state
        self.probing = True
        self._paused_at = now
        self.paused_until = max(self.paused_until, now + seconds)

    def hurry(self) -> None:
        """The process stops: never wait long, because the grace period ends."""
        self._max_s = HURRIED_S

    def resume(self) -> None:
        """Probe at once: something changed (a new credential, or the process stops)."""
        self.paused_until = 0.0
        self._pauses = 0
