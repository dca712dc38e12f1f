"""The states of a span: every cell of the table in open_spans.py, with and without a spool.

The cells that are empty there are tested, too: nothing happens in them.
"""

import pytest

from sidecar.spans.span import SdkFields, Span
from tests.support.open_spans import (
    HELD,
    HOLD_S,
    INPUT,
    KEPT,
    KEY,
    OUTPUT,
    TTL_S,
    Bench,
    RecordingSpool,
    kept,
    payloads,
)


def ended(bench: Bench) -> Span:
    """An END that was joined with its START."""
    bench.start()
    return bench.end()


# The row "unknown".


def test_an_unknown_start_is_held(bench: Bench) -> None:
    """It is not written, and its bytes count."""
    start = bench.start()
    assert bench.states() == (HELD, [], (0, 1, 0))
    assert bench.open_spans.next_due() == HOLD_S
    assert (bench.budget.used, start.holders) == (start.size, 1)


def test_an_unknown_end_is_written(bench: Bench) -> None:
    """It is written as it arrived; then its span is ended."""
    end = bench.end()
    assert bench.states() == (None, ["complete"], (0, 0, 1))
    assert payloads(end) == (b"", OUTPUT)
    bench.assert_ended()


def test_time_does_nothing_to_unknown_spans(bench: Bench) -> None:
    """No time is due, and nothing is written."""
    bench.tick(10_000.0)
    assert bench.states() == (None, [], (0, 0, 0))
    assert bench.open_spans.next_due() is None


# The row "HELD".


def test_a_start_of_a_held_span_is_joined(bench: Bench) -> None:
    """The newer START takes the earlier one's place, time and missing payloads."""
    first = bench.start(data=b'{"n":1}', parent_id="p")
    second = bench.start(at=1.0, input=b'{"from":"second"}')
    assert bench.states() == (HELD, [], (1, 1, 0))
    assert bench.open_spans.started(KEY) is second
    assert (second.input, second.data, second.parent_id) == (b'{"from":"second"}', b'{"n":1}', "p")
    assert (second.accepted_at, bench.open_spans.next_due()) == (0.0, HOLD_S)
    assert (bench.budget.used, first.holders) == (second.size, 0)
    if isinstance(bench.spool, RecordingSpool):
        assert (bench.spool.replaced, len(bench.spool.rows)) == ([1], 2)
    bench.tick(HOLD_S)
    assert bench.written == [second]


def test_an_end_of_a_held_span_is_written_and_its_start_joined(bench: Bench) -> None:
    """One complete write has what either of them said; then the span is ended."""
    start = bench.start(parent_id="p")
    end = bench.end()
    assert bench.states() == (None, ["complete"], (1, 0, 1))
    assert (*payloads(end), end.parent_id) == (INPUT, OUTPUT, "p")
    assert (bench.budget.used, start.holders) == (end.size, 0)
    if isinstance(bench.spool, RecordingSpool):
        assert bench.spool.starts == [None, start]
    bench.tick(10_000.0)
    assert bench.states() == (None, ["complete"], (1, 0, 1))
    bench.assert_ended()


def test_the_next_due_is_that_of_the_first_start_that_is_still_held(bench: Bench) -> None:
    """The time of a START whose END has arrived is not due any more."""
    bench.start()
    bench.start("t", at=1.0)
    bench.end()
    assert bench.open_spans.next_due() == 1.0 + HOLD_S


def test_a_held_start_is_written_when_its_hold_is_over(bench: Bench) -> None:
    """Not a moment before `hold_s`; then it is kept, and is next due after `ttl_s`."""
    start = bench.start()
    bench.tick(HOLD_S - 0.001)
    assert bench.states() == (HELD, [], (0, 1, 0))
    bench.tick(HOLD_S)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))
    assert bench.written == [start]
    assert start.holders == 3
    assert bench.open_spans.next_due() == TTL_S


