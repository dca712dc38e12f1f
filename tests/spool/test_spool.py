"""The spool on a working disk; test_spool_trouble.py has failing disks."""

import asyncio
import shutil
from pathlib import Path

from sidecar.spans.span import Span
from sidecar.spool.rows import Backlog
from sidecar.spool.spool import Gone, Spool, SpoolStatus
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import (
    FlakyFile,
    GatedFile,
    added,
    backlog,
    load,
    new_span,
    row,
    running_spool,
    settle,
    stored,
    until,
)


def left_by_a_kill(directory: Path, copy: Path) -> Backlog:
    """What the next process would find if this one were killed now."""
    shutil.copytree(directory, copy)
    file = SpoolFile(str(copy), 16 * 2**20, sync_full=False)
    try:
        return file.open()
    finally:
        file.close()


async def test_committed_writes_survive_a_kill(tmp_path: Path) -> None:
    """`commit` returns once the writes are on disk, not before."""
    async with running_spool(FlakyFile(tmp_path / "a")) as spool:
        one, two = new_span("one"), new_span("two", complete=False)
        await added(spool, one, two)
        assert (row(one), row(two)) == (1, 2)
        assert backlog([(2, 3)], [(1, 3)]) == left_by_a_kill(tmp_path / "a", tmp_path / "b")


async def test_requests_share_a_transaction(tmp_path: Path) -> None:
    """Requests that arrive during a transaction all share the next one."""
    file = GatedFile(tmp_path)
    async with running_spool(file) as spool:
        file.gate.clear()
        first = asyncio.create_task(added(spool, new_span("first")))
        await file.under_way()
        before = file.calls
        others = [asyncio.create_task(added(spool, new_span(f"s{n}"))) for n in range(50)]
        await asyncio.sleep(0)
        assert not first.done()
        file.gate.set()
        await asyncio.gather(first, *others)
        assert file.calls - before <= 3
        assert spool.file.rows == 51


async def test_settled_writes_are_deleted_without_a_request(tmp_path: Path) -> None:
    """Deletion needs no request, only time; a write that one lane has not settled stays."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        settle(spool, one, 1, 2)
        settle(spool, two, 2)
        await until(lambda: spool.file.rows == 1)
        assert [two.pending & 3] == [1]


async def test_a_write_is_settled_once(tmp_path: Path) -> None:
    """Settling it again in the same lane changes nothing."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        settle(spool, one, 1, 1)
        settle(spool, two, 1, 2)
        await until(lambda: spool.file.rows == 1)


async def test_an_open_write_stays_until_its_end(tmp_path: Path) -> None:
    """Settled or not, a START is kept until a newer one replaces it or `retire` ends the wait."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, again = new_span("s", complete=False), new_span("s", complete=False)
        await added(spool, start)
        settle(spool, start, 1, 2)
        spool.replace(start)
        await added(spool, again)
        assert (stored(start).replaced, spool.file.rows) == (True, 1)
        settle(spool, again, 1, 2)
        spool.retire(again)
        await until(lambda: spool.file.rows == 0)


async def test_an_end_is_loaded_with_the_payloads_of_its_start(tmp_path: Path) -> None:
    """Shared payloads are stored once and loaded with the END; both rows are deleted together."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, end = new_span("s", complete=False, size=100_000), new_span("s", size=100_000)
        await added(spool, start)
        used = spool.file.used
        spool.add(end, start)
        await spool.commit()
        assert spool.file.used - used < 50_000
        (span,) = await spool.load([row(end)], 2**20)
        assert isinstance(span, Span)
        assert (end.input, end.output, end.data) == (span.input, span.output, span.data)
        assert (row(end), end.end_time) == (row(span), span.end_time)
        settle(spool, end, 1, 2)
        await until(lambda: spool.file.rows == 0)


async def test_load_returns_what_fits_in_order(tmp_path: Path) -> None:
    """At least one write, up to about `max_bytes`, with payloads and time of acceptance."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        spans = [new_span(f"s{n}", size=1000) for n in range(5)]
        await added(spool, *spans)
        rows = [row(span) for span in spans]
        assert await load(spool, *rows, max_bytes=2500) == ["s0", "s1", "s2"]
        (found,) = await spool.load(rows, 1)
        assert isinstance(found, Span)
        assert spans[0].input == found.input
        assert abs(spans[0].accepted_at - found.accepted_at) < 60
        assert await load(spool, 98, 99) == [Gone.UNREADABLE, Gone.UNREADABLE]


async def test_load_waits_for_pending_writes(tmp_path: Path) -> None:
    """A write can be loaded right after `add`."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        span = new_span("s")
        spool.add(span)
        assert await load(spool, row(span)) == ["s"]


