"""How much of the spool each lane uses (D22)."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from sidecar.spool.rows import Row

# The share of the file that belongs to no lane.
SPARE_SHARE = 10


class LaneRoom:
    """Bytes of the rows that each lane has not settled; `lanes` has the bits of all lanes."""

    def __init__(self, lanes: int, capacity: int) -> None:
        self.spare = capacity // SPARE_SHARE
        self.limit = (capacity - self.spare) // max(1, lanes.bit_count())
        # By the bits of several lanes, so that what several take is counted once. A lane that
        # settles makes that of its own bit negative.
        self._charged: defaultdict[int, int] = defaultdict(int)

    def charge(self, lanes: int, size: int) -> None:
        """Charge the lanes with these bits for a row, or release what they were charged."""
        self._charged[lanes] += size

    def used(self, lane: int) -> int:
        """What the lane with this bit is charged for."""
        return sum(size for lanes, size in self._charged.items() if lanes & lane)

    def reset(self, owed: Iterable[tuple[int, int]]) -> None:
        """Charge the lanes for these rows only."""
        self._charged.clear()
        for lanes, size in owed:
            self.charge(lanes, size)


def unsettled(
    rows: Collection[Row], settled: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Lanes and bytes of `rows` once those in `settled` are settled."""
    done: dict[int, int] = {}
    for seq, lanes in settled:
        done[seq] = done.get(seq, 0) | lanes
    bases = {row.base for row in rows}  # they are in the bytes of other rows
    for row in rows:
        if row.seq not in bases:
            yield row.lanes & ~done.get(row.seq, 0), row.size
