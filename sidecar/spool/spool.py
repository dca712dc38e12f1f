"""The spool: writes are on disk before their 202, until every lane has settled them.

In: new writes (`add`), and what becomes of them: replaced by a newer one (`replace`), END no longer
expected (`retire`), settled by a lane (`settled`). `commit` returns when everything added before it
is on disk. Out: writes that are no longer in memory (`load`).

A failing disk never stops the sidecar. The spool is then `degraded`: new events are in memory only,
and the disk is tried again every few seconds. Changes that could not be written are kept, so that a
restart does not send settled writes again. The spool never contains credentials.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import msgspec
import structlog

from sidecar.spans.span import Span, fill_payloads, from_row, shared_payloads, to_row
from sidecar.spool.rows import COMPLETE, OPEN, Backlog, Row, StoredRow

if TYPE_CHECKING:
    from sidecar.spool.sqlite_file import SpoolFile

log = structlog.get_logger()

# Estimated overhead of a row besides its body: keys, and unused space in its page.
ROW_BYTES = 256

# `Span.seq` of an open write whose row was deleted because a newer write replaces it.
REPLACED = -1


class Spool:
    """Durable writes. `all_lanes` has the bits of all lanes."""

    def __init__(self, file: "SpoolFile", all_lanes: int) -> None:
        from sidecar.spool import writer  # noqa: PLC0415 (it loads sqlite3: 1 MiB)

        self._file = file
        self._all_lanes = all_lanes
        self._loop = asyncio.get_running_loop()
        # Replaced row -> count of lanes that have its number queued and will still load it.
        self._replaced: dict[int, int] = {}
        self.on_durable: Callable[[], None] = lambda: None
        self.on_backlog: Callable[[Backlog], None] = lambda _: None
        self._writer = writer.SpoolWriter(
            file,
            lambda: self.on_durable(),  # noqa: PLW0108 (both are assigned later)
            lambda backlog: self.on_backlog(backlog),  # noqa: PLW0108
        )

    @property
    def degraded(self) -> bool:
        """Whether new writes are in memory only."""
        return self._writer.degraded

    @property
    def errors(self) -> int:
        """Count of disk failures."""
        return self._writer.errors

    @property
    def limit(self) -> int:
        """`spool.max_bytes`."""
        return self._file.max_bytes

    @property
    def rows(self) -> int:
        """Writes on disk."""
        return self._file.rows

    @property
    def used(self) -> int:
        """Bytes of the pages that hold writes."""
        return self._file.used

    @property
    def used_ratio(self) -> float:
        """`used` as a share of the capacity. Unlike `size` it falls when writes are settled."""
        return self._file.used / self._file.capacity

    @property
    def size(self) -> int:
        """Bytes of the files on disk."""
        return self._file.size

    @property
    def moved_aside(self) -> int:
        """Count of unreadable files that were renamed."""
        return self._file.moved_aside

    @property
    def adding(self) -> int:
        """Bytes in memory that are waiting to be written."""
        return self._writer.adding

    async def open(self) -> None:
        """Pass the rows of an earlier process to `on_backlog`, or degrade if the disk fails.

        Raises `SpoolInUse` if another sidecar uses the directory.
        """
        await self._writer.open()

    @property
    def max_row_bytes(self) -> int:
        """Maximum size of a write; a larger one would not fit in the log."""
        return self._file.max_row_bytes

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes stay within `spool.max_bytes`."""
        # Up to a quarter of the pages of a large body may be unused.
        more = self._writer.adding + size
        return self._writer.degraded or self.used + more + more // 4 <= self._file.capacity

    def add(self, span: Span, start: Span | None = None) -> None:
        """Add a write and set its row number, `span.seq`; not while degraded.

        `start` is the open write that it completes: payloads equal to its own are not stored twice.
        """
        if self._writer.degraded:
            if start is not None:
                self.replace(start)
            return
        span.seq = self._writer.last_seq = self._writer.last_seq + 1
        kind = OPEN if span.end_time is None else COMPLETE
        base = start.seq if start is not None and start.seq > 0 else 0
        shared = 0
        if start is not None and base:
            shared = shared_payloads(span, start)
            self._mark_replaced(start)
        born = time.time() - (self._loop.time() - span.accepted_at)
        body = to_row(span, leave_out=shared)
        lanes = span.lanes & self._all_lanes
        self._writer.changes.added.append(Row(span.seq, kind, lanes, base, shared, born, body))
        self._writer.adding += len(body) + ROW_BYTES

    def _mark_replaced(self, start: Span) -> None:
        """Lanes that have yet to load the row of `start` will skip it: they have a newer write."""
        if start.lanes_on_disk:
            self._replaced[start.seq] = start.lanes_on_disk
        start.seq = REPLACED

    def replace(self, span: Span) -> None:
        """Delete the row of an open write, because a newer event of the span replaces it."""
        if span.seq > 0:
            self._writer.changes.removed.append(span.seq)
            self._writer.unwritten.pop(span.seq, None)
            self._mark_replaced(span)
            self._writer.schedule()

    def retire(self, span: Span) -> None:
        """No longer expect an END: the row is deleted when every lane has settled it."""
        if span.seq > 0:
            self._writer.changes.retired.append(span.seq)
            self._writer.schedule()

    def settled(self, span: Span, bit: int) -> None:
        """Record that the lane with this `bit` has settled the write."""
        if span.seq > 0 and span.lanes & bit:
            self._writer.changes.settled.append((span.seq, bit))
            span.lanes &= ~bit
            self._writer.schedule()

    def was_replaced(self, seq: int) -> bool:
        """Whether a newer write replaced this row. Each lane must call this only once."""
        left = self._replaced.pop(seq, 0)
        if left > 1:
            self._replaced[seq] = left - 1
        return left > 0

    def is_durable(self, seq: int) -> bool:
        """Whether a write may be sent.

        If an END were sent before it is on disk, a kill could lose the END but keep its START,
        which the next process would then write after it.
        """
        return self._writer.degraded or seq <= self._writer.durable

    def is_written(self, seq: int) -> bool:
        """Whether a row is on disk, rather than kept in memory after a failed write."""
        return seq not in self._writer.unwritten

    async def commit(self) -> None:
        """Return when everything added so far is on disk, or the spool is degraded."""
        await self._writer.commit()

    async def run(self) -> None:
        """Write changes to disk until cancelled."""
        await self._writer.run()

    async def load(self, seqs: Sequence[int], max_bytes: int) -> tuple[int, list[Span]]:
        """Load the first of `seqs`: at least one, up to about `max_bytes`.

        Returns how many of `seqs` were visited, and the writes among them that still exist. If
        the disk fails, waits until it works again.
        """
        await self.commit()
        while True:
            try:
                if (row := self._writer.unwritten.get(seqs[0])) is not None:
                    span = self._span(await self._unwritten_row(row))
                    return 1, [span] if span is not None else []
                on_disk = list(takewhile(lambda seq: seq not in self._writer.unwritten, seqs))
                visited, rows = await self._writer.on_thread(self._file.bodies, on_disk, max_bytes)
            except self._writer.disk_errors as error:
                await self._writer.retry_later(error)
            else:
                spans = [self._span(row) for row in rows if row.seq not in self._replaced]
                return visited, [span for span in spans if span is not None]

    async def _unwritten_row(self, row: Row) -> StoredRow:
        base = None
        if row.shared and row.base in self._writer.unwritten:
            base = self._writer.unwritten[row.base].body
        elif row.shared:
            _, found = await self._writer.on_thread(self._file.bodies, [row.base], 1)
            base = found[0].body if found else None
        return StoredRow(row.seq, row.shared, row.born, row.body, base)

    def _span(self, row: StoredRow) -> Span | None:
        """Decode a row; None if it is damaged."""
        try:
            span = from_row(row.body, self._loop.time() - max(0.0, time.time() - row.born))
            span.seq = row.seq
            if row.base is not None and row.shared:
                fill_payloads(span, from_row(row.base, 0.0), row.shared)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.error("spool_row_unreadable", seq=row.seq)  # noqa: TRY400 (its text has content)
            self._writer.changes.removed.append(row.seq)
            self._writer.schedule()
            return None
        return span

    async def shrink(self) -> None:
        """Return free pages to the file system if the file is large and little of it is used."""
        await self._writer.shrink()

    async def close(self) -> None:
        """Write pending changes and close the file. If degraded, try the disk once more."""
        await self._writer.close()
