"""Has what was accepted so far delivered without delay, and waits for it: `POST /v1/flush`.

Each request ends holds and linger at once; back-off and pace go on. Then it waits for a round,
which marks what is unsettled. Requests that come while one is under way share the next one, so
there are at most two, whatever the crowd.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from sidecar.drain.lane import Lane
from sidecar.queue.admission import Admission
from sidecar.spool.spool import Spool

if TYPE_CHECKING:
    from sidecar.queue.mark import Mark

# Waiters that get their responses in one iteration of the event loop: a thousand at once would
# hold up the agents' requests.
RELEASED_AT_ONCE = 16
# One connection in so many is left to those that post events.
RESERVED = 64
# Marking takes at most one part in so many of the time, however many flush.
MARK_SHARE = 20


class Recovery(Protocol):
    """What takes up what an earlier process left on disk (recovery.py)."""

    async def recovered(self) -> None:
        """Return once all that was found is with the lanes or the open spans."""

    def unread_for(self, lane: int) -> int:
        """How many writes the lane with this bit will get once they are recovered."""


class _Round:
    """One look at what is unsettled. `marks` are those of each lane, None before they are made."""

    def __init__(self) -> None:
        self.began_at: float | None = None  # loop time
        self.waiters: set[asyncio.Future[bool]] = set()
        self.marks: dict[str, list[Mark]] | None = None
        self._settled = asyncio.Event()

    def mark(self, lanes: Sequence[Lane]) -> None:
        """Mark what is unsettled now."""
        marks = self.marks = {
            lane.name: [branch.queue.marked for branch in lane.branches.values()] for lane in lanes
        }
        for mark in chain.from_iterable(marks.values()):
            mark.set(self._check)
        self._check()

    def _check(self) -> None:
        if self.marks is not None and not any(map(any, self.marks.values())):
            self._settled.set()

    async def settled(self) -> None:
        """Return once nothing that is marked is left."""
        await self._settled.wait()


class Flush:
    """Carries out flushes. Create it inside a running loop.

    `max_connections`: of the port, nearly all of which may wait for a flush. `failed` is called
    with an exception that is a bug.
    """

    def __init__(
        self,
        admission: Admission,
        lanes: Sequence[Lane],
        spool: Spool,
        recovery: Recovery,
        max_connections: int,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._admission = admission
        self._lanes = lanes
        self._spool = spool
        self._recovery = recovery
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self.max_waiters = max(1, max_connections - max(1, max_connections // RESERVED))
        self.waiting = 0
        self._current: _Round | None = None
        self._following: _Round | None = None
        self._task: asyncio.Task[None] | None = None
        self._mark_after = self._settled_at = float("-inf")  # loop times
        self._ended = False

    async def wait(
        self, wait_s: float, *, until_disk: bool, waiter: "asyncio.Future[bool]"
    ) -> dict[str, int]:
        """Wait until all that was accepted before this call is settled, or for `wait_s`.

        Returns how many writes are left, by the name of the lane. With `until_disk`, those that
        are on disk are not. A result of `waiter` ends the wait: whether nothing is left.
        """
        self.waiting += 1
        joined: _Round | None = None
        try:
            self._expedite()
            # What has its 202 is on disk, except for what was accepted while that failed.
            if until_disk and self._spool.trusted_since <= self._settled_at:
                return {}
            if not wait_s or self._ended:
                return self._left(None)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    joined = self._joined()
                    if await self._end_of(joined, waiter):
                        return {}
        finally:
            self.waiting -= 1
        return self._left(joined)

    def _expedite(self) -> None:
        """Nothing that was accepted so far is held or lingers any more."""
        self._admission.flush()
        for lane in self._lanes:
            for branch in lane.branches.values():
                branch.drain.flush()

    def _joined(self) -> _Round:
        """The first round that begins from now on."""
        current = self._current
        if current is None or (current.began_at is not None and not current.waiters):
            current = _Round()
            self._begin(current)
        if current.began_at is None:
            return current
        self._following = self._following or _Round()
        return self._following

    async def _end_of(self, joined: _Round, waiter: "asyncio.Future[bool]") -> bool:
        """Wait for a round; returns whether it has ended, and the waiting is not just over."""
        joined.waiters.add(waiter)
        try:
            return await waiter
        finally:
            joined.waiters.discard(waiter)
            # What nobody waits for any more must not keep others waiting.
            if joined is self._current and not joined.waiters:
                self._begin_following()

    def _begin_following(self) -> None:
        if self._following is not None and self._following.waiters:
            self._begin(self._following)
        self._following = None

    def _begin(self, new: _Round) -> None:
        if self._task is not None:
            self._task.cancel()
        self._current = new
        self._task = self._loop.create_task(self._run(new))
        self._task.add_done_callback(self._report)

    def _report(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._failed(bug)

    async def _run(self, current: _Round) -> None:
        await asyncio.sleep(self._mark_after - self._loop.time())
        current.began_at = self._loop.time()
        await self._recovery.recovered()
        await self._admission.flushed()
        begun = perf_counter()
        current.mark(self._lanes)
        self._mark_after = self._loop.time() + MARK_SHARE * (perf_counter() - begun)
        for lane in self._lanes:
            lane.wake()
        await current.settled()
        self._settled_at = current.began_at
        self._current = self._task = None
        self._begin_following()
        waiters = list(current.waiters)
        for start in range(0, len(waiters), RELEASED_AT_ONCE):
            for waiter in waiters[start : start + RELEASED_AT_ONCE]:
                if not waiter.done():
                    waiter.set_result(True)
            await asyncio.sleep(0)

    def end(self) -> None:
        """The process ends: tell those who still wait what is left."""
        self._ended = True
        if self._task is not None:
            self._task.cancel()
        for each in (self._current, self._following):
            for waiter in () if each is None else each.waiters:
                if not waiter.done():
                    waiter.set_result(False)

    def _left(self, joined: _Round | None) -> dict[str, int]:
        """How many writes are left, by lane: without a mark, of all that was accepted so far."""
        if joined is not None and joined.marks is not None:
            left = {name: sum(map(len, marks)) for name, marks in joined.marks.items()}
        else:
            left = {lane.name: self._unsettled(lane) for lane in self._lanes}
        return {name: count for name, count in left.items() if count}

    def _unsettled(self, lane: Lane) -> int:
        held = self._admission.open_spans.held
        waiting = sum(count for lanes, count in held.items() if lanes & lane.bit)
        return lane.depth + waiting + self._recovery.unread_for(lane.bit)
