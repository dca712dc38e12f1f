"""Supplements: when the payloads of a START follow what was written of its span (D26).

The states themselves are tested in test_open_spans.py, with no lane that needs supplements.
"""

from typing import Any

import pytest

from sidecar.spans.span import DATA, SdkFields, Stored, payloads_in_memory
from sidecar.spool.spool import Spool
from tests.support.open_spans import (
    AGENTEX,
    ALL,
    HOLD_S,
    INPUT,
    KEPT,
    SGP,
    TTL_S,
    Bench,
    RecordingSpool,
    adds,
    kept,
)
from tests.support.spans import make_span

S = b'{"s":1}'
DATA_FOLLOWS = AGENTEX


# A START that is forgotten.


def test_data_follows_when_the_ttl_is_over(bench: Bench) -> None:
    """Only `data`, and only then; nothing else stays of the START, and its END is unknown."""
    start = kept(bench, data=S, parent_id="p")
    bench.tick(TTL_S - 0.001)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))
    bench.tick(TTL_S)
    assert bench.states() == (None, ["open", "supplement"], (0, 0, 1))
    added = bench.written[-1]
    assert adds(added) == {"data": S}
    assert (added.key, added.name, added.start_time) == (start.key, start.name, start.start_time)
    assert (bench.budget.used, added.holders, start.holders) == (added.size, 1, 0)
    if isinstance(bench.spool, RecordingSpool):  # the two share payloads: it must not be deleted
        assert bench.spool.starts == [None, start]
        assert (bench.spool.retired, bench.spool.replaced) == ([], [])
    bench.tick(10 * TTL_S)
    bench.end(at=10 * TTL_S)
    assert bench.states() == (None, ["open", "supplement", "complete"], (0, 0, 2))
    assert bench.written[-1].data == b""


@pytest.mark.parametrize("fields", [{}, {"data": S, "sdk": SdkFields(SGP)}])
def test_nothing_follows_without_data_or_for_another_lane(
    bench: Bench, fields: dict[str, Any]
) -> None:
    """The open write was whole."""
    kept(bench, **fields)
    bench.open_spans.release_all()
    bench.tick(TTL_S)
    assert bench.states() == (None, ["open"], (0, 0, 1))
    if isinstance(bench.spool, RecordingSpool):
        assert bench.spool.retired == [1]


@pytest.mark.parametrize("spool", [Spool, RecordingSpool])
def test_nothing_follows_if_every_lane_gets_whole_open_writes(spool: type[Spool]) -> None:
    """Neither at the TTL, nor when the process stops, nor after an END."""
    bench = Bench(spool())
    kept(bench, data=S)
    bench.open_spans.release_all()
    bench.tick(TTL_S)
    bench.end(at=TTL_S)
    bench.start(at=TTL_S, **ALL)
    assert bench.states() == (None, ["open", "complete"], (1, 0, 2))


def test_the_start_of_an_sdk_is_followed_too(bench: Bench) -> None:
    """It is for the lane that gets open writes without `data`."""
    kept(bench, data=S, sdk=SdkFields(AGENTEX))
    bench.tick(TTL_S)
    assert bench.states()[1:] == (["open", "supplement"], (0, 0, 1))
    assert adds(bench.written[-1]) == {"data": S}


def test_data_follows_once_the_open_write_is_settled(bench: Bench) -> None:
    """Sent before the open write, it would have nothing to add to."""
    start = kept(bench, settled=False, data=S)
    bench.tick(TTL_S)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))
    bench.settle(start)
    bench.tick(2 * TTL_S)
    assert bench.states() == (None, ["open", "supplement"], (0, 0, 1))


@pytest.mark.parametrize("degraded", [False, True])
def test_a_start_that_leaves_for_room_is_followed(degraded: bool) -> None:
    """Without a spool, or while its disk fails; the bytes of what follows are counted."""
    spool = RecordingSpool() if degraded else Spool()
    spool.degraded = degraded
    bench = Bench(spool, data_follows=AGENTEX)
    start = kept(bench, data=S, input=b'"%b"' % (b"x" * 5000))
    bench.room(0)
    assert not bench.open_spans.idle.make_room(start.size)
    assert bench.states() == (None, ["open", "supplement"], (0, 0, 1))
    added = bench.written[-1]
    assert adds(added) == {"data": S}
    assert (bench.budget.used, added.stored) == (added.size, None)
    assert bench.open_spans.idle.make_room(start.size - added.size)


def test_with_a_spool_nothing_follows_for_room() -> None:
    """Only the payloads leave memory; at the TTL, those that are on disk only follow from there."""
    bench = Bench(RecordingSpool(), data_follows=AGENTEX)
    start = kept(bench, data=S)
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))
    assert payloads_in_memory(start) == 0
    bench.tick(TTL_S)
    assert bench.states() == (None, ["open", "supplement"], (0, 0, 1))
    added = bench.written[-1]
    assert adds(added) == {}
    assert added.stored is not None
    assert added.stored.dropped == DATA


