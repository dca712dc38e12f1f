"""The queue of one lane: single cases, and a model."""

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.span_queue import SpanQueue
from sidecar.spans.span import Span
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import LaneAccounting
from tests.support.spans import make_span

IDS = st.sampled_from("abcdef")


def new_queue() -> tuple[SpanQueue, LaneAccounting, MemoryBudget]:
    """An empty queue, its accounting and its budget."""
    accounting, budget = LaneAccounting(), MemoryBudget(2**30)
    return SpanQueue(budget, accounting, 1, spool=Spool()), accounting, budget


def test_writes_leave_in_the_order_they_arrived() -> None:
    """`take` returns the oldest writes first, up to `max_spans`."""
    queue, _, _ = new_queue()
    for id_ in "abc":
        queue.put(make_span(id_))
    assert [span.id for span in queue.take(2, 2**20)] == ["a", "b"]
    assert [span.id for span in queue.take(2, 2**20)] == ["c"]


def test_a_batch_ends_before_it_is_too_large() -> None:
    """`take` stops at `max_bytes`, but always returns one write."""
    queue, _, _ = new_queue()
    for id_ in "abc":
        queue.put(make_span(id_, input=b'{"p":"%s"}' % (b"x" * 5000)))
    assert len(queue.take(9, 13_000)) == 2
    assert len(queue.take(9, 10)) == 1


def test_a_complete_write_replaces_a_waiting_open_one() -> None:
    """The open write is superseded; the complete one takes its position."""
    queue, accounting, _ = new_queue()
    queue.put(make_span("a", complete=False))
    queue.put(make_span("b"))
    queue.put(make_span("a"))
    batch = queue.take(9, 2**20)
    assert [(span.id, span.kind) for span in batch] == [("a", "complete"), ("b", "complete")]
    assert accounting.superseded == 1


def test_an_open_write_never_replaces_a_complete_one() -> None:
    """A late START is superseded by the complete write that waits."""
    queue, accounting, _ = new_queue()
    queue.put(make_span("a"))
    queue.put(make_span("a", complete=False))
    assert [span.kind for span in queue.take(9, 2**20)] == ["complete"]
    assert accounting.superseded == 1


def test_a_span_in_flight_is_not_taken_again_until_it_is_settled() -> None:
    """A newer write waits for the one in flight, and is the next to be taken."""
    queue, _, _ = new_queue()
    queue.put(make_span("a", complete=False))
    (open_write,) = queue.take(1, 2**20)
    queue.put(make_span("b"))
    queue.put(make_span("a"))
    assert queue.is_superseded(open_write)
    assert [span.id for span in queue.take(9, 2**20)] == ["b"]
    queue.settle(open_write)
    assert [span.id for span in queue.take(9, 2**20)] == ["a"]


def test_a_span_in_two_lanes_is_counted_once_in_bytes() -> None:
    """The budget counts a shared span once, until the last lane settles it."""
    budget = MemoryBudget(2**30)
    lanes = [SpanQueue(budget, LaneAccounting(), bit, spool=Spool()) for bit in (1, 2)]
    span = make_span("a")
    for lane in lanes:
        lane.put(span)
    assert budget.used == span.size
    for lane, left in zip(lanes, (span.size, 0), strict=True):
        lane.settle(lane.take(1, 2**20)[0])
        assert left == budget.used


class QueueMachine(RuleBasedStateMachine):
    """The queue against the simplest correct model: a list."""

    batches: Bundle[list[Span]] = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.accounting, self.budget = new_queue()
        self.ready: list[Span] = []
        self.in_flight: dict[str, Span] = {}
        self.marked: list[Span] = []
        self.mark_done = True

    @rule()
    def mark(self) -> None:
        """Mark what is unsettled: each write stays marked until it, or what replaces it, leaves."""
        self.marked = self._unsettled()
        self.mark_done = not self.marked
        self.queue.marked.set(self._done)

    def _done(self) -> None:
        assert not self.mark_done
        self.mark_done = True

    def _unsettled(self) -> list[Span]:
        return [*self.ready, *self.in_flight.values()]

    @rule(id_=IDS, complete=st.booleans(), size=st.integers(0, 3000))
    def put(self, id_: str, complete: bool, size: int) -> None:
        """Put a write: in place of an older one of its span, or at the end."""
        span = make_span(id_, complete=complete, input=b"{%b}" % (b" " * size))
        self.queue.put(span)
        for index, waiting in enumerate(self.ready):
            if waiting.id == id_:
                if complete or waiting.end_time is None:
                    self.ready[index] = span
                    self.marked = [span if each is waiting else each for each in self.marked]
                return
        self.ready.append(span)

    @rule(max_spans=st.integers(1, 4), target=batches)
    def take(self, max_spans: int) -> list[Span]:
        """Take the first writes whose spans are not in flight."""
        ready = [span for span in self.ready if span.id not in self.in_flight][:max_spans]
        taken = self.queue.take(max_spans, 2**30)
        assert list(map(id, ready)) == list(map(id, taken))
        for span in taken:
            self.ready = [other for other in self.ready if other is not span]
            self.in_flight[span.id] = span
        return taken

    @rule(batch=consumes(batches))
    def settle(self, batch: list[Span]) -> None:
        """Settle a batch; newer writes of its spans move to the front."""
        for span in batch:
            self.queue.settle(span)
            del self.in_flight[span.id]
            self.marked = [each for each in self.marked if each is not span]
            self.accounting.forwarded[span.kind] += 1
            newer = [other for other in self.ready if other.id == span.id]
            self.ready = newer + [other for other in self.ready if other.id != span.id]

    @invariant()
    def balanced(self) -> None:
        """Depth, bytes and accounting agree with the model."""
        held = self._unsettled()
        assert len(self.queue.marked) == len(self.marked)
        assert self.mark_done == (not self.marked) == (not self.queue.marked.is_set)
        assert self.queue.depth == len(held)
        assert self.queue.in_flight == len(self.in_flight)
        assert self.budget.used == sum(span.size for span in held)
        ready = [span for span in self.ready if span.id not in self.in_flight]
        assert self.queue.waiting_bytes == sum(span.size for span in ready)
        assert self.accounting.imbalance(self.queue.depth) == 0


TestQueueMachine: Any = QueueMachine.TestCase
