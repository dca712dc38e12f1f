"""How fast a backlog goes out to an upstream that just came back. Arithmetic, no clock."""


class Pace:
    """Writes a second towards an upstream that just came back.

    While it is up, the steady rate is learnt. After an outage `CALM_S` seconds pass at most
    `FACTOR` times that; then the rate grows, so that a backlog ends, without a burst: a thousand
    sidecars that come back at once must not be the next outage.
    """

    FACTOR = 1.2
    CALM_S = 10.0
    GROWTH_PER_S = 1.25
    MIN_RATE = 5.0
    # Writes a second where no steady rate is known yet: half a worker (docs/upstreams.md A7).
    UNKNOWN = 50.0
    WINDOW_S = 5.0

    def __init__(self) -> None:
        self.steady = 0.0
        self.active = False  # whether the rate is limited now
        self._window_start: float | None = None
        self._window_writes = 0
        self._since: float | None = None
        self._tokens = 0.0
        self._filled_at = 0.0

    def sent(self, now: float, writes: int) -> None:
        """So many writes left."""
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

    def came_back(self, now: float) -> None:
        """The upstream was away and answers again."""
        self._since = self._filled_at = now
        self.active = True
        self._tokens = 0.0
        self._window_start, self._window_writes = None, 0

    def caught_up(self) -> None:
        """Nothing waits any more."""
        self._since = None
        self.active = False

    def rate(self, now: float) -> float:
        """Writes a second that may be sent at `now`."""
        since = now if self._since is None else self._since
        rate = self.FACTOR * max(self.MIN_RATE, self.steady) if self.steady else self.UNKNOWN
        late = min(max(0.0, now - since - self.CALM_S), 60.0)
        return rate * float(self.GROWTH_PER_S**late)

    def allowance(self, now: float) -> int:
        """Writes that may be sent at once; refills as time goes by, at most a tenth of a second."""
        rate = self.rate(now)
        self._tokens = min(self._tokens + (now - self._filled_at) * rate, max(1.0, rate / 10))
        self._filled_at = now
        return int(self._tokens + 1e-6)

    def next_at(self, now: float) -> float:
        """Loop time at which one more write may be sent."""
        # Never at once: a token that is full but for a rounding error would be waited for busily.
        return now + max(0.001, (1.0 - self._tokens) / self.rate(now))
