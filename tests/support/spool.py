"""What the tests of the spool need: rows, disks that fail, a world of the clock on the wall.

A `FastLoop` does not mix with the spool's thread: it would skip the time that the disk takes.
"""

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sidecar.spool.writer
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.spool.rows import COMPLETE, Backlog, Changes, Row, StoredRow
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.faults import World, world

# Longer than any test has to wait, so that a hang fails instead of hanging.
DEADLINE_S = 30.0
POLL_S = 0.005
ALL_LANES = 3


async def until(condition: Callable[[], object]) -> None:
    """Return once `condition` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 (it is in threads and other processes)
            await asyncio.sleep(POLL_S)


def make_row(
    seq: int,
    body: bytes = b"{}",
    *,
    kind: int = COMPLETE,
    lanes: int = ALL_LANES,
    base: int = 0,
    shared: int = 0,
) -> Row:
    """A row, as `Spool` makes them."""
    return Row(seq=seq, kind=kind, lanes=lanes, base=base, shared=shared, born=1.5, body=body)


def changes(
    *added: Row,
    removed: Sequence[int] = (),
    retired: Sequence[int] = (),
    settled: Sequence[tuple[int, int]] = (),
) -> Changes:
    """One transaction."""
    return Changes(list(added), list(removed), list(retired), list(settled))


def files_size(directory: Path) -> int:
    """Bytes of the spool's files, whatever their names."""
    return sum(path.stat().st_size for path in directory.glob("spool.db*"))


class FlakyFile(SpoolFile):
    """A spool file on a disk that fails in the calls that `failing` names."""

    def __init__(self, directory: Path, max_bytes: int = 16 * 2**20) -> None:
        super().__init__(str(directory), max_bytes, sync_full=False)
        self.failing: set[str] = set()
        self.error: Exception = sqlite3.OperationalError("disk I/O error")
        self.tries = 0

    def _try(self, call: str) -> None:
        self.tries += 1
        if call in self.failing:
            raise self.error

    def open(self) -> Backlog:
        """Fail, or open."""
        self._try("open")
        return super().open()

    def apply(self, changes: Changes) -> None:
        """Fail, or apply."""
        self._try("apply")
        super().apply(changes)

    def bodies(self, seqs: Sequence[int], max_bytes: int) -> tuple[int, list[StoredRow]]:  # type: ignore[override]
        """Fail, or read."""
        self._try("bodies")
        return super().bodies(seqs, max_bytes)

    def shrink(self) -> None:
        """Fail, or shrink."""
        self._try("shrink")
        super().shrink()


@asynccontextmanager
async def running_spool(file: SpoolFile) -> AsyncIterator[Spool]:
    """An open spool at work; closed at the end."""
    spool = Spool(file, ALL_LANES)
    await spool.open()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(spool.run())
        try:
            yield spool
        finally:
            running.cancel()
            await spool.close()


@contextmanager
def retry_s(seconds: float) -> Iterator[None]:
    """Let a spool that lost its disk try it again sooner."""
    before, sidecar.spool.writer.RETRY_S = sidecar.spool.writer.RETRY_S, seconds
    try:
        yield
    finally:
        sidecar.spool.writer.RETRY_S = before


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[Callable[[], None]]:
    """A real disk that is full for this process; call what it gives to make room again."""
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
    def spool(self) -> Spool:
        """The sidecar's."""
        assert self.app.spool is not None
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
    """A sidecar with a spool at `path`; another one later takes over what this one leaves there."""
    settings = {"queue__start_hold_s": 0.05, "shutdown__grace_s": 0, **settings}
    async with (
        asyncio.timeout(DEADLINE_S),
        world(agentex, sgp, spool__path=path, **settings) as made,
    ):
        yield SpoolWorld(made.running, made.agentex, made.sgp, made.letters)
