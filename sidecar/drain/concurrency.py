"""Adaptive concurrency: how many requests to keep in flight to an upstream. Arithmetic only.

The limit rises while more concurrency increases throughput, and falls while less concurrency does
not reduce it. So it settles at the knee: the real Agentex server gets slower beyond about 10
concurrent requests per worker (docs/upstreams.md A7).

Throughput alone ignores other clients: if many sidecars share an upstream, the one with a higher
limit always gets a larger share, at the expense of the others. So where all requests to an upstream
are alike, latency signals congestion: every sidecar then halves its limit and raises it again by
one request at a time, which evens out the shares (additive increase, multiplicative decrease). The
signal is the minimum latency of a window, because the other latencies include delays in our own
event loop.
"""

from enum import Enum
from math import inf


class _Trial(Enum):
    NONE = 0
    UP = 1
    DOWN = -1


class ConcurrencyLimit:
    """The number of requests that may be in flight, at most `maximum`.

    It is evaluated in windows. Only windows that used the whole limit count; the others say nothing
    about it.
    """

    START = 4
    # An upward trial is kept if the rate grows by at least this share of a proportional gain.
    MIN_GAIN = 0.4
    # A downward trial is kept if at least this share of the rate remains.
    MIN_RATE_LEFT = 0.95
    # The minimum size of a window: responses and seconds. A short window is enough to see the
    # effect of doubling; a smaller step needs a long one, because the rate of a busy process
    # fluctuates by a fifth. Where latency decides, the rate is not used.
    SHORT_WINDOW, LONG_WINDOW, SHARED_WINDOW = (16, 0.02), (96, 0.25), (16, 0.25)
    # Congested: the minimum latency of a window exceeds both CONGESTED_S and CONGESTED_RATIO times
    # the baseline, because a link may be slow. At 0.15 s an Agentex worker has about 15 concurrent
    # requests and reaches 92 % of its peak rate: interpolated from docs/upstreams.md A7, on which
    # the simulation in DECISIONS.md 23 is based.
    CONGESTED_S, CONGESTED_RATIO = 0.15, 1.3
    # The baseline is the minimum latency of the current and the previous period. Periods are short
    # so that a sidecar that started under congestion soon has the same baseline as the others:
    # whenever they cut their limits, all of them see the same low latencies.
    BASELINE_PERIOD_S = 15.0
    # Factors by which the limit is lowered.
    CONGESTION_DECREASE, REFUSAL_DECREASE = 0.5, 0.8
    # Windows to wait after a failed trial; doubled each time, because a trial costs throughput.
    MIN_COOLDOWN, MAX_COOLDOWN = 2, 16

    def __init__(self, maximum: int, *, watch_latency: bool = False) -> None:
        """`watch_latency`: all requests are alike, so high latency means congestion."""
        self.maximum = maximum
        self._watch_latency = watch_latency
        self._shared = False  # has been congested: from now on, latency decides
        self._min_latencies = (inf, inf)  # of the previous and the current baseline period
        self._period_since = 0.0
        self.value = min(self.START, maximum)
        self._slow_start = True  # doubles until a trial fails
        self._trial = _Trial.NONE
        self._last_trial = _Trial.DOWN
        self._fallback = self.value  # the limit that a failed trial returns to
        self._rate: float | None = None  # writes per second at `_fallback`
        self._step_divisor = 2
        self._cooldown = 0
        self._next_cooldown = self.MIN_COOLDOWN
        self._start_window(None)

    def _start_window(self, now: float | None) -> None:
        self._since = now
        self._skip = self.value  # responses to requests that were sent under another limit
        self._responses = 0
        self._writes = 0
        self._below_limit = 0  # responses to requests that did not use the whole limit
        self._min_latency = inf

    def sample(self, now: float, writes: int, in_flight: int, seconds: float = 0.0) -> None:
        """A request with `writes` succeeded after `seconds`.

        `in_flight` requests were in flight when it was sent, itself included.
        """
        if self._watch_latency:
            self._update_baseline(now, seconds)
        if self._skip:
            self._skip -= 1
            self._since = now
            return
        self._responses += 1
        self._writes += writes
        self._below_limit += in_flight < self.value
        self._min_latency = min(self._min_latency, seconds)
        elapsed = now - (self._since or 0.0)
        min_responses, min_s = (
            self.SHARED_WINDOW
            if self._shared
            else self.SHORT_WINDOW
            if self._slow_start
            else self.LONG_WINDOW
        )
        if self._responses < max(min_responses, 2 * self.value) or elapsed < min_s:
            return
        used = self._below_limit * 5 <= self._responses
        if self._is_congested():
            self._shared = True
            self._decrease(self.CONGESTION_DECREASE)
        elif not self._shared:
            self._evaluate(self._writes / elapsed, used=used)
        elif used:
            self.value = self._fallback = min(self.maximum, self.value + 1)
        self._start_window(now)

    def _update_baseline(self, now: float, seconds: float) -> None:
        previous, current = self._min_latencies
        if now - self._period_since >= self.BASELINE_PERIOD_S:
            self._period_since, previous, current = now, current, inf
        self._min_latencies = previous, min(current, seconds)

    def _is_congested(self) -> bool:
        return (
            self._watch_latency
            and self._min_latency > self.CONGESTED_S
            and self._min_latency > self.CONGESTED_RATIO * min(self._min_latencies)
        )

    def _evaluate(self, rate: float, *, used: bool) -> None:
        if not used:
            self._revert_trial()
            self._rate = None
        elif self._trial is _Trial.NONE:
            self._rate = rate if self._rate is None else (self._rate + rate) / 2
            self._cooldown -= 1
            if self._cooldown <= 0:
                self._start_next_trial()
        elif self._has_succeeded(rate):
            self._fallback, self._rate = self.value, rate
            self._next_cooldown = self.MIN_COOLDOWN
            self._start_trial(self._trial)
        else:
            if not self._slow_start and self._trial is _Trial.UP:
                # Alternate between steps of a half and of a quarter.
                self._step_divisor = 6 - self._step_divisor
            self._slow_start = False
            self._revert_trial()
            self._cooldown = self._next_cooldown
            self._next_cooldown = min(self.MAX_COOLDOWN, 2 * self._next_cooldown)

    def _has_succeeded(self, rate: float) -> bool:
        before = self._rate or rate
        if self._trial is _Trial.DOWN:
            return rate >= self.MIN_RATE_LEFT * before
        return rate / before - 1 >= self.MIN_GAIN * (self.value / self._fallback - 1)

    def _start_next_trial(self) -> None:
        up = self._slow_start or self._last_trial is _Trial.DOWN
        self._start_trial(_Trial.UP if up else _Trial.DOWN)

    def _start_trial(self, trial: _Trial) -> None:
        self._fallback = self.value
        self._trial = self._last_trial = trial
        if trial is _Trial.UP:
            step = self.value if self._slow_start else max(1, self.value // self._step_divisor)
            self.value = min(self.maximum, self.value + step)
        else:
            self.value = max(1, self.value - max(1, self.value // 4))
        if self.value == self._fallback:
            self._trial = _Trial.NONE

    def _revert_trial(self) -> None:
        if self._trial is not _Trial.NONE:
            self.value = self._fallback
            self._trial = _Trial.NONE

    def refused(self) -> None:
        """Lower the limit by a fifth immediately: the upstream was overloaded or unavailable.

        During an upward trial, only revert the trial: nothing suggests that the previous limit was
        too high.
        """
        self._decrease(1.0 if self._trial is _Trial.UP else self.REFUSAL_DECREASE)
        self._start_window(None)

    def _decrease(self, factor: float) -> None:
        self._slow_start = False
        self._revert_trial()
        self.value = self._fallback = max(1, int(self.value * factor))
        self._rate = None
        self._cooldown = self.MIN_COOLDOWN
