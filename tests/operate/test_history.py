"""Samples in fixed memory, rates and quantiles."""

from itertools import chain
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.operate.history import KEPT, SAMPLE_S, Distribution, History, Window, quantile
from sidecar.telemetry.histogram import Histogram

BOUNDS = (1.0, 2.0, 4.0)


def filled(rows: int, kept: int = 4) -> History:
    """Return a history in which row n holds the number n."""
    history = History(["n"], kept)
    for number in range(rows):
        history.add({"n": number})
    return history


def test_it_reaches_back_15_minutes() -> None:
    """The history covers the 15 minutes that the page shows."""
    assert KEPT * SAMPLE_S == 15 * 60


@given(rows=st.integers(0, 20), after=st.integers(0, 30))
def test_since_gives_what_is_kept_and_new(rows: int, after: int) -> None:
    """`since` gives each kept row once, oldest first; `next` continues where it ended."""
    piece = filled(rows).since(after)
    expected = list(range(rows))[-4:]
    assert piece["series"]["n"] == [n for n in expected if n >= min(after, rows)]
    assert piece["next"] == rows
    assert piece["first"] + len(piece["series"]["n"]) == rows


def test_a_missing_number_is_none() -> None:
    """A missing number becomes None: JSON has no NaN."""
    history = History(["a", "b"])
    history.add({"a": None, "b": 1.5})
    assert history.since(0)["series"] == {"a": [None], "b": [1.5]}


def test_numbers_are_short() -> None:
    """Numbers have four digits and no trailing `.0`, so that the page stays small."""
    history = History(["n"])
    for value in (123456789, 0.123456, 3.0):
        history.add({"n": value})
    assert history.since(0)["series"]["n"] == [123500000, 0.1235, 3]


def test_a_window_forgets() -> None:
    """Growth and rate cover the last readings only."""
    window = Window(3)
    window.add(0.0, [0])
    assert (window.growth(), window.rates(0.0, [0])) == ([0], [0.0])
    assert window.rates(0.1, [5]) == [5.0]  # not 50 per second
    for second, number in enumerate([100, 200, 210, 220], 1):
        window.add(second, [number])
    assert (window.growth(), window.rates(4.0, [220])) == ([20], [10.0])
    assert window.growth([225]) == [25]
    assert window.rates(4.5, [225]) == [10.0]  # up to now


def test_a_quantile_of_nothing_is_none() -> None:
    """Without measurements the quantile is None, not 0 s."""
    assert quantile(BOUNDS, [0, 0, 0, 0], 0.5, 0.0) is None


@pytest.mark.parametrize(
    ("counts", "share", "highest", "value"),
    [
        ([4, 0, 0, 0], 0.5, 1.0, 0.5),
        ([0, 4, 0, 0], 0.25, 2.0, 1.25),
        ([2, 0, 2, 0], 1.0, 4.0, 4.0),
        ([2, 0, 2, 0], 0.5, 4.0, 1.0),
        ([0, 0, 4, 0], 0.95, 2.1, 2.1),  # interpolated, it would be 3.9
        ([0, 0, 0, 3], 0.5, 9.0, 9.0),  # above all bounds
    ],
)
def test_quantiles_are_linear_in_a_bucket(
    counts: list[float], share: float, highest: float, value: float
) -> None:
    """Quantiles are interpolated within a bucket, but not above the largest value."""
    assert quantile(BOUNDS, counts, share, highest) == pytest.approx(value)


@given(
    st.lists(st.lists(st.floats(0.001, 90_000), max_size=20), min_size=2, max_size=9),
    st.sampled_from([0.5, 0.95, 1.0]),
)
def test_a_recent_quantile_is_that_of_the_recent_values(
    intervals: list[list[float]], share: float
) -> None:
    """It is within a bucket of the real one, and never above the largest value of the window."""
    histogram = Histogram(0.001, 86_400, (5, 60))
    recent = Distribution(histogram, kept=4)
    for values in intervals[:-1]:
        for value in values:
            histogram.observe(value)
        recent.read()
        last = recent.quantile_of_interval(share)
        assert (last is None) == (not values)
        assert last is None or last <= max(values)
    for value in intervals[-1]:
        histogram.observe(value)
    window = sorted(chain(*intervals[-4:]))
    (found,) = recent.quantiles(share)
    if not window:
        assert found is None
        return
    assert found is not None
    real = window[ceil(share * len(window)) - 1]
    assert real / 1.2 - 0.001 <= found <= min(window[-1], 1.2 * real + 0.001)


@given(st.lists(st.floats(0.0, 1000.0)))
def test_a_scrape_has_the_coarse_buckets(values: list[float]) -> None:
    """Each exported bucket counts the values up to its bound, and the last one all of them."""
    histogram = Histogram(0.001, 600, (0.1, 5, 60))
    for value in values:
        histogram.observe(value)
    shown = dict(histogram.buckets())
    assert shown == {
        str(bound): sum(value <= bound for value in values) for bound in (0.1, 5.0, 60.0)
    } | {"+Inf": len(values)}
    assert histogram.above(5) == sum(value > 5 for value in values)
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(sum(values))
