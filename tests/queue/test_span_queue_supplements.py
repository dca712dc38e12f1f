"""Supplements in the queue of one lane: what they replace, what replaces them, and their order."""

from itertools import product
from typing import Any, NamedTuple

import pytest

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.span_queue import SpanQueue
from sidecar.queue.supplement import supplement
from sidecar.spans.span import ALL_PAYLOADS, Span
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import LaneAccounting
from tests.support.spans import make_span

LANE = 1


class Bench(NamedTuple):
    """A queue, and what it counts."""

    queue: SpanQueue
    accounting: LaneAccounting
    budget: MemoryBudget

    def put(self, *writes: Span) -> None:
        """Append writes."""
        for write in writes:
            self.queue.put(write)
            self.check()

    def take(self) -> Span | None:
        """Take one write."""
        taken = self.queue.take(1, 1)
        self.check()
        return taken[0] if taken else None

    def forward(self, write: Span) -> None:
        """The upstream has accepted a write."""
        self.queue.settle(write)
        self.accounting.forwarded[write.kind] += 1
        self.check()

    def check(self) -> None:
        """Every write is accounted for."""
        assert self.accounting.imbalance(self.queue.depth) == 0

    def drain(self) -> list[Span]:
        """Forward everything, in order."""
        sent = []
        while (write := self.take()) is not None:
            self.forward(write)
            sent.append(write)
        assert (self.queue.depth, self.queue.waiting_bytes, self.budget.used) == (0, 0, 0)
        return sent


def new_bench() -> Bench:
    """An empty queue."""
    accounting, budget = LaneAccounting(), MemoryBudget(2**30)
    return Bench(SpanQueue(budget, accounting, LANE, spool=Spool()), accounting, budget)


@pytest.fixture
def bench() -> Bench:
    """An empty queue."""
    return new_bench()


def open_write() -> Span:
    """An open write."""
    return make_span("a", complete=False, data=b'{"s":1}')


def adding(**payloads: bytes) -> Span:
    """A supplement."""
    fields: dict[str, Any] = {"input": b"", "data": b'{"s":1}', **payloads}
    start = make_span("a", complete=False, **fields)
    return supplement(start, ALL_PAYLOADS, LANE, now=0.0)


def same(sent: list[Span], *expected: Span) -> bool:
    """Whether these very writes were sent."""
    return list(map(id, sent)) == list(map(id, expected))


@pytest.mark.parametrize("supplement_first", [False, True])
def test_waiting_writes_are_both_sent(bench: Bench, supplement_first: bool) -> None:
    """A supplement and a complete write: neither has what the other one adds; in their order."""
    writes = [adding(), make_span("a")]
    if not supplement_first:
        writes.reverse()
    other = make_span("b")
    bench.put(writes[0], other, writes[1])
    assert bench.queue.depth == 3
    assert same(bench.drain(), writes[0], writes[1], other)
    assert bench.accounting.superseded == 0


@pytest.mark.parametrize("supplement_first", [False, True])
def test_a_write_in_flight_is_sent_again(bench: Bench, supplement_first: bool) -> None:
    """The newer one waits for it, and does not make its retry pointless."""
    writes = [adding(), make_span("a")]
    if not supplement_first:
        writes.reverse()
    bench.put(writes[0])
    in_flight = bench.take()
    assert in_flight is writes[0]
    bench.put(writes[1])
    assert bench.take() is None
    assert not bench.queue.is_superseded(in_flight)
    bench.forward(in_flight)
    assert same(bench.drain(), writes[1])
    assert bench.accounting.superseded == 0


@pytest.mark.parametrize("supplement_first", [False, True])
def test_two_writes_wait_for_the_one_in_flight(bench: Bench, supplement_first: bool) -> None:
    """An END is in flight; its repeat and a late START's supplement wait, in their order."""
    bench.put(make_span("a"))
    in_flight = bench.take()
    assert in_flight is not None
    writes = [adding(), make_span("a")]
    if not supplement_first:
        writes.reverse()
    bench.put(*writes)
    bench.forward(in_flight)
    assert same(bench.drain(), *writes)


def test_a_supplement_of_a_waiting_open_write_is_superseded(bench: Bench) -> None:
    """The process is stopping: the open write is going to be sent with its `data`."""
    first = open_write()
    bench.put(first, adding())
    assert same(bench.drain(), first)
    assert bench.accounting.superseded == 1


def test_an_open_write_is_sent_again_before_its_supplement(bench: Bench) -> None:
    """Without it, the supplement would have nothing to add to."""
    bench.put(open_write())
    in_flight = bench.take()
    assert in_flight is not None
    last = adding()
    bench.put(last)
    assert not bench.queue.is_superseded(in_flight)
    bench.forward(in_flight)
    assert same(bench.drain(), last)
    assert bench.accounting.superseded == 0


# An END that has all that a supplement adds. Merged with that, its `data` would not be its own.


