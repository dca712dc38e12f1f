"""The spool: what was accepted is on disk before its 202, and leaves when every lane is done.

In: writes that come (`add`), that a newer one replaces (`replace`), that nobody waits for any more
(`retire`), that a lane is done with (`settled`). `commit` returns once everything before it is on
disk: one transaction for all requests that wait. Out: writes that left memory (`load`).

Disk trouble never takes the sidecar down: the spool then says `degraded`, new events are in memory
only, and every few seconds it tries the disk again. What it could not write meanwhile it remembers,
so that a restart does not send again what was settled. Credentials are never in here.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import takewhile

import msgspec
import structlog

from sidecar.spans.span import Span, fill_payloads, from_row, shared_payloads, to_row
from sidecar.spool import writer
from sidecar.spool.rows import COMPLETE, OPEN, Backlog, Found, Row
from sidecar.spool.sqlite_file import SpoolFile

log = structlog.get_logger()

# A row's own cost beside its body: keys, and the part of a page that stays empty.
ROW_BYTES = 256

# `Span.seq` of an open write whose row went because a newer write stands for it.
REPLACED = -1


class Spool:
    """Durable writes. `all_lanes` has the bit of every lane there is."""

    def __init__(self, file: SpoolFile, all_lanes: int) -> None:
        self._file = file
        self._all_lanes = all_lanes
        self._loop = asyncio.get_running_loop()
        self._replaced: dict[int, int] = {}  # open rows that so many lanes will still ask for
        self.on_durable: Callable[[], None] = lambda: None
        self.on_backlog: Callable[[Backlog], None] = lambda _: None
        self._writer = writer.SpoolWriter(
            file,
            lambda: self.on_durable(),  # noqa: PLW0108 (both are set later)
            lambda backlog: self.on_backlog(backlog),  # noqa: PLW0108
        )

    @property
    def degraded(self) -> bool:
        """Whether new writes are in memory only."""
        return self._writer.degraded

    @property
    def errors(self) -> int:
        """Failures of the disk."""
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
        """Of the room for writes, what they take; `size` stays when they are gone."""
        return self._file.used / self._file.room

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return self._file.size

    @property
    def moved_aside(self) -> int:
        """Files that could not be read and were moved out of the way."""
        return self._file.moved_aside

    @property
    def adding(self) -> int:
        """Bytes in memory that wait for the disk."""
        return self._writer.adding

    async def open(self) -> None:
        """Say to `on_backlog` what an earlier process left; `degraded` if the disk can't be used.

        Raises `SpoolInUse` when another sidecar has the directory.
        """
        await self._writer.open()

    @property
    def largest(self) -> int:
        """Bytes that one write may have; more would not fit into the log."""
        return self._file.largest

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes stay within `spool.max_bytes`."""
        # A page may stay a quarter empty behind a large body.
        more = self._writer.adding + size
        return self._writer.degraded or self.used + more + more // 4 <= self._file.room

    def add(self, span: Span, start: Span | None = None) -> None:
        """A write came: its number from now on is `span.seq`.

        `start`: the open write that it completes; payloads that are the same are not kept twice.
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
            self._hand_over(start)
        born = time.time() - (self._loop.time() - span.accepted_at)
        body = to_row(span, leave_out=shared)
        lanes = span.lanes & self._all_lanes
        self._writer.changes.added.append(Row(span.seq, kind, lanes, base, shared, born, body))
        self._writer.adding += len(body) + ROW_BYTES

    def _hand_over(self, start: Span) -> None:
        """`start` has no row of its own any more: lanes that ask for it have a newer write."""
        if start.lanes_on_disk:
            self._replaced[start.seq] = start.lanes_on_disk
        start.seq = REPLACED

    def replace(self, span: Span) -> None:
        """A newer event of the span came: nobody needs this row any more."""
        if span.seq > 0:
            self._writer.changes.removed.append(span.seq)
            self._writer.unwritten.pop(span.seq, None)
            self._hand_over(span)
            self._writer.soon()

    def retire(self, span: Span) -> None:
        """No END is expected any more: the row goes once every lane is done with it."""
        if span.seq > 0:
            self._writer.changes.retired.append(span.seq)
            self._writer.soon()

    def settled(self, span: Span, bit: int) -> None:
        """A lane is done with a write."""
        if span.seq > 0 and span.lanes & bit:
            self._writer.changes.settled.append((span.seq, bit))
            span.lanes &= ~bit
            self._writer.soon()

    def was_replaced(self, seq: int) -> bool:
        """Whether a row is gone because a newer write took its place; each lane asks once."""
        left = self._replaced.pop(seq, 0)
        if left > 1:
            self._replaced[seq] = left - 1
        return left > 0

    def is_durable(self, seq: int) -> bool:
        """Whether a write may be sent.

        Upstream before it is on disk, it could be forgotten by a kill while its START is not, and
        the START would be written after it.
        """
        return self._writer.degraded or seq <= self._writer.durable

    def is_written(self, seq: int) -> bool:
        """Whether a row is on disk, and not only promised to it."""
        return seq not in self._writer.unwritten

    async def commit(self) -> None:
        """Return once everything until now is on disk, or the spool is degraded."""
        await self._writer.commit()

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        await self._writer.run()

    async def load(self, seqs: Sequence[int], max_bytes: int) -> tuple[int, list[Span]]:
        """The first of `seqs`, at least one, of about `max_bytes`: how many, and those still there.

        Waits for the disk to come back when it has to.
        """
        await self.commit()
        while True:
            try:
                if (row := self._writer.unwritten.get(seqs[0])) is not None:
                    span = self._span(await self._unwritten_row(row))
                    return 1, [span] if span is not None else []
                on_disk = list(takewhile(lambda seq: seq not in self._writer.unwritten, seqs))
                looked, rows = await self._writer.on_thread(self._file.bodies, on_disk, max_bytes)
            except writer.TROUBLE as error:
                self._writer.trouble(error)
                await asyncio.sleep(writer.RETRY_S)
            else:
                spans = [self._span(row) for row in rows if row.seq not in self._replaced]
                return looked, [span for span in spans if span is not None]

    async def _unwritten_row(self, row: Row) -> Found:
        base = None
        if row.shared and row.base in self._writer.unwritten:
            base = self._writer.unwritten[row.base].body
        elif row.shared:
            _, found = await self._writer.on_thread(self._file.bodies, [row.base], 1)
            base = found[0].body if found else None
        return Found(row.seq, row.shared, row.born, row.body, base)

    def _span(self, row: Found) -> Span | None:
        """The write of a row; None when its bytes are not what was written."""
        try:
            span = from_row(row.body, self._loop.time() - max(0.0, time.time() - row.born))
            span.seq = row.seq
            if row.base is not None and row.shared:
                fill_payloads(span, from_row(row.base, 0.0), row.shared)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.error("spool_row_unreadable", seq=row.seq)  # noqa: TRY400 (its text is content)
            self._writer.changes.removed.append(row.seq)
            self._writer.soon()
            return None
        return span

    async def shrink(self) -> None:
        """Give free space back, when little is left in a file that was large."""
        await self._writer.shrink()

    async def close(self) -> None:
        """Write what waits and close the file; a disk that was away is tried once more."""
        await self._writer.close()
