"""Looks for the rows of a span or a trace, a piece at a time, so that the path gets its turns.

The bodies are compared in SQLite, and only those that match are read. One call takes the disk for
milliseconds; then it is left to others for as long.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic

from sidecar.spans.heads import HEAD_BYTES, Wanted, ids_in
from sidecar.spool.rows import BASE, FoundRow, Row

# What one call looks at: at least one row, however large.
PIECE_ROWS, PIECE_BYTES = 1024, 4 * 2**20
MAX_FOUND = 1000


def pieces_of(rows: int, size: int) -> str:
    """The query for the first row of the piece that ends with a row: at most so many, and bytes."""
    return (
        "SELECT min(seq) FROM"
        " (SELECT seq, sum(bytes) OVER (ORDER BY seq DESC) - bytes AS before FROM"
        f" (SELECT seq, bytes FROM writes WHERE seq <= ? ORDER BY seq DESC LIMIT {rows}))"
        f" WHERE before < {size}"
    )


_FIRST = pieces_of(PIECE_ROWS, PIECE_BYTES)
_MATCHING = (
    "SELECT b.seq, w.account, substr(b.body, 1, :head) FROM bodies b JOIN writes w ON w.seq = b.seq"
    f" WHERE b.seq BETWEEN :first AND :last AND w.kind <> {BASE}"
    " AND (substr(b.body, 1, length(:of_span)) = :of_span"
    " OR (:or_trace AND instr(substr(b.body, 1, :head), :of_trace)))"
    " ORDER BY b.seq DESC"
)


async def find(
    wanted: Wanted,
    in_memory: Sequence[Row],
    on_disk: Callable[[int], Awaitable[tuple[list[FoundRow], int | None]]],
    last: int,
) -> list[FoundRow]:
    """Look for rows in memory, then for those up to row `last` on disk; `on_disk` calls `piece`."""
    of_span, of_trace = wanted.of_span, wanted.of_trace
    found: list[FoundRow] = []
    for row in in_memory:
        body = row.body
        if body.startswith(of_span) or (
            wanted.or_trace and body.find(of_trace, 0, HEAD_BYTES) >= 0
        ):
            found += _wanted(row.seq, row.account, body[:HEAD_BYTES], wanted)
    following: int | None = last
    while following is not None and len(found) < MAX_FOUND:
        began = monotonic()
        more, following = await on_disk(following)
        found += more
        await asyncio.sleep(monotonic() - began)
    return found


def piece(
    connection: sqlite3.Connection, wanted: Wanted, last: int
) -> tuple[list[FoundRow], int | None]:
    """The rows that match in the piece that ends with row `last`, and the last row of the next.

    That is None if there are no more rows.
    """
    (first,) = connection.execute(_FIRST, (last,)).fetchone()
    if first is None:
        return [], None
    values = {
        "head": HEAD_BYTES,
        "first": first,
        "last": last,
        "of_span": wanted.of_span,
        "or_trace": wanted.or_trace,
        "of_trace": wanted.of_trace,
    }
    found: list[FoundRow] = []
    for seq, account, head in connection.execute(_MATCHING, values):
        found += _wanted(seq, account, head, wanted)
    return found, first - 1


def _wanted(seq: int, account: int, head: bytes, wanted: Wanted) -> list[FoundRow]:
    """The row whose body begins with `head`, if it is wanted."""
    ids = ids_in(head)
    if ids is None or not wanted.matches(ids):
        return []
    return [FoundRow(seq, account, ids.id, ids.trace_id)]
