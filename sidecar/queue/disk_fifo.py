"""The part of a lane's queue that is on disk only: row numbers, first in, first out.

8 bytes a write, so that a backlog of a million costs little memory; no number is ever looked for.
"""

from array import array
from collections.abc import Iterable


class OnDiskFifo:
    """A queue of row numbers."""

    COMPACT = 65_536

    def __init__(self) -> None:
        self._seqs = array("q")
        self._head = 0

    def __len__(self) -> int:
        """How many numbers wait."""
        return len(self._seqs) - self._head

    def extend(self, seqs: Iterable[int]) -> None:
        """Add numbers behind all others."""
        self._seqs.extend(seqs)

    def first(self, most: int) -> list[int]:
        """The first numbers, at most so many; they stay."""
        return self._seqs[self._head : self._head + most].tolist()

    def drop(self, count: int) -> None:
        """Let the first `count` go."""
        self._head += count
        if self._head >= self.COMPACT or self._head == len(self._seqs):
            del self._seqs[: self._head]
            self._head = 0
