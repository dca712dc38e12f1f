"""Adaptive concurrency: how many requests at once an upstream is worth. Arithmetic only.

The limit climbs while more requests at once get more writes through, and descends while fewer do
not get less through. So it settles at the knee: the real Agentex server gets slower beyond about
10 requests at once (contracts/agentex.md 7). Latency is not asked: ours includes the rounds of our
own busy loop, and no base can be told from a slow link or a jittery one.
"""

from enum import Enum


class _Trial(Enum):
    NONE = 0
    UP = 1
    DOWN = -1


class ConcurrencyLimit:
    """The number of requests that may be in flight, at most `maximum`.

    Measured in windows in which the limit was used up; while it is not, nothing can be learnt.
    """

    START = 4
    # A trial upwards is kept when it gains this share of what a proportional gain would be.
    WORTH = 0.4
    # A trial downwards is kept when this share of the rate is left.
    SAME = 0.95
    # A window: so many answers and seconds. Doubling shows in a short one; a smaller step needs a
    # long one, because the rate of a busy process wavers by a fifth from one moment to the next.
    SHORT, LONG = (16, 0.02), (96, 0.25)
    # Windows of rest after a trial that was not kept: more each time, because it costs goodput.
    FIRST_REST, LONGEST_REST = 2, 16

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.value = min(self.START, maximum)
        self._fast = True
        self._trial = _Trial.NONE
        self._last_trial = _Trial.DOWN
        self._before = self.value  # the limit that a trial goes back to
        self._rate: float | None = None  # writes a second at `_before`
        self._finer = 2
        self._rest = 0
        self._next_rest = self.FIRST_REST
        self._begin(None)

    def _begin(self, now: float | None) -> None:
        self._since = now
        self._skip = self.value  # answers of requests that left under another limit
        self._answers = 0
        self._writes = 0
        self._unused = 0

    def sample(self, now: float, writes: int, in_flight: int) -> None:
        """A request with `writes` got through, while `in_flight` were out, itself included."""
        if self._skip:
            self._skip -= 1
            self._since = now
            return
        self._answers += 1
        self._writes += writes
        self._unused += in_flight < self.value
        elapsed = now - (self._since or 0.0)
        answers, seconds = self.SHORT if self._fast else self.LONG
        if self._answers >= max(answers, 2 * self.value) and elapsed >= seconds:
            self._judge(self._writes / elapsed, used=self._unused * 5 <= self._answers)
            self._begin(now)

    def _judge(self, rate: float, *, used: bool) -> None:
        if not used:
            self._stop_trial()
            self._rate = None
        elif self._trial is _Trial.NONE:
            self._rate = rate if self._rate is None else (self._rate + rate) / 2
            self._rest -= 1
            if self._rest <= 0:
                self._try_another()
        elif self._is_kept(rate):
            self._before, self._rate = self.value, rate
            self._next_rest = self.FIRST_REST
            self._try(self._trial)
        else:
            if not self._fast and self._trial is _Trial.UP:
                # Half as much again was too much; a quarter may not be.
                self._finer = 6 - self._finer
            self._fast = False
            self._stop_trial()
            self._rest = self._next_rest
            self._next_rest = min(self.LONGEST_REST, 2 * self._next_rest)

    def _is_kept(self, rate: float) -> bool:
        before = self._rate or rate
        if self._trial is _Trial.DOWN:
            return rate >= self.SAME * before
        return rate / before - 1 >= self.WORTH * (self.value / self._before - 1)

    def _try_another(self) -> None:
        up = self._fast or self._last_trial is _Trial.DOWN
        self._try(_Trial.UP if up else _Trial.DOWN)

    def _try(self, trial: _Trial) -> None:
        self._before = self.value
        self._trial = self._last_trial = trial
        if trial is _Trial.UP:
            step = self.value if self._fast else max(1, self.value // self._finer)
            self.value = min(self.maximum, self.value + step)
        else:
            self.value = max(1, self.value - max(1, self.value // 4))
        if self.value == self._before:
            self._trial = _Trial.NONE

    def _stop_trial(self) -> None:
        if self._trial is not _Trial.NONE:
            self.value = self._before
            self._trial = _Trial.NONE

    def refused(self) -> None:
        """The upstream could not take what was sent: a fifth less, at once."""
        self._fast = False
        self._stop_trial()
        self.value = self._before = max(1, int(self.value * 0.8))
        self._rate = None
        self._rest = self.FIRST_REST
        self._begin(None)
