"""The queue of one lane: a FIFO of writes, keyed by span.

With a spool, writes beyond the lane's share of memory wait on disk (`OnDiskFifo`), queued after
everything in memory, until `refill` loads them.

In: `put` a write. Out: `take` a batch, then `settle` each of its writes; a retry sends the same
batch again. Guarantees: a span has at most one write in flight, so an open write never lands after
the complete one; a complete write supersedes an open one that is still waiting; `depth` counts
every write that is not settled. `put`, `take` and `settle` are O(1) in the depth.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from sidecar.queue.disk_fifo import OnDiskFifo
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.spans.span import Key, Span, is_partial_duplicate
from sidecar.spool.spool import REPLACED, Spool
from sidecar.telemetry.accounting import LaneAccounting

# Rows per load. The bytes of a load are limited separately.
MAX_ROWS_PER_LOAD = 256


class SpanQueue:
    """Writes of one lane. `bit` is the lane's bit in `Span.open_sent_to` and `Span.lanes`.

    `ready` has the writes that a batch could take now, in order. With a spool, `share` is the
    lane's limit on bytes in memory.
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
        # Newer writes of spans in flight: not ready until the write in flight is settled.
        self._deferred: dict[Key, Span] = {}
        self._on_disk = OnDiskFifo()
        self._bytes = 0
        self.waiting_bytes = 0

    @property
    def depth(self) -> int:
        """Unsettled writes: waiting in memory, waiting on disk, or in flight."""
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
    def needs_refill(self) -> bool:
        """Whether `refill` should load writes from disk now."""
        return bool(self._on_disk) and 2 * self._bytes < self._share

    @property
    def unused_share(self) -> int:
        """Bytes that the lane may still load from disk into memory."""
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
        """The next write to take; None if nothing is waiting or it is not on disk yet."""
        span = next(iter(self._waiting.values()), None)
        if span is None or self._spool is None or self._may_send(span):
            return span
        return None

    def _may_send(self, span: Span) -> bool:
        return self._spool is None or self._spool.is_durable(span.seq)

    def where(self, id_: str) -> str | None:
        """What a write of span `id_` is waiting for, or None. Scans every write in memory."""
        for writes, awaited in (
            (self._in_flight, "the upstream's response"),
            (self._deferred, "an earlier write of its span"),
            (self._waiting, "its turn"),
        ):
            if any(key[1] == id_ for key in writes):
                return awaited
        return None

    def oldest(self) -> float | None:
        """Loop time at which the oldest write in memory was accepted, or None."""
        firsts = [next(iter(group.values())) for group in (self._waiting, self._in_flight) if group]
        return min((span.accepted_at for span in firsts), default=None)

    def put(self, span: Span) -> None:
        """Append a write. Of two writes of a span that are waiting, one supersedes the other."""
        self._accounting.written += 1
        if self._spool is not None and span.seq > 0 and self._goes_to_disk(span):
            self._on_disk.extend((span.seq,))
            span.lanes_on_disk += 1
        else:
            self._enqueue(span)

    def _goes_to_disk(self, span: Span) -> bool:
        return bool(self._on_disk or self._bytes + span.size > self._share or span.payloads_on_disk)

    def recover(self, seqs: Iterable[int]) -> None:
        """Add writes that an earlier process left on disk, by row number."""
        before = len(self._on_disk)
        self._on_disk.extend(seqs)
        self._accounting.written += len(self._on_disk) - before

    async def refill(self) -> None:
        """Load the next writes from disk."""
        spool = self._spool
        if spool is None:
            return
        seqs = self._on_disk.first(MAX_ROWS_PER_LOAD)
        visited, spans = await spool.load(seqs, max(1, self._share // 4))
        self._on_disk.drop(visited)
        loaded = {span.seq for span in spans}
        for seq in seqs[:visited]:
            if seq in loaded:
                continue
            if spool.was_replaced(seq):
                self._accounting.superseded += 1
            else:
                self._accounting.lost["spool"] += 1
        for span in spans:
            self._enqueue(span)

    def _enqueue(self, span: Span) -> None:
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
        """Count a write that is deliberately not sent to this upstream, and settle it."""
        self._accounting.written += 1
        self._accounting.skipped[reason] += 1
        self._mark_settled(span)

    def _mark_settled(self, span: Span) -> None:
        if self._spool is not None:
            self._spool.settled(span, self.bit)

    def _replace(self, writes: dict[Key, Span], span: Span) -> None:
        earlier = writes.get(span.key)
        if earlier is not None:
            reopens = span.end_time is None and earlier.end_time is not None
            if reopens or is_partial_duplicate(span, earlier):
                # An open write never replaces a complete one (docs/upstreams.md S3).
                span, earlier = earlier, span
            self._accounting.superseded += 1
            self._mark_settled(earlier)
            self._release(earlier)
            if writes is self._waiting:
                self.waiting_bytes -= earlier.size
        writes[span.key] = span

    def take(self, max_spans: int, max_bytes: int) -> list[Span]:
        """Take the next writes: up to `max_spans` and `max_bytes`, but at least one."""
        batch: list[Span] = []
        size = 0
        while self._waiting and len(batch) < max_spans:
            span = next(iter(self._waiting.values()))
            if batch and size + span.size > max_bytes:
                break
            if self._spool is not None and not self._may_send(span):
                break
            key, _ = self._waiting.popitem(last=False)
            self._in_flight[key] = span
            if span.end_time is None:
                span.open_sent_to |= self.bit
            size += span.size
            batch.append(span)
        self.waiting_bytes -= size
        return batch

    def is_superseded(self, span: Span) -> bool:
        """Whether a newer write of its span is waiting, so that retrying this one is pointless."""
        return span.end_time is None and span.key in self._deferred

    def settle(self, span: Span) -> None:
        """Remove a write in flight. A newer one of its span moves to the front of the queue."""
        key = span.key
        del self._in_flight[key]
        if self._spool is not None:
            self._mark_settled(span)
        self._release(span)
        newer = self._deferred.pop(key, None)
        if newer is not None:
            self._waiting[key] = newer
            self._waiting.move_to_end(key, last=False)
            self.waiting_bytes += newer.size

    def abandon(self) -> int:
        """Drop all writes from memory at shutdown. Returns how many of them are not on disk."""
        left = [*self._in_flight.values(), *self._waiting.values(), *self._deferred.values()]
        for writes in (self._in_flight, self._waiting, self._deferred):
            writes.clear()
        lost = self._drop_unwritten(self._on_disk.first(len(self._on_disk)))
        for span in left:
            self._release(span)
            if span.seq == REPLACED:
                self._accounting.superseded += 1
            elif span.seq > 0 and self._spool is not None and self._spool.is_written(span.seq):
                self._on_disk.extend((span.seq,))
            else:
                lost += 1
        self.waiting_bytes = 0
        return lost

    def _drop_unwritten(self, seqs: Sequence[int]) -> int:
        """Remove rows from `_on_disk` that never reached the disk. Returns how many."""
        spool = self._spool
        on_disk = [seq for seq in seqs if spool is not None and spool.is_written(seq)]
        self._on_disk.drop(len(seqs))
        self._on_disk.extend(on_disk)
        return len(seqs) - len(on_disk)
