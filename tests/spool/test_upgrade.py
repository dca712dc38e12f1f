"""A file of format version 1 is upgraded in place, or stays as it is.

test_previous_version.py has what the whole sidecar delivers from one.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.spool import schema
from sidecar.spool.pages import PAGE, row_bytes
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import backlog

MAX_BYTES = 4 * 2**20
OLD = Path(__file__).with_name("version_1.sql").read_text(encoding="utf-8")
TABLES = OLD[OLD.index("PRAGMA page_size") : OLD.index("-- Retired")]
INSERT = "INSERT INTO bodies VALUES (?, 1e9, ?)"


def old_file(directory: Path, bodies: dict[int, bytes], statements: str = "") -> None:
    """A file of version 1 with complete rows."""
    directory.mkdir(exist_ok=True)
    with closing(sqlite3.connect(directory / "spool.db", isolation_level=None)) as file:
        file.executescript(TABLES + "COMMIT;")
        file.execute("BEGIN")
        for seq, body in bodies.items():
            file.execute("INSERT INTO writes VALUES (?, 1, 3, 0, 0)", (seq,))
            file.execute(INSERT, (seq, body))
        file.execute("COMMIT")
        file.executescript(statements)


def opened(directory: Path) -> SpoolFile:
    """The file, opened by the current version."""
    file = SpoolFile(str(directory), MAX_BYTES, sync_full=False)
    file.open()
    return file


def test_the_bytes_of_old_rows_are_computed(tmp_path: Path) -> None:
    """Those of a base count for the row that needs it; every lane may have taken an old row."""
    old_file(
        tmp_path,
        {1: b"x" * 9000, 2: b"y" * 500, 3: b"z" * 700},
        "UPDATE writes SET kind = 2 WHERE seq = 1; UPDATE writes SET base = 1 WHERE seq = 2;"
        "UPDATE writes SET lanes = 1 WHERE seq = 3;",
    )
    file = opened(tmp_path)
    assert dict(file.owed) == {3: row_bytes(9000) + row_bytes(500), 1: row_bytes(700)}
    (row,) = file.read([2], 1)
    assert row is not None
    assert (row.taken, row.account, row.size) == (-1, 0, row_bytes(9000) + row_bytes(500))
    assert row.base == b"x" * 9000
    file.close()


@pytest.mark.parametrize("operations", [10, 50, 100, 200, 300, 400, 600, 1000])
def test_an_interrupted_upgrade_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: int
) -> None:
    """Whatever the process had done when it was killed, the next one finds everything."""
    old_file(tmp_path / "a", dict.fromkeys(range(1, 40), b"x" * 3000))
    prepare = schema.prepare

    def killed(connection: sqlite3.Connection) -> bool:
        def copy() -> int:
            connection.set_progress_handler(None, 0)
            shutil.copytree(tmp_path / "a", tmp_path / "b")
            return 0

        connection.set_progress_handler(copy, operations)
        return prepare(connection)

    monkeypatch.setattr(schema, "prepare", killed)
    opened(tmp_path / "a").close()
    monkeypatch.undo()
    file = SpoolFile(str(tmp_path / "b"), MAX_BYTES, sync_full=False)
    assert file.open() == backlog([], [(seq, 3) for seq in range(1, 40)])
    assert file.moved_aside == 0
    file.close()


def test_an_upgrade_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is as it was, for this version and for the one that wrote it."""
    old_file(tmp_path, {1: b"{}"})

    with monkeypatch.context() as patched:
        patched.setattr(schema, "row_bytes", None)  # called for each row, after the other steps
        upgraded = SpoolFile(str(tmp_path), MAX_BYTES, sync_full=False)
        with pytest.raises(sqlite3.OperationalError, match="user-defined function"):
            upgraded.open()
    with closing(sqlite3.connect(tmp_path / "spool.db")) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (1,)
        assert file.execute("SELECT * FROM writes").fetchall() == [(1, 1, 3, 0, 0)]
    assert upgraded.open() == backlog([], [(1, 3)])
    upgraded.close()


def test_a_full_file_is_upgraded(tmp_path: Path) -> None:
    """Its rows become longer, although none would fit any more."""
    limit = SpoolFile(str(tmp_path), MAX_BYTES, sync_full=False).capacity
    count = limit // 330
    old_file(tmp_path, dict.fromkeys(range(1, count + 1), b"x" * 300))
    assert (tmp_path / "spool.db").stat().st_size >= limit
    upgraded = opened(tmp_path)
    assert (upgraded.rows, upgraded.moved_aside) == (count, 0)
    upgraded.close()


def test_an_old_file_with_a_damaged_page(tmp_path: Path) -> None:
    """Only the rows on that page are lost, as in a file of this version."""
    old_file(tmp_path, {seq: os.urandom(9000) for seq in range(1, 100)})
    with (tmp_path / "spool.db").open("r+b") as file:
        file.seek(50 * PAGE)
        file.write(b"\xff" * 100)
    upgraded = opened(tmp_path)
    assert (upgraded.rows, upgraded.moved_aside) == (99, 0)
    found = upgraded.read(range(1, 100), 2**30)
    assert [row is not None and len(row.body) for row in found].count(9000) == 98
    ((lanes, owed),) = upgraded.owed
    assert (lanes, owed > 99 * 9000) == (3, True)
    upgraded.close()
