"""Admission: accepts all valid events of a request or none, and passes them to the open spans.

In: the spans of one request. Out: writes in the lanes that have room for all of them (D22). Memory
stays within the budget: a request for which no lane has room is refused, and nothing accepted
earlier is dropped to make room (D3, D4).
"""

import asyncio
from collections.abc import Sequence, Sized
from typing import Protocol

from sidecar.process.alarm import Alarm
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_spans import OpenSpans
from sidecar.queue.room import Room, Rooms
from sidecar.spans.span import Span, Stored, total_size
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting, LaneAccounting
from sidecar.telemetry.decisions import Decisions

# A request waits one iteration of the event loop for every `BACKLOG` writes that are waiting for a
# healthy upstream, at most `MAX_ROUNDS`: agents are slowed down by milliseconds, never blocked.
BACKLOG = 100
MAX_ROUNDS = 8
# How long an END waits for its START's payloads from the disk.
LOAD_S = 2.0
# A flush does not release a START that is younger: its END may be about to join it.
MIN_HOLD_S = 0.1


class Lane(Protocol):
    """What admission needs from a lane."""

    bit: int  # the lane's bit in `Span.lanes`
    room: Room
    accounting: LaneAccounting

    @property
    def ready(self) -> Sized:
        """Writes that a batch could take now."""
        ...

    @property
    def backlog(self) -> int:
        """Writes that are waiting although the upstream is healthy."""
        ...

    @property
    def data_follows(self) -> bool:
        """Whether its open writes are sent without `data`, which has to follow."""
        ...

    def put(self, span: Span) -> None:
        """Add a write to the lane's queue."""
        ...

    def not_taken(self, span: Span, start: Span | None) -> None:
        """Count a write that the lane has no room for. `start` is the START of an END, if known."""
        ...

    def stopping(self) -> None:
        """No END will follow the open writes that are sent from now on."""
        ...


class QueueFull(Exception):
    """No lane has room for the request right now."""


class RequestTooLarge(Exception):
    """The request would not fit into an empty lane."""


