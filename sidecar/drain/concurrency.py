"""Adaptive concurrency: how many requests to keep in flight to an upstream. Arithmetic only.

In: each success with its times, and refusals. Out: `value`, from 1 to the maximum.

Normally `_ByGoodput` decides. It settles at the knee: the real Agentex server gets slower beyond
about 10 concurrent requests per worker (docs/upstreams.md A7). But it ignores other clients: if
sidecars share an upstream, a higher limit always gets a larger share. So where all requests are
alike, `_ByLatency` decides while the upstream is crowded: latency is high although we are not
trying a higher limit. After `STAY_S` we hold still: others, if any, soon raise the latency again.
"""

from math import inf


class _ByGoodput:
    """Rises while that increases throughput, and falls while that does not reduce it."""

    # An upward trial is kept if the rate grows by at least this share of a proportional gain, a
    # downward trial if at least that share of the rate remains.
    MIN_GAIN, MIN_RATE_LEFT = 0.4, 0.95
    # Evaluations to wait after a failed trial; doubled each time, because a trial costs throughput.
    MIN_COOLDOWN, MAX_COOLDOWN = 2, 16
    MAX_STEP_DIVISOR = 8  # upward steps are a half, a quarter and an eighth, by turns

    def __init__(self, value: int, maximum: int) -> None:
        self._maximum = maximum
        self._step_divisor, self._next_cooldown = 2, self.MIN_COOLDOWN
        self.restart(value)
        self.slow_start = True  # doubles until a trial fails
        self._cooldown = 0

    def restart(self, value: int) -> None:
        """Forget the rate; the next trial goes up."""
        self.value = value
        self.fallback = value  # differs from `value` during a trial, which returns to it on failure
        self.slow_start = False
        self._up = True  # the direction of the current or next trial
        self._cooldown = self.MIN_COOLDOWN
        self._rate: float | None = None  # writes per second at `fallback`

    @property
    def min_responses(self) -> int:
        # The rate fluctuates by a fifth. Doubling and the large steps of a low limit show early.
        return 16 if self.slow_start else min(96, 16 * self.value)

    def evaluate(self, rate: float, *, used: bool) -> None:
        step = self.value / self.fallback - 1
        min_ratio = 1 + self.MIN_GAIN * step if step > 0 else self.MIN_RATE_LEFT
        if not used:
            self.value = self.fallback
            self._rate = None
        elif self.value == self.fallback:
            self._rate = rate if self._rate is None else (self._rate + rate) / 2
            self._cooldown -= 1
            if self._cooldown <= 0:
                self._start_trial()
        elif rate >= min_ratio * (self._rate or rate):
            self._rate = rate
            self._next_cooldown = self.MIN_COOLDOWN
            self._start_trial()
        else:
            self.fail_trial()

    def _start_trial(self) -> None:
        self.fallback = self.value
        if self._up:
            step = self.value if self.slow_start else max(1, self.value // self._step_divisor)
            self.value = min(self._maximum, self.value + step)
        else:
            self.value -= min(self.value - 1, max(1, self.value // 4))
        if self.value == self.fallback and not self.slow_start:
            self._up = not self._up

    def fail_trial(self) -> None:
        if self._up and not self.slow_start:
            last = self._step_divisor == self.MAX_STEP_DIVISOR
            self._step_divisor = 2 if last else 2 * self._step_divisor
        self._up = not self._up
        self.slow_start = False
        self.value = self.fallback
        self._cooldown = self._next_cooldown
        self._next_cooldown = min(self.MAX_COOLDOWN, 2 * self._next_cooldown)


class _ByLatency:
    """Halves the limit when latency is high, or else raises it by one: this evens out the shares.

    It looks at the lower quartile of a window. Higher latencies include delays in our own event
    loop; the lowest depend on luck, and on the number of responses in the window.
    """

    # High: above both HIGH_S and HIGH_RATIO times the baseline, because a link may be slow. At
    # 0.15 s an Agentex worker has about 15 requests, and 92 % of its peak rate (DECISIONS.md 23).
    HIGH_S, HIGH_RATIO = 0.15, 1.35
    # The baseline is the lowest quartile of a window in the current and the previous period. These
    # are short so that a newcomer to a crowd soon has the others' baseline: whenever they halve
    # their limits, all of them see the same low latencies.
    BASELINE_PERIOD_S = 15.0

    def __init__(self) -> None:
        self._previous = self._current = inf  # the lowest quartile of each period
        self._period_since = 0.0

    def is_high(self, now: float, latencies: list[float]) -> bool:
        """Whether the latencies of this window are high."""
        latency = sorted(latencies)[len(latencies) // 4]
        if now - self._period_since >= self.BASELINE_PERIOD_S:
            self._period_since, self._previous, self._current = now, self._current, inf
        self._current = min(self._current, latency)
        return latency > max(self.HIGH_S, self.HIGH_RATIO * min(self._previous, self._current))

    def next(self, value: int, *, high: bool, used: bool) -> int:
        return max(1, value // 2) if high else value + used


class ConcurrencyLimit:
    """The number of requests that may be in flight, at most `maximum`.

    It is evaluated in windows. While nobody else has been seen, these are short, because few
    responses to a low limit are at others' peaks. In a crowd, longer ones make shares more even.
    """

    START = 4
    WINDOW, CROWDED_WINDOW = 4, 16  # responses, at least; and each request in flight twice
    SLOW_START_WINDOW_S, WINDOW_S = 0.02, 0.25
    # How long latency decides, at least; and how long to hold still then: until others have peaked.
    STAY_S, HOLD_S = 120.0, 15.0
    REFUSAL_FACTOR = 0.8

    def __init__(self, maximum: int, *, watch_latency: bool = False) -> None:
        """`watch_latency`: all requests are alike, so high latency means congestion."""
        self.maximum = maximum
        self.value = min(self.START, maximum)
        self._watch_latency = watch_latency
        self._goodput, self._latency = _ByGoodput(self.value, maximum), _ByLatency()
        self._crowded, self._until = False, -inf  # stay crowded, or hold still, until then
        self._start_window(0.0, self.value)

    def _start_window(self, now: float, skip: int) -> None:
        self._skip = skip  # responses to requests that were sent under another limit
        self._since = now
        self._responses = self._writes = self._below_limit = 0
        self._latencies: list[float] = []
        self._size = max(self.CROWDED_WINDOW if self._crowded else self.WINDOW, 2 * self.value)
        self._evaluate_at = self._size
        self._min_s = self.SLOW_START_WINDOW_S if self._goodput.slow_start else self.WINDOW_S

    def sample(self, now: float, writes: int, in_flight: int, seconds: float = 0.0) -> None:
        """A request with `writes` succeeded after `seconds`.

        `in_flight` requests were in flight when it was sent, itself included.
        """
        if self._skip:
            self._skip -= 1
            self._since = now
            return
        self._responses += 1
        self._writes += writes
        self._below_limit += in_flight < self.value
        self._latencies.append(seconds)
        if self._responses >= self._evaluate_at and now - self._since >= self._min_s:
            self._evaluate(now)

    def _evaluate(self, now: float) -> None:
        before, goodput, latency = self.value, self._goodput, self._latency
        high = self._watch_latency and latency.is_high(now, self._latencies)
        used = self._below_limit * 5 <= self._responses
        if self._crowded or (high and before <= goodput.fallback):
            after = latency.next(before, high=high, used=used)
            goodput.restart(min(self.maximum, after))
            if not self._crowded:
                self._crowded, self._until = True, now + self.STAY_S
            elif now >= self._until and (high or after >= self.maximum):
                self._crowded, self._until = False, now + self.HOLD_S
        elif high:  # our own upward trial may be the cause
            goodput.fail_trial()
        elif self._responses < goodput.min_responses:
            self._evaluate_at = self._responses + self._size
            self._latencies = []
            return
        elif now >= self._until:
            goodput.evaluate(self._writes / (now - self._since), used=used)
        self.value = goodput.value
        self._start_window(now, self.value if self.value != before else 0)

    def refused(self) -> None:
        """Lower the limit by a fifth immediately: the upstream was overloaded or unavailable."""
        goodput = self._goodput
        rising = goodput.value > goodput.fallback  # nothing suggests that the fallback is too high
        self.value = goodput.fallback if rising else max(1, int(self.value * self.REFUSAL_FACTOR))
        goodput.restart(self.value)
        self._start_window(0.0, self.value)
