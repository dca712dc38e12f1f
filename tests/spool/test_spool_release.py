"""Lanes that have taken the END of a START that others still need (D22)."""

from pathlib import Path

import pytest

from sidecar.spans.span import Span
from sidecar.spool.rows import Changes
from sidecar.spool.spool import Gone
from tests.support.spool import (
    FlakyFile,
    added,
    backlog,
    load,
    new_span,
    row,
    rows_on_disk,
    running_spool,
    settle,
    stored,
)


def end_for(lane: int) -> Span:
    """An END that only one lane took."""
    span = new_span("s", size=3000)
    span.lanes = lane
    return span


async def test_only_the_others_still_get_the_start(tmp_path: Path) -> None:
    """The START stays for them, also in the next process; no lane sends it after its END."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        for lane in (1, 2):
            spool.put_off(start, stored(start), lane)
        spool.add(end_for(1))
        spool.release(stored(start), 1)
        assert stored(start).pending == 2
        assert spool.lane_bytes(2) == stored(start).bytes
        await spool.commit()
        assert await load(spool, row(start), lane=1) == [Gone.SUPERSEDED]
        assert await load(spool, row(start), lane=2) == ["s"]
    assert rows_on_disk(tmp_path) == backlog([(1, 2)], [(2, 1)])


async def test_a_lane_that_has_settled_is_not_told(tmp_path: Path) -> None:
    """Nor is anything released twice, or for a START that was replaced."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        settle(spool, start, 1)
        for _ in range(2):
            spool.release(stored(start), 3)
            assert (spool.lane_bytes(1), spool.lane_bytes(2)) == (0, 0)
        other = new_span("t", complete=False)
        spool.add(other)
        spool.replace(other)
        spool.release(stored(other), 3)
        assert (spool.lane_bytes(1), spool.lane_bytes(2)) == (0, 0)
        await spool.commit()
    assert rows_on_disk(tmp_path) == backlog([(1, 0)], [])


class PartFile(FlakyFile):
    """Records what is on disk after each transaction."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.transaction_bytes = 1000
        self.states: list[list[tuple[int, int]]] = []

    def apply(self, changes: Changes) -> None:
        super().apply(changes)
        query = "SELECT seq, lanes FROM writes ORDER BY seq"
        self.states.append(self._connected().execute(query).fetchall())


@pytest.mark.parametrize("fails", [False, True])
async def test_one_transaction_has_the_end_and_the_release(tmp_path: Path, fails: bool) -> None:
    """Although the request takes several: a kill between two of them must not separate these."""
    file = PartFile(tmp_path)
    async with running_spool(file) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        file.failing = {"apply"} if fails else set()
        spool.add(new_span("before", size=3000))
        spool.add(end_for(1))
        spool.release(stored(start), 1)
        spool.add(new_span("after", size=3000))
        await spool.commit()
        file.failing = set()
    for state in map(dict, file.states):
        assert (state[1] == 2) == (3 in state)
    assert len(file.states) >= 4


async def test_an_end_in_memory_releases_the_start_as_well(tmp_path: Path) -> None:
    """The disk fails: the END has no row, and the START must not follow it."""
    file = FlakyFile(tmp_path)
    async with running_spool(file) as spool:
        start = new_span("s", complete=False)
        await added(spool, start)
        file.failing = {"apply"}
        await added(spool, new_span("other"))
        end = end_for(1)
        spool.add(end)
        spool.release(stored(start), 1)
        assert (end.stored, stored(start).pending) == (None, 2)
        file.failing = set()
    assert rows_on_disk(tmp_path) == backlog([(1, 2)], [(2, 3)])