class Admission:
    """Passes events to `lanes`. A single timer releases held STARTs."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        budget: MemoryBudget,
        accounting: IntakeAccounting,
        spool: Spool,
        decisions: Decisions,
        *,
        hold_s: float,
        ttl_s: float,
    ) -> None:
        self._note = decisions.note
        self._accepted, self._joined = decisions.code("", "accepted"), decisions.code("", "joined")
        self._written = decisions.code("", "written")
        self._supplement = decisions.code("", "written", "supplement")
        self._lanes = lanes
        self._budget = budget
        self._spool = spool
        self._loop = asyncio.get_running_loop()
        self._hold_s = hold_s
        self._alarm = Alarm(self._tick)
        rooms = [lane.room for lane in lanes]
        self._bits = sum(lane.bit for lane in lanes)
        self.open_spans = OpenSpans(
            self._write,
            budget,
            accounting,
            spool,
            hold_s=hold_s,
            ttl_s=ttl_s,
            data_follows=sum(lane.bit for lane in lanes if lane.data_follows),
        )
        for room in rooms:
            room.promises = self.open_spans.promises
        self.rooms = Rooms(rooms, budget, spool, self.open_spans.known)
        self.limit = self.rooms.limit  # bytes of a request
        # Bytes in memory up to which every lane has room; with a spool, room is on disk.
        self._any_lane = 0 if spool.is_configured else self.rooms.limit
        if spool.is_configured:
            budget.reserve(lambda: spool.adding)
            self.limit = min(budget.available, spool.room_limit)
        self.last_taken_at = self._loop.time()
        self._released = False
        # STARTs that are due by this loop time are written earlier by so much.
        self._flushed_due, self._early_s = float("-inf"), max(0.0, hold_s - MIN_HOLD_S)

    def take(self, spans: Sequence[Span]) -> int:
        """Take all events of a request, or none: raises `QueueFull` or `RequestTooLarge`.

        Returns the bits of the lanes that take them; -1 for all that they are for.
        """
        lanes = self._require_room(spans, 0)
        if lanes != -1:
            for span in spans:
                span.lanes &= lanes
        now = self.last_taken_at = self._loop.time()
        self._note(spans, self._accepted, now)
        for span in spans:
            self.open_spans.take(span)
        # A held START is due long before a kept one, for which the alarm may be set.
        if self._alarm.due > now + self._hold_s:
            self._arm()
        return lanes

    def _require_room(self, spans: Sequence[Span], needed: int) -> int:
        """Make room for `spans` and `needed` bytes more, or raise; returns the lanes' bits."""
        size = total_size(spans)
        spool, idle = self._spool, self.open_spans.idle
        row = spool.max_row_bytes
        if size + needed > self.limit or (size > row and any(span.size > row for span in spans)):
            raise RequestTooLarge
        lanes = -1
        # What the open spans keep for a lane may come on top of what the lane has.
        if 2 * (self._budget.used + size) > self._any_lane and not spool.is_roomy(size):
            if spool.is_tight:
                idle.make_room_on_disk()
            lanes = self.rooms.taking(spans)
            if not lanes & spans[0].addressed_to & self._bits:  # all have the same address
                raise RequestTooLarge if self.rooms.is_too_large(spans) else QueueFull
            if not spool.fits(spans, size):
                raise QueueFull
        # Almost always there is room; this saves a call.
        if size + needed > self._budget.available and not idle.make_room(size + needed, spans):
            raise QueueFull
        return lanes

    def must_wait(self) -> bool:
        """Whether a response has to wait for the disk, or for drains that can't keep up."""
        if self._spool.is_configured:
            return True
        for lane in self._lanes:  # noqa: SIM110 (runs for every request; a generator is slower)
            if len(lane.ready) >= BACKLOG and lane.backlog >= BACKLOG:
                return True
        return False

    async def take_durably(self, spans: Sequence[Span]) -> int:
        """Like `take`, but return only when the events are on disk, if there is a spool."""
        if needed := self.open_spans.idle.needed(spans):
            lanes = await self._take_with_payloads(spans, needed)
        else:
            lanes = self.take(spans)
        await self._spool.commit()
        return lanes

    async def _take_with_payloads(
        self, spans: Sequence[Span], needed: Sequence[tuple[Span, Stored]]
    ) -> int:
        """Take `spans` once the payloads that they need from their STARTs are in memory.

        Raises `QueueFull` if that does not succeed at once: a START that was accepted is worth more
        than an END that can be sent again.
        """
        self._require_room(spans, sum(stored.dropped_bytes for _, stored in needed))
        starts = [start for span in spans if (start := self.open_spans.started(span.join_key))]
        idle = self.open_spans.idle
        for start in starts:  # so that no other request makes room of them
            self._budget.hold(start)
            idle.discard(start.join_key)
        waiting = total_size(spans)
        self._budget.reading += waiting
        try:
            async with asyncio.timeout(LOAD_S):
                for start, stored in needed:
                    (loaded,) = await self._spool.load([stored.row], 1)
                    if isinstance(loaded, Span):
                        idle.restore(start, loaded)
                    else:
                        stored.unreadable = True
            # A START may have been repeated meanwhile, and the new one have left memory.
            if idle.needed(spans):
                raise QueueFull
            self._budget.reading -= waiting
            waiting = 0
            return self.take(spans)
        except TimeoutError:
            raise QueueFull from None
        finally:
            self._budget.reading -= waiting
            for start in starts:
                self._budget.release(start)

    def recover(self, start: Span) -> None:
        """Take a START that an earlier process left in the spool."""
        self.open_spans.recover(start)
        self._arm()

    async def yield_to_drain(self) -> None:
        """Yield the event loop to the drains while they can't keep up with the intake.

        Both share one core. Without this, agents that post as fast as they get responses would grow
        the queue even though the upstreams could accept more.
        """
        backlog = max((lane.backlog for lane in self._lanes), default=0)
        for _ in range(min(backlog // BACKLOG, MAX_ROUNDS)):
            await asyncio.sleep(0)

    def release_held(self) -> None:
        """Write every held START as open, once: the process is stopping."""
        if self._released:
            return
        self._released = True
        for lane in self._lanes:
            lane.stopping()
        self.open_spans.tick(self._loop.time())
        self.open_spans.release_all()
        self._alarm.cancel()

    def flush(self) -> None:
        """Have the STARTs that are held now written, each as soon as it is `MIN_HOLD_S` old."""
        self._flushed_due = self._loop.time() + self._hold_s
        self._tick()

    async def flushed(self) -> None:
        """Wait until the STARTs that are held now are written, after `flush`."""
        last, holds = self._flushed_due, self.open_spans.holds
        while (due := holds.next_due()) is not None and due <= last:
            await asyncio.sleep(due - self._early_s - self._loop.time())
            self._tick()

    def _write(self, span: Span, start: Span | None, missed_by: int) -> None:
        """Pass a write to the lanes that take it. `start` is the START of an END, if known.

        Of the others, those with a bit in `missed_by` would need it; they count it.
        """
        if start is not None:
            self._note((span,), self._joined, self.last_taken_at)
        elif span.end_time is None:
            code = self._supplement if span.is_supplement else self._written
            self._note((span,), code, self._loop.time())
        stored, lanes = span.stored, span.lanes
        pending, missing = lanes if stored is None else lanes & stored.pending, 0
        if lanes != -1:
            missing = span.addressed_to & ~lanes & missed_by
        for lane in self._lanes:
            if pending & lane.bit:
                lane.accounting.offered += 1
                lane.put(span)
            elif missing & lane.bit:
                lane.accounting.offered += 1
                lane.not_taken(span, start)

    def _arm(self) -> None:
        due, held = self.open_spans.next_due(), self.open_spans.holds.next_due()
        if due is not None:
            if held is not None and held <= self._flushed_due:
                due = min(due, held - self._early_s)
            self._alarm.set(due)

    def _tick(self) -> None:
        now = self._loop.time()
        self.open_spans.release(min(now + self._early_s, self._flushed_due))
        self.open_spans.tick(now)
        self._arm()
