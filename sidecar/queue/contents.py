"""Looks up which spans have a write in a queue, for operators. Read only."""

from collections.abc import Mapping, Sequence

from sidecar.queue.disk_fifo import OnDiskFifo
from sidecar.spans.span import Key


class Contents:
    """What is in a queue: `waiting`, `in_flight` and `deferred` by span, `on_disk` by row."""

    def __init__(
        self,
        waiting: Mapping[Key, object],
        in_flight: Mapping[Key, object],
        deferred: Mapping[Key, object],
        on_disk: OnDiskFifo,
    ) -> None:
        self._waiting, self._in_flight, self._deferred = waiting, in_flight, deferred
        self._on_disk = on_disk

    def about(self, index: int, text: str) -> set[Key]:
        """The spans in memory whose key has `text` at `index`. Scans every write in memory."""
        found: set[Key] = set()
        for writes in (self._in_flight, self._deferred, self._waiting):
            found.update([key for key in writes if key[index] == text])
        return found

    def where(self, key: Key) -> str | None:
        """What a write of a span is waiting for; None if there is none in memory."""
        if key in self._in_flight:
            return "the upstream's response"
        if key in self._deferred:
            return "an earlier write of its span"
        return "its turn" if key in self._waiting else None

    def rows(self) -> Sequence[int]:
        """The numbers of the rows that wait on disk only."""
        return self._on_disk.all()
