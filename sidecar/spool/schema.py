"""The tables of a spool's file, and the files of earlier versions.

`writes`: `kind`, see rows.py; `lanes` that have not settled the row and those that have `taken` it,
one bit each; its `base`, with the payloads in `shared`; its `account`; the `bytes` that it and its
base take. `bodies`: its JSON, and the loop time at which it was accepted (`born`; in files of
version 1, Unix time). Bodies are in a separate table, so that settling a write touches no payload
page.
"""

import sqlite3
from collections.abc import Mapping
from contextlib import suppress

from sidecar.spool.pages import PAGE, row_bytes
from sidecar.spool.rows import BASE, COMPLETE, OPEN, Backlog, PackedRows
from sidecar.spool.statements import content_at_fault, transaction

VERSION = 2
# The number in `accounts` of the id that was configured when rows came without an account: theirs
# is 0, which has no id then.
CONFIGURED = 255

_WRITES = (
    "CREATE TABLE writes (seq INTEGER PRIMARY KEY, kind INTEGER, lanes INTEGER, base INTEGER,"
    " shared INTEGER, taken INTEGER, account INTEGER, bytes INTEGER)"
)
_BODIES = "CREATE TABLE bodies (seq INTEGER PRIMARY KEY, born REAL, body BLOB)"
_ACCOUNTS = "CREATE TABLE accounts (number INTEGER PRIMARY KEY, id TEXT)"
_ADDED_IN_2 = (
    "ALTER TABLE writes ADD COLUMN taken INTEGER DEFAULT -1",
    "ALTER TABLE writes ADD COLUMN account INTEGER DEFAULT 0",
    "ALTER TABLE writes ADD COLUMN bytes INTEGER DEFAULT 0",
    _ACCOUNTS,
)


def prepare(connection: sqlite3.Connection) -> bool:
    """Create the tables, or upgrade those of version 1. Returns whether they were created.

    Raises `DatabaseError` if the file is of another version.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and version == VERSION:
        return False
    if tables and version != 1:
        raise sqlite3.DatabaseError(f"format version {version}, expected {VERSION}")
    if not tables:
        _execute(connection, _WRITES, _BODIES, _ACCOUNTS)
        return True
    connection.create_function("row_bytes", 1, row_bytes)
    size = "SELECT row_bytes(length(body)) FROM bodies WHERE bodies.seq ="
    try:
        exact = f"coalesce(({size} writes.seq), 0) + coalesce(({size} writes.base), 0)"
        _execute(connection, *_ADDED_IN_2, f"UPDATE writes SET bytes = {exact}")
    except sqlite3.DatabaseError as error:
        if not content_at_fault(error):
            raise
        # A damaged page costs the rows on it, not those of the whole file.
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        average = f"{pages * PAGE} / (SELECT count(*) FROM writes)"
        _execute(connection, *_ADDED_IN_2, f"UPDATE writes SET bytes = {average}")
    return False


def _execute(connection: sqlite3.Connection, *statements: str) -> None:
    with transaction(connection):
        for statement in (*statements, f"PRAGMA user_version = {VERSION}"):
            connection.execute(statement)


def backlog(connection: sqlite3.Connection) -> Backlog:
    """All rows, and the accounts that they use; the others are dropped."""
    query = "SELECT seq, lanes, account FROM writes WHERE kind = ? ORDER BY seq"
    used = f"number IN (SELECT account FROM writes UNION SELECT {CONFIGURED})"
    accounts = dict(connection.execute(f"SELECT number, id FROM accounts WHERE {used}"))
    with suppress(sqlite3.OperationalError):  # a full disk can still be read
        connection.execute(f"DELETE FROM accounts WHERE NOT {used}")
    accounts.pop(CONFIGURED, None)
    open_rows, complete_rows = (
        PackedRows(connection.execute(query, (kind,))) for kind in (OPEN, COMPLETE)
    )
    return Backlog(open_rows, complete_rows, accounts)


def owed(connection: sqlite3.Connection) -> list[tuple[int, int]]:
    """Pairs of lanes and the bytes that exactly these have not settled."""
    query = "SELECT lanes, sum(bytes) FROM writes WHERE kind <> ? GROUP BY lanes"
    return connection.execute(query, (BASE,)).fetchall()


def renumber(connection: sqlite3.Connection, named: Mapping[int, str]) -> None:
    """Let the numbers of accounts in the file agree with those that this process has `named`.

    It may have named some before it could open the file, and it has number 0 for the account that
    is configured. A row never changes its account, unless it came with none: then it belongs to the
    account that is configured now (D25).
    """
    named = dict(named)
    if configured := named.pop(CONFIGURED, ""):
        named[0] = configured
    else:
        _execute(
            connection, f"UPDATE OR IGNORE accounts SET number = 0 WHERE number = {CONFIGURED}"
        )
    query = f"SELECT number, id FROM accounts WHERE number <> {CONFIGURED}"
    stored: dict[int, str] = dict(connection.execute(query))
    numbers = {id_: number for number, id_ in named.items()}
    free = (number for number in range(1, CONFIGURED) if number not in {*named, *stored})
    changed: dict[int, int] = {}
    for number, id_ in stored.items():
        new = numbers.get(id_)
        if new is None and named.get(number, id_) != id_:
            new = next(free)
        if new not in (None, number):
            changed[number] = new
    if not changed:
        return
    cases = " ".join(f"WHEN {number} THEN {new}" for number, new in changed.items())
    where = f"IN ({','.join(map(str, changed))})"
    rows = [(new, stored[number]) for number, new in changed.items()]
    with transaction(connection):
        update = f"UPDATE writes SET account = CASE account {cases} END WHERE account {where}"
        connection.execute(update)
        connection.execute(f"DELETE FROM accounts WHERE number {where}")
        connection.executemany("INSERT OR REPLACE INTO accounts VALUES (?,?)", rows)
