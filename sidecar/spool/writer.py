"""Writes the spool's changes to its file, in groups; keeps them while the disk fails, and retries.

In: changes, appended to `changes`. Out: one transaction for all requests that wait in `commit`.
Disk trouble never raises: the writer is then `degraded`, and every `RETRY_S` it tries again, with
everything that the disk does not have yet.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from sidecar.spool.rows import Backlog, Changes, Row
from sidecar.spool.sqlite_file import SpoolFile, SpoolInUse

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

TROUBLE = (sqlite3.Error, OSError)
_T = TypeVar("_T")


class SpoolWriter:
    """The one task, and the one thread, that write to the file."""

    def __init__(
        self, file: SpoolFile, on_durable: Callable[[], None], on_backlog: Callable[[Backlog], None]
    ) -> None:
        self._file = file
        self._on_durable = on_durable
        self._on_backlog = on_backlog
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self.changes = Changes([], [], [], [])
        self.adding = 0  # bytes of rows that are not on disk yet
        # Rows that the disk did not take: kept, because they may have left memory elsewhere.
        self.unwritten: dict[int, Row] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.last_seq = 0  # the highest number of a row, on disk or not
        self.durable = 0  # the highest number of which everything before is on disk
        self._opened = False
        self.degraded = False
        self.errors = 0

    async def open(self) -> None:
        """Say to `on_backlog` what an earlier process left; `degraded` if the disk can't be used.

        Raises `SpoolInUse` when another sidecar has the directory.
        """
        try:
            backlog = await self.on_thread(self._file.open)
        except TROUBLE as error:
            self.trouble(error)
            return
        self._opened = True
        self.durable = self.last_seq = self._file.last_seq
        self._on_backlog(backlog)

    async def commit(self) -> None:
        """Return once everything until now is on disk, or the spool is degraded."""
        if self.changes.added and not self.degraded:
            done = self._loop.create_future()
            self._waiters.append(done)
            self._wanted.set()
            await done

    def soon(self) -> None:
        """Have the changes written within `SETTLE_S`."""
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
        changes, self.changes = self.changes, Changes([], [], [], [])
        waiters, self._waiters = self._waiters, []
        writing, newest = self.adding, self.last_seq
        parts = changes.condensed().parts(self._file.transaction_bytes)
        try:
            while parts:
                await self.on_thread(self._file.apply, parts[0])
                del parts[0]
            self.durable = newest
        except TROUBLE as error:
            gone = set(self.changes.removed)
            for part in parts:
                self.unwritten |= {row.seq: row for row in part.added if row.seq not in gone}
            left = parts[-1]._replace(added=[])
            self.changes = left.before(self.changes)
            self.trouble(error)
        finally:
            self.adding = max(0, self.adding - writing)
            _release(waiters)
            self._on_durable()

    def trouble(self, error: Exception) -> None:
        """The disk failed: from now on, what is new is in memory only."""
        self.errors += 1
        if not self.degraded:
            self.degraded = True
            log.error("spool_degraded", error=str(error), durability="memory")
        # What was promised to the disk since the failure waits there like what failed.
        self.unwritten |= {row.seq: row for row in self.changes.added}
        self.changes.added.clear()
        self.adding = 0
        waiters, self._waiters = self._waiters, []
        _release(waiters)
        self._on_durable()
        self._wanted.set()

    async def _come_back(self) -> None:
        try:
            await self.on_thread(self._file.close)
            if not self._opened:
                await self.open()
                if not self._opened:
                    return
            else:
                await self.on_thread(self._file.open)
            changes, self.changes = self.changes, Changes([], [], [], [])
            again = changes._replace(added=list(self.unwritten.values())).condensed()
            try:
                for part in again.parts(self._file.transaction_bytes):
                    await self.on_thread(self._file.apply, part)
                    for row in part.added:
                        self.unwritten.pop(row.seq, None)
            except TROUBLE as error:
                self.changes = changes.before(self.changes)
                if _is_unreadable(error):
                    await self.on_thread(self._file.start_afresh, str(error))
                raise
        except (*TROUBLE, SpoolInUse) as error:
            self.trouble(error)
            return
        self.durable = self.last_seq
        self.degraded = False
        self._wanted.clear()
        log.info("spool_recovered", durability="disk")

    async def shrink(self) -> None:
        """Give free space back, when little is left in a file that was large."""
        size, used = self._file.size, self._file.used
        if self.degraded or used > SMALL_BYTES or size - used < SHRINK_BYTES:
            return
        try:
            await self.on_thread(self._file.shrink)
        except TROUBLE as error:
            self.trouble(error)

    async def close(self) -> None:
        """Write what waits and close the file; a disk that was away is tried once more."""
        if self.degraded:
            await self._come_back()
        if not self.degraded:
            await self._write()
        if not self.degraded:
            await self.shrink()
        try:
            await self.on_thread(self._file.close)
        except TROUBLE as error:
            self.trouble(error)
        self._file.unlock()
        self._thread.shutdown(wait=False)

    def on_thread(self, call: Callable[..., _T], *arguments: object) -> "asyncio.Future[_T]":
        """Run a call of the file on its thread."""
        return self._loop.run_in_executor(self._thread, call, *arguments)


def _is_unreadable(error: Exception) -> bool:
    """Whether it is the file's content, and not the disk, that is in the way."""
    disk = isinstance(error, sqlite3.OperationalError)
    return isinstance(error, sqlite3.DatabaseError) and not disk


def _release(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
