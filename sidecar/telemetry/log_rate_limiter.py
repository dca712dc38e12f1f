"""Rate-limits log lines of one kind, and counts those that were suppressed."""

PERIOD_S = 60.0


class LogRateLimiter:
    """Admits `max_lines` lines per minute."""

    def __init__(self, max_lines: int = 10) -> None:
        self._max = max_lines
        self._period_began = float("-inf")
        self._admitted = 0
        self._suppressed = 0

    def admit(self, now: float) -> int | None:
        """How many lines were suppressed before this one; None if this one is suppressed as well.

        `now` is loop time in seconds.
        """
        if now - self._period_began >= PERIOD_S:
            self._period_began, self._admitted = now, 0
        if self._admitted == self._max:
            self._suppressed += 1
            return None
        self._admitted += 1
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed
