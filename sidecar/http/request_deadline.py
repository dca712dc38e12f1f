"""The time that one request to an upstream has, whatever it waits for."""

import asyncio
from typing import Any, TypeVar

T = TypeVar("T")


class Deadline:
    """Ends what the request waits for at `due`, loop time in seconds, when `expire` is called."""

    __slots__ = ("_over", "_waits_for", "due")

    def __init__(self, due: float) -> None:
        self.due = due
        self._over = False
        self._waits_for: asyncio.Future[Any] | None = None

    def bound(self, future: asyncio.Future[T]) -> asyncio.Future[T]:
        """`future`, which the request waits for next: a `TimeoutError` when the time is over."""
        self._waits_for = future
        if self._over:
            self.expire()
        return future

    def expire(self) -> None:
        """The time is over."""
        self._over = True
        if self._waits_for is not None and not self._waits_for.done():
            self._waits_for.set_exception(TimeoutError())
