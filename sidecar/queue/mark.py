"""A mark: which writes of a queue were unsettled at one moment (`POST /v1/flush`, docs/api.md)."""

from collections.abc import Callable, Mapping, Sequence, Sized

from sidecar.queue.disk_fifo import OnDiskFifo
from sidecar.spans.span import Key, Span
from sidecar.spool.spool import Gone


class Mark:
    """The number of marked writes in memory, by span, and of marked rows, the first on disk.

    A write that a newer one replaces stays marked: what it said is upstream once that one is. The
    arguments are what the queue has in memory and on disk. `is_set`: something is marked.
    """

    def __init__(
        self,
        waiting: Mapping[Key, Span],
        in_flight: Mapping[Key, Span],
        deferred: Mapping[Key, Sized],
        on_disk: OnDiskFifo,
    ) -> None:
        self._waiting, self._in_flight, self._deferred = waiting, in_flight, deferred
        self._on_disk = on_disk
        self.is_set = False
        # Whether a marked row was replaced by a write further back on disk, and whether that one is
        # still to be marked.
        self._replaced, self._may_extend = False, False
        self._writes: dict[Key, int] = {}
        self._in_memory = self._rows = 0
        self._done: Callable[[], None]

    def __len__(self) -> int:
        """How many are not settled yet."""
        return self._in_memory + self._rows

    def __contains__(self, key: Key) -> bool:
        """Whether a span has a marked write in memory."""
        return key in self._writes

    def set(self, done: Callable[[], None]) -> None:
        """Mark what is unsettled now, and no more; `done` is called once nothing of it is left."""
        self._done, self._replaced, self._may_extend = done, False, True
        self._mark()
        self.is_set = bool(self)

    def _mark(self) -> None:
        self._writes = dict.fromkeys([*self._waiting, *self._in_flight], 1)
        for key, deferred in self._deferred.items():
            self._writes[key] += len(deferred)
        self._in_memory, self._rows = sum(self._writes.values()), self._on_disk.count

    def settled(self, key: Key, *, replaced: bool) -> None:
        """A write of this span is settled; if it is `replaced`, a newer one of it is waiting."""
        writes = self._writes.get(key, 0)
        if not writes or (replaced and writes == 1):
            return
        self._in_memory -= 1
        if writes > 1:
            self._writes[key] = writes - 1
        else:
            del self._writes[key]
            self._check()

    def loaded(self, outcomes: Sequence[Span | Gone]) -> None:
        """What became of the first rows, which are in memory now, or settled."""
        outcomes = outcomes[: self._rows]
        if not outcomes:
            return
        self._rows -= len(outcomes)
        self._replaced |= Gone.SUPERSEDED in outcomes
        if self._replaced and self._may_extend and not self._rows:
            # What replaced a row was accepted by now, but on disk nothing is found by its span. So
            # all that is unsettled is marked, once: of an END, the row is never replaced.
            self._may_extend = False
            self._mark()
        else:
            for key in [each.key for each in outcomes if isinstance(each, Span)]:
                writes = 1 + len(self._deferred.get(key, ()))
                self._in_memory += writes - self._writes.get(key, 0)
                self._writes[key] = writes
        self._check()

    def _check(self) -> None:
        if not self:
            self.is_set = False
            self._done()
