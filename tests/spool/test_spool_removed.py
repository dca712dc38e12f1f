"""The spool's files are removed or replaced while it runs, and what is left when it is empty."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from sidecar.spool.rows import Changes
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import (
    FlakyFile,
    GatedFile,
    added,
    backlog,
    changes,
    files_size,
    load,
    make_row,
    new_span,
    opened_spool,
    pairs,
    retry_s,
    row,
    rows_on_disk,
    running_spool,
    settle,
    stored,
    until,
)

Remove = Callable[[Path], None]


@pytest.fixture(autouse=True)
def _no_retry() -> Iterator[None]:
    with retry_s(3600):
        yield


def names(*removed: str) -> Remove:
    """Remove files by name."""

    def remove(directory: Path) -> None:
        for name in removed:
            (directory / name).unlink()

    return remove


def replace_by_garbage(directory: Path) -> None:
    """Another file has the name of the database."""
    (directory / "other").write_bytes(b"no database" * 9999)
    (directory / "other").replace(directory / "spool.db")


def replace_by_a_copy(directory: Path) -> None:
    """What a backup of the database would restore: without the log, it is older."""
    shutil.copy(directory / "spool.db", directory / "copy")
    (directory / "copy").replace(directory / "spool.db")


def recreate_directory(directory: Path) -> None:
    """Another, empty directory has its name."""
    shutil.rmtree(directory)
    directory.mkdir()


REMOVALS = {
    "the database": names("spool.db"),
    "the log": names("spool.db-wal"),
    "the lock": names("spool.lock"),
    "all files": names("spool.db", "spool.db-wal", "spool.lock"),
    "the directory": shutil.rmtree,
    "another directory": recreate_directory,
    "garbage": replace_by_garbage,
    "a copy": replace_by_a_copy,
}
removals = pytest.mark.parametrize("remove", REMOVALS.values(), ids=REMOVALS)


def left_by_a_kill(directory: Path, copy: Path) -> list[tuple[int, int]]:
    """The complete rows that the next process would find if this one were killed now."""
    shutil.copytree(directory, copy)
    return pairs(rows_on_disk(copy).complete_rows)


@removals
async def test_a_request_after_the_removal(tmp_path: Path, remove: Remove) -> None:
    """Its 202 waits for the new files, in which is everything that is owed."""
    file = FlakyFile(tmp_path / "a")
    async with running_spool(file) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        settle(spool, two, 1, 2)
        await until(lambda: file.rows == 1)
        remove(tmp_path / "a")
        with structlog.testing.capture_logs() as logs:
            await added(spool, new_span("three"))
        left = left_by_a_kill(tmp_path / "a", tmp_path / "b")
        assert left == [(1, 3), (3, 3)]
        events = [line["event"] for line in logs if line["event"] != "spool_moved_aside"]
        assert events == ["spool_degraded", "spool_recovered"]
        assert (spool.degraded, spool.status().errors) == (False, 1)
        assert await load(spool, 1, 3) == ["one", "three"]
        await added(spool, new_span("four"))
        assert spool.status().errors == 1
    assert pairs(rows_on_disk(tmp_path / "a").complete_rows) == [(1, 3), (3, 3), (4, 3)]


@removals
async def test_a_tick_after_the_removal(tmp_path: Path, remove: Remove) -> None:
    """Nothing has to be written for it to be noticed."""
    file = FlakyFile(tmp_path / "a")
    async with running_spool(file) as spool:
        await added(spool, new_span("one"))
        remove(tmp_path / "a")
        spool.tick()
        await until(lambda: spool.status().errors and not spool.degraded)
        assert left_by_a_kill(tmp_path / "a", tmp_path / "b") == [(1, 3)]


@removals
async def test_a_stop_after_the_removal(tmp_path: Path, remove: Remove) -> None:
    """The files are written again although nothing noticed before."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        await added(spool, new_span("one"))
        remove(tmp_path)
    assert rows_on_disk(tmp_path) == backlog([], [(1, 3)])


async def test_a_removal_during_a_transaction(tmp_path: Path) -> None:
    """Requests that arrive meanwhile wait for the new files as well."""
    file = GatedFile(tmp_path / "a")
    async with running_spool(file) as spool:
        file.gate.clear()
        first = asyncio.create_task(added(spool, new_span("one")))
        await file.under_way()
        second = asyncio.create_task(added(spool, new_span("two")))
        await asyncio.sleep(0)
        shutil.rmtree(tmp_path / "a")
        file.gate.set()
        await asyncio.gather(first, second)
        assert left_by_a_kill(tmp_path / "a", tmp_path / "b") == [(1, 3), (2, 3)]


async def test_files_that_can_not_be_written_again(tmp_path: Path) -> None:
    """It is tried again until it works; until then the connection keeps the content."""
    file = FlakyFile(tmp_path / "a")
    async with running_spool(file) as spool:
        await added(spool, new_span("one"))
        shutil.rmtree(tmp_path / "a")
        (tmp_path / "a").write_bytes(b"")  # in place of the directory
        with retry_s(0.02):
            await added(spool, new_span("two"))
            await until(lambda: spool.status().errors > 3)
            assert spool.degraded
            assert await load(spool, 1) == ["one"]
            (tmp_path / "a").unlink()
            await until(lambda: not spool.degraded)
        assert left_by_a_kill(tmp_path / "a", tmp_path / "b") == [(1, 3), (2, 3)]


