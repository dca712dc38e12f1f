"""Keeps a log readable: a few lines a minute of one kind, and how many were left out."""

PERIOD_S = 60.0


class LogRateLimiter:
    """Lets `most` lines through in each minute."""

    def __init__(self, most: int = 10) -> None:
        self._max = most
        self._since = float("-inf")
        self._logged = 0
        self._left_out = 0

    def repeats(self, now: float) -> int | None:
        """How many lines were left out before this one; None to leave it out too.

        `now` is loop time in seconds.
        """
        if now - self._since >= PERIOD_S:
            self._since, self._logged = now, 0
        if self._logged == self._max:
            self._left_out += 1
            return None
        self._logged += 1
        left_out, self._left_out = self._left_out, 0
        return left_out
