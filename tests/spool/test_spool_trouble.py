"""The spool on a failing disk: it degrades to memory, reports it, and recovers."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from sidecar.spans.span import Span
from sidecar.spool.rows import Backlog, Changes, SpoolInUse
from sidecar.spool.spool import Gone
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import (
    FlakyFile,
    GatedFile,
    added,
    backlog,
    files_size,
    load,
    new_span,
    opened_spool,
    pairs,
    retry_s,
    row,
    rows_on_disk,
    running_spool,
    settle,
    until,
)

LANES = (1, 2)


@pytest.fixture(autouse=True)
def _short_retry() -> Iterator[None]:
    with retry_s(0.02):
        yield


async def test_a_failing_disk_is_reported(tmp_path: Path) -> None:
    """Commits still return; the error count, the log and `fits` show the degradation."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        file.failing = {"apply", "open"}
        with structlog.testing.capture_logs() as logs:
            await added(spool, new_span("one"))
            await until(lambda: spool.status().errors > 2)
        assert spool.degraded
        assert spool.fits([], 2**40)
        assert [(line["event"], line["durability"]) for line in logs] == [
            ("spool_degraded", "memory")
        ]
        span = new_span("two")
        await added(spool, span)
        assert span.stored is None
        file.failing = set()
        with structlog.testing.capture_logs() as logs:
            await until(lambda: not spool.degraded)
        assert [line["event"] for line in logs] == ["spool_recovered"]


async def test_what_failed_is_written_later(tmp_path: Path) -> None:
    """Rows of a failed transaction can be loaded meanwhile, and are on disk afterwards."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("zero"))
        file.failing = {"apply"}
        start, end = new_span("s", complete=False), new_span("s")
        spool.add(start)
        await added(spool, new_span("two"))
        spool.add(end, start)
        await until(lambda: spool.degraded)
        assert await load(spool, 3, 1) == ["two"]
        assert await load(spool, 1, 3) == ["zero"]
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert pairs(rows_on_disk(tmp_path).complete_rows)[:2] == [(1, 3), (3, 3)]


async def test_writes_added_during_a_failing_transaction_are_kept(tmp_path: Path) -> None:
    """They are treated like those of the transaction itself."""
    file = GatedFile(tmp_path)
    async with running_spool(file) as spool:
        file.gate.clear()
        file.failing = {"apply"}
        first = asyncio.create_task(added(spool, new_span("first")))
        await file.under_way()
        meanwhile = new_span("meanwhile")
        second = asyncio.create_task(added(spool, meanwhile))
        await asyncio.sleep(0)
        file.gate.set()
        await asyncio.gather(first, second)
        assert await load(spool, row(meanwhile)) == ["meanwhile"]
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert pairs(rows_on_disk(tmp_path).complete_rows) == [(1, 3), (2, 3)]


async def test_the_start_of_an_end_in_memory_leaves_the_disk(tmp_path: Path) -> None:
    """The next process must not write a START whose END was accepted while the disk failed."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        starts = [new_span(id_, complete=False) for id_ in ("on disk", "unwritten")]
        await added(spool, starts[0])
        file.failing = {"apply"}
        await added(spool, starts[1])
        assert spool.degraded
        for start in starts:
            end = new_span(start.id)
            spool.add(end, start)
            assert end.stored is None
        assert await load(spool, row(starts[1])) == [Gone.UNREADABLE]
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert backlog([], []) == rows_on_disk(tmp_path)


async def test_writes_settled_while_degraded_are_not_sent_again(tmp_path: Path) -> None:
    """Settled, replaced, retired: every change reaches the disk once it works again."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        spans = [new_span(f"s{n}", complete=n > 1) for n in range(5)]
        await added(spool, *spans)
        file.failing = {"apply"}
        settle(spool, spans[2], 1)
        await until(lambda: spool.degraded)
        settle(spool, spans[2], 2)
        settle(spool, spans[3], 2)
        spool.replace(spans[0])
        spool.retire(spans[1])
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert backlog([], [(2, 3), (4, 1), (5, 3)]) == rows_on_disk(tmp_path)


async def test_after_recovery_settled_writes_are_deleted_again(tmp_path: Path) -> None:
    """Deletion needs no request: a spool full of settled writes would refuse them all."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        file.failing = {"apply"}
        settle(spool, one, 1)
        await until(lambda: spool.degraded)
        settle(spool, one, 2)
        await until(lambda: spool.status().errors > 20)  # long enough for its timer to have fired
        file.failing = set()
        await until(lambda: not spool.degraded)
        settle(spool, two, 1, 2)
        await until(lambda: spool.file.rows == 0)