async def test_another_sidecar_takes_the_directory(tmp_path: Path) -> None:
    """The lock was removed with the rest: this one waits until the other one has stopped."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("one"))
        recreate_directory(tmp_path)
        other = FlakyFile(tmp_path)
        other.open()
        with retry_s(0.02):
            await added(spool, new_span("two"))
            await until(lambda: spool.status().errors > 3)
            assert spool.degraded
            other.finish()
            other.unlock()
            await until(lambda: not spool.degraded)
    assert rows_on_disk(tmp_path) == backlog([], [(1, 3), (2, 3)])


class UnreadableFile(FlakyFile):
    """A file whose content can't be read once it is to be written again."""

    def _write_again(self, old: sqlite3.Connection) -> None:  # type: ignore[override]
        raise sqlite3.DatabaseError("database disk image is malformed")


async def test_content_that_can_not_be_read_any_more(tmp_path: Path) -> None:
    """It is given up as with a file that is moved aside; what is in memory is written."""
    async with running_spool(UnreadableFile(tmp_path)) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one)
        names("spool.db")(tmp_path)
        await added(spool, two)
        assert [spool.is_written(row(span)) for span in (one, two)] == [False, True]
        assert spool.lane_bytes(1) == spool.lane_bytes(2) == stored(two).bytes
        settle(spool, one, 1, 2)
        settle(spool, two, 1)
        assert (spool.lane_bytes(1), spool.lane_bytes(2)) == (0, stored(two).bytes)
    assert rows_on_disk(tmp_path) == backlog([], [(2, 2)])


async def test_files_that_vanish_while_the_disk_fails(tmp_path: Path) -> None:
    """The connection was closed: what was only there is known to be lost."""
    file = FlakyFile(tmp_path)
    with retry_s(0.02):
        async with running_spool(file) as spool:
            one, two = new_span("one"), new_span("two")
            await added(spool, one)
            file.failing = {"open"}
            file.close()
            await added(spool, two)
            assert spool.degraded
            names("spool.db")(tmp_path)
            file.failing = set()
            await until(lambda: not spool.degraded)
            assert [spool.is_written(row(span)) for span in (one, two)] == [False, True]
            assert spool.lane_bytes(1) == stored(two).bytes


@pytest.mark.parametrize("removed", ["spool.db", "spool.db-wal"])
def test_a_log_that_stays_is_not_read_with_the_new_file(tmp_path: Path, removed: str) -> None:
    """Its pages are those of the removed one, whose rows were elsewhere."""
    file = FlakyFile(tmp_path)
    file.open()
    for seq in range(1, 61):
        file.apply(changes(make_row(seq, bytes([seq]) * 20_000)))
    file.apply(changes(removed=range(1, 60, 2)))
    names(removed)(tmp_path)
    file.open()
    for _ in range(2):
        assert file._connected().execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = file.read(range(2, 61, 2), 2**30)
        assert [row and row.body[:1] for row in found] == [bytes([n]) for n in range(2, 61, 2)]
        file.close()
        file.open()
    file.close()


class FailingCopy(SpoolFile):
    """A disk on which the new file can't be opened."""

    fails = False

    def _connect(self) -> tuple[bool, object]:  # type: ignore[override]
        if self.fails:
            raise OSError(5, "Input/output error")
        return super()._connect()


def test_a_copy_that_can_not_be_opened_is_made_again(tmp_path: Path) -> None:
    """The connection is kept until then."""
    file = FailingCopy(str(tmp_path), 2**22, sync_full=True)
    file.open()
    file.apply(Changes([], [], [], [], ((1, "a"),)))
    names("spool.db")(tmp_path)
    file.fails = True
    for _ in range(2):
        with pytest.raises(sqlite3.OperationalError, match="can't be used"):
            file.open()
        assert file._connected().execute("SELECT * FROM accounts").fetchall() == [(1, "a")]
    file.fails = False
    file.open()
    assert (file.lost, file.moved_aside) == (0, 0)
    file.close()


# What is left of an empty spool.

SECRET = b"the prompt"


def content(directory: Path) -> bytes:
    """The bytes of all files."""
    return b"".join(path.read_bytes() for path in directory.iterdir())


async def test_an_empty_spool_leaves_no_content(tmp_path: Path) -> None:
    """Its files are deleted when it closes: the pages of deleted rows still have their content."""
    spans = [new_span(f"{SECRET.decode()} {n}", complete=bool(n % 2), size=5000) for n in range(9)]
    async with running_spool(FlakyFile(tmp_path)) as spool:
        await added(spool, *spans)
        assert SECRET in content(tmp_path)
        for span in spans:
            settle(spool, span, 1, 2)
            spool.retire(span)
        await until(lambda: spool.file.rows == 0)
        assert SECRET in content(tmp_path)
    assert files_size(tmp_path) == 0
    assert SECRET not in content(tmp_path)
    async with running_spool(FlakyFile(tmp_path)) as spool:
        await added(spool, new_span("new"))
        assert (spool.file.rows, spool.status().errors) == (1, 0)


async def test_a_spool_that_is_not_empty_is_kept(tmp_path: Path) -> None:
    """One row is enough."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        settle(spool, one, 1, 2)
    assert rows_on_disk(tmp_path) == backlog([], [(2, 3)])


async def test_an_empty_spool_of_a_killed_process(tmp_path: Path) -> None:
    """The next one deletes its content at the start, and what an interrupted copy left."""
    span = new_span(SECRET.decode(), size=5000)
    async with running_spool(FlakyFile(tmp_path / "a")) as spool:
        await added(spool, span)
        settle(spool, span, 1, 2)
        await until(lambda: spool.file.rows == 0)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "spool.db.copy").write_bytes(SECRET)
    assert SECRET in (tmp_path / "b" / "spool.db-wal").read_bytes()
    spool = await opened_spool(FlakyFile(tmp_path / "b"))
    assert SECRET not in content(tmp_path / "b")
    await spool.close()
