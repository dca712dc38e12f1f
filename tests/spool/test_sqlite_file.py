"""The spool's file: single cases; test_sqlite_file_model.py has the model."""

import fcntl
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import structlog

from sidecar.process.memory import Trimmer
from sidecar.spool import files
from sidecar.spool.files import is_locked
from sidecar.spool.rows import OPEN, Backlog, Changes, SpoolInUse, StoredRow
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import backlog, changes, files_size, make_row

MIB = 2**20


def opened(directory: Path, max_bytes: int = 4 * MIB, *, sync_full: bool = False) -> SpoolFile:
    """An open spool file."""
    file = SpoolFile(str(directory), max_bytes, sync_full=sync_full)
    file.open()
    return file


def reopened(file: SpoolFile, directory: Path) -> tuple[SpoolFile, Backlog]:
    """Close the file and open it again."""
    file.close()
    file.unlock()
    again = SpoolFile(str(directory), file.max_bytes, sync_full=False)
    return again, again.open()


def read(file: SpoolFile, *seqs: int, max_bytes: int = MIB) -> list[int | None]:
    """The numbers of the rows that were read; None for one that is not there."""
    return [None if row is None else row.seq for row in file.read(seqs, max_bytes)]


@pytest.mark.parametrize("sync_full", [False, True])
def test_rows_survive_the_process(tmp_path: Path, sync_full: bool) -> None:
    """A reopened file lists open and complete rows, each with its lanes."""
    file = opened(tmp_path, sync_full=sync_full)
    file.apply(changes(make_row(1, kind=OPEN), make_row(2, b"two", lanes=1)))
    file.apply(changes(make_row(3), settled=[(1, 1)]))
    file, found = reopened(file, tmp_path)
    assert backlog([(1, 2)], [(2, 1), (3, 3)]) == found
    assert file.rows == 3
    assert [StoredRow(2, 0, -1, 0, 0, 1.5, b"two", None)] == file.read([2], MIB)
    file.close()


def test_a_complete_row_is_deleted_when_its_last_lane_settles_it(tmp_path: Path) -> None:
    """It is not deleted before; an open row stays until its END arrives or is not expected."""
    file = opened(tmp_path)
    file.apply(changes(make_row(1), make_row(2, kind=OPEN)))
    file.apply(changes(settled=[(1, 1), (2, 1), (2, 2)]))
    assert file.rows == 2
    file.apply(changes(settled=[(1, 2)]))
    assert read(file, 1, 2) == [None, 2]
    file.apply(changes(retired=[2]))
    assert file.rows == 0
    assert read(file, 1, 2) == [None, None]
    file.close()


def test_an_end_and_its_start_are_deleted_together(tmp_path: Path) -> None:
    """The START is no longer a write of its own, but keeps payloads until the END is settled."""
    file = opened(tmp_path)
    file.apply(changes(make_row(1, b"start", kind=OPEN, lanes=0)))
    file.apply(changes(make_row(2, b"end", base=1, shared=1)))
    assert [StoredRow(2, 1, -1, 0, 0, 1.5, b"end", b"start")] == file.read([2], MIB)
    file, found = reopened(file, tmp_path)
    assert backlog([], [(2, 3)]) == found
    file.apply(changes(settled=[(2, 1), (2, 2)]))
    assert file.rows == 0
    assert read(file, 1, 2) == [None, None]
    file.close()


def test_reading_stops_at_max_bytes(tmp_path: Path) -> None:
    """At least one row is read, then no more than fit."""
    file = opened(tmp_path)
    file.apply(changes(*(make_row(seq, b"x" * 1000) for seq in (1, 2, 3, 5))))
    assert read(file, 1, 2, 3, 4, 5, max_bytes=1500) == [1, 2]
    assert read(file, 3, 4, 5, max_bytes=1500) == [3, None, 5]
    assert read(file, 1, 2, max_bytes=1) == [1]
    file.close()


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    """It is atomic: no row, no deletion and no counter changes."""
    file = opened(tmp_path)
    file.apply(changes(make_row(1)))
    used = file.used
    with pytest.raises(OverflowError):  # the settlement comes after the row
        file.apply(changes(make_row(2), settled=[(1, 2**70)]))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        file.apply(changes(make_row(3), make_row(4, b"x" * 5 * MIB), removed=[1]))
    assert (1, used) == (file.rows, file.used)
    file.apply(changes(make_row(2)))
    file, found = reopened(file, tmp_path)
    assert backlog([], [(1, 3), (2, 3)]) == found
    file.close()


