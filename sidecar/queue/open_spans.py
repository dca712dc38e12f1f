"""Joins the START and the END of a span; holds, releases and keeps STARTs.

In: spans in the order they were accepted. Out: writes, by the `write` callback: *complete* ones,
filled from the START where the END left something out, and *open* ones for STARTs whose END did
not come within `hold_s`. A released START is kept until its END, because SGP replaces whole rows
and an END may omit what it does not change (docs/upstreams.md S3).

No I/O and no clock: `now` is loop time in seconds, given by the caller.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from sidecar.queue.join import fill, signature
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.spans.span import (
    DATA_BIT,
    Key,
    Span,
    drop_payloads,
    restore_payloads,
    which_payloads,
)
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# How many finished spans are remembered (by hash, about 100 bytes each), to know a late START or
# a repeated END for what it is. At 500 spans/s these are the last 20 seconds.
REMEMBERED = 10_000
# How many kept STARTs one full request may look at: under overload this runs for every request.
_LOOKED_AT = 256


class OpenSpans:
    """The STARTs that have no END yet.

    `held` ones wait for their END and were not written; `kept` ones were written open.
    """

    def __init__(
        self,
        write: Callable[[Span], None],
        budget: MemoryBudget,
        accounting: IntakeAccounting,
        *,
        hold_s: float,
        ttl_s: float,
        spool: Spool | None = None,
    ) -> None:
        self._spool = spool
        self._write = write
        self._budget = budget
        self._accounting = accounting
        self._hold_s = hold_s
        self._ttl_s = ttl_s
        self._held: OrderedDict[Key, Span] = OrderedDict()
        self._kept: OrderedDict[Key, Span] = OrderedDict()
        # With a spool: STARTs whose payloads are in memory, which could be on disk only.
        self._loaded: OrderedDict[Key, Span] = OrderedDict()
        # Span -> what its END was filled into, 0 when it was complete by itself.
        self._ended: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Spans that run: their END has not come."""
        return len(self._held) + len(self._kept)

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
        if hash(key) in self._ended:
            # Written now it would replace the finished row at SGP (docs/upstreams.md S3).
            self._accounting.joined += 1
            return
        if key in self._kept:
            # Written already: its END will say what changed.
            self._accounting.joined += 1
            return
        earlier = self._held.get(key)
        if earlier is not None:
            fill(span, earlier)
            span.accepted_at = earlier.accepted_at
            self._held[key] = span
            self._keep(span)
            self._replace(earlier)
            self._accounting.joined += 1
            return
        self._held[key] = span
        self._keep(span)
        self._accounting.held += 1

    def _keep(self, span: Span) -> None:
        self._budget.hold(span)
        if self._spool is not None:
            self._spool.add(span)
            self._loaded[span.join_key] = span

    def _replace(self, start: Span) -> None:
        """A newer event of the span stands for `start` from now on."""
        if self._spool is not None:
            self._spool.replace(start)
        self._forget(start)

    def _retire(self, start: Span) -> None:
        """No END will be joined to `start` any more; its open write is still owed to the lanes."""
        if self._spool is not None:
            self._spool.retire(start)
        self._forget(start)

    def _forget(self, start: Span) -> None:
        if self._spool is not None and self._loaded.get(start.join_key) is start:
            del self._loaded[start.join_key]
        self._budget.release(start)

    def _end(self, span: Span) -> None:
        key = span.join_key
        start = self.started(key)
        if span.route:
            self._take_from_event(span)
        if start is not None:
            self._remember(key, fill(span, start))
            if self._held.pop(key, None) is not None:
                self._accounting.held -= 1
                self._accounting.joined += 1
            else:
                del self._kept[key]
                span.open_sent_to = start.open_sent_to
        else:
            seen = self._ended.get(hash(key))
            if seen and seen == signature(span):
                # The same END again, whose START is gone by now: sent as it is, it would blank
                # upstream what the first one was filled with.
                self._accounting.joined += 1
                return
            self._remember(key, seen or 0)
        self._accounting.written += 1
        if self._spool is not None:
            self._spool.add(span, start)
        if start is not None:
            self._forget(start)
        self._write(span)

    def _take_from_event(self, span: Span) -> None:
        """The START came by our own route, the END by an SDK's: its lane gets no open write.

        Nothing else is known to be right: the other lanes may still get an END of their own.
        """
        start = self.started((span.trace_id, span.id))
        if start is None:
            return
        if not start.payloads_on_disk:
            fill(span, start)
        if self._spool is not None:
            self._spool.settled(start, span.route)
        start.lanes &= ~span.route

    def _remember(self, key: Key, signature: int) -> None:
        self._ended[hash(key)] = signature
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _write_open(self, span: Span) -> None:
        self._accounting.held -= 1
        self._accounting.written += 1
        self._write(span)

    def next_due(self) -> float | None:
        """Loop time at which `tick` has something to do, or None."""
        due = None
        if self._held:
            due = next(iter(self._held.values())).accepted_at + self._hold_s
        if self._kept:
            expiry = next(iter(self._kept.values())).accepted_at + self._ttl_s
            due = expiry if due is None else min(due, expiry)
        return due

    def tick(self, now: float) -> None:
        """Write the STARTs whose END did not come in time; forget those past their TTL."""
        while self._held:
            span = next(iter(self._held.values()))
            if span.accepted_at + self._hold_s > now:
                break
            del self._held[span.join_key]
            self._kept[span.join_key] = span
            self._write_open(span)
        while self._kept:
            span = next(iter(self._kept.values()))
            if span.accepted_at + self._ttl_s > now:
                break
            del self._kept[span.join_key]
            self._retire(span)

    def release_all(self) -> None:
        """Write every held START open: the process stops and no END will come."""
        while self._held:
            _, span = self._held.popitem(last=False)
            self._kept[span.join_key] = span
            self._write_open(span)

    def make_room(self, size: int) -> bool:
        """Let go of kept STARTs, oldest first, until `size` bytes fit; False if they never do.

        Only a START that no lane still has to send is let go: nothing accepted is lost. Its END,
        should it leave something out, is then as complete as it came.
        """
        if self._budget.fits(size):
            return True
        if self._spool is not None:
            self._drop_payloads(size)
            return self._budget.fits(size)
        settled = [span for span in islice(self._kept.values(), _LOOKED_AT) if span.holders == 1]
        for span in settled:
            del self._kept[span.join_key]
            self._retire(span)
            if self._budget.fits(size):
                return True
        return False

    def _drop_payloads(self, size: int) -> None:
        """Let payloads of STARTs be on disk only, oldest first, until `size` bytes fit."""
        for span in list(islice(self._loaded.values(), _LOOKED_AT)):
            if self._budget.fits(size):
                return
            if span.seq > 0 and span.holders == 1:
                del self._loaded[span.join_key]
                self._budget.release(span)
                drop_payloads(span)
                self._budget.hold(span)

    def state_of(self, id_: str) -> str | None:
        """Where a START with this id is: "held", "written", or None; looks at every one."""
        for line, what in ((self._held, "held for its END"), (self._kept, "written, END awaited")):
            if any(span.id == id_ for span in line.values()):
                return what
        return None

    def started(self, key: Key) -> Span | None:
        """The START that an END with this `join_key` will be joined with."""
        return self._held.get(key) or self._kept.get(key)

    def needed(self, spans: Sequence[Span]) -> list[Span]:
        """STARTs whose payloads are on disk only and which an END among `spans` leaves out."""
        starts = []
        for span in spans:
            start = self.started(span.join_key)
            if start is None:
                continue
            wanted = ~which_payloads(span) | (DATA_BIT if span.merges else 0)
            if start.payloads_on_disk & wanted:
                starts.append(start)
        return starts

    def restore(self, start: Span, stored: Span) -> None:
        """The payloads of `start` are back from disk; they may go there again."""
        if start.payloads_on_disk and start.holders:
            before = start.size
            restore_payloads(start, stored)
            self._budget.used += start.size - before
            self._loaded[start.join_key] = start

    def recover(self, span: Span) -> None:
        """Take back a START that an earlier process left in the spool; its payload stays there."""
        known = span.join_key in self._held or span.join_key in self._kept
        if self._spool is not None and (known or hash(span.join_key) in self._ended):
            # A disk that came late: newer events of the span have been here before.
            self._spool.replace(span)
            return
        drop_payloads(span)
        self._budget.hold(span)
        if span.lanes:
            self._accounting.replayed += 1
            self._accounting.held += 1
            self._held[span.join_key] = span
        else:
            self._kept[span.join_key] = span
