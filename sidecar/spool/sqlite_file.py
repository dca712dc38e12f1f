"""The spool's file: SQLite in WAL mode, so that we need no crash recovery of our own (D16).

A row is one write: its JSON, its kind, and the lanes that have not settled it. An open row stays
until its END arrives, so that an END that omits fields can be filled in even after a restart. It is
then the base of the complete row: payloads that the END did not change are stored only in the base,
and both rows are deleted together.

Every method blocks and may raise `sqlite3.Error` or `OSError`. `SpoolWriter` calls them on its
thread.
"""

import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from sidecar.spans.heads import Wanted
from sidecar.spool import schema, search
from sidecar.spool.files import DirectoryLock, named, sync
from sidecar.spool.pages import PAGE
from sidecar.spool.rows import Backlog, Changes, FilesGone, FoundRow, StoredRow
from sidecar.spool.statements import content_at_fault, execute, transaction

# Share of spool.max_bytes reserved for the write-ahead log; the database gets the rest.
LOG_SHARE = 0.25
MAX_LOG_BYTES = 128 * 2**20
# How full the log gets before a checkpoint: late, because the same pages are often rewritten.
CHECKPOINT_SHARE = 0.5
# Shares of the log for the largest row, and for the bodies of one transaction.
ROW_SHARE, TRANSACTION_SHARE = 0.25, 0.125

_WITH_BODY = (
    "SELECT w.seq, w.shared, w.taken, w.account, w.bytes, b.born, b.body, base.body FROM writes w "
    "JOIN bodies b ON b.seq = w.seq LEFT JOIN bodies base ON base.seq = w.base WHERE w.seq = ?"
)
_WITHOUT_BODY = "SELECT seq, shared, taken, account, bytes, 0.0, x'', x'' FROM writes WHERE seq = ?"

# A log that is not the one of the connection.
_UNKNOWN = (0, 0)

log = structlog.get_logger()


