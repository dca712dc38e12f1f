"""Deadlines that are all equally long, with one timer for all of them."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)


class Deadlines(Generic[_T]):
    """Calls `expired` with each item that is still here `seconds` after it was added."""

    def __init__(self, seconds: float, expired: Callable[[_T], None]) -> None:
        self._seconds = seconds
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        # In the order in which they end.
        self._due: dict[_T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: _T) -> None:
        """Begin the time of `item`."""
        due = self._due[item] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._look)

    def discard(self, item: _T) -> None:
        """`item` is done; the timer stays and finds others, or nothing."""
        self._due.pop(item, None)

    def close(self) -> None:
        """Nothing expires any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due:
            item, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._look)
                return
            del self._due[item]
            self._expired(item)
