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

# The longest back-off while the process is stopping.
MAX_WAIT_WHILE_STOPPING_S = 1.0
# The longest pause that an upstream can ask for (D7).
MAX_PAUSE_S = 300.0
# A shorter outage leaves no backlog worth pacing.
MIN_PACED_OUTAGE_S = 2.0
# Where a request takes a batch, so many may be made in as much time as the outage took.
MIN_BATCHES = 4.5
# A recovery is noticed within this share of the time that the outage took.
MAX_PAUSE_SHARE = 0.22


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
        self.pace = Pace(0.0 if watch_latency else MIN_BATCHES)
        self.state = SinkState.NOT_ASKED
        # Whether the next request is a probe, sent to find out if the upstream has recovered.
        self.probing = False
        self.paused_until = 0.0
        self._outage_since = self._held_since = 0.0
        self._paused_at = float("-inf")
        self._held_by = float("-inf")  # when the request was sent that began the pause
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
        if sending >= self._concurrency.value or (self.probing and sending):
            return None
        if now < self.paused_until:
            return self.paused_until
        if self.probing:
            return _PROBE
        if not (self.pace.active and paced):
            return _UNLIMITED
        due = self.pace.next_at(now)
        return _UNLIMITED if due <= now else due

    def asked(self) -> None:
        """The upstream has responded, and the lane is not held."""
        if self.state is SinkState.NOT_ASKED:
            self.state = SinkState.UP

    def sample(self, now: float, writes: int, in_flight: int, seconds: float) -> None:
        """A batch of `writes` succeeded after `seconds`.

        `in_flight` requests were in flight when it was sent, itself included.
        """
        if not self.probing:
            self.pace.succeeded(now)
            self._concurrency.sample(now, writes, in_flight, seconds)

    def is_lifted_by(self, sent_at: float) -> bool:
        """Whether a response to a request that was sent then ends a hold.

        A pause that the upstream has asked for ends only if it takes something that was sent later.
        """
        asked = self.state is SinkState.THROTTLED
        return self.probing and (sent_at > self._held_by or not asked)

    def responded(self, now: float, backlog: float) -> None:
        """The upstream accepted or refused a batch: it is up. `backlog`: requests to be made."""
        outage_s = now - self._outage_since
        # A short hold interrupts a recovery, but does not begin it anew: an upstream that refuses
        # some writes for good would be held again and again, and its backlog would only grow.
        interrupted = self.pace.active and now - self._held_since <= MIN_PACED_OUTAGE_S
        if outage_s > MIN_PACED_OUTAGE_S and not interrupted:
            self.pace.start(now, backlog, outage_s, self._jitter())
        self.state = SinkState.UP
        self.probing = False
        self.resume()

    def hold(
        self,
        now: float,
        sent_at: float,
        state: SinkState,
        seconds: float = 0.0,
        *,
        since: float | None = None,
    ) -> None:
        """The upstream accepts nothing now: pause, at least for `seconds`, then probe.

        A request that was sent before the current pause began (`sent_at`) can only make it longer:
        that it failed as well tells us nothing new. `since`: when the first request was sent that
        failed, if that is not the one.
        """
        # Up to a tenth more, so that a thousand sidecars do not resume at the same moment.
        pause_s = min(MAX_PAUSE_S, seconds * (1 + 0.1 * self._jitter()))
        if sent_at < self._paused_at:
            if self.probing and seconds:
                if self.state is not state:
                    self.state, self._held_by = state, sent_at
                self.paused_until = max(self.paused_until, now + pause_s)
            return
        self._concurrency.refused()
        if not seconds:
            self._consecutive_pauses += 1
            pause_s = self._backoff.delay(self._consecutive_pauses, self._jitter())
            if self.probing:
                longest_s = MAX_PAUSE_SHARE * (now - self._outage_since)
                pause_s = min(pause_s, max(self._backoff.initial_s, longest_s))
            pause_s = min(pause_s, self.max_wait_s)
        if not self.probing:
            self._held_since = now if since is None else since
            if not self.pace.active:  # or else it has not really been up
                self._outage_since = self._held_since
        self.state = state
        self.probing = True
        self._paused_at, self._held_by = now, sent_at
        self.paused_until = max(self.paused_until, now + pause_s)

    def shorten_waits(self) -> None:
        """Cap the back-off from now on: the process is stopping, and its grace period is short."""
        self.max_wait_s = MAX_WAIT_WHILE_STOPPING_S

    def resume(self) -> None:
        """End the pause and reset the back-off: a probe may be sent immediately."""
        self.paused_until = 0.0
        self._consecutive_pauses = 0