def test_a_held_start_has_no_ttl(bench: Bench) -> None:
    """If its hold ends late, it is written and kept, however long ago it was accepted."""
    bench.start()
    bench.tick(TTL_S + 1)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))


# The row "KEPT".


def test_a_start_of_a_kept_span_is_joined(bench: Bench) -> None:
    """It is not written, and changes nothing: the END will carry what is new."""
    first = kept(bench)
    second = bench.start(at=3.0, input=b'{"from":"second"}')
    assert bench.states() == (KEPT, ["open"], (1, 0, 1))
    assert bench.open_spans.started(KEY) is first
    assert (first.input, second.holders, bench.budget.used) == (INPUT, 0, first.size)


@pytest.mark.parametrize("settled", [True, False])
def test_an_end_of_a_kept_span_is_filled_and_written(bench: Bench, settled: bool) -> None:
    """It has what it omits from the START, whose own write stays one; then the span is ended."""
    start = kept(bench, settled=settled)
    end = bench.end(at=5.0)
    assert bench.states() == (None, ["open", "complete"], (0, 0, 2))
    assert payloads(end) == (INPUT, OUTPUT)
    assert start.holders == (0 if settled else 2)
    if isinstance(bench.spool, RecordingSpool):
        assert bench.spool.starts == [None, start]
        assert not bench.spool.retired
    bench.assert_ended()


def test_a_kept_span_has_no_hold(bench: Bench) -> None:
    """Until `ttl_s` is over, time does nothing, and its open write is not repeated."""
    kept(bench)
    for now in (HOLD_S, 2 * HOLD_S, TTL_S - 0.001):
        bench.tick(now)
    bench.open_spans.release_all()
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))


def test_a_settled_start_becomes_unknown_when_its_ttl_is_over(bench: Bench) -> None:
    """Nothing of it stays; a later START is held again, and an END is written as it is."""
    start = kept(bench)
    bench.tick(TTL_S)
    assert bench.states() == (None, ["open"], (0, 0, 1))
    assert (len(bench.open_spans), bench.budget.used, start.holders) == (0, 0, 0)
    assert bench.open_spans.next_due() is None
    if isinstance(bench.spool, RecordingSpool):
        assert bench.spool.retired == [1]
    bench.start(at=40.0)
    assert bench.states() == (HELD, ["open"], (0, 1, 1))


def test_a_start_that_is_not_settled_stays_beyond_its_ttl(bench: Bench) -> None:
    """It stays for another `ttl_s` and another, and its END still gets what it said."""
    start = kept(bench, settled=False)
    for round_ in (1, 2, 3):
        bench.tick(round_ * TTL_S)
        assert bench.states() == (KEPT, ["open"], (0, 0, 1))
        assert bench.open_spans.next_due() == (round_ + 1) * TTL_S
    assert start.holders == 3
    assert payloads(bench.end(at=100.0)) == (INPUT, OUTPUT)


def test_a_start_is_forgotten_at_the_first_ttl_after_it_is_settled(bench: Bench) -> None:
    """Not when it is settled, but at the end of the `ttl_s` that it stays for."""
    start = kept(bench, settled=False)
    bench.tick(TTL_S)
    bench.settle(start)
    bench.tick(2 * TTL_S - 0.001)
    assert bench.state_of("s") == KEPT
    bench.tick(2 * TTL_S)
    assert bench.state_of("s") is None


def test_a_start_that_waits_on_disk_for_one_lane_is_not_settled() -> None:
    """No lane has it in memory, but one has put it off: it stays beyond its `ttl_s`."""
    bench = Bench(RecordingSpool())
    start = kept(bench)
    assert start.stored is not None
    start.stored.pending = 0b10
    bench.tick(TTL_S)
    assert bench.states() == (KEPT, ["open"], (0, 0, 1))
    start.stored.pending = 0
    bench.tick(2 * TTL_S)
    assert bench.state_of("s") is None


