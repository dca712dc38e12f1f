"""Where a number that grows or falls steadily is going: the time until it gets there. No clock."""

from collections import deque
from itertools import pairwise

# Readings are 5 s apart: growth is judged over a minute, and a fall, which is soon over, over 15 s.
GROWING, FALLING = 13, 4
# A third of the readings may change at this share of the whole rate at least, or it is not steady.
STEADY = 0.5
# Less is said to be now.
MIN_S = 1.0
# Further ahead, a rate of the last minute says nothing.
MAX_S = 86_400.0


class Trend:
    """The last readings of one number."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=GROWING)

    def add(self, now: float, value: float) -> None:
        """Add a reading at loop time `now`."""
        self._readings.append((now, value))

    def seconds_until(self, target: float) -> float | None:
        """Seconds until the number is `target`, at this rate.

        None if it does not move there steadily, or is as good as there, or takes longer than a day.
        """
        readings = list(self._readings)
        if not readings or readings[-1][1] == target:
            return None
        count = GROWING if readings[-1][1] < target else FALLING
        if len(readings) < count:
            return None
        third = (count - 1) // 3
        points = readings[-count::third]
        rate = _rate(points[0], points[-1])
        left_s = (target - points[-1][1]) / rate if rate else -1.0
        steady = all(
            _rate(early, late) / rate >= STEADY for early, late in pairwise(points) if rate
        )
        return round(left_s, 1) if steady and MIN_S <= left_s <= MAX_S else None


def _rate(early: tuple[float, float], late: tuple[float, float]) -> float:
    seconds = late[0] - early[0]
    return (late[1] - early[1]) / seconds if seconds > 0 else 0.0
