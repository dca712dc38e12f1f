"""Accounts for every event and every write, as plain integers (D15).

Events: `received + replayed = joined + held + written`. Writes, per lane:
`offered = written + not_taken`, and
`written = forwarded + superseded + skipped + dead_lettered + lost + depth`. The counters on the two
sides are kept in different places, so that a loss shows as a nonzero imbalance.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

KINDS = ("open", "complete")
SKIP_REASONS = ("open_writes_off", "unaddressable_id", "route_gone", "hidden")
DEAD_LETTER_REASONS = ("refused", "too_large", "failing", "expired", "id_taken", "shutdown")
# `partial_success`: the upstream accepted a batch, but says that it did not keep so many of it.
LOSS_REASONS = ("shutdown", "spool", "partial_success")
# Those that only some sinks can have: they say which (`Sink.reasons`).
SPECIFIC_REASONS = frozenset({"open_writes_off", "unaddressable_id", "hidden", "id_taken"})
# Why a lane does not take a write: it is full. The second: the upstream keeps showing the span as
# running, because the lane has taken its START.
NOT_TAKEN_REASONS = ("no_room", "end_of_open")


def zeros(names: Sequence[str]) -> Counter[str]:
    """A counter that has every name from the start, so that its metric does too."""
    return Counter(dict.fromkeys(names, 0))


@dataclass(slots=True)
class IntakeAccounting:
    """Events that were accepted, and how they left the open spans."""

    received_start: int = 0
    received_end: int = 0
    joined: int = 0  # events merged into, or made redundant by, another event of their span
    held: int = 0  # STARTs that wait for their END, not written yet
    written: int = 0  # writes passed to the lanes, counted once for all lanes
    replayed: int = 0  # writes that an earlier process left in the spool

    @property
    def received(self) -> int:
        """Events accepted, by any route."""
        return self.received_start + self.received_end

    @property
    def imbalance(self) -> int:
        """Events unaccounted for; a nonzero value is a bug."""
        return self.received + self.replayed - self.joined - self.held - self.written


@dataclass(slots=True)
class LaneAccounting:
    """What became of the writes of one lane."""

    offered: int = 0
    written: int = 0
    superseded: int = 0
    not_taken: Counter[str] = field(default_factory=lambda: zeros(NOT_TAKEN_REASONS))
    forwarded: Counter[str] = field(default_factory=lambda: zeros(KINDS))
    skipped: Counter[str] = field(default_factory=lambda: zeros(SKIP_REASONS))
    dead_lettered: Counter[str] = field(default_factory=lambda: zeros(DEAD_LETTER_REASONS))
    lost: Counter[str] = field(default_factory=lambda: zeros(LOSS_REASONS))

    @property
    def offer_imbalance(self) -> int:
        """Writes that were neither taken nor refused; a nonzero value is a bug."""
        return self.offered - self.written - self.not_taken.total()

    def imbalance(self, depth: int) -> int:
        """Writes unaccounted for if `depth` are in the lane; a nonzero value is a bug."""
        settled = self.forwarded.total() + self.superseded + self.skipped.total()
        return self.written - settled - self.dead_lettered.total() - self.lost.total() - depth

    def totals(self, depth: int) -> dict[str, int]:
        """All counts if `depth` writes are in the lane (D15), by their names in `/status`."""
        return {
            "offered": self.offered,
            "not_taken": self.not_taken.total(),
            "written": self.written,
            "forwarded": self.forwarded.total(),
            "superseded": self.superseded,
            "skipped": self.skipped.total(),
            "dead_lettered": self.dead_lettered.total(),
            "lost": self.lost.total(),
            "depth": depth,
            "imbalance": self.offer_imbalance or self.imbalance(depth),
        }
