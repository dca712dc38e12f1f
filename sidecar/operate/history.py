"""The last 15 minutes in fixed memory, and growth over a sliding window. Arithmetic only.

In: rows of numbers, which the caller reads about every `SAMPLE_S` seconds. Out: columns for
sparklines, compact enough to send to the page in full. Times are loop times in seconds.
"""

import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

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

    def rates(self) -> list[float]:
        """Return the growth of each number per second."""
        seconds = self._rows[-1][0] - self._rows[0][0]
        return [grown / seconds if seconds > 0 else 0.0 for grown in self.growth()]


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Return the value that `share` of a histogram's values do not exceed; None when empty.

    `counts` has one number per upper bound, and one more for values above them all. Interpolates
    linearly within a bucket; a value above the last bound is reported as that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    lower = 0.0
    for upper, count, below in zip(bounds, counts, accumulate(counts, initial=0.0), strict=False):
        if count and below + count >= rank:
            return lower + (upper - lower) * max(0.0, rank - below) / count
        lower = upper
    return bounds[-1]
