"""Open spans: STARTs that are waiting for their END.

In: spans in the order they were accepted. Out: writes, passed to `write`: *complete* ones,
filled in from the START where the END leaves something out, and *open* ones for STARTs whose END
did not arrive within `hold_s`. A START that was written as open is kept until its END, because SGP
replaces whole rows and an END may omit what it does not change (docs/upstreams.md S3).

A span's state, what happens in it, and the state that follows:

| state   | START        | END                          | `hold_s` over | `ttl_s` over        |
|---------|--------------|------------------------------|---------------|---------------------|
| unknown | HELD         | written: ended               |               |                     |
| HELD    | joined: HELD | START joined, written: ended | written: KEPT |                     |
| KEPT    | joined: KEPT | filled, written: ended       |               | unknown, if settled |
| ended   | joined (*)   | written, unless it repeats   |               |                     |

*Joined* events are not written themselves; nor is an END that repeats one that its START filled.
(*) A late START is written as a supplement if it has payloads that the END left out. So is the
`data` of a KEPT start, where missing, when it is forgotten without an END or the process stops.
A process that stops acts as if `hold_s` were over.
*Settled* means that no lane has the open write any more; otherwise the START stays for another
`ttl_s`, so that its END goes behind the open write and keeps what the START said.

A START's payloads are in memory, and with a spool on disk, too. If room is needed, those that no
lane holds leave memory, oldest first: with a spool only the payloads, which come back for the END;
without one (or while its disk fails) a KEPT start becomes unknown.

No I/O and no clock: callers pass `now`, loop time in seconds.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice

from sidecar.queue.join import EndedSpans, fill
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_span import HELD, KEPT, OpenSpan
from sidecar.queue.supplement import supplement
from sidecar.spans.span import (
    DATA,
    Key,
    Span,
    Stored,
    copy_payloads,
    drop_payloads,
    missing_payloads,
)
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# STARTs that `make_room` scans: under overload it runs for every request.
_MAX_SCANNED = 256


class OpenSpans:
    """All STARTs without an END. Each is kept for at least `ttl_s` after it was written.

    `data_follows`: the bit of the lane that gets open writes without `data`, or 0.
    """

    def __init__(
        self,
        write: Callable[[Span], None],
        budget: MemoryBudget,
        accounting: IntakeAccounting,
        spool: Spool,
        *,
        hold_s: float,
        ttl_s: float,
        data_follows: int = 0,
    ) -> None:
        self._spool = spool
        self._data_follows = data_follows
        self._write = write
        self._budget = budget
        self._accounting = accounting
        self._hold_s = hold_s
        self._ttl_s = ttl_s
        # In the order of acceptance; a START that is kept for another `ttl_s` goes to the end.
        self._spans: OrderedDict[Key, OpenSpan] = OrderedDict()
        # When held STARTs are due, in order. It may name spans that are no longer held.
        self._holds: deque[tuple[float, Key]] = deque()
        # Those with a row in the spool and payloads in memory, in the order of acceptance.
        self._droppable: OrderedDict[Key, OpenSpan] = OrderedDict()
        self._ended = EndedSpans()
        self._ticked_at = 0.0

    def __len__(self) -> int:
        return len(self._spans)

    def take(self, span: Span) -> None:
        """Take one accepted event."""
        if span.end_time is None:
            self._accounting.received_start += 1
            self._start(span)
        else:
            self._accounting.received_end += 1
            self._end(span)

    def _start(self, span: Span) -> None:
        key = span.join_key
        known = self._spans.get(key)
        if known is None:
            if hash(key) not in self._ended.signatures:
                self._hold(key, span)
                return
            # If written now, it would replace the finished row at SGP (docs/upstreams.md S3).
            adds = self._ended.added_by(key, span)
            if adds and self._data_follows & span.addressed_to:
                self._accounting.written += 1
                self._supplement(span, adds)
                return
        elif known.state is HELD:
            earlier = known.start
            fill(span, earlier)
            span.accepted_at = earlier.accepted_at
            known.start = span
            self._add(key, known)
            self._spool.replace(earlier)
            self._budget.release(earlier)
        # A kept one is written as open already, and its END will carry the changes.
        self._accounting.joined += 1

    def _hold(self, key: Key, start: Span) -> None:
        open_span = self._spans[key] = OpenSpan(start, start.accepted_at + self._hold_s)
        self._holds.append((open_span.due, key))
        self._accounting.held += 1
        self._add(key, open_span)

    def _add(self, key: Key, open_span: OpenSpan) -> None:
        start = open_span.start
        self._budget.hold(start)
        self._spool.add(start)
        if start.stored is not None:
            self._droppable[key] = open_span

    def _end(self, span: Span) -> None:
        key = span.join_key
        known = self._spans.get(key)
        if known is None:
            if self._ended.is_repeat(key, span):
                # Sent as is, it would erase, upstream, what was filled in the first time.
                self._accounting.joined += 1
                return
            self._ended.add_unjoined(key, span)
            self._spool.add(span)
        else:
            start = known.start
            self._ended.add(key, fill(span, start))
            if known.state is HELD:
                self._accounting.held -= 1
                self._accounting.joined += 1
            self._spool.add(span, start)
            self._forget(key, known)
        self._accounting.written += 1
        self._write(span)

    def _forget(self, key: Key, open_span: OpenSpan) -> None:
        del self._spans[key]
        open_span.state = None
        if self._droppable:
            self._droppable.pop(key, None)
        self._budget.release(open_span.start)

    def _retire(self, open_span: OpenSpan) -> None:
        """Forget a START without an END, which is settled; its `data` follows."""
        start = open_span.start
        if open_span.has_data and self._data_follows & start.addressed_to:
            self._supplement(start, DATA, replaced=start)
        else:
            self._spool.retire(start)
        self._forget(start.join_key, open_span)

    def _supplement(self, start: Span, which: int, replaced: Span | None = None) -> None:
        """Write the payloads in `which` where they are missing. `replaced`: the START leaves."""
        now = max(start.accepted_at, self._ticked_at)
        added = supplement(start, which, self._data_follows, now)
        self._spool.add(added, replaced)
        self._write(added)

    def _keep(self, key: Key) -> None:
        """Write a START as open, if it is still held."""
        open_span = self._spans.get(key)
        if open_span is None or open_span.state is not HELD:
            return
        open_span.state, open_span.due = KEPT, open_span.start.accepted_at + self._ttl_s
        self._accounting.held -= 1
        self._accounting.written += 1
        self._write(open_span.start)

    def next_due(self) -> float | None:
        """Loop time at which `tick` has work to do, or None."""
        holds, spans = self._holds, self._spans
        while holds and ((held := spans.get(holds[0][1])) is None or held.state is not HELD):
            holds.popleft()
        oldest = next(iter(spans.values()), None)
        if oldest is None:
            return None
        return min(oldest.due, holds[0][0]) if holds else oldest.due

    def tick(self, now: float) -> None:
        """Write held STARTs as open after `hold_s`; forget kept ones after `ttl_s`."""
        self._ticked_at = now
        while self._holds and self._holds[0][0] <= now:
            self._keep(self._holds.popleft()[1])
        for _ in range(len(self._spans)):
            key, open_span = next(iter(self._spans.items()))
            if open_span.state is HELD or open_span.due > now:
                break
            if open_span.is_settled and not (self._spool.degraded and open_span.is_on_disk):
                self._retire(open_span)
            else:
                open_span.due = now + self._ttl_s
                self._spans.move_to_end(key)

    def release_all(self) -> None:
        """The process is stopping: write held STARTs as open, and `data` that is only in memory."""
        known, lane = self._spans.values(), self._data_follows
        kept = [each.start for each in known if each.state is KEPT and each.start.data]
        while self._holds:
            self._keep(self._holds.popleft()[1])
        for start in kept:
            # What has a row is still there after a restart, for its END.
            if lane & start.addressed_to and start.stored is None:
                self._supplement(start, DATA)

    def make_room(self, size: int, spans: Sequence[Span] = ()) -> bool:
        """Let payloads or STARTs leave memory until `size` bytes fit; returns whether they do.

        The STARTs of `spans` stay: these need them.
        """
        if size <= self._budget.available:
            return True
        needed = {span.join_key for span in spans}
        candidates = [*islice(self._droppable.values(), _MAX_SCANNED)]
        candidates += islice(self._spans.values(), _MAX_SCANNED)
        for open_span in candidates:
            start, stored = open_span.start, open_span.start.stored
            key = start.join_key
            if start.holders > 1 or open_span.state is None or key in needed:
                continue
            if stored is not None:
                self._droppable.pop(key, None)
                if not self._spool.has_row(stored.row):
                    continue
                before = start.size
                drop_payloads(start, stored)
                self._budget.resized(start, before)
            elif open_span.state is KEPT:
                self._retire(open_span)
            if size <= self._budget.available:
                return True
        return False

    def state_of(self, id_: str) -> str | None:
        """State of the START with this id, or None. Scans all STARTs."""
        known = self._spans.values()
        return next(
            (each.state.value for each in known if each.start.id == id_ and each.state), None
        )

    def started(self, key: Key) -> Span | None:
        """The START with this `join_key`, or None."""
        open_span = self._spans.get(key)
        return None if open_span is None else open_span.start

    def needed(self, spans: Sequence[Span]) -> list[tuple[Span, Stored]]:
        """STARTs with payloads that are only on disk and that an END among `spans` needs."""
        pairs = ((self.started(span.join_key), missing_payloads(span)) for span in spans)
        found = [(start, start.stored, missing) for start, missing in pairs if start is not None]
        return [(start, at) for start, at, missing in found if at and at.dropped & missing]

    def restore(self, start: Span, loaded: Span) -> None:
        """Put the payloads of `start` back into memory, if it is still open."""
        open_span = self._spans.get(start.join_key)
        if start.stored is None or open_span is None or open_span.start is not start:
            return
        before = start.size
        copy_payloads(start, loaded, start.stored.dropped)
        start.stored.dropped = start.stored.dropped_bytes = 0
        self._budget.resized(start, before)
        self._droppable[start.join_key] = open_span

    def recover(self, start: Span) -> None:
        """Take a START that an earlier process left in the spool. Its payloads stay on disk."""
        key = start.join_key
        if key in self._spans or hash(key) in self._ended.signatures:
            # The disk was slow: newer events of the span arrived before this one was read.
            self._spool.replace(start)
            return
        if start.stored is not None:
            drop_payloads(start, start.stored)
        self._budget.hold(start)
        open_span = self._spans[key] = OpenSpan(start, start.accepted_at + self._hold_s)
        if start.lanes:
            self._accounting.replayed += 1
            self._accounting.held += 1
            self._holds.append((open_span.due, key))
        else:
            open_span.state, open_span.due = KEPT, start.accepted_at + self._ttl_s
