"""The spool: writes are on disk before their 202, until every lane has settled them.

In: new writes and what becomes of them, as `Spool` describes. Out: what became of rows that are no
longer in memory (`load`).

A failing disk never stops the sidecar. The spool is then `degraded`: new events are in memory only,
and the disk is tried again every few seconds. Changes that could not be written are kept, so that a
restart does not send settled writes again. The spool never contains credentials.
"""

import sqlite3
import sys
from collections.abc import Sequence
from functools import partial
from itertools import takewhile

import msgspec
import structlog

from sidecar.process.blocking import Stalled
from sidecar.spans.heads import Wanted
from sidecar.spans.span import (
    DATA,
    Span,
    Stored,
    copy_payloads,
    from_row,
    shared_payloads,
    to_row,
)
from sidecar.spool.pages import MAX_ROW_RATIO, row_bytes
from sidecar.spool.rows import COMPLETE, OPEN, FoundRow, Row, StoredRow
from sidecar.spool.search import find
from sidecar.spool.spool import Gone, SpoolStatus
from sidecar.spool.sqlite_file import SpoolFile
from sidecar.spool.writer import DISK_ERRORS, SpoolWriter

log = structlog.get_logger()

# A row is given up after so many failures to read it, if the disk could be written in between.
MAX_READ_FAILURES = 3
# Memory that a row takes besides its body until it is written.
ROW_BYTES = 256


