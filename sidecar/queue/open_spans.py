"""Open spans: STARTs that are waiting for their END.

In: spans in the order they were accepted. Out: writes, passed to `write`: *complete* ones,
filled in from the START where the END leaves something out, and *open* ones for STARTs whose END
did not arrive within `hold_s`. A START that was written as open is kept until its END, because SGP
replaces whole rows and an END may omit what it does not change (docs/upstreams.md S3).

No I/O and no clock: callers pass `now`, loop time in seconds.
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
    payloads_in_memory,
    restore_payloads,
)
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# How many finished spans to remember (a hash each, about 100 bytes), so that a late START or a
# repeated END is recognized. At 500 spans/s they cover the last 20 seconds.
MAX_REMEMBERED = 10_000
# STARTs that `make_room` scans: under overload it runs for every request.
_MAX_SCANNED = 256


class OpenSpans:
    """STARTs without an END. *Held* ones are not written yet; *kept* ones were written as open.

    A kept START is dropped `ttl_s` after it was accepted.
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
        # With a spool: STARTs whose payloads are in memory and could be dropped from it.
        self._loaded: OrderedDict[Key, Span] = OrderedDict()
        # Hash of a finished span's key -> signature of its END as it arrived, 0 if nothing was
        # filled in.
        self._ended: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        """Running spans: those whose END has not arrived."""
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
            # If written now, it would replace the finished row at SGP (docs/upstreams.md S3).
            self._accounting.joined += 1
            return
        if key in self._kept:
            # Already written as open. Its END will carry the changes.
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
        """Forget `start`, because a newer event of the span replaces it."""
        if self._spool is not None:
            self._spool.replace(start)
        self._forget(start)

    def _retire(self, start: Span) -> None:
        """Forget `start` without an END. Lanes that have not sent its open write still will."""
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
            self._join_across_routes(span)
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
                # A repeat of the END, after its START is gone. Sent as is, it would
                # erase, upstream, what was filled in the first time.
                self._accounting.joined += 1
                return
            self._remember(key, seen or 0)
        self._accounting.written += 1
        if self._spool is not None:
            self._spool.add(span, start)
        if start is not None:
            self._forget(start)
        self._write(span)

    def _join_across_routes(self, span: Span) -> None:
        """Fill an END from an SDK's route if its START arrived as an event for every lane.

        The END's lane no longer needs the START's open write. The START is kept for the other
        lanes: each may still get an END through its own route.
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
        if len(self._ended) > MAX_REMEMBERED:
            self._ended.popitem(last=False)

    def _write_open(self, span: Span) -> None:
        self._accounting.held -= 1
        self._accounting.written += 1
        self._write(span)

    def next_due(self) -> float | None:
        """Loop time at which `tick` has work to do, or None."""
        due = None
        if self._held:
            due = next(iter(self._held.values())).accepted_at + self._hold_s
        if self._kept:
            expiry = next(iter(self._kept.values())).accepted_at + self._ttl_s
            due = expiry if due is None else min(due, expiry)
        return due

    def tick(self, now: float) -> None:
        """Write held STARTs as open after `hold_s`; forget kept ones after `ttl_s`."""
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
        """Write every held START as open: the process is stopping."""
        while self._held:
            _, span = self._held.popitem(last=False)
            self._kept[span.join_key] = span
            self._write_open(span)

    def make_room(self, size: int) -> bool:
        """Drop kept STARTs, oldest first, until `size` bytes fit. Returns whether they fit.

        Only STARTs that every lane has settled are dropped, so nothing accepted is lost. Their ENDs
        are then written without being filled in. With a spool, only payloads are dropped.
        """
        if self._budget.fits(size):
            return True
        if self._spool is not None:
            self._drop_payloads(size)
            return self._budget.fits(size)
        settled = [span for span in islice(self._kept.values(), _MAX_SCANNED) if span.holders == 1]
        for span in settled:
            del self._kept[span.join_key]
            self._retire(span)
            if self._budget.fits(size):
                return True
        return False

    def _drop_payloads(self, size: int) -> None:
        """Drop from memory payloads that are also on disk, oldest first, until `size` bytes fit."""
        for span in list(islice(self._loaded.values(), _MAX_SCANNED)):
            if self._budget.fits(size):
                return
            if span.seq > 0 and span.holders == 1:
                del self._loaded[span.join_key]
                self._budget.release(span)
                drop_payloads(span)
                self._budget.hold(span)

    def state_of(self, id_: str) -> str | None:
        """State of the START with this id, or None. Scans all STARTs."""
        for starts, state in (
            (self._held, "held for its END"),
            (self._kept, "written, waiting for its END"),
        ):
            if any(span.id == id_ for span in starts.values()):
                return state
        return None

    def started(self, key: Key) -> Span | None:
        """The START with this `join_key`, or None."""
        return self._held.get(key) or self._kept.get(key)

    def needed(self, spans: Sequence[Span]) -> list[Span]:
        """STARTs with payloads that are only on disk and that an END among `spans` needs."""
        starts = []
        for span in spans:
            start = self.started(span.join_key)
            if start is None:
                continue
            missing = ~payloads_in_memory(span) | (DATA_BIT if span.merges_data else 0)
            if start.payloads_on_disk & missing:
                starts.append(start)
        return starts

    def restore(self, start: Span, stored: Span) -> None:
        """Put the payloads of `start`, loaded from disk as `stored`, back into memory."""
        if start.payloads_on_disk and start.holders:
            before = start.size
            restore_payloads(start, stored)
            self._budget.used += start.size - before
            self._loaded[start.join_key] = start

    def recover(self, span: Span) -> None:
        """Take a START that an earlier process left in the spool. Its payloads stay on disk."""
        known = span.join_key in self._held or span.join_key in self._kept
        if self._spool is not None and (known or hash(span.join_key) in self._ended):
            # The disk was slow: newer events of the span arrived before this one was read.
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