async def test_load_waits_for_the_disk(tmp_path: Path) -> None:
    """It returns once the disk works again."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        span = new_span("s")
        await added(spool, span)
        file.failing = {"read", "open"}
        loading = asyncio.create_task(load(spool, row(span)))
        await until(lambda: spool.status().errors > 3)
        assert not loading.done()
        file.failing = set()
        assert await loading == ["s"]


async def test_a_disk_that_is_missing_at_the_start(tmp_path: Path) -> None:
    """The spool starts degraded, and reports the backlog once the disk works."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        await added(spool, new_span("left"))
    file = FlakyFile(tmp_path)
    file.failing, file.error = {"open"}, OSError(30, "Read-only file system")
    found: list[Backlog] = []
    async with running_spool(file, found.append) as spool:
        assert spool.degraded
        await added(spool, new_span("in memory"))
        file.failing = set()
        await until(lambda: not spool.degraded)
        assert [backlog([], [(1, 3)])] == found
        span = new_span("new")
        await added(spool, span)
        assert row(span) == 2


async def test_a_disk_that_returns_with_another_sidecar_on_it(tmp_path: Path) -> None:
    """At the start that is an error; later the spool stays degraded."""
    other = FlakyFile(tmp_path)
    other.open()
    file = FlakyFile(tmp_path)
    file.failing = {"open"}
    spool = await opened_spool(file)
    running = asyncio.create_task(spool.run())
    file.failing = set()
    await until(lambda: file.calls > 3 or running.done())
    assert not running.done(), running.exception()
    assert spool.degraded
    other.close()
    other.unlock()
    await until(lambda: not spool.degraded)
    running.cancel()
    await spool.close()


async def test_two_sidecars_in_one_directory(tmp_path: Path) -> None:
    """The second one fails, and the error names the directory."""
    async with running_spool(FlakyFile(tmp_path)):
        with pytest.raises(SpoolInUse, match=str(tmp_path)):
            await opened_spool(FlakyFile(tmp_path))


@pytest.mark.parametrize("body", [b"\x00\xff garbage", b"{}", b'{"id":1}'])
async def test_a_damaged_body(tmp_path: Path, body: bytes) -> None:
    """Only its own write is missing, and it leaves the disk once both lanes know that."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("one"), new_span("two"))
        connection = file._connected()
        connection.execute("UPDATE bodies SET body = ? WHERE seq = 1", (body,))
        for lane in (1, 2):
            assert await load(spool, 1, 2, lane=lane) == [Gone.UNREADABLE, "two"]
        await until(lambda: spool.file.rows == 1)


async def test_a_file_that_is_damaged_while_in_use(tmp_path: Path) -> None:
    """It is moved aside and a new one is created; new writes are on disk again."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("one"))
        file._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        file.failing, file.error = {"apply"}, sqlite3.DatabaseError("disk image is malformed")
        (tmp_path / "spool.db").write_bytes(b"garbage" * 9999)
        await added(spool, new_span("two"))
        file.failing = set()
        await until(lambda: not spool.degraded)
        assert spool.file.moved_aside == 1
        three = new_span("three")
        await added(spool, three)
        assert spool.file.rows >= 1
        # What was only in the damaged file is gone.
        assert [spool.is_written(number) for number in (1, 2, row(three))] == [False, True, True]


class LateErrorFile(FlakyFile):
    """A disk that fails after the commit, as a failed fsync does: the transaction lasts."""

    def apply(self, changes: Changes) -> None:
        SpoolFile.apply(self, changes)
        self._count_or_fail("apply")


async def test_a_commit_that_reports_an_error_may_have_lasted(tmp_path: Path) -> None:
    """Its rows are not inserted a second time, and the file with all others is kept."""
    file = LateErrorFile(tmp_path)
    with retry_s(0.02):
        async with running_spool(file) as spool:
            await added(spool, new_span("before"))
            file.failing = {"apply"}
            await added(spool, new_span("one"))
            assert spool.degraded
            file.failing = set()
            await until(lambda: not spool.degraded)
            await added(spool, new_span("after"))
            assert (spool.file.rows, spool.file.moved_aside) == (3, 0)
            assert await load(spool, 1, 2, 3) == ["before", "one", "after"]


class MeasuredFile(FlakyFile):
    """Keeps the largest size that its files had after a transaction."""

    largest = 0

    def apply(self, changes: Changes) -> None:
        super().apply(changes)
        self.largest = max(self.largest, files_size(self._directory))


@pytest.mark.parametrize(("size", "every"), [(300, 1), (2000, 2), (9000, 2)])
async def test_a_backlog_of_settled_rows_fits(tmp_path: Path, size: int, every: int) -> None:
    """What was settled while the disk failed is written without exceeding `max_bytes`."""
    file = MeasuredFile(tmp_path, 8 * 2**20)
    async with running_spool(file) as spool:
        spans = list[Span]()
        while spool.fits([span := new_span(f"s{len(spans)}", size=size)], span.size):
            spans.append(span)
            spool.add(span)
            if len(spans) % 100 == 0:
                await spool.commit()
        await spool.commit()
        file.failing = {"apply", "open"}
        await added(spool, new_span("fails"))
        assert spool.degraded
        for span in spans[::every]:
            settle(spool, span, *LANES)
        file.failing = set()
        await until(lambda: not spool.degraded)
        await until(lambda: file.rows <= len(spans) - len(spans[::every]) + 1)
    assert 0.75 * file.max_bytes < file.largest <= file.max_bytes