def test_payloads_on_a_failing_disk_are_waited_for() -> None:
    """A START whose payloads are on disk only stays beyond its TTL until the disk works."""
    spool = RecordingSpool()
    bench = Bench(spool, data_follows=AGENTEX)
    kept(bench, data=S)
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    spool.degraded = True
    for round_ in (1, 2):
        bench.tick(round_ * TTL_S)
        assert bench.states() == (KEPT, ["open"], (0, 0, 1))
    spool.degraded = False
    bench.tick(3 * TTL_S)
    assert bench.states() == (None, ["open", "supplement"], (0, 0, 1))


def test_payloads_in_memory_do_not_wait_for_a_failing_disk() -> None:
    """They follow from memory, and the row of the START is deleted."""
    spool = RecordingSpool()
    bench = Bench(spool, data_follows=AGENTEX)
    kept(bench, data=S)
    spool.degraded = True
    bench.tick(TTL_S)
    assert bench.states() == (None, ["open", "supplement"], (0, 0, 1))
    assert adds(bench.written[-1]) == {"data": S}
    assert (spool.replaced, bench.written[-1].stored) == ([1], None)


# The time of a supplement: a START may be an hour old, but what follows it is new.


def test_what_follows_a_ttl_is_new(bench: Bench) -> None:
    """It is as old as the tick that made it, even if that was late; the START's time stays."""
    start = kept(bench, data=S)
    bench.start("t", at=1.0, data=S)
    bench.tick(TTL_S)
    bench.settle(bench.written[1])
    bench.tick(TTL_S + 7.0)
    times = {span.id: span.accepted_at for span in bench.written if span.is_supplement}
    assert times == {"s": TTL_S, "t": TTL_S + 7.0}
    assert start.accepted_at == 0.0


def test_what_follows_a_recovered_start_is_new() -> None:
    """An earlier process accepted it before this loop's time began."""
    bench = Bench(RecordingSpool(), data_follows=AGENTEX)
    start = make_span("s", complete=False, data=S, accepted_at=-3600.0)
    start.stored = Stored(1, 0)
    bench.open_spans.recover(start)
    bench.tick(5.0)
    assert bench.states() == (None, ["supplement"], (0, 0, 0))
    assert bench.written[0].accepted_at == 5.0


def test_what_makes_room_is_as_new_as_the_last_tick() -> None:
    """Room is made without a clock."""
    bench = Bench(data_follows=AGENTEX)
    start = kept(bench, data=S)
    bench.tick(TTL_S / 2)
    bench.room(0)
    bench.open_spans.idle.make_room(start.size)
    assert [span.accepted_at for span in bench.written] == [0.0, TTL_S / 2]


def test_what_follows_when_the_process_stops_is_as_new_as_the_last_tick() -> None:
    """The process stops without a clock."""
    bench = Bench(data_follows=AGENTEX)
    kept(bench, data=S)
    bench.tick(TTL_S / 2)
    bench.open_spans.release_all()
    assert [span.accepted_at for span in bench.written] == [0.0, TTL_S / 2]


# A process that stops.


@pytest.mark.parametrize("degraded", [False, True])
def test_a_process_that_stops_writes_the_data_of_what_is_kept(degraded: bool) -> None:
    """Behind what is held, which is written with its `data`; of what has no row on disk."""
    spool = RecordingSpool() if degraded else Spool()
    spool.degraded = degraded
    bench = Bench(spool, data_follows=AGENTEX)
    kept(bench, data=S)
    bench.start("bare", at=HOLD_S)
    bench.tick(2 * HOLD_S)
    bench.start("held", at=2 * HOLD_S, data=S)
    bench.open_spans.release_all()
    assert bench.states() == (KEPT, ["open", "open", "open", "supplement"], (0, 0, 3))
    assert [span.id for span in bench.written] == ["s", "bare", "held", "s"]
    assert adds(bench.written[-1]) == {"data": S}
    assert bench.written[2].data == S


@pytest.mark.parametrize("settled", [False, True])
def test_whether_data_follows_when_the_process_stops(bench: Bench, settled: bool) -> None:
    """Without a spool, it goes behind the open write; with one, the START waits on disk."""
    start = kept(bench, settled=settled, data=S)
    bench.open_spans.release_all()
    kinds = ["open", "supplement"] if start.stored is None else ["open"]
    assert bench.states() == (KEPT, kinds, (0, 0, 1))


def test_a_start_stays_known_while_the_process_stops(bench: Bench) -> None:
    """A last END has what its START said, and the START's row is there for the next process."""
    start = kept(bench, data=S)
    bench.open_spans.release_all()
    if isinstance(bench.spool, RecordingSpool):
        assert not any(bench.spool.starts)
        assert (bench.spool.retired, bench.spool.replaced) == ([], [])
    follows = ["supplement"] if start.stored is None else []
    end = bench.end()
    assert bench.states() == (None, ["open", *follows, "complete"], (0, 0, 2))
    assert (end.input, end.data, start.holders) == (INPUT, S, 0)


def test_payloads_on_disk_stay_there_when_the_process_stops() -> None:
    """The next process has them."""
    bench = Bench(RecordingSpool(), data_follows=AGENTEX)
    kept(bench, data=S)
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    bench.open_spans.release_all()
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))
