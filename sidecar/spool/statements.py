"""Transactions, and the changes of one as SQL statements."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sidecar.spool.rows import BASE, COMPLETE, Changes

# Many rows per statement, because this thread releases the GIL for each statement and then waits
# for the event loop to give it back.
_ROWS_PER_INSERT = 64
_IN_SEQS = "seq IN (SELECT value FROM json_each(?))"
_SETTLED = f"{_IN_SEQS} AND lanes = 0 AND kind = {COMPLETE}"


def content_at_fault(error: Exception) -> bool:
    """Whether the file's content is at fault, and not the disk."""
    disk = isinstance(error, sqlite3.OperationalError)
    return isinstance(error, sqlite3.DatabaseError) and not disk


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Execute the statements of the block in one transaction: all or none."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def execute(connection: sqlite3.Connection, changes: Changes) -> int:
    """Execute `changes`. Returns how many more rows there are.

    Rows that are there already are left alone: a commit that reported an error may have lasted.
    """
    run = connection.execute
    more = 0
    for account in changes.accounts:
        run("INSERT OR REPLACE INTO accounts VALUES (?,?)", account)
    for start in range(0, len(changes.added), _ROWS_PER_INSERT):
        rows = changes.added[start : start + _ROWS_PER_INSERT]
        values = ",".join(["(?,?,?,?,?,?,?,?)"] * len(rows))
        insert = f"INSERT OR IGNORE INTO writes VALUES {values}"
        more += run(insert, [v for row in rows for v in row[:8]]).rowcount
        values = ",".join(["(?,?,?)"] * len(rows))
        parameters = [value for row in rows for value in (row.seq, row.born, row.body)]
        run(f"INSERT OR IGNORE INTO bodies VALUES {values}", parameters)
    if bases := [row.base for row in changes.added if row.base]:
        run(f"UPDATE writes SET kind = {BASE} WHERE {_IN_SEQS}", [_json(bases)])
    if changes.retired:
        run(f"UPDATE writes SET kind = {COMPLETE} WHERE {_IN_SEQS}", [_json(changes.retired)])
    masks: dict[int, int] = {}
    released = (pair for row in changes.added if row.released for pair in row.released)
    for seq, bits in (*released, *changes.settled):
        masks[seq] = masks.get(seq, 0) | bits
    for mask in set(masks.values()):
        seqs = [seq for seq, bits in masks.items() if bits == mask]
        run(f"UPDATE writes SET lanes = lanes & ~? WHERE {_IN_SEQS}", [mask, _json(seqs)])
    deleted = changes.removed
    # A complete row that every lane has settled is deleted with its base. An open row stays until
    # its END arrives.
    if candidates := [*changes.retired, *masks]:
        query = f"SELECT seq, base FROM writes WHERE {_SETTLED}"
        settled = run(query, [_json(candidates)])
        deleted = deleted + [seq for row in settled for seq in row if seq]
    if deleted:
        run(f"DELETE FROM bodies WHERE {_IN_SEQS}", [_json(deleted)])
        more -= run(f"DELETE FROM writes WHERE {_IN_SEQS}", [_json(deleted)]).rowcount
    return more


def _json(seqs: Iterable[int]) -> str:
    return f"[{','.join(map(str, seqs))}]"
