"""The half of the spool that moves changes to disk: group commit, and retries while it fails.

In: changes, appended to `changes`. Out: one transaction for all requests that wait in `commit`.
Disk errors do not propagate. After one, the writer is `degraded`, keeps everything that is not on
disk, and tries again every `RETRY_S`. A disk that does not answer in time has failed as well, but
its transaction may still be committed: a row that is there already is left alone, and what was
settled or removed meanwhile follows in a later transaction.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from typing import TypeVar

import structlog

from sidecar.process.alarm import Alarm
from sidecar.process.blocking import BlockingThread
from sidecar.spool.room import LaneRoom, unsettled
from sidecar.spool.rows import Backlog, Changes, FilesGone, Row, SpoolInUse
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import SpoolFile
from sidecar.spool.statements import content_at_fault

log = structlog.get_logger()

# A request waits this long for others to share its transaction.
GROUP_S = 0.002
# Changes that no request waits for are written within this time. If a kill loses them, the writes
# that they settled are sent again.
SETTLE_S = 0.25
RETRY_S = 5.0
# How long the disk may take: for a call that requests wait for, and for opening a large file, which
# only the start waits for.
LIMIT_S, OPEN_LIMIT_S = 3.0, 10.0
# The file is shrunk when at most `SMALL_BYTES` are used and at least `SHRINK_BYTES` are free.
# Otherwise its free pages are reused.
SMALL_BYTES = 8 * 2**20
SHRINK_BYTES = 16 * 2**20

DISK_ERRORS = (sqlite3.Error, OSError)
_T = TypeVar("_T")


class SpoolWriter(Spool):
    """Owns the thread of `file`. `run` is the only task that writes.

    `room` has what is on disk for each of `all_lanes`.
    """

    is_configured = True

    def __init__(self, file: SpoolFile, all_lanes: int) -> None:
        self.file = file
        self.room = LaneRoom(all_lanes, file.capacity)
        self.max_row_bytes = file.max_row_bytes
        self.room_limit = self.room.limit
        self._on_backlog: Callable[[Backlog], None]  # both are arguments of `open`
        self._on_durable: Callable[[], None]
        self._loop = asyncio.get_running_loop()
        self.thread = BlockingThread("spool")
        self.threads = (self.thread,)
        self._opening: asyncio.Future[Backlog] | None = None
        self._changes = Changes([], [], [], [])
        self.adding = self._adding_on_disk = 0
        # Rows that could not be written. Kept, because there may be no other copy in memory.
        self._unwritten: dict[int, Row] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._alarm = Alarm(self._wake.set)
        self._last_row = 0  # highest row number assigned
        self._earlier_rows = 0  # the highest one of an earlier process
        # Rows up to `_gone` were lost with their files, except for the `_survivors`.
        self._lost_files = self._gone = 0
        self._survivors = frozenset[int]()
        self._durable = 0  # every row up to this number is on disk
        self._opened = False
        self._opened_at = 0.0  # loop time
        self.degraded = True  # until it is open
        # What was removed can be written again at once, while its content is still there.
        self._at_once = False
        self._ticked = False
        self._named_account = bool(file.accounts)  # since the last transaction
        self._errors = 0

    async def open(
        self, on_backlog: Callable[[Backlog], None], on_durable: Callable[[], None]
    ) -> None:
        self._on_backlog, self._on_durable = on_backlog, on_durable
        self._wake.set()  # if this is cancelled, the writer tries again
        try:
            await self._open()
            self.degraded, self.trusted_since = False, float("-inf")
        except DISK_ERRORS as error:
            self.degraded = False
            self._degrade(error)

    async def _open(self) -> None:
        async with self.thread.turn:
            # Its result is needed, however late: a large file may take longer than any limit.
            if self._opening is None:
                self._opening = self.thread.start(self.file.open)
            try:
                backlog = await self.thread.result(self._opening, OPEN_LIMIT_S)
            finally:
                if self._opening.done():
                    self._opening = None
        self._look_for_lost_rows()
        if not self._opened:
            self._opened, self._opened_at = True, self._loop.time()
            self._earlier_rows = self._durable = self._last_row = self.file.last_seq
            self.room.reset(self.file.owed)
            self.file.accounts = backlog.accounts | self.file.accounts
            self._on_backlog(backlog)

    def _look_for_lost_rows(self) -> None:
        if self.file.lost > self._lost_files:
            self._lost_files = self.file.lost
            self._gone, self._survivors = self._last_row, frozenset(self._unwritten)
            self.trusted_since = self._loop.time()
            self.room.reset(unsettled(self._unwritten.values(), self._changes.settled))

    def name_account(self, number: int, id_: str) -> None:
        self.file.accounts[number] = id_
        self._named_account = True

    def has_row(self, row: int) -> bool:
        return row > self._gone or row in self._survivors

    def is_written(self, row: int) -> bool:
        return self.has_row(row) and row not in self._unwritten

    async def commit(self) -> None:
        # Not only for what was added: the rows of a write under way are not on disk yet.
        if self._last_row > self._durable and not self.degraded:
            done = self._loop.create_future()
            self._waiters.append(done)
            self._wake.set()
            await done

    def _schedule(self) -> None:
        """Have the changes written within about `SETTLE_S`."""
        self._alarm.set(self._loop.time() + SETTLE_S)

    async def run(self) -> None:
        # A write that has begun is finished. If it were cut short, the thread would still commit
        # what the writer believes was not written.
        self._writing = self._loop.create_task(self._write_until_stopped())
        try:
            await asyncio.shield(self._writing)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._writing is not None:
            await asyncio.wait([self._writing])  # a bug in it is raised by `run`, not by `close`

    async def _write_until_stopped(self) -> None:
        while not self._stopping.is_set():
            await self._wake.wait()
            if self.degraded and not self._at_once:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._stopping.wait()
            else:
                # Requests that arrive a moment later share the transaction. Most of its cost is the
                # pages that every transaction writes.
                await asyncio.sleep(GROUP_S)
            if not self._stopping.is_set():
                await self._write()
                if self._ticked:
                    self._ticked = False
                    await self._shrink()

    async def _write(self) -> None:
        """Write all changes, after a disk failure also what it left unwritten."""
        self._wake.clear()
        self._alarm.cancel()
        self._at_once = False
        waiters, self._waiters = self._waiters, []
        try:
            if self.degraded:
                await self._open()
            await self._apply()
        except (*DISK_ERRORS, SpoolInUse) as error:
            self._degrade(error)
        else:
            if self.degraded:
                self.degraded, self.trusted_since = False, self._loop.time()
                log.info("spool_recovered", durability="disk")
        finally:
            if self._at_once:
                self._waiters[:0] = waiters  # their rows may still get to disk
            else:
                _release(waiters)
            self._on_durable()

    async def _apply(self) -> None:
        """Write all changes in transactions; those that fail are kept."""
        changes, self._changes = self._changes, Changes([], [], [], [])
        size, on_disk, last_row = self.adding, self._adding_on_disk, self._last_row
        if self._named_account or self.degraded:  # then the file may be a new one
            self._named_account = False
            changes = changes._replace(accounts=tuple(self.file.accounts.items()))
        for row in changes.removed:
            self._unwritten.pop(row, None)
        changes.added[:0] = sorted(self._unwritten.values())
        parts = changes.condensed().split(self.file.transaction_bytes, self.file.transaction_rows)
        try:
            while parts:
                await self._on_thread(self.file.apply, parts[0])
                for written in parts.pop(0).added:
                    self._unwritten.pop(written.seq, None)
        except DISK_ERRORS as error:
            removed = set(self._changes.removed)
            for part in parts:
                self._unwritten |= {row.seq: row for row in part.added if row.seq not in removed}
            rest = [part._replace(added=[]) for part in parts]
            self._changes = reduce(Changes.followed_by, [*rest, self._changes])
            if self.degraded and content_at_fault(error):
                await self._on_thread(self.file.recreate, str(error))
                self._look_for_lost_rows()
            raise
        self._durable = last_row
        self.adding = max(0, self.adding - size)
        self._adding_on_disk = max(0, self._adding_on_disk - on_disk)

    def _degrade(self, error: Exception) -> None:
        """Count a failure of the disk, and keep new writes in memory only from now on."""
        self._errors += 1
        if not self.degraded:
            self.degraded, self.trusted_since = True, float("inf")
            self._at_once = isinstance(error, FilesGone)
            log.error("spool_degraded", error=str(error), durability="memory")
        # Rows added during the failed write are kept, as are its own.
        removed = set(self._changes.removed)
        self._unwritten |= {r.seq: r for r in self._changes.added if r.seq not in removed}
        self._changes.added.clear()
        self.adding = self._adding_on_disk = 0
        if not self._at_once:
            waiters, self._waiters = self._waiters, []
            _release(waiters)
        self._on_durable()
        self._wake.set()

    async def _pause(self) -> None:
        """Wait before the disk is tried again."""
        await asyncio.sleep(RETRY_S)

    def tick(self) -> None:
        self._ticked = True
        self._wake.set()

    async def _shrink(self) -> None:
        size, used = self.file.size, self.file.used
        if self.degraded or used > SMALL_BYTES or size - used < SHRINK_BYTES:
            return
        try:
            await self._on_thread(self.file.shrink)
        except DISK_ERRORS as error:
            self._degrade(error)

    def end_at(self, when: float) -> None:
        self.thread.end_at(when)

    async def close(self) -> None:
        await self._stop()
        await self._write()
        if self._at_once:
            await self._write()
        await self._shrink()
        try:
            await self._on_thread(self.file.finish)
            await self._on_thread(self.file.unlock)
        except DISK_ERRORS as error:
            self._degrade(error)
        self.thread.close()

    async def _on_thread(self, call: Callable[..., _T], *arguments: object) -> _T:
        return await self.thread.call(call, *arguments, limit_s=LIMIT_S)


def _release(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
