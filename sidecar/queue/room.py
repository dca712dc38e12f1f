"""The room of each lane, in memory and on disk: which lanes take a request (D22).

An upstream that is away fills its own lane, and nothing else. Each lane has the same limit, and
together the limits leave a tenth that is nobody's. A lane exceeds its limit, into that tenth, only
for ENDs whose START it still has: without them, the upstream would show these spans as running
forever.

In: the spans of one request. Out: the lanes that have room for all of them. No I/O and no clock.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_span import HELD, OpenSpan, following
from sidecar.spans.span import PAYLOADS, Key, Span
from sidecar.spool.spool import Spool

# Share of `queue.max_bytes` that is nobody's; the spool keeps the same share (`Spool.spare`).
SPARE = 0.1


@dataclass(slots=True, eq=False)
class Room:
    """What one lane holds in memory.

    `queued` returns the bytes of its writes, and `replaceable` the bytes of those that a write of
    the same span would replace; None if the lane has no write of that span. `data_follows`: it gets
    open writes without `data`. `promises` has the bytes that sets of lanes keep free for the open
    spans, by the lanes' bits.
    """

    bit: int
    queued: Callable[[], int]
    replaceable: Callable[[Span], int | None]
    data_follows: bool = False
    promises: Mapping[int, int] = field(default_factory=dict)

    @property
    def used(self) -> int:
        """Bytes in memory that count against the lane's limit."""
        return self.queued() + self.promised

    @property
    def promised(self) -> int:
        """Bytes that it keeps free for open spans."""
        promised = 0
        for to, size in self.promises.items():  # for many requests; a generator is slower
            if to & self.bit:
                promised += size
        return promised

    def promised_to(self, open_span: OpenSpan) -> int:
        """Bytes of `promised` that are kept for an open span."""
        if not open_span.promised_to & self.bit:
            return 0
        return open_span.promised + (open_span.following if self.data_follows else 0)


class _Needed(NamedTuple):
    """Bytes that a lane needs for a request: for ENDs of writes that it has, and for the rest."""

    ends: int
    rest: int


class Rooms:
    """The rooms of all lanes. `known` returns the open span with a `join_key`, or None."""

    def __init__(
        self,
        rooms: Sequence[Room],
        budget: MemoryBudget,
        spool: Spool,
        known: Callable[[Key], OpenSpan | None],
    ) -> None:
        self._rooms = rooms
        self._spool = spool
        self._known = known
        self._spare = int(budget.limit * SPARE)
        self.limit = (budget.limit - self._spare) // max(1, len(rooms))  # bytes of each, in memory

    def is_too_large(self, spans: Sequence[Span]) -> bool:
        """Whether no lane would have room for `spans` even if it had nothing else."""
        if self._on_disk:
            return sum(self._spool.cost(span) for span in spans) > self._spool.lane_limit
        return sum(map(self._filled, spans)) > self.limit

    @property
    def _on_disk(self) -> bool:
        return self._spool.is_configured and not self._spool.degraded

    def used(self, room: Room) -> int:
        """Bytes that count against the lane's limit: on disk, or without a spool in memory."""
        return self._spool.lane_bytes(room.bit) if self._on_disk else room.used

    @property
    def limit_now(self) -> int:
        """The limit of each lane on what `used` returns."""
        return self._spool.lane_limit if self._on_disk else self.limit

    def taking(self, spans: Sequence[Span]) -> int:
        """The bits of all lanes, -1, without those that lack room for all of `spans`."""
        if self._on_disk:
            limit, spare, needs = self._spool.lane_limit, self._spool.spare, self._on_the_disk
        else:
            limit, spare, needs = self.limit, self._spare, self._in_memory
        all_used = [self.used(room) for room in self._rooms]
        spare = max(0, spare - sum([used - limit for used in all_used if used > limit]))
        addressed_to = spans[0].addressed_to  # all events of a request are for the same lanes
        lanes, any_fits = -1, False
        for room, used in zip(self._rooms, all_used, strict=True):
            if not addressed_to & room.bit:
                continue
            ends = rest = 0
            for span in spans:
                needed = needs(room, span)
                ends += needed.ends
                rest += needed.rest
            more = max(0, used + ends + rest - limit) - max(0, used - limit)  # of what is nobody's
            fits = more <= spare and (rest <= 0 or used + rest + min(0, ends) <= limit)
            if fits or ends + rest <= 0:
                spare -= more
                any_fits = True
            else:
                lanes &= ~room.bit
        return lanes if any_fits else 0

    def _in_memory(self, room: Room, span: Span) -> _Needed:
        if span.end_time is None:
            return _Needed(0, span.size + (following(span) if room.data_follows else 0))
        filled = self._filled(span)
        known = self._known(span.join_key)
        if known is None:
            return _Needed(0, filled)
        filled -= room.promised_to(known)
        replaced = room.replaceable(span)
        if replaced is None:
            held = known.state is HELD and known.start.lanes & room.bit
            return _Needed(filled, 0) if held else _Needed(0, filled)
        return _Needed(filled - replaced, 0)

    def _filled(self, span: Span) -> int:
        """Bytes of a span once its START has filled in what it leaves out."""
        known = None if span.end_time is None else self._known(span.join_key)
        if known is None:
            return span.size
        missing = (name for name in PAYLOADS if not getattr(span, name))
        return span.size + sum(len(getattr(known.start, name)) for name in missing)

    def _on_the_disk(self, room: Room, span: Span) -> _Needed:
        cost = self._spool.cost(span)
        known = None if span.end_time is None else self._known(span.join_key)
        if known is None or (stored := known.start.stored) is None:
            return _Needed(0, cost)
        if stored.pending & known.start.lanes & room.bit:
            return _Needed(cost, 0)  # the row of its START is charged to the lane already
        return _Needed(0, cost + stored.bytes)
