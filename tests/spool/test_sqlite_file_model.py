"""The spool's file against a dict, with crashes."""

import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sidecar.spool.pages import row_bytes
from sidecar.spool.rows import BASE, COMPLETE, OPEN, Changes, FilesGone, Row, StoredRow
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import changes, files_size, make_row

LIMIT = 2 * 2**20
KIND = st.sampled_from([OPEN, COMPLETE, COMPLETE])
LANES = st.integers(1, 3)
SIZE = st.sampled_from([2, 100, 5000, 20_000, 90_000])


class Kept(NamedTuple):
    """A row of the model."""

    kind: int
    lanes: int
    base: int
    shared: int
    account: int
    size: int
    body: bytes


Model = dict[int, Kept]


def applied(model: Model, transaction: Changes) -> Model:
    """The model after a transaction."""
    rows = dict(model)
    for row in transaction.added:
        kept = Kept(row.kind, row.lanes, row.base, row.shared, row.account, row.size, row.body)
        rows[row.seq] = kept
    for base in {row.base for row in transaction.added} & set(rows):
        rows[base] = rows[base]._replace(kind=BASE)
    for seq in transaction.retired:
        if seq in rows:
            rows[seq] = rows[seq]._replace(kind=COMPLETE)
    settled = [*transaction.settled, *(pair for row in transaction.added for pair in row.released)]
    for seq, lanes in settled:
        if seq in rows:
            rows[seq] = rows[seq]._replace(lanes=rows[seq].lanes & ~lanes)
    deleted = set(transaction.removed)
    for seq in {*transaction.retired, *(seq for seq, _ in settled)}:
        found = rows.get(seq)
        if found is not None and not found.lanes and found.kind == COMPLETE:
            deleted |= {seq, found.base}
    return {seq: row for seq, row in rows.items() if seq not in deleted}


def with_accounts(transaction: Changes) -> Changes:
    """The transaction, with the accounts of its rows."""
    numbers = {row.account for row in transaction.added}
    return transaction._replace(accounts=tuple((n, f"account {n}") for n in numbers))


