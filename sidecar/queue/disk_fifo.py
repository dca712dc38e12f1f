"""FIFO of row numbers: the part of a lane's queue that is only on disk.

It takes 8 bytes per write, so a backlog of a million costs little memory. There is no lookup by
number.
"""

from array import array
from collections.abc import Iterable, Sequence


class OnDiskFifo:
    """A queue of row numbers."""

    COMPACT = 65_536  # removed numbers at the front before the array is compacted

    def __init__(self) -> None:
        self._seqs = array("q")
        self._head = 0
        self.count = 0  # stored here, because it is looked at for every write

    def extend(self, seqs: Iterable[int]) -> None:
        """Append row numbers."""
        self._seqs.extend(seqs)
        self.count = len(self._seqs) - self._head

    def first(self, max_count: int) -> list[int]:
        """Up to `max_count` row numbers from the front, without removing them."""
        return self._seqs[self._head : self._head + max_count].tolist()

    def all(self) -> Sequence[int]:
        """A copy of all row numbers."""
        return self._seqs[self._head :]

    def drop(self, count: int) -> None:
        """Remove the first `count` row numbers."""
        self._head += count
        self.count = len(self._seqs) - self._head
        if self._head >= self.COMPACT or self._head == len(self._seqs):
            del self._seqs[: self._head]
            self._head = 0
