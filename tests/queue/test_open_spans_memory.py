"""STARTs whose payloads leave memory and come back, or that an earlier process left on disk.

The states themselves are tested in test_open_spans.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sidecar.queue import join
from sidecar.spans.span import SdkFields, Span, payloads_in_memory
from tests.support.open_spans import (
    BOTH,
    HELD,
    HOLD_S,
    INPUT,
    KEPT,
    OUTPUT,
    TTL_S,
    Bench,
    RecordingSpool,
    kept,
    payloads,
)
from tests.support.spans import make_span


def test_there_may_be_room_already(bench: Bench) -> None:
    """Then nothing leaves memory."""
    start = kept(bench)
    bench.room(100)
    assert bench.open_spans.idle.make_room(100)
    assert (start.input, bench.states()[0]) == (INPUT, KEPT)


def test_a_kept_start_leaves_memory_for_room_only_if_settled() -> None:
    """Without a spool: the oldest settled ones, no more than needed; never one that is held."""
    bench = Bench()
    starts = [bench.start(id_) for id_ in ("unsettled", "s", "t", "u")]
    bench.tick(HOLD_S)
    bench.settle(*starts[1:])
    bench.start("held", at=HOLD_S)
    bench.room(0)
    assert bench.open_spans.idle.make_room(starts[1].size + 1)
    assert [bench.state_of(id_) for id_ in ("unsettled", "s", "t", "u", "held")] == [
        KEPT,
        None,
        None,
        KEPT,
        HELD,
    ]
    assert not bench.open_spans.idle.make_room(2**20)
    assert [bench.state_of(id_) for id_ in ("unsettled", "u", "held")] == [
        KEPT,
        None,
        HELD,
    ]
    assert bench.accounting.imbalance == 0


def test_a_start_that_left_for_room_is_unknown() -> None:
    """Its END is written without being filled in."""
    bench = Bench()
    kept(bench)
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    assert payloads(bench.end()) == (b"", OUTPUT)


def test_with_a_failing_disk_a_settled_kept_start_leaves_for_room() -> None:
    """Its payloads are nowhere else, so it becomes unknown, as without a spool."""
    spool = RecordingSpool()
    spool.degraded = True
    bench = Bench(spool)
    start = kept(bench)
    assert start.stored is None
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    assert bench.states() == (None, ["open"], (0, 0, 1))


def large(bench: Bench, *ids: str) -> list[Span]:
    """Large STARTs that are held."""
    return [bench.start(id_, input=b'{"p":"%b"}' % (b"x" * 5000)) for id_ in ids]


@pytest.mark.parametrize("state", [HELD, KEPT])
def test_payloads_on_disk_leave_memory_oldest_first(state: str) -> None:
    """With a spool, no START is forgotten for room: its payloads are dropped."""
    bench = Bench(RecordingSpool())
    starts = large(bench, "s", "t", "u")
    size = starts[0].size
    if state == KEPT:
        bench.tick(HOLD_S)
        bench.settle(*starts)
    bench.room(0)
    used = bench.budget.used
    assert bench.open_spans.idle.make_room(5000)
    assert [payloads_in_memory(start) for start in starts] == [0, 1, 1]
    assert bench.budget.used == used - (size - starts[0].size) == used - 5008
    assert [bench.state_of(id_) for id_ in ("s", "t", "u")] == [state] * 3
    assert not bench.open_spans.idle.make_room(2**20)
    assert [payloads_in_memory(start) for start in starts] == [0, 0, 0]
    assert bench.budget.used == sum(start.size for start in starts)


def test_payloads_that_a_lane_has_not_settled_stay_in_memory() -> None:
    """The lane is about to send them, and it shares them with the START."""
    bench = Bench(RecordingSpool())
    (start,) = large(bench, "s")
    bench.tick(HOLD_S)
    bench.room(0)
    assert not bench.open_spans.idle.make_room(1)
    assert payloads_in_memory(start) == 1


def test_what_has_ended_is_not_dropped() -> None:
    """The bytes of its payloads are the END's, or nobody's."""
    bench = Bench(RecordingSpool())
    _, other = large(bench, "s", "t")
    end = bench.end()
    bench.room(0)
    assert bench.open_spans.idle.make_room(5000)
    assert (payloads_in_memory(other), bool(end.input)) == (0, True)
    assert bench.budget.used == other.size + end.size


def restored(bench: Bench, ends: Sequence[Span]) -> list[Span]:
    """Restore the STARTs that `ends` need, as admission does; returns them."""
    assert isinstance(bench.spool, RecordingSpool)
    needed = bench.open_spans.idle.needed(ends)
    for start, stored in needed:
        bench.budget.hold(start)
        bench.open_spans.idle.restore(start, bench.spool.rows[stored.row - 1])
        bench.budget.release(start)
    return [start for start, _ in needed]


@pytest.mark.parametrize("state", [HELD, KEPT])
def test_dropped_payloads_come_back_for_the_end(state: str) -> None:
    """The END is filled in as if they had never left memory, and every byte is counted."""
    bench = Bench(RecordingSpool())
    (start,) = large(bench, "s")
    prompt = start.input
    if state == KEPT:
        bench.tick(HOLD_S)
        bench.settle(start)
    before = bench.budget.used
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    assert start.stored is not None
    assert (start.stored.dropped, start.stored.dropped_bytes) == (1, len(prompt))
    end = make_span("s", input=b"", output=OUTPUT)
    assert restored(bench, [end]) == [start]
    assert (start.input, bench.budget.used) == (prompt, before)
    assert (start.stored.dropped, start.stored.dropped_bytes) == (0, 0)
    assert not bench.open_spans.idle.needed([end])
    bench.open_spans.take(end)
    assert payloads(end) == (prompt, OUTPUT)
    assert bench.budget.used == end.size


def test_restored_payloads_can_be_dropped_again() -> None:
    """They are the last to leave: they came back most recently."""
    bench = Bench(RecordingSpool())
    large(bench, "unsettled")
    bench.open_spans.release_all()
    starts = large(bench, "s", "t")
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    restored(bench, [make_span("s", input=b"")])
    bench.room(0)
    for left in ([1, 0], [0, 0]):
        bench.open_spans.idle.make_room(bench.budget.available + 1)
        assert [payloads_in_memory(start) for start in starts] == left


def test_only_an_end_that_omits_a_dropped_payload_needs_it() -> None:
    """One with an input of its own needs nothing; nor does a span that is not known."""
    bench = Bench(RecordingSpool())
    large(bench, "s")
    bench.room(0)
    bench.open_spans.idle.make_room(1)
    assert not bench.open_spans.idle.needed([make_span("s"), make_span("other", input=b"")])
    assert bench.open_spans.idle.needed([make_span("s", input=b"")])


@pytest.mark.parametrize("sdk", [None, SdkFields(1)])
def test_the_data_of_an_end_counts(sdk: SdkFields | None) -> None:
    """One with payloads of its own needs none from disk, and its `data` is not merged."""
    bench = Bench(RecordingSpool())
    bench.start(sdk=sdk, data=b'{"a":1}')
    bench.room(0)
    assert bench.open_spans.idle.make_room(1)
    has_all: dict[str, Any] = {"input": b"{}", "output": b"{}", "data": b'{"b":2}'}
    end = make_span("s", sdk=sdk, **has_all)
    assert restored(bench, [end]) == []
    bench.open_spans.take(end)
    assert end.data == b'{"b":2}'


def test_payloads_are_not_restored_to_a_start_that_has_left() -> None:
    """While they were read from disk, another END or START took its place."""
    for take_its_place in (Bench.end, Bench.start):
        bench = Bench(RecordingSpool())
        (start,) = large(bench, "s")
        bench.room(0)
        bench.open_spans.idle.make_room(1)
        needed = bench.open_spans.idle.needed([make_span("s", input=b"")])
        take_its_place(bench)
        used = bench.budget.used
        assert isinstance(bench.spool, RecordingSpool)
        bench.open_spans.idle.restore(needed[0][0], bench.spool.rows[0])
        assert (payloads_in_memory(start), bench.budget.used) == (0, used)


def test_an_ended_span_is_forgotten_after_many_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for ended spans is bounded: the one that ended first becomes unknown."""
    monkeypatch.setattr(join, "MAX_REMEMBERED", 3)
    bench.end()
    for number in range(3):
        bench.end(f"other{number}")
    bench.start(at=3.0)
    assert bench.state_of("s") == HELD


