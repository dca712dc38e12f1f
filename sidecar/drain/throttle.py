"""How fast one lane may send to its upstream: pauses, back-off, pace. No I/O, no clock.

In: the outcome of each request, with loop times in seconds. Out: a `Grant` to send now or the time
at which to ask again, and the state that operators see.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.drain.concurrency import ConcurrencyLimit
from sidecar.drain.pace import Pace
from sidecar.telemetry.outcomes import SinkState

# An outage: this many consecutive failures, each of a batch that had not failed before.
DOWN_AFTER = 3
# The longest back-off while the process is stopping.
MAX_WAIT_WHILE_STOPPING_S = 1.0
# A shorter outage leaves no backlog worth pacing.
MIN_PACED_OUTAGE_S = 2.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter (D7)."""

    initial_s: float
    max_s: float

    def delay(self, attempt: int, jitter: float) -> float:
        """Seconds to wait after `attempt` (from 1) failed; `jitter` is in [0, 1)."""
        # The exponent is capped because a float overflows long before an outage of a week ends.
        return min(self.max_s, self.initial_s * 2.0 ** min(attempt - 1, 60)) * jitter


class Grant(NamedTuple):
    """Permission to send one request now, with at most so many writes."""

    max_writes: int = sys.maxsize
    is_probe: bool = False  # sent to find out if the upstream has recovered


_UNLIMITED, _PROBE = Grant(), Grant(1, is_probe=True)


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
        self._pace = Pace()
        self.state = SinkState.UP
        # Whether the next request is a probe, sent to find out if the upstream has recovered.
        self.probing = False
        self.paused_until = 0.0
        self._outage_since = 0.0
        self._paused_at = float("-inf")
        self._consecutive_failures = 0
        self._consecutive_pauses = 0
        self.max_wait_s = float("inf")  # of any back-off

    @property
    def limit(self) -> int:
        """Requests that may be in flight: one, the probe, until the upstream has recovered."""
        return 1 if self.probing else self._concurrency.value

    def grant(self, now: float, sending: int, *, paced: bool) -> Grant | float | None:
        """Whether to send now, given the requests in flight: a grant, or the time to ask again.

        None: not before one of them ends. `paced`: unless the process is stopping.
        """
        if sending >= self.limit:
            return None
        if now < self.paused_until:
            return self.paused_until
        if self.probing:
            return _PROBE
        if not (self._pace.active and paced):
            return _UNLIMITED
        allowed = self._pace.allowance(now)
        return Grant(allowed) if allowed >= 1 else self._pace.next_at(now)

    def sent(self, now: float, writes: int) -> None:
        """So many writes were sent."""
        if not self.probing:
            self._pace.sent(now, writes)

    def caught_up(self) -> None:
        """Nothing is waiting any more."""
        if self._pace.active:
            self._pace.stop()

    def sample(self, now: float, writes: int, in_flight: int, seconds: float) -> None:
        """A batch of `writes` succeeded after `seconds`.

        `in_flight` requests were in flight when it was sent, itself included.
        """
        if not self.probing:
            self._concurrency.sample(now, writes, in_flight, seconds)

    def responded(self, now: float) -> bool:
        """The upstream accepted or refused a batch: it is up. Returns whether it was paused."""
        self._consecutive_failures = 0
        if not self.probing:
            return False
        if now - self._outage_since > MIN_PACED_OUTAGE_S:
            self._pace.start(now)
        self.state = SinkState.UP
        self.probing = False
        self.resume()
        return True

    def failed(
        self, now: float, sent_at: float, *, retry_after: float, first: bool, outage: bool
    ) -> None:
        """A request failed for a temporary reason.

        `retry_after`: seconds the upstream asked for, or 0. `first`: the batch had not
        failed before; only such failures are counted, so that a single bad write never looks like
        an outage. `outage`: this failure alone is conclusive, such as a refused connection.
        """
        if sent_at < self._paused_at:
            return  # sent before the current pause began: tells us nothing new
        self._consecutive_failures += first
        if retry_after > 0:
            self._concurrency.refused()
            # Up to a tenth more, so that a thousand sidecars do not resume at the same moment.
            self._pause(now, SinkState.THROTTLED, retry_after * (1 + 0.1 * self._jitter()))
        elif outage or self.probing or self._consecutive_failures >= DOWN_AFTER:
            self._concurrency.refused()
            self.hold(now, sent_at, SinkState.DOWN)

    def hold(self, now: float, sent_at: float, state: SinkState) -> None:
        """The upstream accepts nothing now: back off, then probe."""
        if sent_at < self._paused_at:
            return
        self._consecutive_pauses += 1
        delay = self._backoff.delay(self._consecutive_pauses, self._jitter())
        self._pause(now, state, min(delay, self.max_wait_s))

    def _pause(self, now: float, state: SinkState, seconds: float) -> None:
        if not self.probing:
            self._outage_since = now
        self.state = state
        self.probing = True
        self._paused_at = now
        self.paused_until = max(self.paused_until, now + seconds)

    def shorten_waits(self) -> None:
        """Cap the back-off from now on: the process is stopping, and its grace period is short."""
        self.max_wait_s = MAX_WAIT_WHILE_STOPPING_S

    def resume(self) -> None:
        """End the pause and reset the back-off: a probe may be sent immediately."""
        self.paused_until = 0.0
        self._consecutive_pauses = 0
