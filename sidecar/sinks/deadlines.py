"""Deadlines of requests that all have the same time: one timer for the oldest, none a request."""

import asyncio
from typing import Any, TypeVar

T = TypeVar("T")


class Deadline:
    """When one request must be done. `end` it, whatever came of the request."""

    __slots__ = ("_pending", "_waits_for", "due")

    def __init__(self, pending: dict["Deadline", None], due: float) -> None:
        self._pending = pending
        self._waits_for: asyncio.Future[Any] | None = None
        self.due = due  # loop time, seconds

    def bound(self, future: asyncio.Future[T]) -> asyncio.Future[T]:
        """`future`, which the request waits for next: a `TimeoutError` when the time is over."""
        self._waits_for = future
        if self not in self._pending:
            self.expire()
        return future

    def expire(self) -> None:
        """The time is over."""
        if self._waits_for is not None and not self._waits_for.done():
            self._waits_for.set_exception(TimeoutError())

    def end(self) -> None:
        """The request is done."""
        self._waits_for = None
        self._pending.pop(self, None)


class Deadlines:
    """Deadlines `timeout_s` from when they are begun. Make it inside a running loop."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._pending: dict[Deadline, None] = {}  # the oldest first
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, now: float) -> Deadline:
        """The deadline of a request that begins at `now`, loop time."""
        deadline = Deadline(self._pending, now + self._timeout_s)
        self._pending[deadline] = None
        if self._timer is None:
            self._arm(deadline.due)
        return deadline

    def close(self) -> None:
        """No request is left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        self._timer = self._loop.call_at(due, self._tick, due)

    def _tick(self, due: float) -> None:
        # As a rule the request that it was set for is long done. `due`, not the clock: a loop calls
        # a bit early, by what its clock can tell apart.
        self._timer = None
        while self._pending:
            oldest = next(iter(self._pending))
            if oldest.due > due:
                self._arm(oldest.due)
                return
            del self._pending[oldest]
            oldest.expire()