class SpoolFile:
    """The spool of one directory. `sync_full` syncs every transaction, to survive a power loss."""

    def __init__(self, directory: str, max_bytes: int, *, sync_full: bool) -> None:
        self._directory = Path(directory)
        self.max_bytes = max_bytes
        self._path = self._directory / "spool.db"
        self._log_path = self._directory / "spool.db-wal"
        self._copy_path = self._directory / "spool.db.copy"
        self._log_bytes = int(min(MAX_LOG_BYTES, max_bytes * LOG_SHARE))
        self.max_row_bytes = int(self._log_bytes * ROW_SHARE)
        self.transaction_bytes = int(self._log_bytes * TRANSACTION_SHARE)
        # A row and its base may be on four pages of their own. That fills what a checkpoint leaves
        # of the log.
        self.transaction_rows = max(1, self.transaction_bytes // PAGE)
        self._pages = max(8, (max_bytes - self._log_bytes) // PAGE)
        self._sync = "FULL" if sync_full else "NORMAL"
        self._connection: sqlite3.Connection | None = None
        self._lock = DirectoryLock(self._directory)
        # What the paths of the database and its log named when it was opened.
        self._opened: list[tuple[int, int] | None] = []
        self._was_open = False
        self.accounts: dict[int, str] = {}  # those that this process has named
        self.moved_aside = 0
        self.lost = 0  # how often a file was left behind whose rows can't be read
        self.rows = 0
        self.last_seq = 0  # highest row number when the file was opened
        self.owed: list[tuple[int, int]] = []  # lanes and bytes when it was opened
        self.used = 0  # bytes of the pages that hold rows
        self.size = 0  # bytes of the files, including the log

    @property
    def capacity(self) -> int:
        """Maximum of `used`."""
        return self._pages * PAGE

    def open(self) -> Backlog:
        """Open the file, create it, or open it again, and return its rows.

        An unreadable file is moved aside. Files that were removed while open are written again.
        Raises `SpoolInUse` if another sidecar uses the directory.
        """
        self._lock.acquire()
        try:
            if self._connection is not None and self._named_now() != self._opened:
                return self._write_again(self._connection)
            self.close()
            return self._open()
        except sqlite3.DatabaseError as error:
            if not content_at_fault(error):
                raise
            return self._leave_behind(str(error))

    def recreate(self, why: str) -> None:
        """Move aside a file that can be opened but no longer written to, and create a new one."""
        self._leave_behind(why)

    def _leave_behind(self, why: str) -> Backlog:
        self.close()
        self._move_aside(why)
        self.lost += 1
        return self._open()

    def _open(self) -> Backlog:
        with suppress(OSError):
            self._copy_path.unlink(missing_ok=True)
        created, backlog = self._connect()
        self.lost += created and self._was_open  # it was removed while it was closed
        self._was_open = True
        if not (created or self.rows):
            # The pages of deleted rows still have their content.
            with suppress(OSError):
                self._delete()
            _, backlog = self._connect()
        return backlog

    def _connect(self) -> tuple[bool, Backlog]:
        """Connect to the file. Returns whether it was created, and its rows."""
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=0,  # a cached statement keeps copies of the values bound to it
        )
        try:
            created = self._set_up(connection)
            backlog = schema.backlog(connection)
            self.owed = schema.owed(connection)
            totals = connection.execute("SELECT count(*), coalesce(max(seq), 0) FROM writes")
            self.rows, self.last_seq = totals.fetchone()
            self._measure(connection)
            self._opened = self._named_now()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return created, backlog

    def _set_up(self, connection: sqlite3.Connection) -> bool:
        for pragma in (
            f"page_size = {PAGE}",
            # Debian's SQLite overwrites freed pages with zeros by default.
            "secure_delete = OFF",
            "temp_store = MEMORY",  # the root file system is read-only
            "locking_mode = EXCLUSIVE",  # the directory is locked: no shared-memory file is needed
            "journal_mode = WAL",
            f"synchronous = {self._sync}",
            "cache_size = -2048",
            f"wal_autocheckpoint = {max(1, int(self._log_bytes * CHECKPOINT_SHARE) // PAGE)}",
            f"journal_size_limit = {self._log_bytes // 2}",
        ):
            connection.execute(f"PRAGMA {pragma}")
        created = schema.prepare(connection)
        # Set only now, because an upgrade must not fail for want of room.
        connection.execute(f"PRAGMA max_page_count = {self._pages}")
        schema.renumber(connection, self.accounts.copy())
        return created

    def _write_again(self, old: sqlite3.Connection) -> Backlog:
        """Write what only the connection has to a new file, and continue with that one."""
        (rows,) = old.execute("SELECT count(*) FROM writes").fetchone()
        self._copy_path.unlink(missing_ok=True)
        os.close(os.open(self._copy_path, os.O_RDWR | os.O_CREAT, 0o600))
        old.execute("VACUUM INTO ?", (str(self._copy_path),))
        sync(self._copy_path)
        if named(self._path) not in (None, *self._opened[:1]):
            self._move_aside("replaced by another file")
        self._log_path.unlink(missing_ok=True)
        self._copy_path.replace(self._path)
        self._opened = [named(self._path), _UNKNOWN]  # if it fails now, nobody else replaced it
        sync(self._directory)
        try:
            _, backlog = self._connect()
        except (sqlite3.Error, OSError) as error:
            raise sqlite3.OperationalError(f"the new file can't be used: {error}") from error
        if self.rows != rows:
            self.close()
            self._connection, self._opened[1] = old, _UNKNOWN
            raise sqlite3.OperationalError("the new file does not have every row")
        # It removes no file of the new one: SQLite sees that its own is not at that path any more.
        old.close()
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
        """Apply `changes` in one transaction: all or none. `Changes.split` keeps it small.

        Raises `FilesGone` if they were written to files that the next process will not find.
        """
        connection = self._connected()
        with transaction(connection):
            more = execute(connection, changes)
        self.rows += more
        self._measure(connection)
        if self._named_now() != self._opened or not self._lock.is_held:
            raise FilesGone(f"files in {self._directory} were removed or replaced")

    def _named_now(self) -> list[tuple[int, int] | None]:
        return [named(self._path), named(self._log_path)]

    def read(self, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        """Read rows until `max_bytes` is reached; None for one that is not there or unreadable."""
        found: list[StoredRow | None] = []
        size = 0
        for seq in seqs:
            if size >= max_bytes:
                break
            # If a page of the body is damaged, what the lanes owe for it is still known.
            row = self._row(_WITH_BODY, seq) or self.without_body(seq)
            found.append(row)
            if row is not None:
                size += len(row.body) + len(row.base or b"")
        return found

    def without_body(self, seq: int) -> StoredRow | None:
        """Read a row except for its body."""
        return self._row(_WITHOUT_BODY, seq)

    def find(self, wanted: Wanted, last: int) -> tuple[list[FoundRow], int | None]:
        """`search.piece`."""
        return search.piece(self._connected(), wanted, last)

    def _row(self, query: str, seq: int) -> StoredRow | None:
        try:
            row = self._connected().execute(query, (seq,)).fetchone()
        except sqlite3.DatabaseError as error:
            if not content_at_fault(error):
                raise
            return None  # a damaged page: this row is lost, others may be readable
        return None if row is None else StoredRow(*row)

    def _measure(self, connection: sqlite3.Connection) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        self.used = (pages - free) * PAGE
        self.size = pages * PAGE + self._log_size()

    def _log_size(self) -> int:
        try:
            return self._log_path.stat().st_size
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

    def finish(self) -> None:
        """Close the file for good. It is deleted if no row is left, so that no content is."""
        connection = self._connection
        if connection is not None and not connection.execute("SELECT 1 FROM writes").fetchone():
            self._delete()
        self.close()

    def _delete(self) -> None:
        self.close()
        self._log_path.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Release the lock on the directory."""
        self._lock.release()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("the spool is closed")
        return self._connection
