"""A histogram of plain integers: fine enough for quantiles in the process, coarse in a scrape."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

# From one bound to the next. Interpolation within a bucket is then exact to 10 %.
_GROWTH = 1.2


class Histogram:
    """Counts values by size, `lowest` to `highest` with a relative error of 10 %.

    `exported`: the upper bounds that a scrape has, which are bounds here as well. Bounds are
    inclusive.
    """

    __slots__ = ("_exported", "bounds", "counts", "highest", "total")

    def __init__(self, lowest: float, highest: float, exported: Sequence[float] = ()) -> None:
        bounds, bound = set(exported), lowest
        while bound < highest:
            bounds.add(bound)
            bound *= _GROWTH
        self._exported = exported
        self.bounds = sorted(bounds | {highest})
        self.counts = [0] * (len(self.bounds) + 1)  # the last one: of values above all bounds
        self.total = 0.0
        self.highest = 0.0  # the largest value since `take_highest`

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        if value > self.highest:  # noqa: PLR1730 (`max` takes longer, and this runs for every write)
            self.highest = value

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def take_highest(self) -> float:
        """Return the largest value since the last call."""
        highest, self.highest = self.highest, 0.0
        return highest

    def above(self, bound: float) -> int:
        """How many values were in buckets that begin at `bound` or above."""
        return sum(self.counts[bisect_left(self.bounds, bound) + 1 :])

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by exported upper bound, in the form that Prometheus expects."""
        below = list(accumulate(self.counts))
        shown = [(str(float(bound)), bisect_left(self.bounds, bound)) for bound in self._exported]
        return [(name, float(below[at])) for name, at in [*shown, ("+Inf", len(below) - 1)]]
