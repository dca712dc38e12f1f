"""The end of a spool's process: in a transaction, during a recovery, on a failing disk."""

import asyncio
from pathlib import Path

import pytest

from sidecar.spool.disk_spool import DiskSpool
from tests.support.spool import (
    FlakyFile,
    GatedFile,
    added,
    new_span,
    opened_spool,
    pairs,
    retry_s,
    rows_on_disk,
    running_spool,
)


async def test_close_tries_the_disk_once_more(tmp_path: Path) -> None:
    """A disk that works again by then gets everything."""
    file = FlakyFile(tmp_path)
    with retry_s(3600):
        async with running_spool(file) as spool:
            file.failing = {"apply"}
            await added(spool, new_span("one"))
            file.failing = set()
    assert pairs(rows_on_disk(tmp_path).complete_rows) == [(1, 3)]


async def cancelled_in_a_transaction(
    file: GatedFile, running: asyncio.Task[None], spool: DiskSpool
) -> None:
    """Cancel `run`, twice, in the transaction that waits at the gate; then close the spool."""
    for _ in range(2):
        running.cancel()
        await asyncio.sleep(0)
    closing = asyncio.create_task(spool.close())
    await asyncio.sleep(0)
    file.gate.set()
    await closing
    assert running.cancelled()


async def test_a_stop_between_the_parts_of_a_write_loses_none(tmp_path: Path) -> None:
    """A write of two transactions ends although the process stops in the first."""
    file = GatedFile(tmp_path)
    file.transaction_bytes = 1000
    spool = await opened_spool(file)
    running = asyncio.create_task(spool.run())
    file.gate.clear()
    spans = (new_span("one", size=900), new_span("two", size=900))
    posting = asyncio.create_task(added(spool, *spans))
    await file.under_way()
    await cancelled_in_a_transaction(file, running, spool)
    await posting
    assert (spool.file.rows, spool.file.moved_aside, spool.degraded) == (2, 0, False)


async def test_a_stop_during_recovery_keeps_the_file(tmp_path: Path) -> None:
    """A row that the interrupted recovery stored is not inserted a second time."""
    file = GatedFile(tmp_path)
    with retry_s(0.02):
        spool = await opened_spool(file)
        running = asyncio.create_task(spool.run())
        file.failing = {"apply"}
        await added(spool, new_span("one"))
        file.gate.clear()
        file.waiting.clear()
        file.failing = set()
        await file.under_way()
        await cancelled_in_a_transaction(file, running, spool)
    assert (spool.file.rows, spool.file.moved_aside, spool.degraded) == (1, 0, False)


async def test_close_on_a_failing_disk(tmp_path: Path) -> None:
    """It returns even if every call fails."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        await added(spool, new_span("one"))
        spool.add(new_span("two"))
        file.failing = {"apply", "shrink", "open"}
    assert pairs(rows_on_disk(tmp_path).complete_rows) == [(1, 3)]


async def test_a_bug_in_the_writer_does_not_keep_close_from_closing(tmp_path: Path) -> None:
    """`run` raises it; `close` still gives the directory back."""
    file = FlakyFile(tmp_path)
    spool = await opened_spool(file)
    running = asyncio.create_task(spool.run())
    file.failing, file.error = {"apply"}, RuntimeError("a bug")
    spool.add(new_span("one"))
    spool_commit = asyncio.create_task(spool.commit())
    with pytest.raises(RuntimeError, match="a bug"):
        await running
    await spool_commit
    file.failing = set()
    await spool.close()
    other = FlakyFile(tmp_path)
    other.open()
    other.close()