class DiskSpool(SpoolWriter):
    """Durable writes. `all_lanes` has the bits of all lanes."""

    def __init__(self, file: SpoolFile, all_lanes: int) -> None:
        super().__init__(file, all_lanes)
        self._all_lanes = all_lanes
        self.spare = self.room.spare
        # Open writes that a lane has put off, by row.
        self._put_off: dict[int, Stored] = {}
        # Rows that lanes have put off but no longer need -> the bits of these lanes.
        self._superseded: dict[int, int] = {}

    def status(self) -> SpoolStatus:
        file = self.file
        return SpoolStatus(
            self.degraded,
            file.size,
            file.max_bytes,
            file.used / file.capacity,
            file.rows,
            self._errors,
            file.moved_aside,
            self.thread.stalls,
        )

    def is_roomy(self, size: int) -> bool:
        # A lane's bytes are an upper bound, at most a fifth above what is used.
        taken = 1.25 * (self.file.used + self._adding_on_disk)
        return not self.degraded and taken + MAX_ROW_RATIO * size <= self.room.limit

    def fits(self, spans: Sequence[Span], size: int) -> bool:
        left = self.file.capacity - self._taken
        if self.degraded or MAX_ROW_RATIO * size <= left:
            return True
        return sum(row_bytes(span.size) for span in spans) <= left

    @property
    def _taken(self) -> int:
        return self.file.used + self._adding_on_disk

    @property
    def is_tight(self) -> bool:
        return self.file.capacity - self._taken < self.spare

    @property
    def lane_limit(self) -> int:
        return sys.maxsize if self.degraded else self.room.limit

    def lane_bytes(self, lane: int) -> int:
        return self.room.used(lane)

    def cost(self, span: Span, start: Span | None = None) -> int:
        if self.degraded:
            return 0
        cost = row_bytes(span.size)
        return cost if start is None or start.stored is None else cost + start.stored.bytes

    def add(self, span: Span, start: Span | None = None) -> None:
        if self.degraded:
            if start is not None:
                self.replace(start)
            return
        base = shared = dropped = base_bytes = 0
        if start is not None and (stored := start.stored) is not None:
            if stored.unreadable or not self.has_row(stored.row):
                self.replace(start)
            else:
                if span.is_supplement:  # its payloads may be on disk only
                    dropped = stored.dropped & DATA
                base, shared = stored.row, shared_payloads(span, start) | dropped
                base_bytes = stored.bytes
                self._mark_replaced(stored)
        seq = self._last_row = self._last_row + 1
        kind = OPEN if span.end_time is None and not span.is_supplement else COMPLETE
        lanes, taken = span.lanes & self._all_lanes, span.lanes
        body = to_row(span, leave_out=shared)
        size = row_bytes(len(body))
        total, born = size + base_bytes, span.accepted_at
        whole = span if shared and not dropped else None
        row = Row(
            seq, kind, lanes, base, shared, taken, span.account, total, born, body, whole=whole
        )
        span.stored = Stored(seq, lanes, dropped=dropped, bytes=total)
        self._changes.added.append(row)
        self.room.charge(lanes, total)
        self.adding += len(body) + ROW_BYTES
        self._adding_on_disk += size
        if span.is_supplement:
            self._schedule()  # no request waits for it

    def _mark_replaced(self, stored: Stored) -> None:
        """Lanes that have yet to load the row will skip it: they have a newer write."""
        if not stored.replaced:
            self._uncharge(stored, stored.pending)
        stored.replaced = True
        self._skip(stored, stored.put_off)

    def _uncharge(self, stored: Stored, lanes: int) -> None:
        if self.has_row(stored.row):
            self.room.charge(lanes, -stored.bytes)

    def _skip(self, stored: Stored, lanes: int) -> None:
        if lanes:
            self._superseded[stored.row] = self._superseded.get(stored.row, 0) | lanes
            self._not_put_off(stored, lanes)

    def _not_put_off(self, stored: Stored, lanes: int) -> None:
        stored.put_off &= ~lanes
        if not stored.put_off:
            del self._put_off[stored.row]

    def replace(self, start: Span) -> None:
        if (stored := start.stored) is not None:
            self._changes.removed.append(stored.row)
            self._unwritten.pop(stored.row, None)
            self._mark_replaced(stored)
            self._schedule()

    def release(self, stored: Stored, lanes: int) -> None:
        lanes &= 0 if stored.replaced else stored.pending
        if not lanes:
            return
        self._skip(stored, stored.put_off & lanes)
        self._uncharge(stored, lanes)
        stored.pending &= ~lanes
        added = self._changes.added
        if added:
            released = (*added[-1].released, (stored.row, lanes))
            added[-1] = added[-1]._replace(released=released)
        else:  # the END is in memory only
            self._changes.settled.append((stored.row, lanes))
            self._schedule()

    def retire(self, start: Span) -> None:
        if start.stored is not None:
            self._changes.retired.append(start.stored.row)
            self._schedule()

    def settled(self, stored: Stored, lane: int) -> None:
        if stored.pending & lane and not stored.replaced:
            self._changes.settled.append((stored.row, lane))
            self._uncharge(stored, lane)
            stored.pending &= ~lane
            self._schedule()

    def may_send(self, stored: Stored) -> bool:
        return stored.row <= self._durable or self.degraded

    def put_off(self, span: Span, stored: Stored, lane: int) -> None:
        if span.end_time is None:
            stored.put_off |= lane
            self._put_off[stored.row] = stored

    def left_over(self, rows: Sequence[int], lane: int) -> tuple[list[int], list[Span], int]:
        on_disk = [row for row in rows if self.is_written(row)]
        writes: list[Span] = []
        superseded = 0
        for row in rows:
            if (kept := self._unwritten.get(row)) is None:
                continue
            kept = kept.complete()
            base = self._unwritten.get(kept.base)
            if kept.shared and base is None:
                continue  # its base is on the disk that fails
            body = None if base is None else base.body
            outcome = self._outcome(row, StoredRow(kept.seq, *kept[4:10], body), lane)
            superseded += outcome is Gone.SUPERSEDED
            writes += [outcome] if isinstance(outcome, Span) else []
        return on_disk, writes, superseded

    async def find(self, wanted: Wanted) -> list[FoundRow]:
        in_memory = [*self._unwritten.values(), *self._changes.added]
        on_disk = partial(self._on_thread, self.file.find, wanted)
        try:
            return await find(wanted, in_memory, on_disk, self._last_row)
        except sqlite3.Error as error:
            raise OSError(str(error)) from None

    async def load(self, rows: Sequence[int], max_bytes: int, lane: int = 0) -> list[Span | Gone]:
        await self.commit()
        found = await self._read(rows, max_bytes)
        return [self._outcome(row, read, lane) for row, read in zip(rows, found, strict=False)]

    async def _read(self, rows: Sequence[int], max_bytes: int) -> list[StoredRow | None]:
        """Read the first of `rows`: at least one, up to about `max_bytes`, waiting for the disk.

        Gives None for a row that is not there, or that can't be read while the disk works.
        """
        failures = 0
        while True:
            try:
                if failures == MAX_READ_FAILURES:
                    return [await self._on_thread(self.file.without_body, rows[0])]
                if (row := self._unwritten.get(rows[0])) is not None:
                    return [await self._unwritten_row(row)]
                on_disk = list(takewhile(lambda row: row not in self._unwritten, rows))
                return await self._on_thread(self.file.read, on_disk, max_bytes)
            except DISK_ERRORS as error:
                rows = rows[:1]  # it may be the only bad one
                if not isinstance(error, Stalled):  # which says nothing about the row
                    if failures == MAX_READ_FAILURES:
                        return [None]
                    failures += not self.degraded
                self._degrade(error)
                await self._pause()

    async def _unwritten_row(self, row: Row) -> StoredRow:
        row, base = row.complete(), None
        if row.shared and row.base in self._unwritten:
            base = self._unwritten[row.base].body
        elif row.shared:
            (found,) = await self._on_thread(self.file.read, [row.base], 1)
            base = found.body if found is not None else None
        return StoredRow(row.seq, *row[4:10], base)

    def _outcome(self, row: int, read: StoredRow | None, lane: int) -> Span | Gone:
        superseded = self._superseded.pop(row, 0)
        if superseded & ~lane:
            self._superseded[row] = superseded & ~lane
        if superseded & lane:
            return Gone.SUPERSEDED
        # An open write is still known to the open spans, which see here what becomes of it.
        stored = self._put_off.get(row) if lane else None
        if stored is not None:
            self._not_put_off(stored, lane)
        else:
            stored = Stored(row, bytes=0 if read is None else read.size)
        span = None if read is None else self._decoded(read)
        if span is None:
            if self.has_row(row):
                log.error("spool_row_unreadable", seq=row)
                self._errors += 1
            # It is deleted once no lane will load it any more.
            self._changes.retired.append(row)
            self.settled(stored, lane)
            stored.unreadable = True
            self._schedule()
            return Gone.UNREADABLE
        span.stored = stored
        return span

    def _decoded(self, row: StoredRow) -> Span | None:
        """The span of a row; None if it is damaged."""
        born = row.born
        if row.seq <= self._earlier_rows:
            born = self._opened_at  # only time that this process has seen counts (D30)
        try:
            span = from_row(row.body, born, row.account)
            if row.shared:
                copy_payloads(span, from_row(row.base or b"", 0.0), row.shared)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None  # the text of the error has content
        span.lanes &= row.taken
        return span
