"""Open spans that only wait for their END: no lane has their START, so it can make room.

With a spool, its payloads leave memory, and come back for the END. Without one, or if the spool has
no row for it, the START is forgotten. The one that has been idle for longest leaves first.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_span import HELD, KEPT, OpenSpan
from sidecar.spans.span import (
    Key,
    Span,
    Stored,
    copy_payloads,
    drop_payloads,
    missing_payloads,
)
from sidecar.spool.spool import Spool

# STARTs that one request looks at to make room on disk.
MAX_FORGOTTEN = 64


class IdleSpans:
    """The idle ones among `spans`. `retire` forgets one that is kept."""

    def __init__(
        self,
        spans: OrderedDict[Key, OpenSpan],
        budget: MemoryBudget,
        spool: Spool,
        retire: Callable[[OpenSpan], None],
    ) -> None:
        self._open_spans = spans
        self._budget = budget
        self._spool = spool
        self._retire = retire
        # Those that would give room if they left memory.
        self.spans: OrderedDict[Key, OpenSpan] = OrderedDict()
        budget.on_idle = self._on_idle
        budget.make_room = self.make_room

    def _on_idle(self, start: Span) -> None:
        key = start.join_key
        open_span = self._open_spans.get(key)
        if open_span is not None and open_span.start is start:
            self.add(key, open_span)

    def add(self, key: Key, open_span: OpenSpan) -> None:
        """No lane has the START."""
        if open_span.state is KEPT or open_span.start.stored is not None:
            self.spans[key] = open_span

    def discard(self, key: Key) -> None:
        """Lanes have the START again, or it is forgotten."""
        self.spans.pop(key, None)

    def make_room(self, size: int, spans: Sequence[Span] = ()) -> bool:
        """Let payloads or STARTs leave memory until `size` bytes fit; returns whether they do.

        The STARTs of `spans` stay: these need them.
        """
        if size <= self._budget.available:
            return True
        needed = {span.join_key for span in spans}
        staying: list[tuple[Key, OpenSpan]] = []
        while self.spans and size > self._budget.available:
            key, open_span = self.spans.popitem(last=False)
            stored = open_span.start.stored
            if key in needed:
                staying.append((key, open_span))
            elif stored is not None and self._spool.has_row(stored.row):
                before = open_span.start.size
                drop_payloads(open_span.start, stored)
                self._budget.resized(open_span.start, before)
            elif open_span.state is KEPT:
                self._retire(open_span)
        for key, open_span in reversed(staying):
            self.spans[key] = open_span
            self.spans.move_to_end(key, last=False)
        return size <= self._budget.available

    def make_room_on_disk(self) -> None:
        """Have the oldest ones forgotten whose rows nobody but their ENDs needs."""
        for key, open_span in list(islice(self._open_spans.items(), MAX_FORGOTTEN)):
            if open_span.state is HELD:
                return  # and so are all that are younger
            if open_span.is_settled and open_span.start.stored is not None:
                self._retire(open_span)
            else:
                self._open_spans.move_to_end(key)  # the next request looks at others

    def needed(self, spans: Sequence[Span]) -> list[tuple[Span, Stored]]:
        """STARTs with payloads that are only on disk and that an END among `spans` needs."""
        found: list[tuple[Span, Stored]] = []
        for span in spans:
            open_span = self._open_spans.get(span.join_key)
            stored = None if open_span is None else open_span.start.stored
            if open_span is None or stored is None or stored.unreadable:
                continue
            if stored.dropped & missing_payloads(span):
                found.append((open_span.start, stored))
        return found

    def restore(self, start: Span, loaded: Span) -> None:
        """Put the payloads of `start` back into memory, if it is still open."""
        open_span = self._open_spans.get(start.join_key)
        if start.stored is None or open_span is None or open_span.start is not start:
            return
        before = start.size
        copy_payloads(start, loaded, start.stored.dropped)
        start.stored.dropped = start.stored.dropped_bytes = 0
        self._budget.resized(start, before)
