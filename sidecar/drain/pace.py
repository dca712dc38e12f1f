"""How fast a backlog is sent to an upstream that has just recovered. Arithmetic only."""

from math import exp, inf


class Pace:
    """Limits the requests per second to an upstream that has just recovered.

    A thousand sidecars that resume at the same moment must not cause the next outage. So for
    `CALM_S` seconds a lane makes hardly more requests than before the outage, then at most twice as
    many: the backlog is gone after about the time that the outage took (DECISIONS.md 45). What is
    limited are requests, not writes: where a request takes a batch, the backlog fills it.
    """

    CALM_FACTOR, MAX_FACTOR = 1.15, 2.0
    CALM_S = 10.0
    GROWTH_PER_S = 1.25
    # The steady rate is the mean over about so many seconds.
    STEADY_S = 60.0
    MIN_MEASURED_S = 10.0  # before, it is unknown
    # A lane that has sent nothing before: what it has to send arrived during the outage.
    MIN_UNKNOWN_RATE = 5.0
    # The limit ends after so many times the outage: by then, others have caught up.
    MAX_OUTAGES = 3.0
    ROUNDING = 1e-6  # tokens

    def __init__(self) -> None:
        self.active = False  # whether the rate is limited now
        # Measuring the steady rate: requests, of which older ones count less, and since when.
        self._requests = 0.0
        self._measured_s = 0.0
        self._last: float | None = None
        # Limiting the rate.
        self._base = 0.0
        self._since = 0.0
        self._ends_at = 0.0
        self._tokens = 0.0
        self._filled_at = 0.0

    @property
    def steady(self) -> float:
        """Requests per second while the upstream was up; 0 while unknown."""
        if self._measured_s < self.MIN_MEASURED_S:
            return 0.0
        return self._requests / (self.STEADY_S * (1 - exp(-self._measured_s / self.STEADY_S)))

    def sent(self, now: float) -> None:
        """Count a request that was sent."""
        if self.active:
            self._tokens -= 1
            return
        if self._last is not None:
            passed = now - self._last
            self._requests *= exp(-passed / self.STEADY_S)
            self._measured_s += passed
        self._last = now
        self._requests += 1

    def start(self, now: float, backlog: float, outage_s: float, phase: float) -> None:
        """Limit the rate: the upstream has recovered from an outage of `outage_s`.

        `backlog`: requests that have to be made. `phase`: a random number in [0, 1), so that many
        lanes do not send their first requests at the same time.
        """
        steady, arrived = self.steady, backlog / outage_s
        # An agent that works in bursts may have left more than its mean rate: half of that rate,
        # so that not all lanes whose backlog is above average by chance are faster.
        self._base = max(steady, arrived / 2) if steady else max(arrived, self.MIN_UNKNOWN_RATE)
        self._since = self._filled_at = now
        self._ends_at = now + self.CALM_S + self.MAX_OUTAGES * outage_s
        self._tokens = phase
        self.active = True

    def stop(self, now: float) -> None:
        """Lift the limit: the backlog is gone."""
        self.active = False
        if self._last is not None:
            self._last = now  # the outage and the recovery are not measured

    def rate(self, now: float) -> float:
        """The limit at `now`, in requests per second."""
        if now >= self._ends_at:
            return inf
        growing_s = min(max(0.0, now - self._since - self.CALM_S), 60.0)
        factor = self.CALM_FACTOR * self.GROWTH_PER_S**growing_s
        return self._base * min(self.MAX_FACTOR, float(factor))

    def next_at(self, now: float) -> float:
        """Loop time at which one more request may be sent: a bucket with a tenth of a second's."""
        rate = self.rate(now)
        if rate == inf:
            self.stop(now)
            return now
        filled = self._tokens + (now - self._filled_at) * rate
        self._tokens = min(filled, max(1.0, rate / 10))
        self._filled_at = now
        missing = 1.0 - self._tokens
        # Never soon: if rounding left the bucket just short of a token, the lane would spin.
        return now if missing <= self.ROUNDING else now + max(0.001, missing / rate)
