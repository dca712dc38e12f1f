"""Supplements on disk: the `data` of a START whose END did not come is delivered (D26)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.queue.supplement import supplement
from sidecar.spans.span import DATA, Lanes, Span, drop_payloads
from tests.support.delivery import HOLD_S, TTL_S, Process, ScriptedFile, process_in, request
from tests.support.spans import make_span
from tests.support.spool import (
    DEADLINE_S,
    FlakyFile,
    added,
    backlog,
    new_span,
    pairs,
    row,
    rows_on_disk,
    running_spool,
    settle,
    stored,
    until,
)

AGENTEX = int(Lanes.AGENTEX)
SAID = b'[{"from": "start"}]'
SOON_S = 1.0
RETRIED_S = 6.0  # a failed disk is tried again every 5 s


def start_of(id_: str) -> Span:
    """A START with `data`."""
    return make_span(id_, complete=False, data=SAID)


@pytest.mark.parametrize("dropped", [False, True])
async def test_a_supplement_shares_the_data_of_its_start(tmp_path: Path, dropped: bool) -> None:
    """In memory or not, `data` is on disk once; it is loaded, and deleted with the START's row."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        start.data = b'{"from":"start","p":"%b"}' % (b"x" * 100_000)
        data = start.data
        await added(spool, start)
        settle(spool, start, 1, 2)
        used = spool.file.used
        if dropped:
            drop_payloads(start, stored(start))
        follows = supplement(start, DATA, AGENTEX, start.accepted_at)
        spool.add(follows, start)
        await spool.commit()
        assert spool.file.used - used < 50_000
        assert (stored(follows).dropped, follows.lanes) == (DATA if dropped else 0, AGENTEX)
        (loaded,) = await spool.load([row(follows)], 1, AGENTEX)
        assert isinstance(loaded, Span)
        assert (loaded.data, loaded.input, loaded.is_supplement) == (data, b"", True)
        settle(spool, follows, AGENTEX)
        await until(lambda: spool.file.rows == 0)


async def test_the_next_process_finds_a_complete_row(tmp_path: Path) -> None:
    """It is a write of one lane, and no START waits for an END any more."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        start.data = SAID
        await added(spool, start)
        settle(spool, start, 1, 2)
        spool.add(supplement(start, DATA, AGENTEX, start.accepted_at), start)
        await spool.commit()
    assert rows_on_disk(tmp_path) == backlog([], [(2, AGENTEX)])


async def test_a_supplement_on_disk_is_as_old_as_it_is(tmp_path: Path) -> None:
    """And not as old as its START: it would expire at its first failure (`retry.max_age_s`)."""
    async with running_spool(FlakyFile(tmp_path)) as spool:
        start = new_span("s", complete=False)
        start.data, now = SAID, start.accepted_at
        start.accepted_at -= 3600.0
        await added(spool, start)
        settle(spool, start, 1, 2)
        follows = supplement(start, DATA, AGENTEX, now)
        spool.add(follows, start)
        loaded = await spool.load([row(start), row(follows)], 2**20, AGENTEX)
        ages = [now - span.accepted_at for span in loaded if isinstance(span, Span)]
        assert ages == pytest.approx([3600.0, 0.0], abs=DEADLINE_S)


# From the listener to the upstreams. The first one gets open writes without `data`.


def file_of(process: Process) -> ScriptedFile:
    """The process's file."""
    assert process.file is not None
    return process.file


def data_of(process: Process, id_: str = "s") -> list[bytes | None]:
    """The `data` of a span at each upstream."""
    return [upstream.data.get(id_) for upstream in process.upstreams]


def accept(process: Process) -> None:
    """The upstreams accept all that is in flight, and nothing later."""
    for upstream in process.upstreams:
        for each in list(upstream.pending):
            upstream.respond(each, "ok", applied=True)
    process.run_ready()


def keep(process: Process, *, dropped: bool = True) -> None:
    """A START arrives and is written; with `dropped`, its payloads leave memory then."""
    request(process, start_of("s"), seconds=0.5).result()
    process.pass_time(HOLD_S)
    accept(process)
    process.pass_time(SOON_S)
    open_spans = process.admission.open_spans
    start = open_spans.started(("t1", "s"))
    assert start is not None
    if dropped:
        open_spans.idle.make_room(process.budget.available + 1)
    assert (start.holders, start.data) == (1, b"" if dropped else SAID)
    assert data_of(process) == [None, SAID]


@contextmanager
def next_process(before: Process, directory: Path) -> Iterator[Process]:
    """A process with the same upstreams, which accept everything by now."""
    process = Process(before.upstreams, directory)
    for upstream in process.upstreams:
        upstream.recover()
    try:
        yield process
    finally:
        if not process.loop.is_closed():
            process.kill(disk_call_done=False)


def assert_finished(process: Process, directory: Path) -> None:
    """The data has arrived, nothing is lost, and nothing is left on disk or in memory."""
    assert data_of(process) == [SAID, SAID]
    assert process.lost() == [0, 0]
    process.check()
    process.finish()
    assert rows_on_disk(directory) == backlog([], [])


