"""The last 15 minutes in fixed memory, and growth over a sliding window. Arithmetic only.

In: rows of numbers, which the caller reads about every `SAMPLE_S` seconds. Out: columns for
sparklines, compact enough to send to the page in full. Times are loop times in seconds.
"""

import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import sub
from typing import Any, NamedTuple

from sidecar.telemetry.histogram import Histogram

SAMPLE_S = 5.0
KEPT = 180  # samples: 15 minutes


class History:
    """The last `kept` rows of named numbers, 4 bytes each; a number may be missing."""

    def __init__(self, names: Sequence[str], kept: int = KEPT) -> None:
        self._kept = kept
        self._columns = {name: array("f", [math.nan]) * kept for name in names}
        self.count = 0  # rows ever added, including overwritten ones

    def add(self, row: Mapping[str, float | None]) -> None:
        """Add one row, which must have every name. It overwrites the oldest one when full."""
        at = self.count % self._kept
        for name, column in self._columns.items():
            value = row[name]
            column[at] = math.nan if value is None else value
        self.count += 1

    def since(self, after: int) -> dict[str, Any]:
        """Return the kept rows starting with number `after`, as columns, oldest first."""
        first = max(0, self.count - self._kept, min(after, self.count))
        places = [number % self._kept for number in range(first, self.count)]
        return {
            "step_s": SAMPLE_S,
            "kept": self._kept,
            "first": first,
            "next": self.count,
            "series": {
                name: [_short(column[place]) for place in places]
                for name, column in self._columns.items()
            },
        }


def _short(value: float) -> float | None:
    if math.isnan(value):
        return None
    short = float(f"{value:.4g}")  # all that a sparkline needs
    return int(short) if short.is_integer() else short


class Window:
    """How much each of several counters grew over the last `rows` readings."""

    def __init__(self, rows: int) -> None:
        self._rows: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=rows)

    def add(self, now: float, numbers: Sequence[float]) -> None:
        """Add one reading; every reading has the same length."""
        self._rows.append((now, tuple(numbers)))

    def growth(self, latest: Sequence[float] | None = None) -> list[float]:
        """Return the growth of each number from the oldest reading to the newest or `latest`."""
        old, new = self._rows[0][1], latest or self._rows[-1][1]
        return [late - early for early, late in zip(old, new, strict=True)]

    def rates(self, now: float, latest: Sequence[float]) -> list[float]:
        """Return the growth of each number per second, up to what they are now.

        Not up to the newest reading: what is shown beside a total is of the same moment. A window
        that has just begun counts as a second.
        """
        seconds = max(1.0, now - self._rows[0][0])
        return [grown / seconds for grown in self.growth(latest)]


class Summary(NamedTuple):
    """Recent quantiles by share, None without values; number and sum of all values."""

    quantiles: Mapping[float, float | None]
    values: int
    total: float


class Distribution:
    """What a histogram counted lately. Call `read` every `SAMPLE_S` seconds.

    Quantiles cover the time since the oldest of `kept` readings.
    """

    def __init__(self, histogram: Histogram, kept: int) -> None:
        self._histogram = histogram
        # The counts at each reading, and the largest value between it and the one before.
        self._readings = deque([(list(histogram.counts), 0.0)], maxlen=kept)

    def read(self) -> None:
        """Begin the next interval."""
        histogram = self._histogram
        self._readings.append((list(histogram.counts), histogram.take_highest()))

    def quantiles(self, *shares: float) -> list[float | None]:
        """The values that these shares of all values do not exceed; None if there are none."""
        (oldest, _), *others = self._readings
        highest = max([self._histogram.highest, *(highest for _, highest in others)])
        counts = _growth(oldest, self._histogram.counts)
        return [quantile(self._histogram.bounds, counts, share, highest) for share in shares]

    def quantile_of_interval(self, share: float) -> float | None:
        """The same of one share, of the interval that the last `read` ended."""
        if len(self._readings) == 1:
            return None
        (before, _), (after, highest) = self._readings[-2], self._readings[-1]
        return quantile(self._histogram.bounds, _growth(before, after), share, highest)

    def summary(self, *shares: float) -> Summary:
        """All values since the start, with these recent quantiles."""
        quantiles = dict(zip(shares, self.quantiles(*shares), strict=True))
        return Summary(quantiles, self._histogram.count, self._histogram.total)


def _growth(early: Sequence[int], late: Sequence[int]) -> list[int]:
    return list(map(sub, late, early))


def quantile(
    bounds: Sequence[float], counts: Sequence[float], share: float, highest: float
) -> float | None:
    """Return the value that `share` of a histogram's values do not exceed; None when empty.

    `counts` has one number per upper bound, and one more for values above them all. Interpolates
    linearly within a bucket, but never above `highest`, the largest value.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    lower = 0.0
    for upper, count, below in zip(bounds, counts, accumulate(counts, initial=0.0), strict=False):
        if count and below + count >= rank:
            return min(highest, lower + (upper - lower) * max(0.0, rank - below) / count)
        lower = upper
    return highest
