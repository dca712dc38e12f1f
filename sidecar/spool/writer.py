"""Group commit of the spool's changes, and retries while the disk fails.

In: changes, appended to `changes`. Out: one transaction for all requests waiting in
`commit`. Disk errors do not propagate. After one, the writer is `degraded`, keeps everything that
is not on disk, and tries again every `RETRY_S`.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import structlog

from sidecar.spool.rows import Backlog, Changes, Row, SpoolInUse
from sidecar.spool.sqlite_file import SpoolFile

log = structlog.get_logger()

# A request waits this long for others to share its transaction.
GROUP_S = 0.002
# Changes that no request waits for are written within this time. If a kill loses them, the writes
# that they settled are sent again.
SETTLE_S = 0.25
RETRY_S = 5.0
# The file is shrunk when at most `SMALL_BYTES` are used and at least `SHRINK_BYTES` are free.
# Otherwise its free pages are reused.
SMALL_BYTES = 8 * 2**20
SHRINK_BYTES = 16 * 2**20

DISK_ERRORS = (sqlite3.Error, OSError)
_T = TypeVar("_T")


class SpoolWriter:
    """Owns the file's thread. `run` is the only task that writes."""

    disk_errors = DISK_ERRORS

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
        # Rows that could not be written. Kept, because there may be no other copy in memory.
        self.unwritten: dict[int, Row] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.last_seq = 0  # highest row number assigned
        self.durable = 0  # every row up to this number is on disk
        self._opened = False
        self.degraded = False
        self.errors = 0

    async def open(self) -> None:
        """Open the file and pass its rows to `on_backlog`, or degrade if the disk fails.

        Raises `SpoolInUse` if another sidecar uses the directory.
        """
        try:
            backlog = await self.on_thread(self._file.open)
        except DISK_ERRORS as error:
            self.degrade(error)
            return
        self._opened = True
        self.durable = self.last_seq = self._file.last_seq
        self._on_backlog(backlog)

    async def commit(self) -> None:
        """Return when everything added so far is on disk, or the writer is degraded."""
        if self.changes.added and not self.degraded:
            done = self._loop.create_future()
            self._waiters.append(done)
            self._wake.set()
            await done

    def schedule(self) -> None:
        """Have the changes written within about `SETTLE_S`."""
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wake.set()

    async def run(self) -> None:
        """Write changes until cancelled; a write or a retry that has begun is finished first.

        If cut short, the thread would still commit what the writer believes was not written.
        """
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
            if self.degraded:
                with suppress(TimeoutError):
                    async with asyncio.timeout(RETRY_S):
                        await self._stopping.wait()
            if self._stopping.is_set():
                return
            if self.degraded:
                await self._retry()
            else:
                # Requests that arrive a moment later share the transaction. Most of its cost is the
                # pages that every transaction writes.
                await asyncio.sleep(GROUP_S)
                await self._write()

    async def _write(self) -> None:
        self._wake.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changes, self.changes = self.changes, Changes([], [], [], [])
        waiters, self._waiters = self._waiters, []
        size, last_seq = self.adding, self.last_seq
        parts = changes.condensed().split(self._file.transaction_bytes)
        try:
            while parts:
                await self.on_thread(self._file.apply, parts[0])
                del parts[0]
            self.durable = last_seq
        except DISK_ERRORS as error:
            removed = set(self.changes.removed)
            for part in parts:
                self.unwritten |= {row.seq: row for row in part.added if row.seq not in removed}
            # The last part has everything that is not an added row.
            self.changes = parts[-1]._replace(added=[]).followed_by(self.changes)
            self.degrade(error)
        finally:
            self.adding = max(0, self.adding - size)
            _release(waiters)
            self._on_durable()

    async def retry_later(self, error: Exception) -> None:
        """Degrade; return when the disk may be tried again."""
        self.degrade(error)
        await asyncio.sleep(RETRY_S)

    def degrade(self, error: Exception) -> None:
        """Count a failure of the disk, and keep new writes in memory only from now on."""
        self.errors += 1
        if not self.degraded:
            self.degraded = True
            log.error("spool_degraded", error=str(error), durability="memory")
        # Rows added during the failed write are kept, as are its own.
        self.unwritten |= {row.seq: row for row in self.changes.added}
        self.changes.added.clear()
        self.adding = 0
        waiters, self._waiters = self._waiters, []
        _release(waiters)
        self._on_durable()
        self._wake.set()

    async def _retry(self) -> None:
        try:
            await self.on_thread(self._file.close)
            if not self._opened:
                await self.open()
                if not self._opened:
                    return
            else:
                await self.on_thread(self._file.open)
            for seq in await self.on_thread(self._file.stored, list(self.unwritten.values())):
                self.unwritten.pop(seq, None)
            changes, self.changes = self.changes, Changes([], [], [], [])
            again = changes._replace(added=list(self.unwritten.values())).condensed()
            try:
                for part in again.split(self._file.transaction_bytes):
                    await self.on_thread(self._file.apply, part)
                    for row in part.added:
                        self.unwritten.pop(row.seq, None)
            except DISK_ERRORS as error:
                self.changes = changes.followed_by(self.changes)
                if _is_unreadable(error):
                    await self.on_thread(self._file.recreate, str(error))
                raise
        except (*DISK_ERRORS, SpoolInUse) as error:
            self.degrade(error)
            return
        self.durable = self.last_seq
        self.degraded = False
        self._wake.clear()
        log.info("spool_recovered", durability="disk")

    async def shrink(self) -> None:
        """Return free pages to the file system if the file is large and little of it is used."""
        size, used = self._file.size, self._file.used
        if self.degraded or used > SMALL_BYTES or size - used < SHRINK_BYTES:
            return
        try:
            await self.on_thread(self._file.shrink)
        except DISK_ERRORS as error:
            self.degrade(error)

    async def close(self) -> None:
        """Write pending changes and close the file. If degraded, try the disk once more."""
        await self._stop()
        if self.degraded:
            await self._retry()
        if not self.degraded:
            await self._write()
        if not self.degraded:
            await self.shrink()
        try:
            await self.on_thread(self._file.close)
        except DISK_ERRORS as error:
            self.degrade(error)
        self._file.unlock()
        self._thread.shutdown(wait=False)

    def on_thread(self, call: Callable[..., _T], *arguments: object) -> "asyncio.Future[_T]":
        """Run a method of the file on its thread."""
        return self._loop.run_in_executor(self._thread, call, *arguments)


def _is_unreadable(error: Exception) -> bool:
    """Whether the file's content is at fault, and not the disk."""
    disk = isinstance(error, sqlite3.OperationalError)
    return isinstance(error, sqlite3.DatabaseError) and not disk


def _release(waiters: Sequence[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
