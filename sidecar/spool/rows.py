"""The spool's rows, and the changes of a transaction: plain data.

A row is open (a START), complete, or the base of a complete row. Payloads that an END did not
change are stored in its base only.
"""

from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sidecar.spans.span import Span, to_row

OPEN, COMPLETE, BASE = 0, 1, 2


class SpoolInUse(Exception):
    """Another sidecar uses the directory."""


class FilesGone(OSError):
    """The files were removed or replaced. The connection still has what was in them."""


class Row(NamedTuple):
    """A write to store: the columns of `writes` in their order, then those of `bodies`.

    `lanes` has the bits of the lanes that have not settled it, `taken` those of the lanes that took
    it. Payloads with a bit in `shared` are null in `body`, and are those of the row `base`; 0 for
    none. `released` has open rows that the same transaction settles, each with bits of lanes.
    `whole` is the write itself if payloads are in `base`: the disk may hang before it has the row.
    """

    seq: int
    kind: int
    lanes: int
    base: int
    shared: int
    taken: int
    account: int
    size: int  # bytes on disk, see `row_bytes`, with those of the base
    born: float  # loop time at which it was accepted: it means nothing to another process
    body: bytes  # JSON, see `to_row`
    released: tuple[tuple[int, int], ...] = ()
    whole: Span | None = None

    def complete(self) -> "Row":
        """The row with all payloads in its body, as far as they are in memory."""
        if self.whole is None:
            return self
        return self._replace(base=0, shared=0, body=to_row(self.whole))


class Changes(NamedTuple):
    """The changes of one transaction."""

    added: list[Row]
    removed: list[int]
    retired: list[int]  # open rows whose END is no longer expected
    settled: list[tuple[int, int]]  # (seq, lane bit)
    accounts: tuple[tuple[int, str], ...] = ()  # (number, id), needed by added rows

    def condensed(self) -> "Changes":
        """The same, without rows both added and removed, and without changes to removed rows."""
        removed, added = set(self.removed), {row.seq for row in self.added}
        return Changes(
            [row for row in self.added if row.seq not in removed],
            [seq for seq in self.removed if seq not in added],
            [seq for seq in self.retired if seq not in removed],
            [pair for pair in self.settled if pair[0] not in removed],
            self.accounts,
        )

    def split(self, max_bytes: int, max_rows: int) -> list["Changes"]:
        """The same changes as transactions of at most `max_bytes` of bodies, or one larger row.

        What is not an added row follows in the last of them and in more: at most `max_rows` of each
        kind in one, because each may change pages of its own. The accounts are in the first.
        """
        parts: list[list[Row]] = [[]]
        size = 0
        for row in self.added:
            size += len(row.body)
            if parts[-1] and size > max_bytes:
                parts.append([])
                size = len(row.body)
            parts[-1].append(row)
        settled = sorted(self.settled)  # neighbours are on the same pages
        longest = max(len(self.removed), len(self.retired), len(settled), 1)
        slices = [slice(at, at + max_rows) for at in range(0, longest, max_rows)]
        rest = [Changes([], self.removed[s], self.retired[s], settled[s]) for s in slices]
        rest[0] = rest[0]._replace(added=parts[-1])
        split = [*(Changes(rows, [], [], []) for rows in parts[:-1]), *rest]
        split[0] = split[0]._replace(accounts=self.accounts)
        return split

    def followed_by(self, later: "Changes") -> "Changes":
        """These changes, then those of `later`."""
        return Changes(
            self.added + later.added,
            self.removed + later.removed,
            self.retired + later.retired,
            self.settled + later.settled,
        )


class StoredRow(NamedTuple):
    """A row read from the file, with the body of its base if it has one.

    The body is empty if only the rest of the row can be read.
    """

    seq: int
    shared: int
    taken: int
    account: int
    size: int  # bytes on disk
    born: float
    body: bytes
    base: bytes | None


class FoundRow(NamedTuple):
    """The number of a row, that of its account, and whose write it is."""

    seq: int
    account: int
    id: str
    trace_id: str


class PackedRows:
    """(seq, lanes, account) of many rows in 10 bytes each: a backlog may have a million."""

    def __init__(self, rows: Iterable[tuple[int, int, int]]) -> None:
        self._seqs, self._lanes, self._accounts = array("q"), array("B"), array("B")
        for seq, lanes, account in rows:
            self._seqs.append(seq)
            self._lanes.append(lanes)
            self._accounts.append(account)

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self._seqs, self._lanes, self._accounts, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedRows | list) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Backlog(NamedTuple):
    """The rows of a file when it was opened, oldest first, and the ids of their accounts."""

    open_rows: PackedRows | list[tuple[int, int, int]]
    complete_rows: PackedRows | list[tuple[int, int, int]]
    accounts: dict[int, str]