def test_a_start_that_stays_does_not_hold_up_others(bench: Bench) -> None:
    """Those behind it are written and forgotten in time."""
    stays = bench.start("stays")
    for number in range(3):
        bench.start(f"s{number}", at=1.0)
    bench.tick(HOLD_S + 1)
    bench.settle(*(span for span in bench.written if span is not stays))
    bench.tick(TTL_S + 1)
    bench.start("new", at=TTL_S + 1)
    bench.tick(TTL_S + 1 + HOLD_S)
    assert len(bench.open_spans) == 2
    assert [span.id for span in bench.written] == ["stays", "s0", "s1", "s2", "new"]


# The row "ended".


def test_a_start_of_an_ended_span_is_joined(bench: Bench) -> None:
    """If it were written, it would replace the finished row."""
    ended(bench)
    late = bench.start(at=3.0)
    assert bench.states() == (None, ["complete"], (2, 0, 1))
    assert (late.holders, len(bench.open_spans)) == (0, 0)


@pytest.mark.parametrize("state", ["held", "kept"])
def test_an_end_that_repeats_a_filled_one_is_joined(bench: Bench, state: str) -> None:
    """Sent as it is, it would erase what the first one got from the START."""
    bench.start()
    if state == "kept":
        bench.tick(HOLD_S)
    bench.end()
    before, joined = len(bench.written), bench.accounting.joined
    for _ in range(2):
        bench.end(at=3.0)
    assert (len(bench.written), bench.accounting.joined) == (before, joined + 2)
    assert bench.accounting.imbalance == 0


def test_another_end_of_an_ended_span_is_written(bench: Bench) -> None:
    """It says something new; after it, a repeat of the first one is still recognized."""
    ended(bench)
    another = bench.end(output=b'{"from":"another"}')
    assert bench.states() == (None, ["complete", "complete"], (1, 0, 2))
    assert payloads(another) == (b"", b'{"from":"another"}')
    bench.end()
    assert bench.states() == (None, ["complete", "complete"], (2, 0, 2))


def test_an_end_that_took_nothing_from_its_start_is_written_again(bench: Bench) -> None:
    """Its repeat has all that it had: written again, it erases nothing."""
    bench.start()
    bench.end(input=b'{"own":1}')
    bench.end(input=b'{"own":1}')
    assert bench.states() == (None, ["complete", "complete"], (1, 0, 2))


def test_time_does_nothing_to_ended_spans(bench: Bench) -> None:
    """Neither `hold_s` nor `ttl_s` makes one unknown again."""
    ended(bench)
    bench.tick(HOLD_S)
    bench.tick(10 * TTL_S)
    bench.assert_ended()


# Other events that act on these states.


def test_a_process_that_stops_writes_what_is_held(bench: Bench) -> None:
    """As if `hold_s` were over, in the order of acceptance."""
    starts = [bench.start(id_, at=1.0) for id_ in ("s", "t", "u")]
    bench.end("t")
    bench.open_spans.release_all()
    assert [(span.id, span.kind) for span in bench.written] == [
        ("t", "complete"),
        ("s", "open"),
        ("u", "open"),
    ]
    assert bench.states()[0] == KEPT
    assert starts[0].holders == 3


def test_spans_of_the_same_id_in_two_traces_are_not_joined(bench: Bench) -> None:
    """An id is unique only within its trace."""
    bench.start()
    other = bench.end(trace_id="t2")
    assert payloads(other) == (b"", OUTPUT)
    assert bench.states() == (HELD, ["complete"], (0, 1, 1))


def test_an_end_for_one_lane_is_joined_only_with_a_start_for_it(bench: Bench) -> None:
    """SDKs may post a span to each upstream: each lane's START and END are joined on their own."""
    for lane in (1, 2):
        bench.start(sdk=SdkFields(lane), input=b'{"lane":%d}' % lane)
    event = bench.end()
    ends = [bench.end(sdk=SdkFields(lane)) for lane in (2, 1)]
    assert [span.input for span in (event, *ends)] == [b"", b'{"lane":2}', b'{"lane":1}']
    assert bench.states() == (None, ["complete"] * 3, (2, 0, 3))
