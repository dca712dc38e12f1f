"""What was decided lately about which span: a bounded ring, for `sidecar explain`.

Ids, counts and statuses only, never content. The oldest decision makes room for the newest: at 500
spans/s to two upstreams these are the last 4 seconds, at one span a second more than half an hour.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

REMEMBERED = 8_192


class Decision(NamedTuple):
    """At loop time `at` in seconds: what, at which sink ("" for the intake), and more about it."""

    at: float
    id: str
    what: str
    sink: str
    detail: str | int


class Recent:
    """The ring."""

    def __init__(self) -> None:
        self._ring: deque[tuple[float, str, str, str, str | int]] = deque(maxlen=REMEMBERED)
        # Called for every event and every write: no method of ours in between.
        self.note = self._ring.append

    def about(self, id_: str) -> Iterator[Decision]:
        """Everything remembered about spans with this id, oldest first."""
        return (Decision(*each) for each in list(self._ring) if each[1] == id_)
