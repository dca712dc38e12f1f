"""The spool: writes are on disk before their 202, until every lane has settled them.

In: new writes and what becomes of them, as `Spool` describes. Out: what became of rows that are no
longer in memory (`load`).

A failing disk never stops the sidecar. The spool is then `degraded`: new events are in memory only,
and the disk is tried again every few seconds. Changes that could not be written are kept, so that a
restart does not send settled writes again. The spool never contains credentials.
"""

import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from sidecar.spans.span import (
    DATA,
    Span,
    Stored,
    copy_payloads,
    from_row,
    shared_payloads,
    to_row,
)
from sidecar.spool.rows import COMPLETE, OPEN, Row, StoredRow
from sidecar.spool.spool import Gone
from sidecar.spool.sqlite_file import SpoolFile
from sidecar.spool.writer import SpoolWriter

log = structlog.get_logger()

# Estimated overhead of a row besides its body: keys, and unused space in its page.
ROW_BYTES = 256


class DiskSpool(SpoolWriter):
    """Durable writes. `all_lanes` has the bits of all lanes, `wall_clock` returns Unix time."""

    def __init__(
        self, file: SpoolFile, all_lanes: int, wall_clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(file)
        self._all_lanes = all_lanes
        self._wall_clock = wall_clock
        # Open writes that a lane has put off, by row.
        self._put_off: dict[int, Stored] = {}
        # Replaced rows that lanes have put off and will still load -> the bits of these lanes.
        self._superseded: dict[int, int] = {}

    def fits(self, size: int) -> bool:
        # Up to a quarter of the pages of a large body may be unused.
        more = self.adding + size
        return self.degraded or self.file.used + more + more // 4 <= self.file.capacity

    def add(self, span: Span, start: Span | None = None) -> None:
        if self.degraded:
            if start is not None:
                self.replace(start)
            return
        base = shared = dropped = 0
        if start is not None and (stored := start.stored) is not None:
            if stored.unreadable or not self.has_row(stored.row):
                self.replace(start)
            else:
                if span.is_supplement:  # its payloads may be on disk only
                    dropped = stored.dropped & DATA
                base, shared = stored.row, shared_payloads(span, start) | dropped
                self._mark_replaced(stored)
        row = self._last_row = self._last_row + 1
        lanes = span.lanes & self._all_lanes
        span.stored = Stored(row, lanes, dropped=dropped)
        kind = OPEN if span.end_time is None and not span.is_supplement else COMPLETE
        born = self._wall_clock() - (self._loop.time() - span.accepted_at)
        body = to_row(span, leave_out=shared)
        self._changes.added.append(Row(row, kind, lanes, base, shared, born, body))
        self.adding += len(body) + ROW_BYTES
        if span.is_supplement:
            self._schedule()  # no request waits for it

    def _mark_replaced(self, stored: Stored) -> None:
        """Lanes that have yet to load the row will skip it: they have a newer write."""
        stored.replaced = True
        if self._put_off.pop(stored.row, None) is not None:
            self._superseded[stored.row] = stored.put_off

    def replace(self, start: Span) -> None:
        if (stored := start.stored) is not None:
            self._changes.removed.append(stored.row)
            self._unwritten.pop(stored.row, None)
            self._mark_replaced(stored)
            self._schedule()

    def retire(self, start: Span) -> None:
        if start.stored is not None:
            self._changes.retired.append(start.stored.row)
            self._schedule()

    def settled(self, stored: Stored, lane: int) -> None:
        if stored.pending & lane and not stored.replaced:
            self._changes.settled.append((stored.row, lane))
            stored.pending &= ~lane
            self._schedule()

    def may_send(self, stored: Stored) -> bool:
        return stored.row <= self._durable or self.degraded

    def put_off(self, span: Span, stored: Stored, lane: int) -> None:
        if span.end_time is None:
            stored.put_off |= lane
            self._put_off[stored.row] = stored

    async def load(self, rows: Sequence[int], max_bytes: int, lane: int = 0) -> list[Span | Gone]:
        await self.commit()
        found = await self._read(rows, max_bytes)
        return [self._outcome(row, read, lane) for row, read in zip(rows, found, strict=False)]

    def _outcome(self, row: int, read: StoredRow | None, lane: int) -> Span | Gone:
        superseded = self._superseded.pop(row, 0)
        if superseded & ~lane:
            self._superseded[row] = superseded & ~lane
        if superseded & lane:
            return Gone.SUPERSEDED
        span = None if read is None else self._decoded(read)
        # An open write is still known to the open spans, which see here what becomes of it.
        stored = self._put_off.get(row) if lane else None
        if stored is not None:
            stored.put_off &= ~lane
            if not stored.put_off:
                del self._put_off[row]
            if span is None:
                stored.pending &= ~lane
                stored.unreadable = True
        if span is None:
            if self.has_row(row):
                log.error("spool_row_unreadable", seq=row)
                self._errors += 1
            # It is deleted once no lane will load it any more.
            self._changes.retired.append(row)
            self._changes.settled.append((row, lane))
            self._schedule()
            return Gone.UNREADABLE
        span.stored = stored or Stored(row)
        return span

    def _decoded(self, row: StoredRow) -> Span | None:
        """The span of a row; None if it is damaged."""
        try:
            span = from_row(row.body, self._loop.time() - max(0.0, self._wall_clock() - row.born))
            if row.shared:
                copy_payloads(span, from_row(row.base or b"", 0.0), row.shared)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None  # the text of the error has content
        return span
