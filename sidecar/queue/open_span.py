"""One START without an END, and its state; and when those that are held are due."""

from collections import deque
from collections.abc import Iterator, Mapping
from enum import Enum

import msgspec

from sidecar.spans.span import DATA, SUPPLEMENT, Key, Span


class State(Enum):
    """The state of a span whose END has not arrived."""

    HELD = "held for its END"
    KEPT = "written, waiting for its END"


HELD, KEPT = State  # looking up a member takes longer than a global


class OpenSpan(msgspec.Struct, gc=False, eq=False):
    """A START without an END.

    `due` is the loop time at which its `hold_s` or `ttl_s` is over, and `state` is None once it has
    left the open spans. The lanes with a bit in `promised_to` keep room for `promised` bytes; that
    which gets its `data` later, also for `following` bytes.
    """

    start: Span
    due: float
    state: State | None = HELD
    promised: int = 0
    following: int = 0
    promised_to: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether no lane has the open write of a kept START any more, in memory or on disk."""
        stored = self.start.stored
        return self.start.holders == 1 and (stored is None or not stored.pending)

    @property
    def has_data(self) -> bool:
        """Whether its START has `data`, in memory or on disk."""
        data, stored = self.start.data, self.start.stored
        if stored is None:
            return bool(data)
        # If its row was not readable, its open write is lost: nothing could be added to it.
        return not stored.unreadable and bool(data or stored.dropped & DATA)

    @property
    def is_on_disk(self) -> bool:
        """Whether payloads of its START are only on disk."""
        stored = self.start.stored
        return stored is not None and stored.dropped > 0


class Holds(deque[tuple[float, Key]]):
    """When the held STARTs among `spans` are due, in order: (loop time, key).

    It may name spans that are no longer held.
    """

    def __init__(self, spans: Mapping[Key, OpenSpan]) -> None:
        super().__init__()
        self._spans = spans

    def _is_held(self, key: Key) -> bool:
        known = self._spans.get(key)
        return known is not None and known.state is HELD

    def next_due(self) -> float | None:
        """Loop time at which `hold_s` of the next held START is over, or None."""
        while self and not self._is_held(self[0][1]):
            self.popleft()
        return self[0][0] if self else None

    def until(self, due: float) -> Iterator[Key]:
        """Remove and yield the keys that are due by this loop time."""
        while self and self[0][0] <= due:
            yield self.popleft()[1]


def following(start: Span) -> int:
    """Bytes of the write in which the `data` of a START follows its open write; 0 without `data`.

    A lane needs them besides those of the open write, which it may not have sent yet.
    """
    if not start.data:
        return 0
    return start.size - len(start.input) - len(start.output) + len(SUPPLEMENT)
