"""The spool: what was accepted is on disk before its 202, and leaves when every lane is done.

In: writes that come (`add`), that a newer one replaces (`replace`), that nobody waits for any more
(`retire`), that a lane is done with (`settled`). `commit` returns once everything before it is on
disk: one transaction for all requests that wait. Out: writes that left memory (`load`).

Disk trouble never takes the sidecar down: the spool then says `degraded`, new events are in memory
only, and every few seconds it tries the disk again. What it could not write meanwhile it remembers,
so that a restart does not send again what was settled. Credentials are never in here.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import TypeVar

import msgspec
import structlog

from sidecar.spans.span import Span, fill_payloads, from_row, shared_payloads, to_row
from sidecar.spool.sqlite_file import (
    COMPLETE,
    OPEN,
    Backlog,
    Changes,
    Found,
    Row,
    SpoolFile,
    SpoolInUse,
)

log = structlog.get_logger()

# How long a request may wait for others to share its transaction.
GROUP_S = 0.002
# Settled writes may be written this late; after a kill they would be sent once more.
SETTLE_S = 0.25
RETRY_S = 5.0
# A file is written anew, smaller, when so little of it is used and so much would be gained: in
# between, free pages are used again.
SMALL_BYTES = 8 * 2**20
SHRINK_BYTES = 16 * 2**20
# A row's own cost beside its body: keys, and the part of a page that stays empty.
ROW_BYTES = 256

# `Span.seq` of an open write whose row went because a newer write stands for it.
REPLACED = -1

_T = TypeVar("_T")
_TROUBLE = (sqlite3.Error, OSError)


class Spool:
    """Durable writes. `all_lanes` has the bit of every lane there is."""

    def __init__(self, file: SpoolFile, all_lanes: int) -> None:
        self._file = file
        self._all_lanes = all_lanes
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._changes = Changes([], [], [], [])
        self._adding = 0  # bytes of rows that are not on disk yet
        # Rows that the disk did not take: kept, because they may have left memory elsewhere.
        self._unwritten: dict[int, Row] = {}
        self._replaced: dict[int, int] = {}  # open rows that so many lanes will still ask for
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._next_seq = 1
        self._durable = 0
        self.on_durable: Callable[[], None] = lambda: None
        self._opened = False
        self.on_backlog: Callable[[Backlog], None] = lambda _: None
        self.degraded = False
        self.errors = 0

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
        return self._adding

    async def open(self) -> None:
        """Say to `on_backlog` what an earlier process left; `degraded` if the disk can't be used.

        Raises `SpoolInUse` when another sidecar has the directory.
        """
        try:
            backlog = await self._on_thread(self._file.open)
        except _TROUBLE as error:
            self._trouble(error)
            return
        self._opened = True
        self._durable = self._file.last_seq
        self._next_seq = self._durable + 1
        self.on_backlog(backlog)

    @property
    def largest(self) -> int:
        """Bytes that one write may have; more would not fit into the log."""
        return self._file.largest

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes stay within `spool.max_bytes`."""
        # A page may stay a quarter empty behind a large body.
        more = self._adding + size
        return self.degraded or self.used + more + more // 4 <= self._file.room

    def add(self, span: Span, start: Span | None = None) -> None:
        """A write came: its number from now on is `span.seq`.

        `start`: the open write that it completes; payloads that are the same are not kept twice.
        """
        if self.degraded:
            if start is not None:
                self.replace(start)
            return
        span.seq, self._next_seq = self._next_seq, self._next_seq + 1
        kind = OPEN if span.end_time is None else COMPLETE
        base = start.seq if start is not None and start.seq > 0 else 0
        shared = 0
        if start is not None and base:
            shared = shared_payloads(span, start)
            self._hand_over(start)
        born = time.time() - (self._loop.time() - span.accepted_at)
        body = to_row(span, leave_out=shared)
        lanes = span.lanes & self._all_lanes
        self._changes.added.append(Row(span.seq, kind, lanes, base, shared, born, body))
        self._adding += len(body) + ROW_BYTES

    def _hand_over(self, start: Span) -> None:
        """`start` has no row of its own any more: lanes that ask for it have a newer write."""
        if start.lanes_on_disk:
            self._replaced[start.seq] = start.lanes_on_disk
        start.seq = REPLACED

    def replace(self, span: Span) -> None:
        """A newer event of the span came: nobody needs this row any more."""
        if span.seq > 0:
            self._changes.removed.append(span.seq)
            self._unwritten.pop(span.seq, None)
            self._hand_over(span)
            self._soon()

    def retire(self, span: Span) -> None:
        """No END is expected any more: the row goes once every lane is done with it."""
        if span.seq > 0:
            self._changes.retired.append(span.seq)
            self._soon()

    def settled(self, span: Span, bit: int) -> None:
        """A lane is done with a write."""
        if span.seq > 0 and span.lanes & bit:
            self._changes.settled.append((span.seq, bit))
            span.lanes &= ~bit
            self._soon()

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
        return self.degraded or seq <= self._durable

    def has(self, seq: int) -> bool:
        """Whether a row is on disk, and not only promised to it."""
        return seq not in self._unwritten

    async def commit(self) -> None:
        """Return once everything until now is on disk, or the spool is degraded."""
        if self._changes.added and not self.degraded:
            done = self._loop.create_future()
            self._waiters.append(done)
            self._wanted.set()
            await done

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wanted.set()

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._wanted.wait()
            if self.degraded:
                await asyncio.sleep(RETRY_S)
                await self._come_back()
            else:
                # Requests that come a moment later share the transaction: most of what one costs
                # are the pages that every transaction touches.
                await asyncio.sleep(GROUP_S)
                await self._write()

    async def _write(self) -> None:
        self._wanted.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changes, self._changes = self._changes, Changes([], [], [], [])
        waiters, self._waiters = self._waiters, []
        writing, newest = self._adding, self._next_seq - 1
        parts = changes.condensed().parts(self._file.transaction_bytes)
        try:
            while parts:
                await self._on_thread(self._file.apply, parts[0])
                del parts[0]
            self._durable = newest
        except _TROUBLE as error:
            gone = set(self._changes.removed)
            for part in parts:
                self._unwritten |= {row.seq: row for row in part.added if row.seq not in gone}
            left = parts[-1]._replace(added=[])
            self._changes = left.before(self._changes)
            self._trouble(error)
        finally:
            self._adding = max(0, self._adding - writing)
            _release(waiters)
            self.on_durable()

    def _trouble(self, error: Exception) -> None:
        self.errors += 1
        if not self.degraded:
            self.degraded = True
            log.error("spool_degraded", error=str(error), durability="memory")
        # What was promised to the disk since the failure waits there like what failed.
        self._unwritten |= {row.seq: row for row in self._changes.added}
        self._changes.added.clear()
        self._adding = 0
        waiters, self._waiters = self._waiters, []
        _release(waiters)
        self.on_durable()
        self._wanted.set()

    async def _come_back(self) -> None:
        try:
            await self._on_thread(self._file.close)
            if not self._opened:
                await self.open()
                if not self._opened:
                    return
            else:
                await self._on_thread(self._file.open)
            changes, self._changes = self._changes, Changes([], [], [], [])
            again = changes._replace(added=list(self._unwritten.values())).condensed()
            try:
                for part in again.parts(self._file.transaction_bytes):
                    await self._on_thread(self._file.apply, part)
                    for row in part.added:
                        self._unwritten.pop(row.seq, None)
            except _TROUBLE as error:
                self._changes = changes.before(self._changes)
                if _is_unreadable(error):
                    await self._on_thread(self._file.start_afresh, str(error))
                raise
        except (*_TROUBLE, SpoolInUse) as error:
            self._trouble(error)
            return
        self._durable = self._next_seq - 1
        self.degraded = False
        self._wanted.clear()
        log.info("spool_recovered", durability="disk")

    async def load(self, seqs: Sequence[int], max_bytes: int) -> tuple[int, list[Span]]:
        """The first of `seqs`, at least one, of about `max_bytes`: how many, and those still there.

        Waits for the disk to come back when it has to.
        """
        await self.commit()
        while True:
            try:
                if (row := self._unwritten.get(seqs[0])) is not None:
                    span = self._span(await self._unwritten_row(row))
                    return 1, [span] if span is not None else []
                on_disk = list(takewhile(lambda seq: seq not in self._unwritten, seqs))
                looked, rows = await self._on_thread(self._file.bodies, on_disk, max_bytes)
            except _TROUBLE as error:
                self._trouble(error)
                await asyncio.sleep(RETRY_S)
            else:
                spans = [self._span(row) for row in rows if row.seq not in self._replaced]
                return looked, [span for span in spans if span is not None]

    async def _unwritten_row(self, row: Row) -> Found:
        base = None
        if row.shared and row.base in self._unwritten:
            base = self._unwritten[row.base].body
        elif row.shared:
            _, found = await self._on_thread(self._file.bodies, [row.base], 1)
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
            self._changes.removed.append(row.seq)
            self._soon()
            return None
        return span

    async def shrink(self) -> None:
        """Give free space back, when little is left in a file that was large."""
        if self.degraded or self.used > SMALL_BYTES or self.size - self.used < SHRINK_BYTES:
            return
        try:
            await self._on_thread(self._file.shrink)
        except _TROUBLE as error:
            self._trouble(error)

    async def close(self) -> None:
        """Write what waits and close the file; a disk that was away is tried once more."""
        if self.degraded:
            await self._come_back()
        if not self.degraded:
            await self._write()
        if not self.degraded:
            await self.shrink()
        try:
            await self._on_thread(self._file.close)
        except _TROUBLE as error:
            self._trouble(error)
        self._file.unlock()
        self._thread.shutdown(wait=False)

    def _on_thread(self, call: Callable[..., _T], *arguments: object) -> "asyncio.Future[_T]":
        return self._loop.run_in_executor(self._thread, call, *arguments)


def _is_unreadable(error: Exception) -> bool:
    """Whether it is the file's content, and not the disk, that is in the way."""
    disk = isinstance(error, sqlite3.OperationalError)
    return isinstance(error, sqlite3.DatabaseError) and not disk


def _release(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