class SpoolFileMachine(RuleBasedStateMachine):
    """Valid and failing transactions, with the file closed or the process killed in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runs = 0
        self.model: Model = {}
        self.seq = 0
        self.random = random.Random(0)

    @property
    def directory(self) -> Path:
        """The directory of the current run of the process."""
        return self.folder / str(self.runs)

    @initialize(sync_full=st.booleans())
    def begin(self, sync_full: bool) -> None:
        """Open a directory that does not exist yet."""
        self.file = SpoolFile(str(self.directory), LIMIT, sync_full=sync_full)
        assert self.file.open() == ([], [], {})

    def _seqs(self, data: st.DataObject, kind: int | None = None) -> list[int]:
        known = [seq for seq, row in self.model.items() if kind in (None, row.kind)]
        return data.draw(st.lists(st.sampled_from([0, *known]), max_size=8))

    def _added(self, data: st.DataObject) -> list[Row]:
        rows: list[Row] = []
        for kind, lanes, size in data.draw(
            st.lists(st.tuples(KIND, LANES, SIZE), max_size=5), label="added"
        ):
            self.seq += 1
            starts = [seq for seq, row in self.model.items() if row.kind == OPEN]
            taken = {row.base for row in rows}
            base = next((seq for seq in starts if seq not in taken), 0) if kind == COMPLETE else 0
            body = self.random.randbytes(size)
            shared = self.seq % 8 if base else 0
            cost = row_bytes(size) + (self.model[base].size if base else 0)
            row = make_row(self.seq, body, kind=kind, lanes=lanes, base=base, shared=shared)
            released = ((data.draw(st.sampled_from(starts)), lanes),) if starts and not base else ()
            account = self.seq % 3
            rows.append(row._replace(account=account, size=cost, released=released))
        return rows

    def _drawn(self, data: st.DataObject) -> Changes:
        bits = st.sampled_from([1, 2])
        settled = [(seq, data.draw(bits)) for seq in self._seqs(data)]
        added = self._added(data)
        bases = {row.base for row in added}
        # A row is used only once: as a base, or retired, or removed.
        retired = [seq for seq in self._seqs(data, OPEN) if seq not in bases]
        removed = [seq for seq in self._seqs(data, OPEN) if seq not in bases]
        return with_accounts(changes(*added, removed=removed, retired=retired, settled=settled))

    @rule(data=st.data(), times=st.integers(1, 2))
    def apply(self, data: st.DataObject, times: int) -> None:
        """A transaction is applied completely or, if the file is full, not at all.

        Applied again, as after a commit that reported an error but lasted, it changes nothing.
        """
        # As the writer splits them: a larger transaction could exceed the limit of the log.
        for part in (
            self._drawn(data)
            .condensed()
            .split(self.file.transaction_bytes, self.file.transaction_rows)
        ):
            after = applied(self.model, part)
            try:
                for _ in range(times):
                    self.file.apply(part)
                    self.model = after
            except sqlite3.OperationalError as error:
                assert "full" in str(error)  # noqa: PT017 (most do not fail)
                return

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A transaction that fails at its end changes nothing."""
        transaction = self._drawn(data)
        transaction.settled.append((self.seq, 2**70))  # not a number for SQLite
        try:
            self.file.apply(transaction)
        except (sqlite3.OperationalError, OverflowError):
            return
        raise AssertionError("a lane without a bit was accepted")

    @rule()
    def shrink(self) -> None:
        """`shrink` changes no row, and leaves no free space."""
        if self.file.used < LIMIT // 4:
            self.file.shrink()
            assert files_size(self.directory) <= self.file.used + 2**16

    @rule()
    def reopen(self) -> None:
        """Close in an orderly way, and open again."""
        self.file.close()
        self.file.unlock()
        self._open()

    @rule(removed=st.sets(st.sampled_from(["spool.db", "spool.db-wal", "spool.lock"]), min_size=1))
    def remove(self, removed: set[str]) -> None:
        """Files are removed: the next transaction reports it, and is in the new files as well."""
        for name in removed:
            (self.directory / name).unlink()
        self.seq += 1
        transaction = with_accounts(changes(make_row(self.seq, size=row_bytes(2))))
        try:
            self.file.apply(transaction)
        except FilesGone:
            self.model = applied(self.model, transaction)
        except sqlite3.OperationalError as error:
            assert "full" in str(error)  # noqa: PT017 (most do not fail)
        else:
            raise AssertionError("nobody noticed")
        self._open()

    @rule()
    def kill(self) -> None:
        """Kill the process: the next one finds the files as they are."""
        self._next_run()
        self._open()

    @rule(statements=st.integers(1, 9))
    def kill_inside(self, statements: int) -> None:
        """Kill the process inside an uncommitted transaction."""
        connection = self.file._connected()
        connection.execute("BEGIN")
        # A nearly full file makes SQLite roll back by itself, which must not matter either.
        with suppress(sqlite3.OperationalError):
            for number in range(statements):
                connection.execute(
                    "INSERT INTO bodies VALUES (?, 0, zeroblob(99999))", (self.seq + 1 + number,)
                )
            connection.execute("DELETE FROM writes WHERE seq % 2")
        self._next_run()
        self._open()

    def _next_run(self) -> None:
        before = self.directory
        self.runs += 1
        shutil.copytree(before, self.directory)
        old, self.file = self.file, SpoolFile(str(self.directory), LIMIT, sync_full=False)
        old.close()
        old.unlock()

    def _open(self) -> None:
        opened, complete = (
            [(seq, r.lanes, r.account) for seq, r in sorted(self.model.items()) if r.kind == kind]
            for kind in (OPEN, COMPLETE)
        )
        accounts = {row.account: f"account {row.account}" for row in self.model.values()}
        assert self.file.open() == (opened, complete, accounts)
        assert (self.file.moved_aside, self.file.lost) == (0, 0)
        owed = Counter[int]()
        for row in self.model.values():
            if row.kind != BASE:
                owed[row.lanes] += row.size
        assert dict(self.file.owed) == owed

    @invariant()
    def same(self) -> None:
        """Counts, sizes and bodies agree with the model."""
        if not hasattr(self, "file"):
            return
        assert self.file.rows == len(self.model)
        assert self.file.used <= self.file.capacity
        assert self.file.size <= LIMIT
        assert files_size(self.directory) <= LIMIT
        found = self.file.read([*self.model, self.seq + 1], 2**40)
        assert found.pop() is None
        expected = []
        for seq, row in self.model.items():
            base = self.model.get(row.base)
            base_body = base and base.body
            expected.append(
                StoredRow(seq, row.shared, -1, row.account, row.size, 1.5, row.body, base_body)
            )
        assert found == expected

    def teardown(self) -> None:
        """Delete the files."""
        if hasattr(self, "file"):
            self.file.close()
            self.file.unlock()
        shutil.rmtree(self.folder)


TestSpoolFileMachine: Any = SpoolFileMachine.TestCase
TestSpoolFileMachine.settings = settings(settings.default, stateful_step_count=25)