@pytest.mark.parametrize("dropped", [False, True])
def test_data_on_disk_is_delivered(tmp_path: Path, dropped: bool) -> None:
    """Whether it is still in memory or not; not before the START's TTL is over."""
    with process_in(tmp_path, accepting=True) as process:
        keep(process, dropped=dropped)
        process.pass_time(TTL_S - HOLD_S - SOON_S - 1.5)
        assert data_of(process) == [None, SAID]
        process.pass_time(SOON_S + 1.5)
        assert len(process.admission.open_spans) == 0
        assert_finished(process, tmp_path)


@pytest.mark.parametrize("dropped", [False, True])
def test_data_survives_a_kill_before_its_delivery(tmp_path: Path, dropped: bool) -> None:
    """The next process delivers it, without waiting for another TTL."""
    with process_in(tmp_path) as process:
        keep(process, dropped=dropped)
        process.pass_time(TTL_S)
        (pending,) = process.upstreams[0].pending
        assert [(span.is_supplement, span.data) for span in pending.batch] == [(True, SAID)]
        process.kill(disk_call_done=False)
    with next_process(process, tmp_path) as process:
        process.pass_time(SOON_S)
        assert len(process.admission.open_spans) == 0
        assert_finished(process, tmp_path)


@pytest.mark.parametrize("disk_call_done", [False, True])
def test_data_survives_a_kill_before_it_is_written(tmp_path: Path, disk_call_done: bool) -> None:
    """It is not sent before it is on disk: the START is there, or what follows it; never none."""
    with process_in(tmp_path) as process:
        keep(process)
        process.loop.held = True
        process.pass_time(TTL_S)
        assert process.loop.calls
        assert not process.upstreams[0].pending
        process.kill(disk_call_done=disk_call_done)
    with next_process(process, tmp_path) as process:
        process.pass_time(SOON_S)
        assert len(process.admission.open_spans) == (0 if disk_call_done else 1)
        process.pass_time(2 * TTL_S)
        assert_finished(process, tmp_path)


@pytest.mark.parametrize("dropped", [False, True])
def test_data_survives_a_stop_while_the_upstream_is_down(tmp_path: Path, dropped: bool) -> None:
    """The START stays on disk, in case its END comes; at the latest, `data` follows at its TTL."""
    with process_in(tmp_path) as process:
        keep(process, dropped=dropped)
        process.stop()
        assert process.lost() == [0, 0]
    assert pairs(rows_on_disk(tmp_path).open_rows) == [(1, 0)]
    with next_process(process, tmp_path) as process:
        process.pass_time(2 * TTL_S)
        assert_finished(process, tmp_path)


def test_after_a_stop_the_open_write_is_still_sent_first(tmp_path: Path) -> None:
    """It was in flight; sent before it, what follows would have nothing to add to."""
    with process_in(tmp_path) as process:
        request(process, start_of("s"), seconds=0.5).result()
        process.pass_time(HOLD_S)
        assert all(upstream.pending for upstream in process.upstreams)
        process.stop()
        assert process.lost() == [0, 0]
    with next_process(process, tmp_path) as process:
        process.pass_time(2 * TTL_S)
        assert_finished(process, tmp_path)


def test_data_on_a_failing_disk_is_waited_for(tmp_path: Path) -> None:
    """A START whose payloads are only there is not forgotten at its TTL, but once it works."""
    with process_in(tmp_path, accepting=True) as process:
        keep(process)
        file_of(process).broken = True
        request(process, make_span("other"), seconds=SOON_S)
        assert process.spool.degraded
        process.pass_time(2 * TTL_S)
        assert process.admission.open_spans.about(1, "s")
        assert data_of(process) == [None, SAID]
        file_of(process).broken = False
        process.pass_time(TTL_S + RETRIED_S)
        assert_finished(process, tmp_path)


def test_data_is_waited_for_while_it_is_loaded(tmp_path: Path) -> None:
    """The disk fails when the START has been forgotten already."""
    with process_in(tmp_path) as process:
        keep(process)
        process.loop.held = True
        process.pass_time(TTL_S)
        process.loop.complete_calls(1)
        file_of(process).broken = True
        process.loop.held = False
        process.loop.complete_calls()
        process.pass_time(TTL_S)
        assert not process.upstreams[0].pending
        file_of(process).broken = False
        process.pass_time(RETRIED_S)
        accept(process)
        process.pass_time(SOON_S)
        assert_finished(process, tmp_path)


def test_data_in_memory_does_not_wait_for_a_failing_disk(tmp_path: Path) -> None:
    """It is sent from memory, and the START's row is deleted once the disk works."""
    with process_in(tmp_path, accepting=True) as process:
        keep(process, dropped=False)
        file_of(process).broken = True
        process.pass_time(TTL_S)
        request(process, make_span("other"), seconds=SOON_S)
        assert data_of(process) == [SAID, SAID]
        file_of(process).broken = False
        process.pass_time(RETRIED_S)
        assert_finished(process, tmp_path)


def test_data_that_can_not_be_read_is_counted_as_lost(tmp_path: Path) -> None:
    """In the lane that it was for; nothing of the span stays on disk."""
    with process_in(tmp_path, accepting=True) as process:
        keep(process)
        assert file_of(process).damage(1)
        process.pass_time(TTL_S)
        assert data_of(process) == [None, SAID]
        assert process.lost() == [1, 0]
        process.check()
        process.finish()
    assert rows_on_disk(tmp_path) == backlog([], [])
