"""The books: where every event and every write went, as plain integers.

D15. Events: `received + replayed = joined + held +
written`. Writes, for each lane:
`written = forwarded + superseded + skipped + dead_lettered + lost + depth`. The sums are made of
counters kept at different places, so that a loss shows as an imbalance that is not 0.
"""

from collections import Counter
from dataclasses import dataclass, field

KINDS = ("open", "complete")
SKIP_REASONS = ("open_writes_off", "unaddressable_id")
DEAD_LETTER_REASONS = ("refused", "too_large", "failing", "expired")
LOSS_REASONS = ("shutdown", "spool")


@dataclass(slots=True)
class IntakeAccounting:
    """What came in, and how it left the stage of open spans."""

    received_start: int = 0
    received_end: int = 0
    joined: int = 0  # events that went out inside another event of their span
    held: int = 0  # STARTs that wait for their END and were not written yet
    written: int = 0  # writes that left for the lanes, each counted once
    replayed: int = 0  # writes that an earlier process left in the spool

    @property
    def received(self) -> int:
        """Events taken with a 202."""
        return self.received_start + self.received_end

    @property
    def imbalance(self) -> int:
        """Events unaccounted for; anything but 0 is a bug."""
        return self.received + self.replayed - self.joined - self.held - self.written


@dataclass(slots=True)
class LaneAccounting:
    """What became of the writes of one lane."""

    written: int = 0
    superseded: int = 0
    forwarded: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(KINDS, 0)))
    skipped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(SKIP_REASONS, 0)))
    dead_lettered: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(DEAD_LETTER_REASONS, 0))
    )
    lost: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(LOSS_REASONS, 0)))

    def imbalance(self, depth: int) -> int:
        """Writes unaccounted for while `depth` of them are in the lane; anything but 0 is a bug."""
        ended = self.forwarded.total() + self.superseded + self.skipped.total()
        return self.written - ended - self.dead_lettered.total() - self.lost.total() - depth
