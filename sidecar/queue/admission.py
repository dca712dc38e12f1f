"""Admission: accepts all valid events of a request or none, and passes them to the open spans.

In: the spans of one request. Out: writes in the lanes. Memory stays within the budget: a request
that does not fit is refused, and nothing accepted earlier is dropped to make room (D3, D4).
"""

import asyncio
from collections.abc import Sequence, Sized
from typing import Protocol

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_spans import OpenSpans
from sidecar.spans.span import Span, total_size
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# A request waits one iteration of the event loop for every `BACKLOG` writes that are waiting for a
# healthy upstream, at most `MAX_ROUNDS`: agents are slowed down by milliseconds, never blocked.
BACKLOG = 100
MAX_ROUNDS = 8


class Lane(Protocol):
    """What admission needs from a lane."""

    @property
    def bit(self) -> int:
        """The lane's bit in `Span.lanes`."""
        ...

    @property
    def ready(self) -> Sized:
        """Writes that a batch could take now."""
        ...

    @property
    def backlog(self) -> int:
        """Writes that are waiting although the upstream is healthy."""
        ...

    @property
    def unused_share(self) -> int:
        """Bytes that the lane may still load from disk."""
        ...

    def put(self, span: Span) -> None:
        """Add a write to the lane's queue."""
        ...


class QueueFull(Exception):
    """There is no room for the request right now."""


class RequestTooLarge(Exception):
    """The request would not fit into an empty queue."""


class Admission:
    """Passes events to `lanes`. A single timer releases held STARTs."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        budget: MemoryBudget,
        accounting: IntakeAccounting,
        *,
        hold_s: float,
        ttl_s: float,
        spool: Spool | None = None,
    ) -> None:
        self._lanes = lanes
        self._spool = spool
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._hold_s = hold_s
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self.open_spans = OpenSpans(
            self._write, budget, accounting, hold_s=hold_s, ttl_s=ttl_s, spool=spool
        )
        # With a spool, the lanes' shares of memory are reserved for what they load from disk.
        self._max = budget.limit - sum(lane.unused_share for lane in lanes)
        self.last_taken_at = self._loop.time()

    @property
    def limit(self) -> int:
        """`queue.max_bytes`."""
        return self._budget.limit

    def take(self, spans: Sequence[Span]) -> None:
        """Take all events of a request, or none: raises `QueueFull` or `RequestTooLarge`."""
        size = total_size(spans)
        if size > self._max or (self._spool is not None and _any_too_large(spans, self._spool)):
            raise RequestTooLarge
        if not self._has_room(size):
            raise QueueFull
        for span in spans:
            self.open_spans.take(span)
        now = self.last_taken_at = self._loop.time()
        if self._timer is None or self._timer_due > now + self._hold_s:
            self._arm()

    def _has_room(self, size: int) -> bool:
        if self._spool is None:
            return self._budget.fits(size) or self.open_spans.make_room(size)
        reserved = self._spool.adding + sum(lane.unused_share for lane in self._lanes)
        return self._spool.fits(size) and self.open_spans.make_room(size + reserved)

    def must_wait(self) -> bool:
        """Whether a response has to wait for the disk, or for drains that can't keep up."""
        if self._spool is not None:
            return True
        for lane in self._lanes:  # noqa: SIM110 (runs for every request; a generator is slower)
            if len(lane.ready) >= BACKLOG and lane.backlog >= BACKLOG:
                return True
        return False

    async def take_durably(self, spans: Sequence[Span]) -> None:
        """Like `take`, but return only when the events are on disk, if there is a spool."""
        if self._spool is None:
            self.take(spans)
            return
        needed = self.open_spans.needed(spans)
        if needed:
            self._make_room_to_load(spans, needed, self._spool)
        for start in needed:
            await self._load_payloads(start, self._spool)
        self.take(spans)
        await self._spool.commit()

    def _make_room_to_load(
        self, spans: Sequence[Span], needed: Sequence[Span], spool: Spool
    ) -> None:
        """Make room for `spans` and the payloads of `needed`, before any of these are loaded."""
        size = total_size(spans) + sum(start.bytes_on_disk for start in needed)
        if size > self._max:
            raise RequestTooLarge
        if not (spool.fits(total_size(spans)) and self.open_spans.make_room(size)):
            raise QueueFull

    async def _load_payloads(self, start: Span, spool: Spool) -> None:
        _, stored = await spool.load([start.seq], 1)
        if stored:
            self.open_spans.restore(start, stored[0])

    def recover(self, spans: Sequence[Span]) -> None:
        """Take STARTs that an earlier process left in the spool."""
        for span in spans:
            self.open_spans.recover(span)
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
        """Write every held START as open: the process is stopping."""
        self.open_spans.release_all()
        if self._timer is not None:
            self._timer.cancel()

    def _write(self, span: Span) -> None:
        for lane in self._lanes:
            if span.lanes & lane.bit:
                lane.put(span)

    def _arm(self) -> None:
        due = self.open_spans.next_due()
        if due is None:
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return
            # The timer is set for the expiry of a kept START; a held one is due long before that.
            self._timer.cancel()
        # Stored here, because the handle of a uvloop timer that has fired has no `when`.
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.open_spans.tick(self._loop.time())
        self._arm()


def _any_too_large(spans: Sequence[Span], spool: Spool) -> bool:
    return any(span.size > spool.max_row_bytes for span in spans)