# STARTs that an earlier process left.


def recovered(bench: Bench, pending: int, **fields: Any) -> Span:
    """A START from the spool, which the lanes in `pending` have not settled."""
    start = make_span("s", complete=False, accepted_at=10.0, **{"input": INPUT, **fields})
    assert isinstance(bench.spool, RecordingSpool)
    bench.spool.add(start)
    assert start.stored is not None
    start.stored.pending = pending
    bench.open_spans.recover(start)
    return start


@pytest.mark.parametrize("pending", [1, 2, BOTH])
def test_a_recovered_start_that_is_not_settled_is_held(pending: int) -> None:
    """It is written after `hold_s`, and counts as replayed; its payloads stay on disk."""
    bench = Bench(RecordingSpool())
    start = recovered(bench, pending)
    assert bench.accounting.replayed == 1
    assert bench.states() == (HELD, [], (0, 1, 0))
    assert (payloads_in_memory(start), bench.budget.used) == (0, start.size)
    bench.tick(10.0 + HOLD_S)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))


def test_a_recovered_start_that_is_settled_is_kept() -> None:
    """It is not written again, and is forgotten after `ttl_s`."""
    bench = Bench(RecordingSpool())
    recovered(bench, 0)
    bench.tick(10.0 + HOLD_S)
    assert bench.states() == (KEPT, [], (0, 0, 0))
    bench.tick(10.0 + TTL_S)
    assert bench.states() == (None, [], (0, 0, 0))


@pytest.mark.parametrize("pending", [0, BOTH])
def test_the_end_of_a_recovered_start_is_filled(pending: int) -> None:
    """Its payloads come from disk."""
    bench = Bench(RecordingSpool())
    recovered(bench, pending)
    end = make_span("s", input=b"", output=OUTPUT)
    restored(bench, [end])
    bench.open_spans.take(end)
    assert payloads(end) == (INPUT, OUTPUT)
    assert bench.accounting.imbalance == 0


@pytest.mark.parametrize("newer", [Bench.start, Bench.end])
def test_a_recovered_start_of_a_span_that_is_known_is_replaced(
    newer: Callable[[Bench], Span],
) -> None:
    """The disk was slow: newer events of the span arrived before this one was read."""
    bench = Bench(RecordingSpool())
    newer(bench)
    before = bench.states()
    start = recovered(bench, BOTH)
    assert bench.states() == before
    assert (start.holders, bench.accounting.replayed) == (0, 0)
    assert isinstance(bench.spool, RecordingSpool)
    assert bench.spool.replaced == [2]
