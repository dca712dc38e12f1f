"""The queue of one lane: writes wait here, first come first served, one per span.

In: `put` a write. Out: `take` a batch, then `settle` each of its writes, or keep it in hand and
try again. Guarantees: a span has at most one write in flight, so an open write never lands after
the complete one; a complete write supersedes an open one that still waits; `depth` counts
everything that is not settled. Every step is O(1) in the depth.
"""

from collections import OrderedDict

from sidecar.books import LaneBooks
from sidecar.budget import ByteBudget
from sidecar.spans import Span


class SpanQueue:
    """Writes of one lane by span id. `bit` is the lane's bit in `Span.known_to`."""

    def __init__(self, budget: ByteBudget, books: LaneBooks, bit: int) -> None:
        self._budget = budget
        self._books = books
        self._bit = bit
        self._waiting: OrderedDict[str, Span] = OrderedDict()
        self._in_flight: dict[str, Span] = {}
        # Newer writes of spans in flight: out of the line until the one before is settled.
        self._behind: dict[str, Span] = {}
        self.waiting_bytes = 0

    @property
    def depth(self) -> int:
        """Writes not settled yet: waiting, or in flight."""
        return len(self._waiting) + len(self._in_flight) + len(self._behind)

    @property
    def waiting(self) -> int:
        """Writes that a batch could take now."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Writes that were taken and are not settled."""
        return len(self._in_flight)

    @property
    def first(self) -> Span | None:
        """The write whose turn it is."""
        return next(iter(self._waiting.values()), None)

    def oldest(self) -> float | None:
        """Loop time at which the oldest write in the lane was accepted."""
        firsts = [next(iter(line.values())) for line in (self._waiting, self._in_flight) if line]
        return min((span.accepted_at for span in firsts), default=None)

    def put(self, span: Span) -> None:
        """Add a write behind all others; it takes the place of an earlier one of its span."""
        self._books.written += 1
        self._budget.hold(span)
        id_ = span.id
        if id_ in self._in_flight:
            self._replace(self._behind, span)
            return
        if id_ in self._waiting:
            self._replace(self._waiting, span)
        else:
            self._waiting[id_] = span
        self.waiting_bytes += span.size

    def _replace(self, line: dict[str, Span], span: Span) -> None:
        earlier = line.get(span.id)
        if earlier is not None:
            if span.end_time is None and earlier.end_time is not None:
                # An open write never takes the place of a complete one (contracts/sgp.md 3).
                span, earlier = earlier, span
            self._books.superseded += 1
            self._budget.release(earlier)
            if line is self._waiting:
                self.waiting_bytes -= earlier.size
        line[span.id] = span

    def take(self, max_spans: int, max_bytes: int) -> list[Span]:
        """Check out the next writes: at least one, at most `max_spans` and about `max_bytes`."""
        batch: list[Span] = []
        size = 0
        while self._waiting and len(batch) < max_spans:
            span = next(iter(self._waiting.values()))
            if batch and size + span.size > max_bytes:
                break
            self._waiting.popitem(last=False)
            self._in_flight[span.id] = span
            if span.end_time is None:
                span.known_to |= self._bit
            size += span.size
            batch.append(span)
        self.waiting_bytes -= size
        return batch

    def overtaken(self, span: Span) -> bool:
        """Whether a newer write waits behind this one, so that sending it again has no use."""
        return span.end_time is None and span.id in self._behind

    def settle(self, span: Span) -> None:
        """The lane is done with a write it took: it leaves, and the one behind it has its turn."""
        del self._in_flight[span.id]
        self._budget.release(span)
        behind = self._behind.pop(span.id, None)
        if behind is not None:
            self._waiting[behind.id] = behind
            self._waiting.move_to_end(behind.id, last=False)
            self.waiting_bytes += behind.size

    def abandon(self) -> list[Span]:
        """Empty the lane at the end of the process; returns what was not settled."""
        left = [*self._in_flight.values(), *self._waiting.values(), *self._behind.values()]
        for line in (self._in_flight, self._waiting, self._behind):
            line.clear()
        for span in left:
            self._budget.release(span)
        self.waiting_bytes = 0
        return left
