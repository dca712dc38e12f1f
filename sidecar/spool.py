"""The spool: what was accepted is on disk before its 202, and leaves when every lane is done.

In: writes that come (`add`), that are replaced (`remove`), that a lane is done with (`settled`).
`commit` returns once everything before it is on disk: one transaction for all requests that wait.
Out: bodies of writes that left memory (`load`).

Disk trouble never takes the sidecar down: the spool then says `degraded`, new events are in memory
only, and every few seconds it tries the disk again. What was settled meanwhile is remembered and
written then, so that a restart does not send it again. Credentials are never in here.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import structlog

from sidecar.spans import Span, to_json
from sidecar.spool_file import COMPLETE, OPEN, Backlog, Changes, Row, SpoolFile

log = structlog.get_logger()

# Bytes of one transaction: bounds what is in the log at once, and how long a request waits.
COMMIT_BYTES = 8 * 2**20
# Settled writes may be written this late; after a kill they would be sent once more.
SETTLE_S = 0.25
RETRY_S = 5.0
# Free space in the file worth giving back while there is still work.
SHRINK_BYTES = 32 * 2**20
# A row's own cost beside its body: keys, and the part of a page that stays empty.
ROW_BYTES = 256

_T = TypeVar("_T")
_TROUBLE = (sqlite3.Error, OSError)


class Spool:
    """Durable writes. `all_lanes` has the bit of every lane there is."""

    def __init__(self, file: SpoolFile, all_lanes: int) -> None:
        self._file = file
        self._all_lanes = all_lanes
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._added: list[Row] = []
        self._added_bytes = 0
        self._removed: list[int] = []
        self._settled: list[tuple[int, int]] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._wanted = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._next_seq = 1
        self.degraded = False
        self.errors = 0
        self.replayed = 0
        self.rows = 0  # writes on disk
        self.used = 0
        self.size = 0

    @property
    def room(self) -> int:
        """Bytes that rows may take at most: a little less than `spool.max_bytes`."""
        return self._file.room

    @property
    def moved_aside(self) -> int:
        """Files that could not be read and were moved out of the way."""
        return self._file.moved_aside

    async def open(self) -> Backlog:
        """What an earlier process left; empty, and `degraded`, when the disk can't be used.

        Raises `SpoolInUse` when another sidecar has the directory.
        """
        try:
            await self._on_thread(self._file.lock)
            backlog = await self._on_thread(self._file.open)
        except _TROUBLE as error:
            self._trouble(error)
            return Backlog([], [])
        seqs = [rows[-1][0] for rows in backlog if rows]
        self._next_seq = max(seqs, default=0) + 1
        self.rows = len(backlog.open_rows) + len(backlog.complete_rows)
        self.replayed = self.rows
        await self._measure()
        return backlog

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes stay within `spool.max_bytes`."""
        # A page takes one body of more than half its size: up to a quarter stays empty.
        waiting = self._added_bytes + size
        return self.degraded or self.used + waiting + waiting // 4 <= self._file.room

    def add(self, span: Span) -> None:
        """A write came: its number from now on is `span.seq`."""
        if self.degraded:
            return
        span.seq = self._next_seq
        self._next_seq += 1
        kind = OPEN if span.end_time is None else COMPLETE
        row = Row(span.seq, kind, self._all_lanes, to_json(span))
        self._added.append(row)
        self._added_bytes += len(row.body) + ROW_BYTES
        self.rows += 1

    def remove(self, span: Span) -> None:
        """A write is replaced by a newer one, or not needed any more."""
        if span.seq:
            self._removed.append(span.seq)
            self.rows -= 1
            span.seq = 0
            self._soon()

    def settled(self, span: Span, bit: int) -> None:
        """A lane is done with a write."""
        if not span.seq:
            return
        self._settled.append((span.seq, bit))
        span.lanes &= ~bit
        if not span.lanes and span.end_time is not None:
            self.rows -= 1
        self._soon()

    async def commit(self) -> None:
        """Return once everything until now is on disk, or the spool is degraded."""
        if self._added and not self.degraded:
            done = self._loop.create_future()
            self._waiters.append(done)
            self._wanted.set()
            await done

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SETTLE_S, self._wanted.set)

    async def run(self) -> None:
        """Write what comes, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if self.degraded:
                await asyncio.sleep(RETRY_S)
                await self._come_back()
            else:
                await self._write()

    async def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changes = self._collect()
        waiters, self._waiters = self._waiters, []
        try:
            await self._on_thread(self._file.apply, changes)
            await self._measure()
        except _TROUBLE as error:
            self._keep_for_later(changes)
            self._trouble(error)
        finally:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _collect(self) -> Changes:
        """Everything that waits, without the rows that came and went in between."""
        gone = set(self._removed)
        fresh = {row.seq for row in self._added}
        changes = Changes(
            [row for row in self._added if row.seq not in gone],
            [seq for seq in self._removed if seq not in fresh],
            [pair for pair in self._settled if pair[0] not in gone],
        )
        self._added, self._removed, self._settled = [], [], []
        self._added_bytes = 0
        return changes

    def _keep_for_later(self, changes: Changes) -> None:
        lost = {row.seq for row in changes.added}
        self._removed = [*changes.removed, *self._removed]
        self._settled = [p for p in (*changes.settled, *self._settled) if p[0] not in lost]
        self.rows -= len(lost)

    def _trouble(self, error: Exception) -> None:
        self.errors += 1
        if not self.degraded:
            self.degraded = True
            log.error("spool_degraded", error=str(error), durability="memory")
        self._added, self._added_bytes = [], 0
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters = []
        self._wanted.set()

    async def _come_back(self) -> None:
        try:
            await self._on_thread(self._file.close)
            await self._on_thread(self._file.lock_again)
            await self._on_thread(self._file.open)
            changes = self._collect()
            await self._on_thread(self._file.apply, changes)
            await self._measure()
        except _TROUBLE:
            self.errors += 1
            self._wanted.set()
            return
        self.degraded = False
        log.info("spool_recovered", durability="disk")

    async def _measure(self) -> None:
        self.used = await self._on_thread(self._file.used)
        self.size = await self._on_thread(self._file.size)

    async def load(self, seqs: Sequence[int]) -> list[tuple[int, bytes]]:
        """The bodies of `seqs` that are still there; waits for the disk to come back."""
        while True:
            try:
                return await self._on_thread(self._file.bodies, seqs)
            except _TROUBLE as error:
                self._trouble(error)
                await asyncio.sleep(RETRY_S)

    async def shrink(self) -> None:
        """Give free space back: all of it when nothing is left, much of it before."""
        nothing_left = not self.rows and self.size > 2**20
        if self.degraded or not (nothing_left or self.size - self.used > SHRINK_BYTES):
            return
        try:
            await self._on_thread(self._file.shrink)
            await self._measure()
        except _TROUBLE as error:
            self._trouble(error)

    async def close(self) -> None:
        """Write what waits and close the file."""
        if not self.degraded:
            await self._write()
            await self.shrink()
        try:
            await self._on_thread(self._file.close)
        except _TROUBLE as error:
            self._trouble(error)
        self._file.unlock()
        self._thread.shutdown(wait=False)

    def _on_thread(self, call: Callable[..., _T], *arguments: object) -> "asyncio.Future[_T]":
        return self._loop.run_in_executor(self._thread, call, *arguments)
