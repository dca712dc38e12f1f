"""The time until a number gets somewhere, at the rate of its last readings."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.operate.trend import FALLING, GROWING, Trend


def trend(values: Iterable[float], every_s: float = 5.0) -> Trend:
    """A trend with one reading every `every_s`."""
    made = Trend()
    for number, value in enumerate(values):
        made.add(100.0 + number * every_s, value)
    return made


@pytest.mark.parametrize(
    ("values", "target", "seconds"),
    [
        ([], 10, None),
        (range(12), 100, None),  # not a minute yet
        (range(13), 100, 440.0),  # 88 to go, 0.2 a second
        (range(0, 130, 10), 120, None),  # it is there
        (range(0, 130, 10), 120.1, None),  # it is as good as there
        ([5] * 13, 10, None),
        ([0] * 12 + [100], 200, None),  # a jump is no trend
        ([0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0], 10, None),
        ([*range(13, 0, -1)], 100, None),  # away from it
        (range(13), 1_000_000, None),  # not within a day
        ([50, 40, 30, 20], 0, 10.0),
        ([50, 40, 30], 0, None),
        ([50, 40, 40, 20], 0, None),
        ([99, 99, 50, 40, 30, 20], 0, 10.0),  # only the last of it counts
    ],
)
def test_the_time_until(values: Iterable[float], target: float, seconds: float | None) -> None:
    """Growth counts if it was steady for a minute, a fall if it was for 15 s."""
    assert trend(values).seconds_until(target) == seconds


def test_readings_of_one_moment() -> None:
    """Readings without time between them have no rate."""
    assert trend(range(GROWING), every_s=0.0).seconds_until(100) is None


@given(
    st.lists(st.floats(0, 1e9), min_size=FALLING, max_size=2 * GROWING),
    st.floats(0, 1e9),
)
def test_it_is_never_in_the_past(values: list[float], target: float) -> None:
    """Whatever the readings are, the time is None or within the day ahead."""
    seconds = trend(values).seconds_until(target)
    assert seconds is None or 1 <= seconds <= 86_400
