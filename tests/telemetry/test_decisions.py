"""The ring of recent decisions: compact, bounded, and searched by the id of a span or a trace."""

import tracemalloc
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.config import AdminConfig
from sidecar.spans.span import Span, span_key
from sidecar.telemetry.decisions import (
    MAX_DETAIL,
    MAX_MEANINGS,
    OTHER,
    PIECE_BYTES,
    ROW_BYTES,
    TEXT_BYTES,
    Decision,
    Decisions,
)
from tests.support.spans import make_span

CAPACITY = 8
PIECE = PIECE_BYTES // ROW_BYTES
IDS = ["s", "t", "é" * TEXT_BYTES, "x" * TEXT_BYTES, "x" * (TEXT_BYTES + 1)]
TRACES = ["t", "u", "t" * 1000]


class Noted(NamedTuple):
    """A decision as it is recorded."""

    trace_id: str
    id: str
    account: int
    ended: bool
    sink: str
    what: str
    detail: str


NOTED = st.builds(
    Noted,
    st.sampled_from(TRACES),
    st.sampled_from(IDS),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from(["", "sgp"]),
    st.sampled_from(["accepted", "forwarded"]),
    st.sampled_from(["", "HTTP 500"]),
)


def span_of(noted: Noted) -> Span:
    """The span that a decision is about."""
    span = make_span(noted.id, end_time="2026-01-01T00:00:00Z" if noted.ended else None)
    span.key, span.account = span_key(noted.trace_id, noted.id, noted.account), noted.account
    return span


def same(found: Decision, number: int, noted: Noted) -> bool:
    """Whether `found` is what was noted as number `number`."""
    whole = len(noted.id.encode()) <= TEXT_BYTES
    text = found.id == noted.id if whole else noted.id.startswith(found.id.rstrip("…"))
    meaning = found.sink, found.what, found.detail, found.ended, found.account
    expected = noted.sink, noted.what, noted.detail, noted.ended, noted.account
    return (found.at, whole, text) == (number, found.id[-1] != "…", True) and meaning == expected


def older_first(pieces: Iterable[list[Decision]]) -> list[Decision]:
    """What was found, in the order in which it was recorded."""
    return [each for piece in pieces for each in piece][::-1]


def fill(decisions: Decisions, noted: list[list[Noted]]) -> list[Noted]:
    """Record batches of one decision each; the time of a decision is its number."""
    everything: list[Noted] = []
    for batch in noted:
        for each in batch:
            code = decisions.code(each.sink, each.what, each.detail)
            decisions.note([span_of(each)], code, float(len(everything)))
            everything.append(each)
    return everything


@given(st.lists(st.lists(NOTED, max_size=3), max_size=10))
def test_it_has_the_latest_decisions(noted: list[list[Noted]]) -> None:
    """By span, by trace and by age, it gives what was noted last, in order, and nothing else."""
    decisions = Decisions(CAPACITY, now=-1.0)
    everything = list(enumerate(fill(decisions, noted)))
    kept = everything[-CAPACITY:]
    assert decisions.is_complete == (len(everything) < CAPACITY)
    assert decisions.since == (-1.0 if decisions.is_complete else kept[0][0])
    for id_ in IDS:
        expected = [pair for pair in kept if pair[1].id == id_]
        found = older_first(decisions.about(id_, trace=False))
        assert len(found) == len(expected)
        assert all(same(each, *pair) for each, pair in zip(found, expected, strict=True))
    for trace_id in TRACES:
        of_trace = [pair for pair in kept if pair[1].trace_id == trace_id]
        found = older_first(decisions.about(trace_id, trace=True))
        assert len(found) == len(of_trace)
        assert all(same(each, *pair) for each, pair in zip(found, of_trace, strict=True))
    for count in (1, 3, CAPACITY + 1):
        latest = decisions.latest(count)
        expected = list(reversed(kept[-count:]))
        assert len(latest) == len(expected)
        assert all(same(each, *pair) for each, pair in zip(latest, expected, strict=True))


