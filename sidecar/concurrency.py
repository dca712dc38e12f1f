"""Adaptive concurrency: how many requests at once an upstream is worth. Arithmetic only.

The real Agentex server gets slower beyond about 10 requests at once (contracts/agentex.md 7), so
the limit is found from latency and settles near the knee, not at the maximum.
"""


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
