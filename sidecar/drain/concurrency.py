"""Adaptive concurrency: how many requests at once an upstream is worth. Arithmetic only.

The limit climbs while more requests at once get more writes through, and descends while fewer do
not get less through. So it settles at the knee: the real Agentex server gets slower beyond about
10 requests at once (docs/upstreams.md A7).

Goodput alone is blind to others: of an upstream that many sidecars share, a higher limit always
gets a larger share, at everybody's cost. So where the answers of an upstream are alike, their
latency says when it is crowded: then everyone takes half, and goes up by one request at a
time, which makes the shares even (additive increase, multiplicative decrease). The least latency of
a window is asked, because all others include the rounds of our own busy loop.
"""

from enum import Enum
from math import inf


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
    # Where latency decides, the rate need not be known well.
    SHORT, LONG, SHARED = (16, 0.02), (96, 0.25), (16, 0.25)
    # Crowded: so many seconds even for the quickest answer of a window, and so much more than the
    # quickest of the last seconds (a link may be slow). At 0.15 s an Agentex worker has about 15
    # requests at once, and serves 92 % of what it can (docs/upstreams.md A7).
    CROWDED_S, CROWDED_SHARE = 0.15, 1.3
    # Short, so that those who came when it was crowded soon see what the others see: every cut of
    # the limits shows all of them the same quick answers.
    BASE_FOR_S = 15.0
    LESS_CROWDED, LESS_REFUSED = 0.5, 0.8
    # Windows of rest after a trial that was not kept: more each time, because it costs goodput.
    FIRST_REST, LONGEST_REST = 2, 16

    def __init__(self, maximum: int, *, watch_latency: bool = False) -> None:
        """`watch_latency`: the answers are alike, so that a late one says that it is crowded."""
        self.maximum = maximum
        self._watch_latency = watch_latency
        self._shared = False
        self._bases = (inf, inf)  # quickest answer of the period before, and of this one
        self._base_since = 0.0
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
        self._quickest = inf

    def sample(self, now: float, writes: int, in_flight: int, seconds: float = 0.0) -> None:
        """A request with `writes` got through in `seconds`.

        `in_flight` were out, itself included.
        """
        if self._watch_latency:
            self._look_at(now, seconds)
        if self._skip:
            self._skip -= 1
            self._since = now
            return
        self._answers += 1
        self._writes += writes
        self._unused += in_flight < self.value
        self._quickest = min(self._quickest, seconds)
        elapsed = now - (self._since or 0.0)
        answers, at_least_s = (
            self.SHARED if self._shared else self.SHORT if self._fast else self.LONG
        )
        if self._answers < max(answers, 2 * self.value) or elapsed < at_least_s:
            return
        used = self._unused * 5 <= self._answers
        if self._is_crowded():
            self._shared = True
            self._less(self.LESS_CROWDED)
        elif not self._shared:
            self._judge(self._writes / elapsed, used=used)
        elif used:
            self.value = self._before = min(self.maximum, self.value + 1)
        self._begin(now)

    def _look_at(self, now: float, seconds: float) -> None:
        before, current = self._bases
        if now - self._base_since >= self.BASE_FOR_S:
            self._base_since, before, current = now, current, inf
        self._bases = before, min(current, seconds)

    def _is_crowded(self) -> bool:
        return (
            self._watch_latency
            and self._quickest > self.CROWDED_S
            and self._quickest > self.CROWDED_SHARE * min(self._bases)
        )

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
        """The upstream could not take what was sent: a fifth less, at once.

        Or back to where a trial upwards began: that was not too much, as far as we know.
        """
        self._less(1.0 if self._trial is _Trial.UP else self.LESS_REFUSED)
        self._begin(None)

    def _less(self, share: float) -> None:
        self._fast = False
        self._stop_trial()
        self.value = self._before = max(1, int(self.value * share))
        self._rate = None
        self._rest = self.FIRST_REST
