"""The queue of one lane: writes wait here, first come first served, one per span.

With a spool, what does not fit into the lane's share of memory waits on disk (`OnDiskFifo`), behind
everything in memory, and is loaded by `refill` when its turn is near.

In: `put` a write. Out: `take` a batch, then `settle` each of its writes, or keep it in hand and
try again. Guarantees: a span has at most one write in flight, so an open write never lands after
the complete one; a complete write supersedes an open one that still waits; `depth` counts
everything that is not settled. Every step is O(1) in the depth.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from sidecar.queue.disk_fifo import OnDiskFifo
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.spans.span import Key, Span, adds_nothing
from sidecar.spool.spool import REPLACED, Spool
from sidecar.telemetry.accounting import LaneAccounting

# Rows asked for at once; the bytes that come back are bounded apart.
LOADED_AT_ONCE = 256


class SpanQueue:
    """Writes of one lane by span. `bit` is the lane's bit in `Span.open_sent_to` and `Span.lanes`.

    `line`: those that a batch could take now, in their order.

    With a spool, `share` is the bytes the lane may hold in memory.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        accounting: LaneAccounting,
        bit: int,
        *,
        spool: Spool | None = None,
        share: int = 0,
    ) -> None:
        self._budget = budget
        self._accounting = accounting
        self.bit = bit
        self._spool = spool
        self._share = share
        self._waiting: OrderedDict[Key, Span] = OrderedDict()
        self.ready: Mapping[Key, Span] = self._waiting
        self._in_flight: dict[Key, Span] = {}
        # Newer writes of spans in flight: out of the line until the one before is settled.
        self._deferred: dict[Key, Span] = {}
        self._on_disk = OnDiskFifo()
        self._bytes = 0
        self.waiting_bytes = 0

    @property
    def depth(self) -> int:
        """Writes not settled yet: waiting in memory or on disk, or in flight."""
        in_memory = len(self._waiting) + len(self._in_flight) + len(self._deferred)
        return in_memory + len(self._on_disk)

    @property
    def on_disk(self) -> int:
        """Writes that wait on disk only."""
        return len(self._on_disk)

    @property
    def spooled(self) -> bool:
        """Whether writes may wait on disk."""
        return self._spool is not None

    @property
    def wants_more(self) -> bool:
        """Whether writes should come back from disk now."""
        return bool(self._on_disk) and 2 * self._bytes < self._share

    @property
    def unused_share(self) -> int:
        """Bytes that the lane may still bring into memory."""
        return max(0, self._share - self._bytes) if self._spool is not None else 0

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
        """The write whose turn it is; None while it is on its way to the disk."""
        span = next(iter(self._waiting.values()), None)
        if span is None or self._spool is None or self._may_leave(span):
            return span
        return None

    def _may_leave(self, span: Span) -> bool:
        return self._spool is None or self._spool.is_durable(span.seq)

    def where(self, id_: str) -> str | None:
        """What a write of the span `id_` waits for; looks at every write in memory."""
        for line, what in (
            (self._in_flight, "the upstream's answer"),
            (self._deferred, "an earlier write of its span"),
            (self._waiting, "its turn"),
        ):
            if any(key[1] == id_ for key in line):
                return what
        return None

    def oldest(self) -> float | None:
        """Loop time at which the oldest write in the lane was accepted."""
        firsts = [next(iter(line.values())) for line in (self._waiting, self._in_flight) if line]
        return min((span.accepted_at for span in firsts), default=None)

    def put(self, span: Span) -> None:
        """Add a write behind all others; it takes the place of an earlier one of its span."""
        self._accounting.written += 1
        if self._spool is not None and span.seq > 0 and self._goes_to_disk(span):
            self._on_disk.extend((span.seq,))
            span.lanes_on_disk += 1
        else:
            self._line_up(span)

    def _goes_to_disk(self, span: Span) -> bool:
        return bool(self._on_disk or self._bytes + span.size > self._share or span.payloads_on_disk)

    def recover(self, seqs: Iterable[int]) -> None:
        """Add writes of an earlier process, which are on disk."""
        before = len(self._on_disk)
        self._on_disk.extend(seqs)
        self._accounting.written += len(self._on_disk) - before

    async def refill(self) -> None:
        """Bring the next writes back from disk."""
        spool = self._spool
        if spool is None:
            return
        seqs = self._on_disk.first(LOADED_AT_ONCE)
        looked, spans = await spool.load(seqs, max(1, self._share // 4))
        self._on_disk.drop(looked)
        found = {span.seq for span in spans}
        for seq in seqs[:looked]:
            if seq in found:
                continue
            if spool.was_replaced(seq):
                self._accounting.superseded += 1
            else:
                self._accounting.lost["spool"] += 1
        for span in spans:
            self._line_up(span)

    def _line_up(self, span: Span) -> None:
        self._budget.hold(span)
        self._bytes += span.size
        key = span.key
        if key in self._in_flight:
            self._replace(self._deferred, span)
            return
        if key in self._waiting:
            self._replace(self._waiting, span)
        else:
            self._waiting[key] = span
        self.waiting_bytes += span.size

    def _release(self, span: Span) -> None:
        self._budget.release(span)
        self._bytes -= span.size

    def skip(self, span: Span, reason: str) -> None:
        """A write never goes to this upstream, on purpose."""
        self._accounting.written += 1
        self._accounting.skipped[reason] += 1
        self._settled(span)

    def _settled(self, span: Span) -> None:
        if self._spool is not None:
            self._spool.settled(span, self.bit)

    def _replace(self, line: dict[Key, Span], span: Span) -> None:
        earlier = line.get(span.key)
        if earlier is not None:
            open_again = span.end_time is None and earlier.end_time is not None
            if open_again or adds_nothing(span, earlier):
                # An open write never takes the place of a complete one (docs/upstreams.md S3).
                span, earlier = earlier, span
            self._accounting.superseded += 1
            self._settled(earlier)
            self._release(earlier)
            if line is self._waiting:
                self.waiting_bytes -= earlier.size
        line[span.key] = span

    def take(self, max_spans: int, max_bytes: int) -> list[Span]:
        """Check out the next writes: at least one, at most `max_spans` and about `max_bytes`."""
        batch: list[Span] = []
        size = 0
        while self._waiting and len(batch) < max_spans:
            span = next(iter(self._waiting.values()))
            if batch and size + span.size > max_bytes:
                break
            if self._spool is not None and not self._may_leave(span):
                break
            key, _ = self._waiting.popitem(last=False)
            self._in_flight[key] = span
            if span.end_time is None:
                span.open_sent_to |= self.bit
            size += span.size
            batch.append(span)
        self.waiting_bytes -= size
        return batch

    def overtaken(self, span: Span) -> bool:
        """Whether a newer write waits behind this one, so that sending it again has no use."""
        return span.end_time is None and span.key in self._deferred

    def settle(self, span: Span) -> None:
        """The lane is done with a write it took: it leaves, and the one behind it has its turn."""
        key = span.key
        del self._in_flight[key]
        if self._spool is not None:
            self._settled(span)
        self._release(span)
        behind = self._deferred.pop(key, None)
        if behind is not None:
            self._waiting[key] = behind
            self._waiting.move_to_end(key, last=False)
            self.waiting_bytes += behind.size

    def abandon(self) -> int:
        """Empty the memory at the end of the process; how many writes are not on disk either."""
        left = [*self._in_flight.values(), *self._waiting.values(), *self._deferred.values()]
        for line in (self._in_flight, self._waiting, self._deferred):
            line.clear()
        lost = self._unkept(self._on_disk.first(len(self._on_disk)))
        for span in left:
            self._release(span)
            if span.seq == REPLACED:
                self._accounting.superseded += 1
            elif span.seq > 0 and self._spool is not None and self._spool.has(span.seq):
                self._on_disk.extend((span.seq,))
            else:
                lost += 1
        self.waiting_bytes = 0
        return lost

    def _unkept(self, seqs: Sequence[int]) -> int:
        """Take the rows out of the tail that the disk never took; how many."""
        spool = self._spool
        kept = [seq for seq in seqs if spool is not None and spool.has(seq)]
        self._on_disk.drop(len(seqs))
        self._on_disk.extend(kept)
        return len(seqs) - len(kept)