def test_a_row_that_is_there_already_is_left_alone(tmp_path: Path) -> None:
    """A commit that reported an error may have lasted: its rows are not added a second time."""
    file = opened(tmp_path)
    start, end = make_row(1, b"start", kind=OPEN), make_row(2, b"end", base=1, shared=1)
    file.apply(changes(start, settled=[(1, 1)]))
    for _ in range(2):
        file.apply(changes(start, end, make_row(3), settled=[(3, 1)]))
        assert (file.rows, read(file, 1, 2, 3)) == (3, [1, 2, 3])
    file, found = reopened(file, tmp_path)
    assert backlog([], [(2, 3), (3, 2)]) == found
    file.close()


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 10_000, 50_000, 400_000])
def test_the_files_stay_below_the_limit(tmp_path: Path, size: int) -> None:
    """Filled, partly emptied, and filled again; the log counts as well."""
    limit = 4 * MIB
    file = opened(tmp_path, limit)
    sizes: list[int] = []
    first = 1

    def apply(transaction: Changes) -> None:
        file.apply(transaction)
        sizes.append(files_size(tmp_path))

    for last in range(1, 401):
        while file.used + size + size // 4 > file.capacity:
            done = range(first, min(first + 5, last))
            apply(changes(settled=[(seq, bit) for seq in done for bit in (1, 2)]))
            first = done.stop
        apply(changes(make_row(last, os.urandom(size))))
    assert max(sizes) <= limit
    file.close()


def test_deleted_rows_are_not_overwritten(tmp_path: Path) -> None:
    """A deletion logs a few pages, not every freed page (secure_delete)."""
    file = opened(tmp_path, 64 * MIB)
    file.apply(changes(*(make_row(seq, b"x" * 100_000) for seq in range(1, 101))))
    file._connected().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    file.apply(changes(settled=[(seq, bit) for seq in range(1, 101) for bit in (1, 2)]))
    assert (tmp_path / "spool.db-wal").stat().st_size < MIB
    file.close()


def test_shrink_returns_free_space(tmp_path: Path) -> None:
    """The files of an emptied spool are small again."""
    file = opened(tmp_path)
    file.apply(changes(*(make_row(seq, b"x" * 50_000) for seq in range(1, 31))))
    assert files_size(tmp_path) > MIB
    file.apply(changes(settled=[(seq, bit) for seq in range(1, 31) for bit in (1, 2)]))
    file.shrink()
    assert files_size(tmp_path) == file.size < 200_000
    file.close()


def test_only_the_owner_reads_the_files(tmp_path: Path) -> None:
    """Mode 0600 whatever the umask, for the log and the lock as well: prompts are private."""
    before = os.umask(0)
    try:
        file = opened(tmp_path / "new" / "spool")
        file.apply(changes(make_row(1)))
        modes = {
            path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new/spool").iterdir()
        }
    finally:
        os.umask(before)
    assert set(modes) >= {"spool.db", "spool.db-wal", "spool.lock"}
    assert {0o600} == set(modes.values())
    file.close()


def test_a_directory_has_one_sidecar(tmp_path: Path) -> None:
    """A second one fails, naming the directory, until the first unlocks it."""
    file = opened(tmp_path)
    with pytest.raises(SpoolInUse, match=str(tmp_path)):
        opened(tmp_path)
    file.close()
    file.unlock()
    opened(tmp_path).close()


