"""A ring buffer of the latest decisions about each span, for `sidecar explain`.

Ids, counts and statuses only, never content. The newest decision replaces the oldest: the buffer
covers the last 4 seconds at 500 spans/s to two upstreams, and half an hour at one span per second.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

CAPACITY = 8_192


class Decision(NamedTuple):
    """`what` was decided at loop time `at` (seconds) by `sink` ("" for the intake)."""

    at: float
    id: str
    what: str
    sink: str
    detail: str | int
    account: int = 0  # its number


class Recent:
    """The ring buffer."""

    def __init__(self) -> None:
        self._ring: deque[tuple[float, str, str, str, str | int, int]] = deque(maxlen=CAPACITY)
        # The ring's own method, because it is called for every event and every write.
        self.note = self._ring.append

    def about(self, id_: str) -> Iterator[Decision]:
        """The decisions about spans with this id that are still in the buffer, oldest first."""
        return (Decision(*each) for each in list(self._ring) if each[1] == id_)
