"""Samples in fixed memory, rates and quantiles."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.operate.history import KEPT, SAMPLE_S, History, Window, quantile

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
    assert (window.growth(), window.rates()) == ([0], [0.0])
    for second, number in enumerate([100, 200, 210, 220], 1):
        window.add(second, [number])
    assert (window.growth(), window.rates()) == ([20], [10.0])
    assert window.growth([225]) == [25]


def test_a_quantile_of_nothing_is_none() -> None:
    """Without measurements the quantile is None, not 0 s."""
    assert quantile(BOUNDS, [0, 0, 0, 0], 0.5) is None


@pytest.mark.parametrize(
    ("counts", "share", "value"),
    [
        ([4, 0, 0, 0], 0.5, 0.5),
        ([0, 4, 0, 0], 0.25, 1.25),
        ([2, 0, 2, 0], 1.0, 4.0),
        ([2, 0, 2, 0], 0.5, 1.0),
        ([0, 0, 0, 3], 0.5, 4.0),  # above all bounds: at least the last
    ],
)
def test_quantiles_are_linear_in_a_bucket(counts: list[float], share: float, value: float) -> None:
    """Quantiles are computed as by Prometheus' histogram_quantile, so that the two agree."""
    assert quantile(BOUNDS, counts, share) == pytest.approx(value)


@given(st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any), st.floats(0.01, 1.0))
def test_a_quantile_lies_within_the_bounds(counts: list[float], share: float) -> None:
    """A quantile is a number between 0 and the last bound."""
    value = quantile(BOUNDS, counts, share)
    assert value is not None
    assert not math.isnan(value)
    assert 0.0 <= value <= BOUNDS[-1]
