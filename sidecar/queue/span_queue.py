"""The queue of one account in one lane: a FIFO of writes, keyed by span.

With a spool, writes beyond its share of memory wait on disk (`OnDiskFifo`), queued after
everything in memory, until `refill` loads them.

In: `put` a write. Out: `take` a batch, then `settle` each of its writes; a retry sends the same
batch again. Guarantees: a span has at most one write in flight, so an open write never lands after
the complete one; a complete write supersedes an open one that is still waiting; `depth` counts
every write that is not settled. `put`, `take` and `settle` are O(1) in the depth.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from sidecar.queue.contents import Contents
from sidecar.queue.disk_fifo import OnDiskFifo
from sidecar.queue.join import is_partial_duplicate
from sidecar.queue.mark import Mark
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.supplement import both_needed
from sidecar.spans.span import Key, Span, Stored, total_size
from sidecar.spool.spool import Gone, Spool
from sidecar.telemetry.accounting import LaneAccounting

# Rows per load. The bytes of a load are limited separately.
MAX_ROWS_PER_LOAD = 256


class SpanQueue:
    """Writes of one account, by its number, in one lane; `bit` is the lane's.

    `ready` has the writes that a batch could take now, in order. `share` is the limit on bytes in
    memory, beyond which writes wait in `spool`.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        accounting: LaneAccounting,
        bit: int,
        *,
        spool: Spool,
        share: int = 0,
        account: int = 0,
    ) -> None:
        self._budget = budget
        self._accounting = accounting
        self.bit = bit
        self.account = account
        self._spool = spool
        self.share = share
        self._waiting: OrderedDict[Key, Span] = OrderedDict()
        self.ready: Mapping[Key, Span] = self._waiting
        self._in_flight: dict[Key, Span] = {}
        # Newer writes of spans that are in flight or waiting, in order: not ready until the write
        # before them is settled.
        self._deferred: dict[Key, list[Span]] = {}
        self._deferred_count = 0
        self._on_disk = OnDiskFifo()
        self.marked = Mark(self._waiting, self._in_flight, self._deferred, self._on_disk)
        self.contents = Contents(self._waiting, self._in_flight, self._deferred, self._on_disk)
        self._bytes = 0
        self.waiting_bytes = 0
        if spool.is_configured:
            # What the lane may still load from disk must fit, however many events arrive.
            budget.reserve(lambda: max(0, self.share - self._bytes))

    @property
    def depth(self) -> int:
        """Unsettled writes: waiting in memory, waiting on disk, or in flight."""
        in_memory = len(self._waiting) + len(self._in_flight) + self._deferred_count
        return in_memory + self._on_disk.count

    @property
    def on_disk(self) -> int:
        """Writes that wait on disk only."""
        return self._on_disk.count

    @property
    def needs_refill(self) -> bool:
        """Whether `refill` should load writes from disk now."""
        # If all that is in memory only waits for a retry, others have to get their turn (D23).
        enough = self.share // 2 if self._waiting else self.share
        return self._on_disk.count > 0 and self._bytes < enough

    @property
    def in_flight(self) -> int:
        """Writes that were taken and are not settled."""
        return len(self._in_flight)

    @property
    def first(self) -> Span | None:
        """The next write to take; None if nothing is waiting or it is not on disk yet."""
        span = next(iter(self._waiting.values()), None)
        if span is None or span.stored is None or self._spool.may_send(span.stored):
            return span
        return None

    def has(self, span: Span) -> bool:
        """Whether a write of the same span is in memory."""
        key = span.key
        return key in self._waiting or key in self._in_flight or key in self._deferred

    @property
    def bytes(self) -> int:
        """Bytes of the writes in memory."""
        return self._bytes

    def replaceable(self, span: Span) -> int | None:
        """Bytes of the writes that one of this span replaces; None if no write of it is here."""
        key = span.key
        found = [*self._deferred.get(key, ())]
        if key in self._waiting:
            found.append(self._waiting[key])
        if not found and key not in self._in_flight:
            return None
        return total_size([each for each in found if each.end_time is None])

    def oldest(self) -> float | None:
        """Loop time at which the oldest write in memory was accepted, or None."""
        firsts = [next(iter(group.values())) for group in (self._waiting, self._in_flight) if group]
        return min((span.accepted_at for span in firsts), default=None)

    def put(self, span: Span) -> None:
        """Append a write. Of two writes of a span that are waiting, one supersedes the other."""
        self._accounting.written += 1
        stored = span.stored
        if stored is not None and self._goes_to_disk(span, stored):
            self._on_disk.extend((stored.row,))
            self._spool.put_off(span, stored, self.bit)
        else:
            self._enqueue(span)

    def _goes_to_disk(self, span: Span, stored: Stored) -> bool:
        if stored.dropped:
            return True
        full = self._on_disk.count or self._bytes + span.size > self.share
        return bool(full) and self._spool.has_row(stored.row)

    def recover(self, rows: Iterable[int]) -> None:
        """Add writes that an earlier process left on disk, by row number."""
        before = self._on_disk.count
        self._on_disk.extend(rows)
        added = self._on_disk.count - before
        self._accounting.offered += added
        self._accounting.written += added

    async def refill(self) -> None:
        """Load the next writes from disk."""
        rows = self._on_disk.first(MAX_ROWS_PER_LOAD)
        outcomes = await self._spool.load(rows, max(1, self.share // 4), self.bit)
        self._on_disk.drop(len(outcomes))
        for outcome in outcomes:
            if outcome is Gone.SUPERSEDED:
                self._accounting.superseded += 1
            elif outcome is Gone.UNREADABLE:
                self._accounting.lost["spool"] += 1
            else:
                self._enqueue(outcome)
        if self.marked.is_set:
            self.marked.loaded(outcomes)

    def _enqueue(self, span: Span) -> None:
        self._budget.hold(span)
        self._bytes += span.size
        key = span.key
        deferred = self._deferred.get(key)
        if deferred is None and key not in self._in_flight:
            earlier = self._waiting.get(key)
            if earlier is None:
                self._waiting[key] = span
                self.waiting_bytes += span.size
                return
            if not both_needed(earlier, span):
                kept = self._waiting[key] = self._superseding(earlier, span)
                self.waiting_bytes += kept.size - earlier.size
                return
        if deferred is None:
            self._deferred[key] = [span]
        elif both_needed(deferred[-1], span):
            deferred.append(span)
        else:
            deferred[-1] = self._superseding(deferred[-1], span)
            return
        self._deferred_count += 1

    def _superseding(self, earlier: Span, span: Span) -> Span:
        """Which of two writes of a span stays; the other one is superseded."""
        reopens = span.end_time is None and earlier.end_time is not None
        if reopens or span.is_supplement or is_partial_duplicate(span, earlier):
            # An open write never replaces a complete one (docs/upstreams.md S3).
            span, earlier = earlier, span
        self._accounting.superseded += 1
        self._drop(earlier)
        return span

    def _drop(self, span: Span) -> None:
        """The lane is done with `span`."""
        if span.stored is not None:
            self._spool.settled(span.stored, self.bit)
        self._budget.release(span)
        self._bytes -= span.size

    def skip(self, span: Span, reason: str) -> None:
        """Count a write that is deliberately not sent to this upstream, and settle it."""
        self._accounting.written += 1
        self._accounting.skipped[reason] += 1
        if span.stored is not None:
            self._spool.settled(span.stored, self.bit)

    def take(self, max_spans: int, max_bytes: int) -> list[Span]:
        """Take the next writes: up to `max_spans` and `max_bytes`, but at least one."""
        batch: list[Span] = []
        size = 0
        while self._waiting and len(batch) < max_spans:
            span = next(iter(self._waiting.values()))
            if batch and size + span.size > max_bytes:
                break
            if span.stored is not None and not self._spool.may_send(span.stored):
                break
            key, _ = self._waiting.popitem(last=False)
            self._in_flight[key] = span
            size += span.size
            batch.append(span)
        self.waiting_bytes -= size
        return batch

    def is_superseded(self, span: Span) -> bool:
        """Whether a newer write of its span is waiting, so that retrying this one is pointless."""
        if span.end_time is not None:
            return False
        newer = self._deferred.get(span.key)
        if newer is None or newer[0].end_time is None:
            return False
        return not both_needed(span, newer[0])

    def settle(self, span: Span, *, replaced: bool = False) -> None:
        """Remove a write in flight. A newer one of its span moves to the front of the queue.

        `replaced`: it was not sent, because that one makes it redundant.
        """
        key = span.key
        del self._in_flight[key]
        self._drop(span)
        deferred = self._deferred.get(key)
        if deferred is not None:
            newer = self._waiting[key] = deferred.pop(0)
            self._waiting.move_to_end(key, last=False)
            self.waiting_bytes += newer.size
            self._deferred_count -= 1
            if not deferred:
                del self._deferred[key]
        if self.marked.is_set:
            self.marked.settled(key, replaced=replaced)

    def abandon(self) -> tuple[list[Span], int]:
        """Drop all writes from memory at shutdown. Returns those that are not on disk.

        The number counts more of them: writes of which only the number of a lost row is known.
        """
        left = [*self._in_flight.values(), *self._waiting.values()]
        left += [span for deferred in self._deferred.values() for span in deferred]
        for writes in (self._in_flight, self._waiting, self._deferred):
            writes.clear()
        self._deferred_count = 0
        rows = self._on_disk.first(self._on_disk.count)
        self._on_disk.drop(len(rows))
        on_disk, lost, superseded = self._spool.left_over(rows, self.bit)
        self._accounting.superseded += superseded
        missing = len(rows) - len(on_disk) - len(lost) - superseded
        for span in left:
            self._budget.release(span)
            self._bytes -= span.size
            stored = span.stored
            if stored is not None and stored.replaced:
                self._accounting.superseded += 1
            elif stored is not None and self._spool.is_written(stored.row):
                on_disk.append(stored.row)
            else:
                lost.append(span)
        self._on_disk.extend(on_disk)
        self.waiting_bytes = 0
        return lost, missing
