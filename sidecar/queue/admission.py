"""Admission: accepts all valid events of a request or none, and passes them to the open spans.

In: the spans of one request. Out: writes in the lanes. Memory stays within the budget: a request
that does not fit is refused, and nothing accepted earlier is dropped to make room (D3, D4).
"""

import asyncio
from collections.abc import Sequence, Sized
from typing import Protocol

from sidecar.process.alarm import Alarm
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_spans import OpenSpans
from sidecar.spans.span import Span, Stored, total_size
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting

# A request waits one iteration of the event loop for every `BACKLOG` writes that are waiting for a
# healthy upstream, at most `MAX_ROUNDS`: agents are slowed down by milliseconds, never blocked.
BACKLOG = 100
MAX_ROUNDS = 8
# How long an END waits for its START's payloads from the disk.
LOAD_S = 2.0


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
    def data_follows(self) -> bool:
        """Whether its open writes are sent without `data`, which has to follow."""
        ...

    def put(self, span: Span) -> None:
        """Add a write to the lane's queue."""
        ...

    def stopping(self) -> None:
        """No END will follow the open writes that are sent from now on."""
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
        spool: Spool,
        *,
        hold_s: float,
        ttl_s: float,
    ) -> None:
        self._lanes = lanes
        self._budget = budget
        self._spool = spool
        self._loop = asyncio.get_running_loop()
        self._hold_s = hold_s
        self._alarm = Alarm(self._tick)
        self.open_spans = OpenSpans(
            self._write,
            budget,
            accounting,
            spool,
            hold_s=hold_s,
            ttl_s=ttl_s,
            data_follows=sum(lane.bit for lane in lanes if lane.data_follows),
        )
        self.limit = budget.limit  # `queue.max_bytes`
        self._max = budget.available
        if spool.is_configured:
            budget.reserve(lambda: spool.adding)
        self.last_taken_at = self._loop.time()

    def take(self, spans: Sequence[Span]) -> None:
        """Take all events of a request, or none: raises `QueueFull` or `RequestTooLarge`."""
        self._require_room(spans, 0)
        for span in spans:
            self.open_spans.take(span)
        now = self.last_taken_at = self._loop.time()
        # A held START is due long before a kept one, for which the alarm may be set.
        if self._alarm.due > now + self._hold_s:
            self._arm()

    def _require_room(self, spans: Sequence[Span], needed: int) -> None:
        """Make room for `spans` and `needed` bytes more, or raise."""
        size = total_size(spans)
        row = self._spool.max_row_bytes
        if size + needed > self._max or (size > row and any(span.size > row for span in spans)):
            raise RequestTooLarge
        if not (self._spool.fits(size) and self.open_spans.make_room(size + needed, spans)):
            raise QueueFull

    def must_wait(self) -> bool:
        """Whether a response has to wait for the disk, or for drains that can't keep up."""
        if self._spool.is_configured:
            return True
        for lane in self._lanes:  # noqa: SIM110 (runs for every request; a generator is slower)
            if len(lane.ready) >= BACKLOG and lane.backlog >= BACKLOG:
                return True
        return False

    async def take_durably(self, spans: Sequence[Span]) -> None:
        """Like `take`, but return only when the events are on disk, if there is a spool."""
        if needed := self.open_spans.needed(spans):
            await self._take_with_payloads(spans, needed)
        else:
            self.take(spans)
        await self._spool.commit()

    async def _take_with_payloads(
        self, spans: Sequence[Span], needed: Sequence[tuple[Span, Stored]]
    ) -> None:
        """Take `spans` once the payloads that they need from their STARTs are in memory.

        Raises `QueueFull` if the disk does not return them in time: a START that was accepted is
        worth more than an END that can be sent again.
        """
        self._require_room(spans, sum(stored.dropped_bytes for _, stored in needed))
        starts = [start for span in spans if (start := self.open_spans.started(span.join_key))]
        for start in starts:  # so that no other request makes room of them
            self._budget.hold(start)
        waiting = total_size(spans)
        self._budget.reading += waiting
        try:
            async with asyncio.timeout(LOAD_S):
                for start, stored in needed:
                    (loaded,) = await self._spool.load([stored.row], 1)
                    if isinstance(loaded, Span):
                        self.open_spans.restore(start, loaded)
                    else:
                        stored.unreadable = True
            self._budget.reading -= waiting
            waiting = 0
            self.take(spans)
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
        """Write every held START as open: the process is stopping."""
        for lane in self._lanes:
            lane.stopping()
        self.open_spans.tick(self._loop.time())
        self.open_spans.release_all()
        self._alarm.cancel()

    def _write(self, span: Span) -> None:
        to_all = span.sdk is None and span.stored is None
        for lane in self._lanes:
            if to_all or span.lanes & lane.bit:
                lane.put(span)

    def _arm(self) -> None:
        due = self.open_spans.next_due()
        if due is not None:
            self._alarm.set(due)

    def _tick(self) -> None:
        self.open_spans.tick(self._loop.time())
        self._arm()