def test_whoever_only_looks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sidecar check` holds the lock for a moment: a sidecar that starts then waits for it."""
    (tmp_path / "spool.lock").touch()
    descriptor = os.open(tmp_path / "spool.lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    monkeypatch.setattr(files, "sleep", lambda _: fcntl.flock(descriptor, fcntl.LOCK_UN))
    file = opened(tmp_path)
    assert is_locked(tmp_path)
    os.close(descriptor)
    file.close()
    file.unlock()
    assert not is_locked(tmp_path)


def test_a_lock_that_is_a_pipe(tmp_path: Path) -> None:
    """Whoever looks at it does not wait for its other end."""
    os.mkfifo(tmp_path / "spool.lock")
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("content", [b"no database" * 500, b"SQLite format 3\0" + b"\xff" * 999])
def test_a_file_that_is_not_a_database_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    """It is kept under another name, the log has it, and a new one is created."""
    (tmp_path / "spool.db").write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        file = opened(tmp_path)
    assert file.moved_aside == 1
    assert [line["event"] for line in logs] == ["spool_moved_aside"]
    (aside,) = tmp_path.glob("spool.db.unreadable-*")
    assert content == aside.read_bytes()
    file.apply(changes(make_row(1)))
    assert file.rows == 1
    file.close()


def test_another_version_is_moved_aside(tmp_path: Path) -> None:
    """A file of another format version is kept under another name."""
    file = opened(tmp_path)
    file.apply(changes(make_row(1)))
    file._connected().execute("PRAGMA user_version = 99")
    with structlog.testing.capture_logs() as logs:
        file, found = reopened(file, tmp_path)
    assert backlog([], []) == found
    assert "99" in logs[0]["reason"]
    file.close()


def test_a_kill_inside_a_transaction(tmp_path: Path) -> None:
    """Pages that reached the log before a commit are ignored at the next start."""
    file = opened(tmp_path / "one", 64 * MIB)
    file.apply(changes(make_row(1), make_row(2)))
    connection = file._connected()
    connection.execute("BEGIN")
    connection.execute("DELETE FROM writes WHERE seq = 1")
    for seq in range(3, 200):  # beyond the page cache
        connection.execute("INSERT INTO bodies VALUES (?, 0, ?)", (seq, b"x" * 50_000))
    assert (tmp_path / "one/spool.db-wal").stat().st_size > 2 * MIB
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    connection.execute("ROLLBACK")
    file.close()
    file = SpoolFile(str(tmp_path / "two"), 64 * MIB, sync_full=False)
    assert backlog([], [(1, 3), (2, 3)]) == file.open()
    assert file.read([3], MIB) == [None]
    file.close()


def test_a_power_loss_that_truncates_the_log(tmp_path: Path) -> None:
    """Wherever the log ends, the transactions before that point are complete."""
    file = opened(tmp_path / "file", 64 * MIB)
    for seq in range(1, 11):
        file.apply(changes(make_row(2 * seq, b"x" * 9000), make_row(2 * seq + 1), removed=[seq]))
    states = set()
    size = (tmp_path / "file/spool.db-wal").stat().st_size
    for cut in range(40):
        shutil.copytree(tmp_path / "file", tmp_path / str(cut))
        os.truncate(tmp_path / str(cut) / "spool.db-wal", size * cut // 40)
        torn = SpoolFile(str(tmp_path / str(cut)), 64 * MIB, sync_full=False)
        states.add(tuple(seq for seq, *_ in torn.open().complete_rows))
        assert torn.moved_aside == 0
        torn.close()
    file.close()
    expected = {tuple(s for s in range(2, 2 * n + 2) if s > n) for n in range(11)}
    assert states <= expected
    assert len(states) > 5


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_written_rows_do_not_stay_in_memory(tmp_path: Path) -> None:
    """However many rows a transaction has, their bodies are freed: 120 MiB in total here."""

    def resident() -> int:
        trimmer = Trimmer()
        trimmer.observe(MIB * 2**10)
        trimmer.observe(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    file = opened(tmp_path, 64 * MIB)
    body = b"x" * MIB
    before = resident()
    for count in range(1, 16):
        rows = [make_row(number, body) for number in range(1, count + 1)]
        file.apply(changes(*rows))
        file.apply(changes(removed=[row.seq for row in rows]))
    assert resident() - before < 16 * MIB
    file.close()