async def test_a_replaced_write_is_reported_as_replaced(tmp_path: Path) -> None:
    """It is reported once to each lane that has only its number, so that none counts a loss."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        for lane in (1, 2):
            spool.put_off(start, stored(start), lane)
        spool.replace(start)
        await until(lambda: spool.file.rows == 0)
        found = [await load(spool, row(start), lane=lane) for lane in (1, 2, 1)]
        assert found == [[Gone.SUPERSEDED], [Gone.SUPERSEDED], [Gone.UNREADABLE]]


async def test_a_replaced_write_is_superseded_only_in_lanes_that_put_it_off(tmp_path: Path) -> None:
    """The other lane has the write in memory, and the open spans have only its row to load."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        spool.put_off(start, stored(start), 2)
        spool.replace(start)
        await until(lambda: spool.file.rows == 0)
        found = [await load(spool, row(start), lane=lane) for lane in (0, 1, 2)]
        assert found == [[Gone.UNREADABLE], [Gone.UNREADABLE], [Gone.SUPERSEDED]]


async def test_a_start_whose_end_arrived_is_not_loaded(tmp_path: Path) -> None:
    """Its row still exists as the base of the END, but no lane gets it."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, end = new_span("s", complete=False), new_span("s")
        await added(spool, start)
        spool.put_off(start, stored(start), 1)
        spool.add(end, start)
        assert await load(spool, row(start), lane=1) == [Gone.SUPERSEDED]


async def test_a_lane_that_loads_an_open_write_settles_the_start(tmp_path: Path) -> None:
    """What the lane loads and the START of the open spans share what is known of their row."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        for lane in (1, 2):
            spool.put_off(start, stored(start), lane)
        for lane in (1, 2):
            (loaded,) = await spool.load([row(start)], 1000, lane)
            assert isinstance(loaded, Span)
            assert stored(loaded) is stored(start)
            settle(spool, loaded, lane)
        assert (stored(start).pending, stored(start).put_off) == (0, 0)


async def test_an_open_write_that_is_unreadable_is_no_longer_pending(tmp_path: Path) -> None:
    """Its lane has counted it as lost, so that its START is not kept for it."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        spool.put_off(start, stored(start), 1)
        spool.file._connected().execute("UPDATE bodies SET body = ? WHERE seq = 1", (b"\xff",))
        assert await load(spool, 1, lane=1) == [Gone.UNREADABLE]
        assert stored(start).pending == 2


async def test_pending_writes_take_room(tmp_path: Path) -> None:
    """While a transaction is being written, its room counts as taken."""
    file = GatedFile(tmp_path, 8 * 2**20)
    async with running_spool(file) as spool:
        file.gate.clear()
        size = spool.file.max_bytes * 2 // 5
        first = asyncio.create_task(added(spool, new_span("first", size=size)))
        second = new_span("second", size=size)
        await file.under_way()
        during_the_write = spool.fits([second], second.size)
        file.gate.set()
        await first
        assert [during_the_write, spool.fits([second], second.size)] == [False, False]


async def test_row_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    """A new write never gets the number of an existing row."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, end = new_span("s", complete=False), new_span("s")
        await added(spool, new_span("a"), start)
        spool.add(end, start)
        await added(spool, new_span("b", complete=False))
    async with running_spool(FlakyFile(tmp_path)) as spool:
        span = new_span("c")
        await added(spool, span)
        assert row(span) > row(end)
        assert not spool.degraded


async def test_without_a_spool_nothing_is_on_disk() -> None:
    """`Spool` itself has room for everything, holds nothing up, and never has a row."""
    spool = Spool()
    start, end = new_span("s", complete=False), new_span("s")
    spool.add(start)
    spool.add(end, start)
    await spool.commit()
    spool.replace(start)
    spool.retire(start)
    assert (start.stored, end.stored) == (None, None)
    assert (spool.is_configured, spool.degraded, spool.adding) == (False, False, 0)
    assert spool.fits([end], spool.max_row_bytes)
    assert not spool.is_written(1)
    assert await spool.load([1, 2], 1) == [Gone.UNREADABLE, Gone.UNREADABLE]
    assert spool.status() == SpoolStatus()


async def test_the_status_has_what_operators_see(tmp_path: Path) -> None:
    """The sizes are those of the file, and nothing has failed."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        await added(spool, new_span("a", size=1_000_000))
        status, file = spool.status(), spool.file
        assert status[:3] == (False, file.size, file.max_bytes)
        assert status[4:] == (1, 0, 0, 0)
        assert 1_000_000 < status.used_ratio * file.capacity < status.bytes + 1
