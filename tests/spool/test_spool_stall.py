"""A disk that does not answer: whichever call hangs, before or after its effect."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import structlog

from sidecar.spool.disk_spool import DiskSpool
from sidecar.spool.rows import Backlog, Changes, StoredRow
from sidecar.spool.sqlite_file import SpoolFile
from sidecar.spool.writer import LIMIT_S, OPEN_LIMIT_S, RETRY_S
from tests.support.faults import fast, fast_loop, now
from tests.support.spool import added, load, new_span, row, rows_on_disk, settle

_T = TypeVar("_T")
LANES = 3
# Longer than it takes to notice that the disk works again.
BACK_S = 2 * RETRY_S


class StallingFile(SpoolFile):
    """Its calls hang once `hung` has their name: before their effect, or after it if `late`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory), 16 * 2**20, sync_full=False)
        self.hung = set[str]()
        self.late = False
        self._answers = threading.Event()
        self._loop = fast_loop()

    def hang(self, *calls: str, late: bool = False) -> None:
        """From now on, these calls hang."""
        self.hung, self.late = set(calls), late
        self._answers.clear()

    def answer(self) -> None:
        """The disk answers again."""
        self.hung.clear()
        self._answers.set()

    def _call(self, name: str, call: Callable[[], _T]) -> _T:
        if self.late:
            result = call()
            self._wait(name)
            return result
        self._wait(name)
        return call()

    def _wait(self, name: str) -> None:
        if name in self.hung:
            self._loop.hang(self._answers)

    def open(self) -> Backlog:
        return self._call("open", super().open)

    def apply(self, changes: Changes) -> None:
        self._call("apply", lambda: super(StallingFile, self).apply(changes))

    def read(self, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        return self._call("read", lambda: super(StallingFile, self).read(seqs, max_bytes))

    def shrink(self) -> None:
        self._call("shrink", super().shrink)

    def finish(self) -> None:
        self._call("finish", super().finish)

    def unlock(self) -> None:
        self._call("unlock", super().unlock)


@asynccontextmanager
async def stalling_spool(directory: Path) -> AsyncIterator[tuple[DiskSpool, StallingFile]]:
    """A spool whose file works, with its writer running."""
    file = StallingFile(directory)
    spool = DiskSpool(file, LANES)
    await spool.open(lambda _: None, lambda: None)
    writer = asyncio.create_task(spool.run())
    try:
        yield spool, file
    finally:
        file.answer()
        writer.cancel()
        await asyncio.wait([writer])
        await spool.close()


@pytest.mark.parametrize("late", [False, True])
@fast
async def test_a_transaction_that_hangs(late: bool, tmp_path: Path) -> None:
    """Requests go on after a few seconds; the rows get to disk once, and settled ones leave it."""
    with structlog.testing.capture_logs() as logs:
        async with stalling_spool(tmp_path) as (spool, file):
            file.hang("apply", late=late)
            kept, replaced, open_, end = (
                new_span(id_, complete=id_ != "open") for id_ in ("kept", "replaced", "open", "end")
            )
            began = now()
            await added(spool, kept, replaced, open_)
            assert LIMIT_S <= now() - began < LIMIT_S + 0.1
            assert (spool.degraded, spool.status().stalls) == (True, 1)
            # What happens meanwhile follows, whether the transaction is committed or not.
            settle(spool, kept, 1, 2)
            spool.replace(replaced)
            await added(spool, end)  # in memory only, at once
            assert end.stored is None
            assert now() - began < LIMIT_S + 0.1
            await asyncio.sleep(60.0)
            file.answer()
            await asyncio.sleep(BACK_S)
            assert not spool.degraded
            last = new_span("last")
            await added(spool, last)
            assert spool.is_written(row(last))
    assert [row for row, *_ in rows_on_disk(tmp_path).complete_rows] == [row(last)]
    assert [row for row, *_ in rows_on_disk(tmp_path).open_rows] == [row(open_)]
    said = [line["durability"] for line in logs if line["event"] != "spool_moved_aside"]
    assert said == ["memory", "disk"]


@fast
async def test_an_end_whose_transaction_hangs(tmp_path: Path) -> None:
    """It is left over with its payloads, though those of its START are on the disk that hangs."""
    async with stalling_spool(tmp_path) as (spool, file):
        start, end = new_span("a", complete=False, size=5000), new_span("a", size=5000)
        await added(spool, start)
        file.hang("apply", "read")
        spool.add(end, start)
        await spool.commit()
        on_disk, (left,), superseded = spool.left_over([row(end)], 1)
        assert (on_disk, superseded, left.input) == ([], 0, end.input)
        assert await load(spool, row(end)) == ["a"]


@fast
async def test_a_read_that_hangs(tmp_path: Path) -> None:
    """The reader waits for as long as it takes; however often that happens, no row is given up."""
    async with stalling_spool(tmp_path) as (spool, file):
        write = new_span("a")
        await added(spool, write)
        for _ in range(5):
            file.hang("read")
            reading = asyncio.create_task(load(spool, row(write)))
            await asyncio.sleep(LIMIT_S + 1.0)
            assert spool.degraded
            file.answer()
            await asyncio.sleep(BACK_S)
            assert not spool.degraded
            assert await reading == ["a"]


@fast
async def test_shrinking_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Housekeeping stops nothing, either."""
    async with stalling_spool(tmp_path) as (spool, file):
        monkeypatch.setattr("sidecar.spool.writer.SHRINK_BYTES", 0)
        file.hang("shrink")
        spool.tick()
        await asyncio.sleep(LIMIT_S + 1.0)
        assert spool.degraded
        began = now()
        await added(spool, new_span("in memory"))
        assert now() == began
        file.answer()
        await asyncio.sleep(BACK_S)
        assert not spool.degraded


@pytest.mark.parametrize("call", ["apply", "read", "finish", "unlock"])
@fast
async def test_the_end_does_not_wait(call: str, tmp_path: Path) -> None:
    """`close` returns when the process has to end; only what is known to be on disk counts."""
    file = StallingFile(tmp_path)
    spool = DiskSpool(file, LANES)
    await spool.open(lambda _: None, lambda: None)
    writer = asyncio.create_task(spool.run())
    first, second = new_span("first"), new_span("second")
    await added(spool, first)
    file.hang(call)
    spool.add(second)
    committing = asyncio.create_task(spool.commit())
    await asyncio.sleep(0.5)
    reading = asyncio.create_task(load(spool, row(first)))
    await asyncio.sleep(0.5)
    began = now()
    spool.end_at(now() + 0.3)
    reading.cancel()
    writer.cancel()
    await asyncio.wait([writer, committing])
    await spool.close()
    assert now() - began < 0.4
    assert spool.is_written(row(first))
    assert spool.is_written(row(second)) is (call != "apply")
    file.answer()
    await asyncio.sleep(0)


async def used_once_it_answers(
    spool: DiskSpool, file: StallingFile, backlogs: list[Backlog]
) -> None:
    """The earlier row is found, and the next one goes behind it."""
    file.answer()
    await asyncio.sleep(BACK_S)
    assert [len(each.complete_rows) for each in backlogs] == [1]
    await added(spool, later := new_span("later"))
    assert row(later) == 2


@fast
async def test_opening_that_takes_long(tmp_path: Path) -> None:
    """The start goes on without it; its backlog comes when it comes, also after several limits."""
    async with stalling_spool(tmp_path) as (spool, _):
        await added(spool, new_span("earlier"))
    backlogs: list[Backlog] = []
    file = StallingFile(tmp_path)
    file.hang("open", late=True)
    spool = DiskSpool(file, LANES)
    began = now()
    await spool.open(backlogs.append, lambda: None)
    assert OPEN_LIMIT_S <= now() - began < OPEN_LIMIT_S + 0.1
    assert spool.degraded
    writer = asyncio.create_task(spool.run())
    await asyncio.sleep(10 * OPEN_LIMIT_S)
    assert (backlogs, spool.status().stalls) == ([], 1)
    await used_once_it_answers(spool, file, backlogs)
    writer.cancel()
    await asyncio.wait([writer])
    await spool.close()


@fast
async def test_a_start_that_is_cut_short(tmp_path: Path) -> None:
    """A spool whose opening was cancelled is in memory only until it is open."""
    async with stalling_spool(tmp_path) as (spool, _):
        await added(spool, new_span("earlier"))
    backlogs: list[Backlog] = []
    file = StallingFile(tmp_path)
    file.hang("open")
    spool = DiskSpool(file, LANES)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await spool.open(backlogs.append, lambda: None)
    writer = asyncio.create_task(spool.run())
    await added(spool, early := new_span("early"))
    assert early.stored is None
    await used_once_it_answers(spool, file, backlogs)
    writer.cancel()
    await asyncio.wait([writer])
    await spool.close()
