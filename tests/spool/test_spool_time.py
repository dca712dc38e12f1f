"""When a write was accepted, as seen by the process that has it now (D30)."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path

from sidecar.spans.span import Span
from sidecar.spool.disk_spool import DiskSpool
from tests.support.delivery import DiskLoop
from tests.support.spool import FlakyFile, added, load, new_span, opened_spool, settle, until

LONG_S = 1e6


async def accepted_at(spool: DiskSpool, seq: int) -> float:
    """Loop time at which a row was accepted."""
    (span,) = await spool.load([seq], 1)
    assert isinstance(span, Span)
    return span.accepted_at


def run(story: Coroutine[None, None, None]) -> None:
    """Run one process, whose clock starts at 0."""
    with asyncio.Runner(loop_factory=DiskLoop) as runner:
        runner.run(story)


def test_only_time_that_this_process_saw_counts(tmp_path: Path) -> None:
    """A row of an earlier process is as old as this one; whatever the clock said there."""

    async def first() -> None:
        await asyncio.sleep(LONG_S)
        spool = await opened_spool(FlakyFile(tmp_path))
        running = asyncio.create_task(spool.run())
        await added(spool, new_span("one"))
        await asyncio.sleep(LONG_S)
        await added(spool, new_span("two"))
        times = [await accepted_at(spool, seq) for seq in (1, 2)]
        assert [round(time) for time in times] == [LONG_S, 2 * LONG_S]
        running.cancel()
        await spool.close()

    async def second() -> None:
        await asyncio.sleep(7)
        file = FlakyFile(tmp_path)
        spool = await opened_spool(file)
        running = asyncio.create_task(spool.run())
        await asyncio.sleep(100)
        await added(spool, new_span("three"))
        # Opened again after a failure, the file has rows of this process as well.
        file.failing = {"apply"}
        await added(spool, new_span("four"))
        assert spool.degraded
        file.failing = set()
        await asyncio.sleep(20)
        assert not spool.degraded
        times = [await accepted_at(spool, seq) for seq in (1, 2, 3, 4)]
        assert [round(time) for time in times] == [7, 7, 107, 107]
        running.cancel()
        await spool.close()

    run(first())
    run(second())


async def test_a_row_is_loaded_for_the_lanes_that_took_it(tmp_path: Path) -> None:
    """Also by the next process, whatever it is addressed to."""
    spool = await opened_spool(FlakyFile(tmp_path))
    running = asyncio.create_task(spool.run())
    span = new_span("s", complete=False)
    span.lanes = 2
    await added(spool, span, new_span("t"))
    settle(spool, span, 2)
    spool.tick()
    await until(lambda: not spool._changes.settled)
    running.cancel()
    await spool.close()
    spool = await opened_spool(FlakyFile(tmp_path))
    found = await spool.load([1, 2], 2**20)
    assert [outcome.lanes for outcome in found if isinstance(outcome, Span)] == [2, -1]
    assert await load(spool, 1) == ["s"]
    await spool.close()
