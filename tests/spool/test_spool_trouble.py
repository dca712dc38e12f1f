"""The spool on a failing disk: it degrades to memory, reports it, and recovers."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from sidecar.spool.rows import Backlog, Changes, SpoolInUse
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import FlakyFile, GatedFile, added, new_span, retry_s, running_spool, until


@pytest.fixture(autouse=True)
def _short_retry() -> Iterator[None]:
    with retry_s(0.02):
        yield


def on_disk(directory: Path) -> Backlog:
    """The rows that the next process finds."""
    file = SpoolFile(str(directory), 16 * 2**20, sync_full=False)
    try:
        return file.open()
    finally:
        file.close()
        file.unlock()


async def test_a_failing_disk_is_reported(tmp_path: Path) -> None:
    """Commits still return; the error count, the log and `fits` show the degradation."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        file.failing = {"apply", "open"}
        with structlog.testing.capture_logs() as logs:
            await added(spool, new_span("one"))
            await until(lambda: spool.errors > 2)
        assert spool.degraded
        assert spool.fits(2**40)
        assert [(line["event"], line["durability"]) for line in logs] == [
            ("spool_degraded", "memory")
        ]
        span = new_span("two")
        await added(spool, span)
        assert span.seq == 0
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
        visited, (found,) = await spool.load([3, 1], 2**20)
        assert (visited, found.id) == (1, "two")
        visited, (found,) = await spool.load([1, 3], 2**20)
        assert (visited, found.id) == (1, "zero")
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert list(on_disk(tmp_path).complete_rows)[:2] == [(1, 3), (3, 3)]


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
        _, (found,) = await spool.load([meanwhile.seq], 1000)
        assert found.id == "meanwhile"
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert on_disk(tmp_path).complete_rows == [(1, 3), (2, 3)]


async def test_writes_settled_while_degraded_are_not_sent_again(tmp_path: Path) -> None:
    """Settled, replaced, retired: every change reaches the disk once it works again."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        spans = [new_span(f"s{n}", complete=n > 1) for n in range(5)]
        await added(spool, *spans)
        file.failing = {"apply"}
        spool.settled(spans[2], 1)
        await until(lambda: spool.degraded)
        spool.settled(spans[2], 2)
        spool.settled(spans[3], 2)
        spool.replace(spans[0])
        spool.retire(spans[1])
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert Backlog([], [(2, 3), (4, 1), (5, 3)]) == on_disk(tmp_path)


async def test_after_recovery_settled_writes_are_deleted_again(tmp_path: Path) -> None:
    """Deletion needs no request: a spool full of settled writes would refuse them all."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        file.failing = {"apply"}
        spool.settled(one, 1)
        await until(lambda: spool.degraded)
        spool.settled(one, 2)
        await until(lambda: spool.errors > 20)  # long enough for its timer to have fired
        file.failing = set()
        await until(lambda: not spool.degraded)
        spool.settled(two, 1)
        spool.settled(two, 2)
        await until(lambda: spool.rows == 0)


async def test_load_waits_for_the_disk(tmp_path: Path) -> None:
    """It returns once the disk works again."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        span = new_span("s")
        await added(spool, span)
        file.failing = {"bodies", "open"}
        loading = asyncio.create_task(spool.load([span.seq], 1000))
        await until(lambda: spool.errors > 3)
        assert not loading.done()
        file.failing = set()
        _, (found,) = await loading
        assert found.id == "s"


async def test_a_disk_that_is_missing_at_the_start(tmp_path: Path) -> None:
    """The spool starts degraded, and reports the backlog once the disk works."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        await added(spool, new_span("left"))
    file = FlakyFile(tmp_path)
    file.failing, file.error = {"open"}, OSError(30, "Read-only file system")
    found: list[Backlog] = []
    async with running_spool(file) as spool:
        spool.on_backlog = found.append
        assert spool.degraded
        await added(spool, new_span("in memory"))
        file.failing = set()
        await until(lambda: not spool.degraded)
        assert [Backlog([], [(1, 3)])] == found
        span = new_span("new")
        await added(spool, span)
        assert span.seq == 2


