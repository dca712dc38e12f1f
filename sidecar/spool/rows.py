"""The spool's rows, and the changes of one transaction: plain data, no file.

A row is open (a START), complete, or the base of a complete row: payloads that an END did not
change are in its base only.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

OPEN, COMPLETE, BASE = 0, 1, 2


class Row(NamedTuple):
    """A write to be kept: number, kind, the lanes that owe it, when it was accepted, its JSON.

    `base` is the row that has the payloads which are null here and of which `shared` has the bit;
    0 for none.
    """

    seq: int
    kind: int
    lanes: int
    base: int
    shared: int
    born: float  # seconds since the epoch: loop time means nothing after a restart
    body: bytes


class Changes(NamedTuple):
    """What one transaction does."""

    added: list[Row]
    removed: list[int]
    retired: list[int]  # open rows whose END is not expected any more
    settled: list[tuple[int, int]]  # (seq, lane bit)

    def condensed(self) -> "Changes":
        """The same, without rows that came and went in between."""
        gone, fresh = set(self.removed), {row.seq for row in self.added}
        return Changes(
            [row for row in self.added if row.seq not in gone],
            [seq for seq in self.removed if seq not in fresh],
            [seq for seq in self.retired if seq not in gone],
            [pair for pair in self.settled if pair[0] not in gone],
        )

    def parts(self, max_bytes: int) -> list["Changes"]:
        """The same in transactions of about `max_bytes` or one row; the last has all but rows."""
        parts: list[list[Row]] = [[]]
        size = 0
        for row in self.added:
            size += len(row.body)
            if parts[-1] and size > max_bytes:
                parts.append([])
                size = len(row.body)
            parts[-1].append(row)
        return [*(Changes(rows, [], [], []) for rows in parts[:-1]), self._replace(added=parts[-1])]

    def before(self, later: "Changes") -> "Changes":
        """These changes, then `later` ones."""
        return Changes(
            self.added + later.added,
            self.removed + later.removed,
            self.retired + later.retired,
            self.settled + later.settled,
        )


class Found(NamedTuple):
    """A row read back: its JSON, and its base's where it has one."""

    seq: int
    shared: int
    born: float
    body: bytes
    base: bytes | None


class Heads:
    """Rows without bodies, as (seq, lanes): 9 bytes each, because there may be a million."""

    def __init__(self, rows: Iterable[tuple[int, int]]) -> None:
        self._seqs, self._lanes = array("q"), array("B")
        for seq, lanes in rows:
            self._seqs.append(seq)
            self._lanes.append(lanes)

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._seqs, self._lanes, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Heads | list) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Backlog(NamedTuple):
    """What a file holds at the start, oldest first."""

    open_rows: Heads | list[tuple[int, int]]
    complete_rows: Heads | list[tuple[int, int]]
