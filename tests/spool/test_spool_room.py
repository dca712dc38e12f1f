"""What each lane has on disk (D22): single cases, and random sequences of what changes it."""

import asyncio
import shutil
import sqlite3
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.spans.span import Span
from sidecar.spool.pages import PAGE
from sidecar.spool.rows import OPEN
from sidecar.spool.spool import Gone, Spool
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.delivery import DiskLoop
from tests.support.spool import (
    FlakyFile,
    added,
    load,
    new_span,
    opened_spool,
    retry_s,
    row,
    running_spool,
    settle,
    stored,
    until,
)

LANES = (1, 2)


def charged(spool: Spool) -> tuple[int, ...]:
    """Bytes of each lane."""
    return tuple(spool.lane_bytes(lane) for lane in LANES)


async def test_a_lane_is_charged_until_it_settles(tmp_path: Path) -> None:
    """Each for the rows that it takes, whatever the others do; also after a restart."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        both, one = new_span("both", size=9000), new_span("one", size=20_000)
        one.lanes = 1
        await added(spool, both, one)
        assert stored(both).bytes > PAGE
        assert charged(spool) == (stored(both).bytes + stored(one).bytes, stored(both).bytes)
        settle(spool, both, 1, 1)
        assert charged(spool) == (stored(one).bytes, stored(both).bytes)
    async with running_spool(FlakyFile(tmp_path)) as again:
        assert charged(again) == charged(spool)
        (loaded,) = await again.load([row(both)], 1, 2)
        assert isinstance(loaded, Span)
        settle(again, loaded, 2)
        assert charged(again) == (stored(one).bytes, 0)


async def test_an_end_is_charged_with_its_base(tmp_path: Path) -> None:
    """Its START's own charge is released in the lanes that still had it."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start, end = new_span("s", complete=False, size=9000), new_span("s", size=9000)
        await added(spool, start)
        settle(spool, start, 2)
        assert charged(spool) == (stored(start).bytes, 0)
        spool.add(end, start)
        assert charged(spool) == (stored(end).bytes, stored(end).bytes)
        assert stored(start).bytes < stored(end).bytes < 1.2 * stored(start).bytes
        settle(spool, start, 1)  # its lane had it in memory
        settle(spool, end, *LANES)
        assert charged(spool) == (0, 0)


async def test_a_row_that_is_replaced_costs_nothing(tmp_path: Path) -> None:
    """Nor does it if it is replaced again, or settled afterwards."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        for _ in range(2):
            spool.replace(start)
            settle(spool, start, *LANES)
            assert charged(spool) == (0, 0)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("damage", ["body", "page"])
async def test_an_unreadable_row_costs_nothing(tmp_path: Path, known: bool, damage: str) -> None:
    """Once each lane has found it so; whether the body or its page is damaged."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        bad = new_span("bad", complete=not known, size=12_000)
        await added(spool, bad, new_span("good"))
        good = spool.lane_bytes(1) - stored(bad).bytes
        for lane in LANES:
            spool.put_off(bad, stored(bad), lane)
        if damage == "body":
            file._connected().execute("UPDATE bodies SET body = x'ff' WHERE seq = 1")
        else:
            file._connected().execute("DELETE FROM bodies WHERE seq = 1")
        for lane in LANES:
            assert await load(spool, 1, lane=lane) == [Gone.UNREADABLE]
            assert spool.lane_bytes(lane) == good


async def test_what_survives_its_file_is_charged_once(tmp_path: Path) -> None:
    """A START and its END were not written when the file was lost; one lane has settled the END."""
    file = FlakyFile(tmp_path)
    with retry_s(0.02):
        async with running_spool(file) as spool:
            await added(spool, new_span("lost"))
            file.failing, file.error = {"apply"}, sqlite3.DatabaseError("malformed")
            start, end = new_span("s", complete=False, size=900), new_span("s", size=900)
            spool.add(start)
            spool.add(end, start)
            settle(spool, end, 2)
            await until(lambda: file.moved_aside)
            file.failing = set()
            await until(lambda: not spool.degraded)
            assert charged(spool) == on_disk(file) == (stored(end).bytes, 0)


