"""Accounts on disk (D25): a row never gets another account than the one it came with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.spans.span import Span
from sidecar.spool.rows import Backlog
from tests.support.spool import (
    FlakyFile,
    added,
    new_span,
    opened_spool,
    retry_s,
    row,
    rows_on_disk,
    running_spool,
    settle,
    until,
)


@pytest.fixture(autouse=True)
def _short_retry() -> Iterator[None]:
    with retry_s(0.02):
        yield


def of_account(number: int, id_: str = "s", *, complete: bool = True) -> Span:
    """A span of an account."""
    span = new_span(id_, complete=complete)
    span.account = number
    return span


async def test_a_row_comes_back_with_its_account(tmp_path: Path) -> None:
    """The number is in its key; the backlog has the ids, and the number of each row."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        spool.name_account(1, "one")
        spool.name_account(2, "two")
        await added(spool, of_account(0), of_account(1), of_account(2, complete=False))
    found: list[Backlog] = []
    async with running_spool(FlakyFile(tmp_path), found.append) as spool:
        assert found == [Backlog([(3, 3, 2)], [(1, 3, 0), (2, 3, 1)], {1: "one", 2: "two"})]
        spans = await spool.load([1, 2, 3], 2**20)
        assert all(isinstance(span, Span) for span in spans)
        assert [span.account for span in spans if isinstance(span, Span)] == [0, 1, 2]
        keys = [span.key for span in spans if isinstance(span, Span)]
        assert keys == [("t1", "s"), ("t1", "s", "account 1"), ("t1", "s", "account 2")]


async def test_an_account_is_dropped_with_its_last_row(tmp_path: Path) -> None:
    """At the next start, so that its number is free again."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        spool.name_account(1, "one")
        spool.name_account(2, "two")
        gone = of_account(1)
        await added(spool, gone, of_account(2))
        settle(spool, gone, 1, 2)
        await until(lambda: spool.file.rows == 1)
    async with running_spool(FlakyFile(tmp_path)) as spool:
        query = "SELECT * FROM accounts"
        assert spool.file._connected().execute(query).fetchall() == [(2, "two")]


async def test_a_name_is_kept_while_the_disk_fails(tmp_path: Path) -> None:
    """It is in the transaction of the rows that need it, once there is one."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        file.failing = {"apply"}
        spool.name_account(1, "one")
        await added(spool, of_account(1))
        assert spool.degraded
        file.failing = set()
        await until(lambda: not spool.degraded)
    assert rows_on_disk(tmp_path).accounts == {1: "one"}


@pytest.mark.parametrize("earlier", [False, True])
async def test_a_new_file_has_the_names(tmp_path: Path, earlier: bool) -> None:
    """Those of an earlier process as well, whose numbers this one goes on using."""
    if earlier:
        async with running_spool(FlakyFile(tmp_path)) as spool:
            spool.name_account(1, "one")
            await added(spool, of_account(1))
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        if not earlier:
            spool.name_account(1, "one")
            await added(spool, of_account(1))
        file.recreate("it is damaged")
        file.failing = {"apply"}
        await added(spool, of_account(1))
        file.failing = set()
        await until(lambda: not spool.degraded)
        await added(spool, last := of_account(1))
    left = rows_on_disk(tmp_path)
    assert left.accounts == {1: "one"}
    assert (row(last), 3, 1) in list(left.complete_rows)


async def test_a_file_that_opens_late_keeps_its_accounts(tmp_path: Path) -> None:
    """This process has given its numbers to other accounts by then: the rows get new numbers."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        for number, id_ in enumerate(("a", "b", "c"), 1):
            spool.name_account(number, id_)
            await added(spool, of_account(number))
    file = FlakyFile(tmp_path)
    file.failing = {"open"}
    found: list[Backlog] = []
    spool = await opened_spool(file, found.append)
    spool.name_account(1, "new")
    spool.name_account(2, "a")
    file.failing = set()
    await spool.close()  # it tries the disk once more
    (late,) = found
    ids = [late.accounts[account] for _, _, account in late.complete_rows]
    assert ids == ["a", "b", "c"]
    assert late.accounts[2] == "a"
    assert late.accounts.get(1) in (None, "new")
    left = rows_on_disk(tmp_path)
    assert [left.accounts[account] for _, _, account in left.complete_rows] == ["a", "b", "c"]
