"""The spool's file: SQLite in WAL mode, so that we need no crash recovery of our own (D16).

A row is one write: its JSON (`bodies`), its kind, and the lanes that have not settled it
(`writes.lanes`, one bit each). An open row stays until its END arrives, so that an END that omits
fields can be filled in even after a restart. It is then the base of the complete row: payloads that
the END did not change are stored only in the base, and both rows are deleted together. Bodies are
in a separate table, so that settling a write touches no payload page.

Every method blocks and may raise `sqlite3.Error` or `OSError`. `SpoolWriter` calls them on its
thread.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from sidecar.spool.rows import (
    BASE,
    COMPLETE,
    OPEN,
    Backlog,
    Changes,
    PackedRows,
    SpoolInUse,
    StoredRow,
)

VERSION = 1
PAGE = 16 * 1024
# Share of spool.max_bytes reserved for the write-ahead log; the database gets the rest.
LOG_SHARE = 0.25
MAX_LOG_BYTES = 128 * 2**20
# How full the log gets before a checkpoint: late, because the same pages are often rewritten.
CHECKPOINT_SHARE = 0.5
# Shares of the log for the largest row, and for the bodies of one transaction.
ROW_SHARE, TRANSACTION_SHARE = 0.25, 0.125

log = structlog.get_logger()


class SpoolFile:
    """The spool of one directory. `sync_full` syncs every transaction, to survive a power loss."""

    def __init__(self, directory: str, max_bytes: int, *, sync_full: bool) -> None:
        self._directory = Path(directory)
        self.max_bytes = max_bytes
        self._path = self._directory / "spool.db"
        self._log_bytes = int(min(MAX_LOG_BYTES, max_bytes * LOG_SHARE))
        self.max_row_bytes = int(self._log_bytes * ROW_SHARE)
        self.transaction_bytes = int(self._log_bytes * TRANSACTION_SHARE)
        self._pages = max(8, (max_bytes - self._log_bytes) // PAGE)
        self._sync = "FULL" if sync_full else "NORMAL"
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.moved_aside = 0
        self.rows = 0
        self.last_seq = 0  # highest row number when the file was opened
        self.used = 0  # bytes of the pages that hold rows
        self.size = 0  # bytes of the files, including the log

    @property
    def capacity(self) -> int:
        """Maximum of `used`."""
        return self._pages * PAGE

    def _lock_directory(self) -> None:
        if self._lock is not None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._directory / "spool.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise SpoolInUse(
                f"spool.path {self._directory} is in use by another sidecar: "
                "give each sidecar its own directory"
            ) from None
        self._lock = descriptor

    def open(self) -> Backlog:
        """Open or create the file, and return its rows. An unreadable file is moved aside.

        Raises `SpoolInUse` if another sidecar uses the directory.
        """
        self._lock_directory()
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # the disk is at fault, not the content
            self.close()
            self._move_aside(str(error))
            return self._open()

    def recreate(self, why: str) -> None:
        """Move aside a file that can be opened but no longer written to, and create a new one."""
        self.close()
        self._move_aside(why)
        self._open()

    def _open(self) -> Backlog:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=0,  # a cached statement keeps copies of the values bound to it
        )
        self._connection = connection
        for pragma in (
            f"page_size = {PAGE}",
            # Debian's SQLite overwrites freed pages with zeros by default.
            "secure_delete = OFF",
            "temp_store = MEMORY",  # the root file system is read-only
            "locking_mode = EXCLUSIVE",  # the directory is locked: no shared-memory file is needed
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
            raise sqlite3.DatabaseError(f"format version {version}, expected {VERSION}")
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
            PackedRows(connection.execute(query, (OPEN,))),
            PackedRows(connection.execute(query, (COMPLETE,))),
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
        """Apply `changes`, of at most `transaction_bytes`, in one transaction: all or none."""
        connection = self._connected()
        connection.execute("BEGIN")
        try:
            more = _execute(connection, changes)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self.rows += more
        self._measure(connection)

    def read(self, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        """Read rows until `max_bytes` is reached; None for one that is not there or unreadable."""
        connection = self._connected()
        found: list[StoredRow | None] = []
        size = 0
        query = (
            "SELECT w.seq, w.shared, b.born, b.body, base.body FROM writes w "
            "JOIN bodies b ON b.seq = w.seq LEFT JOIN bodies base ON base.seq = w.base "
            "WHERE w.seq = ?"
        )
        for seq in seqs:
            if size >= max_bytes:
                break
            try:
                row = connection.execute(query, (seq,)).fetchone()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                row = None  # a damaged page: this row is lost, others may be readable
            found.append(None if row is None else StoredRow(*row))
            if row is not None:
                size += len(row[3]) + len(row[4] or b"")
        return found

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
        """Return free pages to the file system. Rewrites the file, so use it when nearly empty."""
        connection = self._connected()
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._measure(connection)

    def close(self) -> None:
        """Close the file. The directory stays locked until `unlock` or the end of the process."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    def unlock(self) -> None:
        """Release the lock on the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the spool is closed")
        return self._connection


# Many rows per statement, because this thread releases the GIL for each statement and then waits
# for the event loop to give it back.
_ROWS_PER_INSERT = 64
_IN_SEQS = "seq IN (SELECT value FROM json_each(?))"
_SETTLED = f"{_IN_SEQS} AND lanes = 0 AND kind = {COMPLETE}"


def _execute(connection: sqlite3.Connection, changes: Changes) -> int:
    """Execute `changes`. Returns how many more rows there are.

    Rows that are there already are left alone: a commit that reported an error may have lasted.
    """
    execute = connection.execute
    more = 0
    for start in range(0, len(changes.added), _ROWS_PER_INSERT):
        rows = changes.added[start : start + _ROWS_PER_INSERT]
        values = ",".join(["(?,?,?,?,?)"] * len(rows))
        insert = f"INSERT OR IGNORE INTO writes VALUES {values}"
        more += execute(insert, [v for row in rows for v in row[:5]]).rowcount
        values = ",".join(["(?,?,?)"] * len(rows))
        parameters = [value for row in rows for value in (row.seq, row.born, row.body)]
        execute(f"INSERT OR IGNORE INTO bodies VALUES {values}", parameters)
    if bases := [row.base for row in changes.added if row.base]:
        execute(f"UPDATE writes SET kind = {BASE} WHERE {_IN_SEQS}", [_json(bases)])
    if changes.retired:
        execute(f"UPDATE writes SET kind = {COMPLETE} WHERE {_IN_SEQS}", [_json(changes.retired)])
    masks: dict[int, int] = {}
    for seq, bit in changes.settled:
        masks[seq] = masks.get(seq, 0) | bit
    for mask in set(masks.values()):
        seqs = [seq for seq, bits in masks.items() if bits == mask]
        execute(f"UPDATE writes SET lanes = lanes & ~? WHERE {_IN_SEQS}", [mask, _json(seqs)])
    deleted = changes.removed
    # A complete row that every lane has settled is deleted with its base. An open row stays until
    # its END arrives.
    if candidates := [*changes.retired, *masks]:
        query = f"SELECT seq, base FROM writes WHERE {_SETTLED}"
        settled = execute(query, [_json(candidates)])
        deleted = deleted + [seq for row in settled for seq in row if seq]
    if deleted:
        execute(f"DELETE FROM bodies WHERE {_IN_SEQS}", [_json(deleted)])
        more -= execute(f"DELETE FROM writes WHERE {_IN_SEQS}", [_json(deleted)]).rowcount
    return more


def _json(seqs: Iterable[int]) -> str:
    return f"[{','.join(map(str, seqs))}]"
