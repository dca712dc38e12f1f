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

An END that only some lanes have room for leaves its START to the others, for another END: a repeat
is written for these only. If room is needed, a START that no lane holds leaves (idle_spans.py).

No I/O and no clock: callers pass `now`, loop time in seconds.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable

from sidecar.queue.idle_spans import IdleSpans
from sidecar.queue.join import EndedSpans, fill
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_span import HELD, KEPT, Holds, OpenSpan, following
from sidecar.queue.supplement import supplement
from sidecar.spans.span import (
    ALL_PAYLOADS,
    DATA,
    Key,
    Span,
    copy_payloads,
    drop_payloads,
)
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting


class OpenSpans:
    """All STARTs without an END. Each is kept for at least `ttl_s` after it was written.

    `data_follows`: the bit of the lane that gets open writes without `data`, or 0. `write` is
    called with a write; its START, if it is an END and that is known; and the bits of the lanes
    that would miss it.
    """

    def __init__(
        self,
        write: Callable[[Span, Span | None, int], None],
        budget: MemoryBudget,
        accounting: IntakeAccounting,
        spool: Spool,
        *,
        hold_s: float,
        ttl_s: float,
        data_follows: int = 0,
    ) -> None:
        self._spool, self._data_follows, self._write = spool, data_follows, write
        # Bytes that sets of lanes keep room for, by the lanes' bits.
        self.promises: defaultdict[int, int] = defaultdict(int)
        self.held: defaultdict[int, int] = defaultdict(int)  # held STARTs, likewise
        self._budget = budget
        self._accounting = accounting
        self._hold_s, self._ttl_s = hold_s, ttl_s
        # In the order of acceptance; a START that is kept for another `ttl_s` goes to the end.
        self._spans: OrderedDict[Key, OpenSpan] = OrderedDict()
        self.holds = Holds(self._spans)
        self.idle = IdleSpans(self._spans, budget, spool, self._retire)
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
            follows = self._data_follows & span.lanes & ~self._ended.not_taken_by(key)
            if follows and (adds := self._ended.added_by(key, span)):
                self._accounting.written += 1
                self._supplement(span, adds)
                return
        elif known.state is HELD:
            earlier = known.start
            fill(span, earlier)
            if earlier.lanes & ~span.lanes and span.size > earlier.size and earlier.stored is None:
                # Some lanes have room for the earlier one only; the END carries the changes.
                copy_payloads(span, earlier, ALL_PAYLOADS)
            span.accepted_at = earlier.accepted_at
            # Not where its END was taken: the span would be reopened.
            span.lanes = (span.lanes & (self._ended.not_taken_by(key) or -1)) | earlier.lanes
            known.start = span
            self._promise(known, span.lanes, span.size, following(span))
            self._add(key, known)
            self._spool.replace(earlier)
            self._budget.release(earlier)
        # A kept one is written as open already, and its END will carry the changes.
        self._accounting.joined += 1

    def _hold(self, key: Key, start: Span) -> None:
        # `_promise`, in place: each function on this path costs (DECISIONS.md 32).
        lanes, size, follows = start.lanes, start.size, following(start) if start.data else 0
        due = start.accepted_at + self._hold_s
        open_span = self._spans[key] = OpenSpan(start, due, HELD, size, follows, lanes)
        self.promises[lanes] += size
        self.held[lanes] += 1
        self.promises[lanes & self._data_follows] += follows
        self.holds.append((open_span.due, key))
        self._accounting.held += 1
        self._add(key, open_span)

    def _add(self, key: Key, open_span: OpenSpan) -> None:
        start = open_span.start
        self._budget.hold(start)
        self._spool.add(start)
        if start.stored is not None:
            self.idle.add(key, open_span)

    def _promise(self, open_span: OpenSpan, lanes: int, size: int, follows: int) -> None:
        """Have the lanes with a bit in `lanes` keep this room for an open span, and no others."""
        promises, before, to = self.promises, open_span.promised_to, self._data_follows
        self.held[before] -= open_span.promised > 0
        self.held[lanes] += size > 0
        promises[before] -= open_span.promised
        promises[before & to] -= open_span.following
        promises[lanes] += size
        promises[lanes & to] += follows
        open_span.promised, open_span.following, open_span.promised_to = size, follows, lanes

    def _end(self, span: Span) -> None:
        key = span.join_key
        known, missed_by = self._spans.get(key), self._ended.not_taken_by(key)
        if known is None and self._ended.is_repeat(key, span):
            # Sent as is, it would erase, upstream, what was filled in the first time.
            span.lanes &= missed_by
            if not span.lanes:
                self._accounting.joined += 1
                return
        start = None if known is None else known.start
        if span.lanes != -1 or missed_by:
            self._ended.taken(key, span)
        if known is None:
            self._ended.add_unjoined(key, span)
            self._spool.add(span)
        else:
            self._ended.add(key, fill(span, known.start))
            if known.start.lanes & ~span.lanes:
                self._stay(known, span)
            else:
                if known.state is HELD:
                    self._accounting.held -= 1
                    self._accounting.joined += 1
                self._spool.add(span, start)
                self._forget(key, known)
        self._accounting.written += 1
        self._write(span, start, missed_by or -1)

    def _stay(self, known: OpenSpan, end: Span) -> None:
        """`end` has no room in lanes that have its START, which stays for these."""
        start = known.start
        self._spool.add(end)
        if start.stored is not None:
            self._spool.release(start.stored, end.lanes)
        start.lanes &= ~end.lanes
        self._promise(known, start.lanes, known.promised, known.following)

    def _forget(self, key: Key, open_span: OpenSpan) -> None:
        del self._spans[key]
        open_span.state = None
        before = open_span.promised_to
        self.held[before] -= open_span.promised > 0
        self.promises[before] -= open_span.promised
        self.promises[before & self._data_follows] -= open_span.following
        if self.idle.spans:
            self.idle.discard(key)
        self._budget.release(open_span.start)

    def _retire(self, open_span: OpenSpan) -> None:
        """Forget a START without an END, which is settled; its `data` follows."""
        start = open_span.start
        if open_span.has_data and self._data_follows & start.lanes:
            self._supplement(start, DATA, replaced=start)
        else:
            self._spool.retire(start)
        self._forget(start.join_key, open_span)

    def _supplement(self, start: Span, which: int, replaced: Span | None = None) -> None:
        """Write the payloads in `which` where they are missing. `replaced`: the START leaves."""
        now = max(start.accepted_at, self._ticked_at)
        added = supplement(start, which, self._data_follows, now)
        self._spool.add(added, replaced)
        self._write(added, None, -1)

    def _keep(self, key: Key) -> None:
        """Write a START as open, if it is still held."""
        open_span = self._spans.get(key)
        if open_span is None or open_span.state is not HELD:
            return
        start = open_span.start
        open_span.state, open_span.due = KEPT, start.accepted_at + self._ttl_s
        self._promise(open_span, start.lanes, 0, open_span.following)
        self._accounting.held -= 1
        self._accounting.written += 1
        self.idle.discard(key)
        self._write(start, None, self._ended.not_taken_by(key) or -1)
        if start.holders == 1:  # no lane took it
            self.idle.add(key, open_span)

    def next_due(self) -> float | None:
        """Loop time at which `tick` has work to do, or None."""
        held, oldest = self.holds.next_due(), next(iter(self._spans.values()), None)
        return held if oldest is None else oldest.due if held is None else min(oldest.due, held)

    def release(self, now: float) -> None:
        """Write as open the held STARTs whose `hold_s` is over at loop time `now`."""
        for key in self.holds.until(now):
            self._keep(key)

    def tick(self, now: float) -> None:
        """Write held STARTs as open after `hold_s`; forget kept ones after `ttl_s`."""
        self._ticked_at = now
        self.release(now)
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
        self.release(float("inf"))
        for start in kept:
            # What has a row is still there after a restart, for its END.
            if lane & start.lanes and start.stored is None:
                self._supplement(start, DATA)

    def about(self, index: int, text: str) -> list[OpenSpan]:
        """Those whose key has `text` at `index`. Scans all of them."""
        return [each for key, each in self._spans.items() if key[index] == text]

    def known(self, key: Key) -> OpenSpan | None:
        """The open span with this `join_key`, or None."""
        return self._spans.get(key)

    def started(self, key: Key) -> Span | None:
        """The START with this `join_key`, or None."""
        open_span = self._spans.get(key)
        return None if open_span is None else open_span.start

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
        if start.pending:
            self._promise(open_span, start.pending, start.size, following(start))
            self._accounting.replayed += 1
            self._accounting.held += 1
            self.holds.append((open_span.due, key))
        else:
            open_span.state, open_span.due = KEPT, start.accepted_at + self._ttl_s
