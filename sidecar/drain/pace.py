"""How fast a backlog is sent to an upstream that has just recovered. Arithmetic only."""

from math import exp


class Pace:
    """Limits the requests per second to an upstream that has just recovered.

    A thousand sidecars that resume at the same moment must not cause the next outage. A lane makes
    as many requests as before the outage, and in addition a share of what is left over from each of
    its seconds: little for `CALM_S` seconds, then nearly all, so that together they make fewer than
    twice as many as before (DECISIONS.md 45). The backlog is gone after about the time that the
    outage took. What is limited are requests, not writes: if a request takes a batch, the backlog
    fills it.

    `min_requests`: requests that are always allowed in as much time as the outage took.
    """

    CALM_SHARE, MAX_SHARE = 0.15, 0.94
    CALM_S = 10.0
    # The steady rate is the mean over about so many seconds, and at least over these.
    STEADY_S, MIN_STEADY_S = 60.0, 10.0
    # After an outage of hours, a few writes should not take hours as well.
    MIN_RATE = 0.2
    ROUNDING = 1e-6  # tokens

    def __init__(self, min_requests: float = 0.0) -> None:
        self._min_requests = min_requests
        self.active = False  # whether the rate is limited now
        # Measuring the steady rate: requests, of which older ones count less, and for how long.
        self._requests = 0.0
        self._measured_s = 0.0
        self._last: float | None = None
        # Limiting the rate.
        self._base = self._left_over = self._min_rate = 0.0
        self._calm_until = self._due_at = 0.0
        self._doubling_s = 1.0
        self._tokens = 0.0
        self._filled_at = 0.0

    def steady(self, until: float) -> float:
        """Requests per second while the upstream was up, until then; 0 if there was none."""
        if self._last is None:
            return 0.0
        passed = max(0.0, until - self._last)
        measured_s = max(self.MIN_STEADY_S, self._measured_s + passed)
        requests = self._requests * exp(-passed / self.STEADY_S)
        return requests / (self.STEADY_S * (1 - exp(-measured_s / self.STEADY_S)))

    def succeeded(self, now: float) -> None:
        """Count a request that the upstream has accepted."""
        if self.active:
            return
        if self._last is not None:
            passed = now - self._last
            self._requests *= exp(-passed / self.STEADY_S)
            self._measured_s += passed
        self._last = now
        self._requests += 1

    def sent(self) -> None:
        """A request was sent."""
        self._tokens -= 1

    def start(self, now: float, backlog: float, outage_s: float, phase: float) -> None:
        """Limit the rate: the upstream has recovered from an outage of `outage_s`.

        `backlog`: requests that have to be made. `phase`: a random number in [0, 1), so that many
        lanes do not send their first requests at the same time.
        """
        steady, left_over = self.steady(now - outage_s), backlog / outage_s
        # Half of it, if that is more than the steady rate: the agent has just begun to work. The
        # sum of two rates is right on average over many lanes; the larger of them is not.
        self._base = max(steady, left_over / 2) if steady else left_over
        self._left_over = left_over
        self._min_rate = max(self.MIN_RATE, self._min_requests / outage_s)
        self._calm_until = now + self.CALM_S
        # The backlog is due when most lanes have sent theirs. Then the rate grows again, but not so
        # fast that lanes that recovered together form a peak.
        due_s = max(0.0, outage_s - self.CALM_SHARE * self.CALM_S) / self.MAX_SHARE
        self._due_at = self._calm_until + due_s
        self._doubling_s = max(1.0, outage_s / 10)
        self._filled_at = now
        self._tokens = phase - 1  # the probe was a request, too
        self.active = True

    def stop(self, now: float) -> None:
        """Lift the limit: the backlog is gone."""
        self.active = False
        if self._last is not None:
            self._last = now  # the outage and the recovery are not measured

    def rate(self, now: float) -> float:
        """The limit at `now`, in requests per second."""
        share = (1 + self.CALM_SHARE) * _growth(now - self._calm_until) - 1
        rate = self._base + min(self.MAX_SHARE, share) * self._left_over
        late = (now - self._due_at) / self._doubling_s
        return max(self._min_rate, rate) * _growth(late)

    def next_at(self, now: float) -> float:
        """Loop time at which one more request may be sent: a bucket with a tenth of a second's."""
        rate = self.rate(now)
        filled = self._tokens + (now - self._filled_at) * rate
        self._tokens = min(filled, max(1.0, rate / 10))
        self._filled_at = now
        missing = 1.0 - self._tokens
        # Never soon: if rounding left the bucket just short of a token, the lane would spin.
        return now if missing <= self.ROUNDING else now + max(0.001, missing / rate)


def _growth(doublings: float) -> float:
    # Not so much that the float would overflow in the end.
    return float(2.0 ** min(max(0.0, doublings), 60.0))
