"""The deadline of one client request, across every future that the request waits for."""

import asyncio
from typing import Any, TypeVar

T = TypeVar("T")


class RequestDeadline:
    """Fails whatever the request is waiting for with `TimeoutError` once `expire` is called.

    `due` is loop time in seconds. There is no timer here: the pool calls `expire` at that time
    (http/timeouts.py).
    """

    __slots__ = ("_expired", "_waiting_for", "due")

    def __init__(self, due: float) -> None:
        self.due = due
        self._expired = False
        self._waiting_for: asyncio.Future[Any] | None = None

    def apply(self, future: asyncio.Future[T]) -> asyncio.Future[T]:
        """Apply the deadline to `future`, which the request waits for next, and return it."""
        self._waiting_for = future
        if self._expired:
            self.expire()
        return future

    def expire(self) -> None:
        """Fail the current future, and every later one, with `TimeoutError`."""
        self._expired = True
        if self._waiting_for is not None and not self._waiting_for.done():
            self._waiting_for.set_exception(TimeoutError())
