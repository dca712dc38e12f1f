"""One START without an END, and its state."""

from enum import Enum

import msgspec

from sidecar.spans.span import DATA, Span


class State(Enum):
    """The state of a span whose END has not arrived."""

    HELD = "held for its END"
    KEPT = "written, waiting for its END"


HELD, KEPT = State  # looking up a member takes longer than a global


class OpenSpan(msgspec.Struct, gc=False, eq=False):
    """A START without an END."""

    start: Span
    due: float  # loop time at which its `hold_s` or `ttl_s` is over
    state: State | None = HELD  # None once it has left the open spans

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