async def test_a_disk_that_returns_with_another_sidecar_on_it(tmp_path: Path) -> None:
    """At the start that is an error; later the spool stays degraded."""
    other = FlakyFile(tmp_path)
    other.open()
    file = FlakyFile(tmp_path)
    file.failing = {"open"}
    spool = Spool(file, 3)
    await spool.open()
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
            await Spool(FlakyFile(tmp_path), 3).open()


async def test_close_tries_the_disk_once_more(tmp_path: Path) -> None:
    """A disk that works again by then gets everything."""
    file = FlakyFile(tmp_path)
    with retry_s(3600):
        async with running_spool(file) as spool:
            file.failing = {"apply"}
            await added(spool, new_span("one"))
            file.failing = set()
    assert on_disk(tmp_path).complete_rows == [(1, 3)]


async def cancelled_in_a_transaction(
    file: GatedFile, running: asyncio.Task[None], spool: Spool
) -> None:
    """Cancel `run`, twice, in the transaction that waits at the gate; then close the spool."""
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0)
    closing = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    file.gate.set()
    await closing
    assert running.cancelled()


async def test_a_stop_between_the_parts_of_a_write_loses_none(tmp_path: Path) -> None:
    """A write of two transactions ends although the process stops in the first."""
    file = GatedFile(tmp_path)
    file.transaction_bytes = 1000
    spool = Spool(file, 3)
    await spool.open()
    running = asyncio.create_task(spool.run())
    file.gate.clear()
    spans = (new_span("one", size=900), new_span("two", size=900))
    posting = asyncio.create_task(added(spool, *spans))
    await file.under_way()
    await cancelled_in_a_transaction(file, running, spool)
    await posting
    assert (spool.rows, spool.moved_aside, spool.degraded) == (2, 0, False)


async def test_a_stop_during_recovery_keeps_the_file(tmp_path: Path) -> None:
    """A row that the interrupted recovery stored is not inserted a second time."""
    file = GatedFile(tmp_path)
    with retry_s(0.02):
        spool = Spool(file, 3)
        await spool.open()
        running = asyncio.create_task(spool.run())
        file.failing = {"apply"}
        await added(spool, new_span("one"))
        file.gate.clear()
        file.waiting.clear()
        file.failing = set()
        await file.under_way()
        await cancelled_in_a_transaction(file, running, spool)
    assert (spool.rows, spool.moved_aside, spool.degraded) == (1, 0, False)


async def test_close_on_a_failing_disk(tmp_path: Path) -> None:
    """It returns even if every call fails."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("one"))
        spool.add(new_span("two"))
        file.failing = {"apply", "shrink", "open"}
    assert on_disk(tmp_path).complete_rows == [(1, 3)]


@pytest.mark.parametrize("body", [b"\x00\xff garbage", b"{}", b'{"id":1}'])
async def test_a_damaged_body(tmp_path: Path, body: bytes) -> None:
    """Only its own write is missing from the result."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("one"), new_span("two"))
        connection = file._connected()
        connection.execute("UPDATE bodies SET body = ? WHERE seq = 1", (body,))
        visited, found = await spool.load([1, 2], 2**20)
        assert (visited, [span.id for span in found]) == (2, ["two"])


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
        assert spool.moved_aside == 1
        await added(spool, new_span("three"))
        assert spool.rows >= 1


async def test_a_bug_in_the_writer_does_not_keep_close_from_closing(tmp_path: Path) -> None:
    """`run` raises it; `close` still gives the directory back."""
    file = FlakyFile(tmp_path)
    spool = Spool(file, 3)
    await spool.open()
    running = asyncio.create_task(spool.run())
    file.failing, file.error = {"apply"}, RuntimeError("a bug")
    spool.add(new_span("one"))
    spool_commit = asyncio.create_task(spool.commit())
    with pytest.raises(RuntimeError, match="a bug"):
        await running
    await spool_commit
    file.failing = set()
    await spool.close()
    other = FlakyFile(tmp_path)
    other.open()
    other.close()


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
            assert (spool.rows, spool.moved_aside) == (3, 0)
            visited, spans = await spool.load([1, 2, 3], 2**20)
    assert (visited, [span.id for span in spans]) == (3, ["before", "one", "after"])
