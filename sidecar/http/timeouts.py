"""Timeouts of equal length for many items, on a single timer."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)


class Deadlines(Generic[_T]):
    """Calls `on_expired` with each item that is not discarded within `seconds` of being added."""

    def __init__(self, seconds: float, on_expired: Callable[[_T], None]) -> None:
        self._seconds = seconds
        self._on_expired = on_expired
        self._loop = asyncio.get_running_loop()
        # All timeouts have the same length, so insertion order is expiry order.
        self._due: dict[_T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, item: _T) -> None:
        """Start the timeout of `item`, or start it again."""
        self._due.pop(item, None)
        due = self._due[item] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._expire_due)

    def discard(self, item: _T) -> None:
        """Cancel the timeout of `item`, if there is one. The shared timer keeps running."""
        self._due.pop(item, None)

    def take_last(self) -> _T | None:
        """Remove and return the item that was added last, unless its time is over."""
        if self._due:
            item, due = self._due.popitem()
            if self._loop.time() < due:
                return item
            self._on_expired(item)
        return None

    def first(self) -> _T | None:
        """The item whose timeout expires first."""
        return next(iter(self._due), None)

    def close(self) -> None:
        """Forget all items and cancel the timer."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire_due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._due:
            item, due = next(iter(self._due.items()))
            if due > now:
                self._timer = self._loop.call_at(due, self._expire_due)
                return
            del self._due[item]
            self._on_expired(item)
