"""How fast a backlog is sent to an upstream that has just recovered. Arithmetic only."""


class Pace:
    """Limits the writes per second to an upstream that has just recovered.

    While the upstream is up, the steady rate is measured. After an outage, the rate is limited to
    `FACTOR` times the steady rate for `CALM_S` seconds. Then it grows exponentially, so that the
    backlog is sent in bounded time without a burst: a thousand sidecars that resume at the same
    moment must not cause the next outage (DECISIONS.md 12).
    """

    FACTOR = 1.2
    CALM_S = 10.0
    GROWTH_PER_S = 1.25
    MIN_RATE = 5.0
    # Writes per second if no steady rate is known: half of what one worker of the Agentex server
    # can handle (docs/upstreams.md A7).
    DEFAULT_RATE = 50.0
    WINDOW_S = 5.0

    def __init__(self) -> None:
        self.steady = 0.0  # writes per second, 0 while unknown
        self.active = False  # whether the rate is limited now
        self._window_start: float | None = None
        self._window_writes = 0
        self._since: float | None = None
        self._tokens = 0.0
        self._filled_at = 0.0

    def sent(self, now: float, writes: int) -> None:
        """Count `writes` that were sent."""
        if self._since is not None:
            self._tokens -= writes
            return
        if self._window_start is None:
            self._window_start = now
        elapsed = now - self._window_start
        if elapsed >= self.WINDOW_S:
            rate = self._window_writes / elapsed
            self.steady = rate if not self.steady else (self.steady + rate) / 2
            self._window_start, self._window_writes = now, 0
        self._window_writes += writes

    def start(self, now: float) -> None:
        """Limit the rate: the upstream has recovered from an outage."""
        self._since = self._filled_at = now
        self.active = True
        self._tokens = 0.0
        self._window_start, self._window_writes = None, 0

    def stop(self) -> None:
        """Lift the limit: the backlog is gone."""
        self._since = None
        self.active = False

    def rate(self, now: float) -> float:
        """The limit at `now`, in writes per second."""
        since = now if self._since is None else self._since
        rate = self.FACTOR * max(self.MIN_RATE, self.steady) if self.steady else self.DEFAULT_RATE
        growing_s = min(max(0.0, now - since - self.CALM_S), 60.0)
        return rate * float(self.GROWTH_PER_S**growing_s)

    def allowance(self, now: float) -> int:
        """Writes that may be sent now: a token bucket that holds a tenth of a second's worth."""
        rate = self.rate(now)
        self._tokens = min(self._tokens + (now - self._filled_at) * rate, max(1.0, rate / 10))
        self._filled_at = now
        return int(self._tokens + 1e-6)

    def next_at(self, now: float) -> float:
        """Loop time at which one more write may be sent."""
        # Never now: if rounding left the bucket just short of a token, the lane would spin.
        return now + max(0.001, (1.0 - self._tokens) / self.rate(now))
