"""The spool on a working disk; test_spool_trouble.py has failing disks."""

import asyncio
import shutil
from pathlib import Path

from sidecar.spool.rows import Backlog
from sidecar.spool.spool import REPLACED
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spool import FlakyFile, GatedFile, added, new_span, running_spool, until


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
        assert (one.seq, two.seq) == (1, 2)
        assert Backlog([(2, 3)], [(1, 3)]) == left_by_a_kill(tmp_path / "a", tmp_path / "b")


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
        assert spool.rows == 51


async def test_settled_writes_are_deleted_without_a_request(tmp_path: Path) -> None:
    """Deletion needs no request, only time; a write that one lane has not settled stays."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        for span, bit in ((one, 1), (one, 2), (two, 2)):
            spool.settled(span, bit)
        await until(lambda: spool.rows == 1)
        assert [two.lanes & 3] == [1]


async def test_a_write_is_settled_once(tmp_path: Path) -> None:
    """Settling it again in the same lane changes nothing."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        one, two = new_span("one"), new_span("two")
        await added(spool, one, two)
        spool.settled(one, 1)
        spool.settled(one, 1)
        spool.settled(two, 1)
        spool.settled(two, 2)
        await until(lambda: spool.rows == 1)


async def test_an_open_write_stays_until_its_end(tmp_path: Path) -> None:
    """Settled or not, a START is kept until a newer one replaces it or `retire` ends the wait."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, again = new_span("s", complete=False), new_span("s", complete=False)
        await added(spool, start)
        spool.settled(start, 1)
        spool.settled(start, 2)
        spool.replace(start)
        await added(spool, again)
        assert (start.seq, spool.rows) == (REPLACED, 1)
        spool.settled(again, 1)
        spool.settled(again, 2)
        spool.retire(again)
        await until(lambda: spool.rows == 0)


async def test_an_end_is_loaded_with_the_payloads_of_its_start(tmp_path: Path) -> None:
    """Shared payloads are stored once and loaded with the END; both rows are deleted together."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, end = new_span("s", complete=False, size=100_000), new_span("s", size=100_000)
        await added(spool, start)
        used = spool.used
        spool.add(end, start)
        await spool.commit()
        assert spool.used - used < 50_000
        visited, (span,) = await spool.load([end.seq], 2**20)
        assert (1, end.input, end.output, end.data) == (visited, span.input, span.output, span.data)
        assert (end.seq, end.end_time) == (span.seq, span.end_time)
        spool.settled(end, 1)
        spool.settled(end, 2)
        await until(lambda: spool.rows == 0)


async def test_load_returns_what_fits_in_order(tmp_path: Path) -> None:
    """At least one write, up to about `max_bytes`, with payloads and time of acceptance."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        spans = [new_span(f"s{n}", size=1000) for n in range(5)]
        await added(spool, *spans)
        seqs = [span.seq for span in spans]
        visited, found = await spool.load(seqs, 2500)
        assert (visited, [span.id for span in found]) == (3, ["s0", "s1", "s2"])
        assert spans[0].input == found[0].input
        assert abs(spans[0].accepted_at - found[0].accepted_at) < 60
        assert (await spool.load(seqs, 1))[0] == 1
        assert await spool.load([98, 99], 1000) == (2, [])


async def test_load_waits_for_pending_writes(tmp_path: Path) -> None:
    """A write can be loaded right after `add`."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        span = new_span("s")
        spool.add(span)
        _, (found,) = await spool.load([span.seq], 1000)
        assert found.id == "s"


async def test_a_replaced_write_is_reported_as_replaced(tmp_path: Path) -> None:
    """It is reported once to each lane that has only its number, so that none counts a loss."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        start.lanes_on_disk = 2
        await added(spool, start)
        seq = start.seq
        spool.replace(start)
        assert await spool.load([seq], 1000) == (1, [])
        assert [spool.was_replaced(seq) for _ in range(3)] == [True, True, False]


async def test_a_start_whose_end_arrived_is_not_loaded(tmp_path: Path) -> None:
    """Its row still exists as the base of the END, but no lane gets it."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, end = new_span("s", complete=False), new_span("s")
        start.lanes_on_disk = 1
        await added(spool, start)
        seq = start.seq
        spool.add(end, start)
        assert await spool.load([seq], 1000) == (1, [])
        assert spool.was_replaced(seq)


async def test_pending_writes_take_room(tmp_path: Path) -> None:
    """While a transaction is being written, its room counts as taken."""
    file = GatedFile(tmp_path, 8 * 2**20)
    async with running_spool(file) as spool:
        file.gate.clear()
        size = spool.limit // 3
        first = asyncio.create_task(added(spool, new_span("first", size=size)))
        await file.under_way()
        during_the_write = spool.fits(size)
        file.gate.set()
        await first
        assert [during_the_write, spool.fits(size)] == [False, False]


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
        assert span.seq > end.seq
        assert not spool.degraded
