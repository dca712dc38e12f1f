"""Support for the spool's tests: rows, failing disks, and a `World` that runs in real time.

A `FastLoop` does not work with the spool's thread: it would skip the time that the disk takes.
"""

import asyncio
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import StandIn
from sidecar.spans.span import Span, Stored
from sidecar.spool import writer
from sidecar.spool.disk_spool import DiskSpool
from sidecar.spool.rows import COMPLETE, Backlog, Changes, Row, StoredRow
from sidecar.spool.spool import Gone, Spool
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.faults import World, span, world
from tests.support.spans import make_span

# Longer than any test has to wait, so that a hang becomes a failure.
DEADLINE_S = 30.0
POLL_S = 0.005
ALL_LANES = 3
# Short delays, so that an upstream that works again is noticed soon.
EAGER = {"retry__initial_s": 0.02, "retry__max_s": 0.05}
# How soon settled writes leave the disk. Many tests wait for it.
SETTLE_S = 0.02


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (other threads and processes make it true)
            await asyncio.sleep(POLL_S)


def make_row(
    seq: int,
    body: bytes = b"{}",
    *,
    kind: int = COMPLETE,
    lanes: int = ALL_LANES,
    base: int = 0,
    shared: int = 0,
    account: int = 0,
    size: int = 0,
    released: tuple[tuple[int, int], ...] = (),
) -> Row:
    """A row, as `DiskSpool` makes it."""
    return Row(seq, kind, lanes, base, shared, -1, account, size, 1.5, body, released)


def backlog(
    open_rows: Iterable[tuple[int, int]],
    complete_rows: Iterable[tuple[int, int]],
    accounts: dict[int, str] | None = None,
) -> Backlog:
    """The backlog with these rows, as pairs of number and lanes, of the pod's only account."""
    opened, complete = (
        [(seq, lanes, 0) for seq, lanes in each] for each in (open_rows, complete_rows)
    )
    return Backlog(opened, complete, accounts or {})