async def test_a_failing_disk_limits_no_lane(tmp_path: Path) -> None:
    """New writes take no room on it, and what was charged before stays."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        one = new_span("one")
        await added(spool, one)
        file.failing = {"apply"}
        await added(spool, new_span("two"))
        assert spool.cost(new_span("three")) == 0
        assert spool.lane_limit > 2**60
        before = charged(spool)
        spool.add(new_span("three"))
        settle(spool, one, 2)
        assert charged(spool) == (before[0], before[1] - stored(one).bytes)


async def test_the_lanes_share_nine_tenths_of_the_file(tmp_path: Path) -> None:
    """The rest is `spare`; the file is tight when less than that is free."""
    file = FlakyFile(tmp_path, 4 * 2**20)
    async with running_spool(file) as spool:
        assert abs(spool.lane_limit * 2 + spool.spare - file.capacity) <= 2
        assert spool.spare == file.capacity // 10
        assert not spool.is_tight
        while not spool.is_tight:
            spool.add(new_span("s", size=30_000))  # although it is not written yet
        while file.capacity - file.used >= spool.spare:
            await added(spool, new_span("s", size=30_000))
        assert spool.is_tight
        assert not spool.degraded


def test_without_a_spool_there_is_room() -> None:
    """Nothing is charged, and no lane has a limit."""
    spool, span = Spool(), Span(("t", "s"), "n", "", None, None, None, b"", b"", b"", 0.0)
    assert (charged(spool), spool.cost(span, span), spool.spare) == ((0, 0), 0, 0)
    assert spool.lane_limit > 2**60
    assert not spool.is_tight


async def test_the_estimate_is_close(tmp_path: Path) -> None:
    """It needs no encoding; it is not below the real cost, and not far above it."""
    async with running_spool(FlakyFile(tmp_path, 2**26)) as spool:
        for size in (0, 500, 5000, 50_000, 500_000):
            start, end = new_span("s", complete=False, size=size), new_span("s", size=size)
            for write, before in ((start, None), (end, start)):
                cost = spool.cost(write, before)
                spool.add(write, before)
                assert stored(write).bytes <= cost
            end_alone = new_span("t", size=size)
            cost = spool.cost(end_alone)
            spool.add(end_alone)
            assert cost <= 2 * stored(end_alone).bytes + 1500


async def test_a_file_full_of_half_empty_pages(tmp_path: Path) -> None:
    """Bodies just over half a page: the file is full before a transaction fails."""
    file = FlakyFile(tmp_path, 4 * 2**20)
    async with running_spool(file) as spool:
        count = 0
        while spool.fits([span := new_span("s", size=8600)], span.size):
            await added(spool, span)
            count += 1
        assert (spool.degraded, spool.status().errors) == (False, 0)
        assert count > 0.9 * file.capacity / PAGE


# Random sequences, against the rows of the file.


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in virtual time, with a disk whose calls run at once."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=DiskLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


ACTIONS = [
    *("start", "end", "complete", "settle", "replace", "retire", "release", "put_off", "load"),
    *("damage", "fail", "remove", "restart"),
]
STEPS = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 20), st.integers(1, 3)), max_size=40
)


def on_disk(file: SpoolFile) -> tuple[int, ...]:
    """What the rows of the file cost each lane."""
    query = "SELECT coalesce(sum(bytes), 0) FROM writes WHERE kind < 2 AND lanes & ?"
    return tuple(file._connected().execute(query, (lane,)).fetchone()[0] for lane in LANES)


class Life:
    """A process with a spool, and the writes that it was given. Each action may do nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.number = 0

    async def begin(self) -> None:
        """Open the spool, and load all that is in it."""
        self.file = FlakyFile(self.directory)
        self.spool = await opened_spool(self.file)
        self.running = asyncio.get_running_loop().create_task(self.spool.run())
        self.starts: list[Span] = []
        self.writes: list[Span] = []
        self.loading: list[tuple[Span, int]] = []
        query = "SELECT seq, kind, lanes FROM writes WHERE kind < 2"
        for seq, kind, lanes in self.file._connected().execute(query).fetchall():
            (span,) = await self.spool.load([seq], 1)
            if isinstance(span, Span):
                stored(span).pending = lanes
                (self.starts if kind == OPEN else self.writes).append(span)

    async def settle_down(self) -> None:
        """Wait until everything is written."""
        self.file.failing = set()
        await self.spool.commit()
        await asyncio.sleep(20)
        assert not self.spool.degraded

    async def finish(self) -> None:
        """Stop the process."""
        await self.settle_down()
        self.running.cancel()
        await self.spool.close()

    def new(self, pick: int, lanes: int, *, complete: bool) -> Span:
        """A span of some size, for these lanes."""
        self.number += 1
        span = new_span(f"s{self.number}", complete=complete, size=pick * 700)
        span.lanes = lanes
        (self.writes if complete else self.starts).append(span)
        return span

    def some(self, pick: int) -> Span | None:
        """Some write that has a row."""
        known = [span for span in (*self.starts, *self.writes) if span.stored is not None]
        return known[pick % len(known)] if known else None

    def ended(self, pick: int) -> Span | None:
        """Some START, which is no longer known."""
        return self.starts.pop(pick % len(self.starts)) if self.starts else None

    async def start(self, pick: int, lanes: int) -> None:
        self.spool.add(self.new(pick, lanes, complete=False))

    async def complete(self, pick: int, lanes: int) -> None:
        self.spool.add(self.new(pick, lanes, complete=True))

    async def end(self, pick: int, lanes: int) -> None:
        if (start := self.ended(pick)) is not None:
            self.spool.add(self.new(pick, lanes, complete=True), start)

    async def replace(self, pick: int, lanes: int) -> None:
        if (start := self.ended(pick)) is not None:
            self.spool.replace(start)
            await self.start(pick, lanes)

    async def retire(self, pick: int, _: int) -> None:
        if (start := self.ended(pick)) is not None:
            self.spool.retire(start)

    async def release(self, pick: int, lanes: int) -> None:
        await self.complete(pick, lanes)
        if self.starts and (known := self.starts[pick % len(self.starts)].stored) is not None:
            self.spool.release(known, lanes)

    async def settle(self, pick: int, lanes: int) -> None:
        if (span := self.some(pick)) is not None:
            settle(self.spool, span, *(lane for lane in LANES if lane & lanes))

    async def put_off(self, pick: int, lanes: int) -> None:
        if (span := self.some(pick)) is not None and not stored(span).replaced:
            for lane in LANES:
                if lane & lanes & span.pending and (span, lane) not in self.loading:
                    self.spool.put_off(span, stored(span), lane)
                    self.loading.append((span, lane))

    async def load(self, pick: int, _: int) -> None:
        if self.loading:
            span, lane = self.loading.pop(pick % len(self.loading))
            if not (span.pending & lane or stored(span).replaced):
                return
            self.file.failing = set()
            (found,) = await self.spool.load([row(span)], 1, lane)
            if isinstance(found, Span):
                settle(self.spool, found, lane)
            stored(span).pending &= ~lane

    async def damage(self, pick: int, _: int) -> None:
        await self.settle_down()
        if (span := self.some(pick)) is not None:
            statement = "UPDATE bodies SET body = x'ff' WHERE seq = ?"
            self.file._connected().execute(statement, (row(span),))

    async def fail(self, *_: int) -> None:
        self.file.failing = {"apply"}

    async def remove(self, *_: int) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    async def restart(self, *_: int) -> None:
        await self.finish()
        await self.begin()


@settings(max_examples=100)
@given(steps=STEPS)
@virtual
async def test_the_lanes_are_charged_for_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    """After any sequence: nothing leaks, and nothing is released twice."""
    life = Life(tmp_path_factory.mktemp("room"))
    await life.begin()
    for action, pick, lanes in steps:
        await getattr(life, action)(pick, lanes)
    await life.settle_down()
    assert charged(life.spool) == on_disk(life.file)
    await life.finish()
