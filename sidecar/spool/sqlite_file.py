"""The spool's file: SQLite in WAL mode, on one thread. Recovery is not our code (D16).

A row is one write: its JSON (`bodies`), its kind, and the lanes that still owe it to their
upstream (`writes.lanes`, a bit each). An open row stays until its END comes, so that a thin END
after a restart is still completed. From then on it is the complete row's base: payloads that the
END did not change are in the base only, and both go together. Bodies have a table of their own, so
that settling a write touches no page of payload.

Every method blocks; `spool.Spool` calls them on its thread. `sqlite3.Error` and `OSError` come out.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from sidecar.spool.rows import BASE, COMPLETE, OPEN, Backlog, Changes, Found, Heads

VERSION = 1
PAGE = 16 * 1024
# Of spool.max_bytes, what the write-ahead log may take; the rest is the database's.
LOG_SHARE = 0.25
MAX_LOG_BYTES = 128 * 2**20
# Of that, when the log is written back: seldom, because pages are used over and over before.
CHECKPOINT_SHARE = 0.5
# Of that, how large one row may be, and about one transaction.
ROW_SHARE, TRANSACTION_SHARE = 0.25, 0.125

log = structlog.get_logger()


class SpoolInUse(Exception):
    """Another sidecar works in this directory."""


class SpoolFile:
    """One directory's spool. `sync_full`: every transaction is on the platter before it counts."""

    def __init__(self, directory: str, max_bytes: int, *, sync_full: bool) -> None:
        self._directory = Path(directory)
        self.max_bytes = max_bytes
        self._path = self._directory / "spool.db"
        self._log_bytes = int(min(MAX_LOG_BYTES, max_bytes * LOG_SHARE))
        self.largest = int(self._log_bytes * ROW_SHARE)
        self.transaction_bytes = int(self._log_bytes * TRANSACTION_SHARE)
        self._pages = max(8, (max_bytes - self._log_bytes) // PAGE)
        self._sync = "FULL" if sync_full else "NORMAL"
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.moved_aside = 0
        self.rows = 0
        self.last_seq = 0  # when it was opened
        self.used = 0  # bytes of the pages that hold rows
        self.size = 0  # bytes of the files, log and all

    @property
    def room(self) -> int:
        """Bytes that rows may take at most."""
        return self._pages * PAGE

    def _lock_directory(self) -> None:
        if self._lock is not None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "spool.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SpoolInUse(f"spool.path {self._directory}: another sidecar uses it") from None
        self._lock = descriptor

    def open(self) -> Backlog:
        """Open or make the file, and say what it holds; one that can't be read is moved aside.

        Raises `SpoolInUse` when another sidecar has the directory.
        """
        self._lock_directory()
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # the disk, not the content
            self.close()
            self._move_aside(str(error))
            return self._open()

    def start_afresh(self, why: str) -> None:
        """Move a file aside that can be opened but not written any more, and begin another."""
        self.close()
        self._move_aside(why)
        self._open()

    def _open(self) -> Backlog:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=0,  # a kept statement keeps copies of what was bound to it
        )
        self._connection = connection
        for pragma in (
            f"page_size = {PAGE}",
            # Debian's SQLite would write zeros over every page that becomes free.
            "secure_delete = OFF",
            "temp_store = MEMORY",  # the root file system is read-only
            "locking_mode = EXCLUSIVE",  # we hold the directory's lock: no shared memory file
            "journal_mode = WAL",
            f"synchronous = {self._sync}",
            "cache_size = -2048",
            f"max_page_count = {self._pages}",
            f"wal_autocheckpoint = {max(1, int(self._log_bytes * CHECKPOINT_SHARE) // PAGE)}",
            f"journal_size_limit = {self._log_bytes // 2}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and version != VERSION:
            raise sqlite3.DatabaseError(f"its version is {version}, ours {VERSION}")
        if not tables:
            connection.executescript(
                "BEGIN;"
                "CREATE TABLE writes (seq INTEGER PRIMARY KEY, kind INTEGER, lanes INTEGER,"
                " base INTEGER, shared INTEGER);"
                "CREATE TABLE bodies (seq INTEGER PRIMARY KEY, born REAL, body BLOB);"
                f"PRAGMA user_version = {VERSION};"
                "COMMIT;"
            )
        query = "SELECT seq, lanes FROM writes WHERE kind = ? ORDER BY seq"
        backlog = Backlog(
            Heads(connection.execute(query, (OPEN,))),
            Heads(connection.execute(query, (COMPLETE,))),
        )
        totals = connection.execute("SELECT count(*), coalesce(max(seq), 0) FROM writes")
        self.rows, self.last_seq = totals.fetchone()
        self._measure(connection)
        return backlog

    def _move_aside(self, why: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        for suffix in ("", "-wal", "-shm"):
            path = self._path.with_name(self._path.name + suffix)
            if path.exists():
                path.replace(path.with_name(f"{path.name}.unreadable-{stamp}"))
        self.moved_aside += 1
        log.error("spool_moved_aside", path=str(self._path), stamp=stamp, reason=why)

    def apply(self, changes: Changes) -> None:
        """Do all of it in one transaction, or none; keep it within `transaction_bytes`."""
        connection = self._connected()
        connection.execute("BEGIN")
        try:
            deleted = _write(connection, changes)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.rows += len(changes.added) - deleted
        self._measure(connection)

    def bodies(self, seqs: Iterable[int], max_bytes: int) -> tuple[int, list[Found]]:
        """How many of `seqs` were looked at until `max_bytes`, and the rows found among them."""
        connection = self._connected()
        found: list[Found] = []
        looked = size = 0
        query = (
            "SELECT w.seq, w.shared, b.born, b.body, base.body FROM writes w "
            "JOIN bodies b ON b.seq = w.seq LEFT JOIN bodies base ON base.seq = w.base "
            "WHERE w.seq = ?"
        )
        for seq in seqs:
            if size >= max_bytes:
                break
            looked += 1
            try:
                row = connection.execute(query, (seq,)).fetchone()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                row = None  # a page that the disk changed: this row is gone, others are not
            if row is not None:
                found.append(Found(*row))
                size += len(row[3]) + len(row[4] or b"")
        return looked, found

    def _measure(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        self.used = (pages - free) * PAGE
        self.size = pages * PAGE + self._log_size()

    def _log_size(self) -> int:
        try:
            return self._path.with_name(self._path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def shrink(self) -> None:
        """Give the space of rows that went back to the file system; for a spool nearly empty."""
        connection = self._connected()
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._measure(connection)

    def close(self) -> None:
        """Close the file; the lock stays until the process ends or `unlock`."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def unlock(self) -> None:
        """Let another sidecar have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the spool is closed")
        return self._connection


# Few statements of many rows each: at every statement this thread gives up the interpreter's lock,
# and has to wait for it behind the event loop.
_ROWS_AT_ONCE = 64
_THESE = "seq IN (SELECT value FROM json_each(?))"
_DONE = f"{_THESE} AND lanes = 0 AND kind = {COMPLETE}"


def _write(connection: sqlite3.Connection, changes: Changes) -> int:
    """Write `changes`; how many rows went."""
    execute = connection.execute
    for start in range(0, len(changes.added), _ROWS_AT_ONCE):
        rows = changes.added[start : start + _ROWS_AT_ONCE]
        values = ",".join(["(?,?,?,?,?)"] * len(rows))
        execute(f"INSERT INTO writes VALUES {values}", [v for row in rows for v in row[:5]])
        values = ",".join(["(?,?,?)"] * len(rows))
        parameters = [value for row in rows for value in (row.seq, row.born, row.body)]
        execute(f"INSERT INTO bodies VALUES {values}", parameters)
    if bases := [row.base for row in changes.added if row.base]:
        execute(f"UPDATE writes SET kind = {BASE} WHERE {_THESE}", [_json(bases)])
    if changes.retired:
        execute(f"UPDATE writes SET kind = {COMPLETE} WHERE {_THESE}", [_json(changes.retired)])
    masks: dict[int, int] = {}
    for seq, bit in changes.settled:
        masks[seq] = masks.get(seq, 0) | bit
    for mask in set(masks.values()):
        seqs = [seq for seq, settled in masks.items() if settled == mask]
        execute(f"UPDATE writes SET lanes = lanes & ~? WHERE {_THESE}", [mask, _json(seqs)])
    gone = changes.removed
    # Settled everywhere: a complete row goes, and its base; an open one waits for its END.
    if done := [*changes.retired, *masks]:
        query = f"SELECT seq, base FROM writes WHERE {_DONE}"
        gone = gone + [seq for row in execute(query, [_json(done)]) for seq in row if seq]
    if not gone:
        return 0
    execute(f"DELETE FROM bodies WHERE {_THESE}", [_json(gone)])
    return execute(f"DELETE FROM writes WHERE {_THESE}", [_json(gone)]).rowcount


def _json(seqs: Iterable[int]) -> str:
    return f"[{','.join(map(str, seqs))}]"