def pairs(rows: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Number and lanes of the rows of a backlog."""
    return [(seq, lanes) for seq, lanes, _ in rows]


def changes(
    *added: Row,
    removed: Sequence[int] = (),
    retired: Sequence[int] = (),
    settled: Sequence[tuple[int, int]] = (),
) -> Changes:
    """The changes of one transaction."""
    return Changes(list(added), list(removed), list(retired), list(settled))


def files_size(directory: Path) -> int:
    """Total bytes of the spool's database, log and shared-memory files."""
    return sum(path.stat().st_size for path in directory.glob("spool.db*"))


class FlakyFile(SpoolFile):
    """A spool file whose methods named in `failing` raise `error`."""

    def __init__(self, directory: Path, max_bytes: int = 16 * 2**20) -> None:
        super().__init__(str(directory), max_bytes, sync_full=False)
        self.failing: set[str] = set()
        self.error: Exception = sqlite3.OperationalError("disk I/O error")
        self.calls = 0

    def _count_or_fail(self, method: str) -> None:
        self.calls += 1
        if method in self.failing:
            raise self.error

    def open(self) -> Backlog:
        self._count_or_fail("open")
        return super().open()

    def apply(self, changes: Changes) -> None:
        self._count_or_fail("apply")
        super().apply(changes)

    def read(self, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        self._count_or_fail("read")
        return super().read(seqs, max_bytes)

    def shrink(self) -> None:
        self._count_or_fail("shrink")
        super().shrink()


def rows_on_disk(directory: Path) -> Backlog:
    """The rows that the next process finds."""
    file = SpoolFile(str(directory), 16 * 2**20, sync_full=False)
    try:
        return file.open()
    finally:
        file.close()
        file.unlock()


async def opened_spool(
    file: SpoolFile, on_backlog: Callable[[Backlog], None] = lambda _: None
) -> DiskSpool:
    """An open spool, to be closed by the test."""
    spool = DiskSpool(file, ALL_LANES)
    await spool.open(on_backlog, lambda: None)
    return spool


@asynccontextmanager
async def running_spool(
    file: SpoolFile, on_backlog: Callable[[Backlog], None] = lambda _: None
) -> AsyncIterator[DiskSpool]:
    """An open spool with its task running; closed at the end."""
    spool = await opened_spool(file, on_backlog)
    with _interval("SETTLE_S", SETTLE_S):
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(spool.run())
            try:
                yield spool
            finally:
                running.cancel()
                await spool.close()


def retry_s(seconds: float) -> AbstractContextManager[None]:
    """Set the time between retries of a failed disk."""
    return _interval("RETRY_S", seconds)


@contextmanager
def _interval(name: str, seconds: float) -> Iterator[None]:
    before = getattr(writer, name)
    setattr(writer, name, seconds)
    try:
        yield
    finally:
        setattr(writer, name, before)


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[Callable[[], None]]:
    """Limit file sizes in this process, as a full disk would. Call the result to lift it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def make_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield make_room
    finally:
        make_room()


@dataclass
class SpoolWorld(World):
    """A `World` whose sidecar has a spool."""

    @property
    def spool(self) -> DiskSpool:
        """The sidecar's spool."""
        assert isinstance(self.app.spool, DiskSpool)
        return self.app.spool

    async def until(self, condition: Callable[[], object]) -> None:
        """Return once `condition` holds."""

        def holds() -> object:
            if self.running.task.done():
                self.running.task.result()
            return condition()

        await until(holds)


@asynccontextmanager
async def spool_world(
    path: Path, agentex: AgentexStandIn, sgp: SgpStandIn, **settings: Any
) -> AsyncIterator[SpoolWorld]:
    """A sidecar with a spool at `path`. A later one at the same path takes what is left there."""
    settings = {"queue__start_hold_s": 0.05, "shutdown__grace_s": 0, **settings}
    with _interval("SETTLE_S", SETTLE_S):
        async with (
            asyncio.timeout(DEADLINE_S),
            world(agentex, sgp, spool__path=path, **settings) as made,
        ):
            yield SpoolWorld(made.running, made.agentex, made.sgp, made.letters)
        await _as_if_its_process_ended(made.app.spool)


async def _as_if_its_process_ended(spool: Spool) -> None:
    """Free the directory for the next sidecar, if the disk was too slow for the sidecar itself."""
    if isinstance(spool, DiskSpool):
        await until(lambda: not spool.thread.is_hanging)
        spool.file.unlock()


def down(*upstreams: StandIn) -> None:
    """Make the upstreams respond with 503."""
    for upstream in upstreams:
        upstream.rule = lambda _: 503


def up(*upstreams: StandIn) -> None:
    """Make the upstreams work again."""
    for upstream in upstreams:
        upstream.rule = None


def large(id_: str, size: int = 50_000) -> dict[str, Any]:
    """A complete span with a prompt of `size` bytes."""
    return span(id_, input={"prompt": id_ + "x" * size})


def depths(w: SpoolWorld) -> tuple[int, ...]:
    """Depth of each lane."""
    return tuple(lane.depth for lane in w.app.lanes)


class GatedFile(FlakyFile):
    """A slow disk: each transaction waits for the gate."""

    def __init__(self, directory: Path, max_bytes: int = 16 * 2**20) -> None:
        super().__init__(directory, max_bytes)
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def apply(self, changes: Changes) -> None:
        self.waiting.set()
        self.gate.wait(60)
        super().apply(changes)

    async def under_way(self) -> None:
        """Return once a transaction is waiting."""
        await until(self.waiting.is_set)


def new_span(id_: str, *, complete: bool = True, size: int = 0) -> Span:
    """A span that was accepted just now."""
    now = asyncio.get_running_loop().time()
    return make_span(id_, complete=complete, input=b'{"p":"%b"}' % (b"x" * size), accepted_at=now)


def stored(write: Span) -> Stored:
    """What the spool knows of a write that has a row."""
    assert write.stored is not None
    return write.stored


def row(write: Span) -> int:
    """The number of the row of a write."""
    return stored(write).row


def settle(spool: DiskSpool, write: Span, *lanes: int) -> None:
    """Settle a write in the lanes with these bits."""
    for lane in lanes:
        spool.settled(stored(write), lane)


async def load(spool: DiskSpool, *rows: int, max_bytes: int = 2**20, lane: int = 0) -> list[object]:
    """Load rows: the ids of those that were read, and why the others were not."""
    outcomes = await spool.load(rows, max_bytes, lane)
    return [outcome if isinstance(outcome, Gone) else outcome.id for outcome in outcomes]


async def added(spool: DiskSpool, *writes: Span) -> None:
    """Add writes and wait until they are on disk."""
    for write in writes:
        spool.add(write)
    await spool.commit()