@given(st.lists(NOTED, min_size=CAPACITY + 1, max_size=3 * CAPACITY))
@example([Noted("t", "s", 0, True, "", "accepted", "")] * (2 * CAPACITY))
def test_a_batch_may_be_larger_than_the_ring(noted: list[Noted]) -> None:
    """Of a batch that does not fit, the last decisions stay."""
    decisions = Decisions(CAPACITY)
    decisions.note([span_of(each) for each in noted], decisions.code("sgp", "forwarded"), 1.0)
    found = [(each.trace_hash, each.span_hash) for each in decisions.latest(CAPACITY)]
    kept = [(hash(each.trace_id), hash(each.id)) for each in reversed(noted[-CAPACITY:])]
    assert found == kept


@given(st.integers(0, 3 * PIECE), st.lists(st.integers(0, 2 * PIECE), max_size=8))
def test_others_may_record_during_a_search(before: int, meanwhile: list[int]) -> None:
    """It finds what was there at the beginning and still is, and later what came after that."""
    decisions = Decisions(2 * PIECE + 5)
    code = decisions.code("sgp", "forwarded")

    def record(count: int) -> None:
        first = decisions.recorded // ROW_BYTES
        for number in range(first, first + count):
            decisions.note([make_span()], code, float(number))

    record(before)
    mark = decisions.recorded
    found: list[float] = []
    more = iter(meanwhile)
    for piece in decisions.about("s1", trace=False):
        assert len(piece) <= PIECE
        found += [each.at for each in piece]
        record(next(more, 0))
    total = decisions.recorded // ROW_BYTES
    assert found == [float(n) for n in range(before)][::-1][: len(found)]
    assert len(found) >= min(before, 2 * PIECE + 5 - (total - before))
    newer = older_first(decisions.about("s1", trace=False, after=mark))
    kept = range(max(before, total - 2 * PIECE - 5), total)
    assert [each.at for each in newer] == [float(n) for n in kept]


def test_a_part_of_a_row_is_no_match() -> None:
    """Bytes of a hash that are somewhere else in the buffer are not taken for a decision."""
    decisions = Decisions(CAPACITY)
    code = decisions.code("", "accepted")
    # Eight bytes of an id's text that are the hash of another id.
    text = next(
        (n, packed.decode())
        for n in range(100_000)
        if (packed := hash(f"other {n}").to_bytes(8, "little", signed=True)).isascii()
        and b"\0" not in packed
    )
    decisions.note([make_span(text[1])], code, 1.0)
    assert older_first(decisions.about(f"other {text[0]}", trace=False)) == []
    assert [each.id for each in older_first(decisions.about(text[1], trace=False))] == [text[1]]


def test_it_keeps_no_object_for_a_decision() -> None:
    """The default capacity takes less than 4 MiB, and recording allocates nothing that stays."""
    capacity = AdminConfig().decisions
    assert capacity == 50_000
    assert capacity * ROW_BYTES <= 4 * 2**20
    decisions = Decisions(capacity)
    spans = [make_span(f"span-{number}") for number in range(100)]
    code = decisions.code("sgp", "forwarded")
    decisions.note(spans, code, 0.0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1000):
            decisions.note(spans, code, float(number))
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert after - before < 1024
    assert len(older_first(decisions.about("span-7", trace=False))) == capacity // len(spans)


def test_details_are_bounded() -> None:
    """Only so many different decisions have their details kept, each up to a length."""
    decisions = Decisions(CAPACITY)
    for number in range(2 * MAX_MEANINGS):
        decisions.note([make_span()], decisions.code("sgp", "not accepted", f"{number}"), 1.0)
    (last, *_) = decisions.latest(1)
    assert (last.what, last.sink, last.detail) == ("not accepted", "sgp", OTHER)
    known = decisions.code("sgp", "not accepted", "7")
    assert known == decisions.code("sgp", "not accepted", "7")
    short = Decisions(CAPACITY)
    short.note([make_span()], short.code("sgp", "not accepted", "x" * 1000), 1.0)
    assert short.latest(1)[0].detail == "x" * MAX_DETAIL


@pytest.mark.parametrize("capacity", [0, CAPACITY])
def test_it_can_be_off(capacity: int) -> None:
    """With a capacity of 0, nothing is recorded and nothing is found."""
    decisions = Decisions(capacity, now=3.0)
    decisions.note([make_span()], decisions.code("sgp", "forwarded"), 4.0)
    assert (
        len(older_first(decisions.about("s1", trace=False)))
        == len(decisions.latest(5))
        == min(1, capacity)
    )
    assert decisions.since == 3.0