def test_an_end_that_has_all_supersedes_a_waiting_supplement(bench: Bench) -> None:
    """It takes its position and is sent alone."""
    last, other = make_span("a", data=b'{"e":1}'), make_span("b")
    bench.put(adding(), other, last)
    assert same(bench.drain(), last, other)
    assert bench.accounting.superseded == 1


def test_an_end_that_has_all_supersedes_a_supplement_that_waits_for_a_write(bench: Bench) -> None:
    """Also one behind another supplement: that is sent if the END lacks something of it."""
    bench.put(make_span("a", input=b""))
    in_flight = bench.take()
    assert in_flight is not None
    first, last = adding(input=b'{"i":1}', data=b""), make_span("a", input=b"", data=b'{"e":1}')
    bench.put(first, adding(), last)
    bench.forward(in_flight)
    assert same(bench.drain(), first, last)
    assert bench.accounting.superseded == 1


def test_an_end_that_has_all_makes_the_retry_of_a_supplement_pointless(bench: Bench) -> None:
    """It may not have been stored yet."""
    bench.put(adding())
    in_flight = bench.take()
    assert in_flight is not None
    bench.put(make_span("a", data=b'{"e":1}'))
    assert bench.queue.is_superseded(in_flight)


def test_an_end_that_has_all_supersedes_a_supplement_that_comes_after_it(bench: Bench) -> None:
    """It was loaded from a disk that had failed meanwhile."""
    end = make_span("a", data=b'{"e":1}')
    bench.put(end, adding())
    assert same(bench.drain(), end)
    assert bench.accounting.superseded == 1


def test_an_end_supersedes_an_open_write_and_its_supplement(bench: Bench) -> None:
    """It has what its START said, so neither is needed."""
    bench.put(open_write())
    in_flight = bench.take()
    assert in_flight is not None
    last = make_span("a", data=b'{"e":1}')
    bench.put(adding(), last)
    assert bench.queue.is_superseded(in_flight)
    bench.queue.settle(in_flight)
    bench.accounting.superseded += 1
    assert same(bench.drain(), last)


def test_an_open_write_does_not_supersede_a_supplement(bench: Bench) -> None:
    """Its span is stored already: it would change nothing, and have no `data`."""
    writes = [adding(), open_write()]
    bench.put(*writes)
    assert same(bench.drain(), *writes)


# Any order.


def test_what_two_supplements_add_is_sent(bench: Bench) -> None:
    """A START arrived after its END, and again with more payloads."""
    bench.put(make_span("b"), adding(input=b'{"i":1}', data=b""), adding())
    sent = bench.drain()[1:]
    assert {span.input for span in sent} - {b""} == {b'{"i":1}'}
    assert {span.data for span in sent} - {b""} == {b'{"s":1}'}


class Story:
    """Plays letters: a (c)omplete write or a (s)upplement is put, one is (t)aken, then (f)orwarded.

    Or it has failed, and is (r)etried unless that is pointless. `row` is what the upstream stored.
    """

    def __init__(self, first: Span) -> None:
        self.bench = new_bench()
        self.bench.put(first)
        self.input = first.input  # of the complete writes
        self.in_flight: Span | None = None
        self.row: dict[str, bytes] = {}
        self.ends = 0

    def play(self, letter: str) -> None:
        """Play one letter, if it is possible."""
        if letter == "c":
            self.ends += 1
            self.bench.put(make_span("a", input=self.input, output=b"%d" % self.ends))
        elif letter == "s":
            self.bench.put(adding(input=b"{}"))
        elif letter == "t":
            self.in_flight = self.in_flight or self.bench.take()
        elif self.in_flight is not None:
            self.respond(self.in_flight, accepted=letter == "f")

    def respond(self, write: Span, *, accepted: bool) -> None:
        """The upstream has accepted the write in flight, or not."""
        if accepted:
            assert self.row or not write.is_supplement, "it adds to nothing"
            fields = {"input": write.input, "output": write.output}
            self.row |= {name: value for name, value in fields.items() if value}
            self.bench.forward(write)
        elif self.bench.queue.is_superseded(write):
            self.bench.queue.settle(write)
            self.bench.accounting.superseded += 1
        else:
            return
        self.in_flight = None

    def end(self) -> None:
        """Forward what is left."""
        while self.bench.queue.depth:
            self.play("t")
            self.play("f")


@pytest.mark.parametrize("starts", ["open", "complete"])
def test_nothing_is_lost_in_any_order(starts: str) -> None:
    """The last END and what supplements add arrive, behind an open write or an END."""
    for letters in product("cstfr", repeat=5):
        complete = starts == "complete"
        story = Story(make_span("a", complete=complete, input=b"" if complete else b"{}"))
        for letter in letters:
            story.play(letter)
        story.end()
        assert story.row.get("input", b"") == (b"{}" if "s" in letters else story.input), letters
        if story.ends:
            assert story.row["output"] == b"%d" % story.ends, letters
