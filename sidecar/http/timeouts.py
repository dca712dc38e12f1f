"""Timeouts of equal length for many items, on a single timer."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from sidecar.process.alarm import Alarm

_T = TypeVar("_T", bound=Hashable)


class Deadlines(Generic[_T]):
    """Calls `on_expired` with each item that is not discarded within `seconds` of being added."""

    def __init__(self, seconds: float, on_expired: Callable[[_T], None]) -> None:
        self._seconds = seconds
        self._on_expired = on_expired
        self._time = asyncio.get_running_loop().time
        # All timeouts have the same length, so insertion order is expiry order.
        self._due: dict[_T, float] = {}
        self._alarm = Alarm(self._expire_due)

    def add(self, item: _T) -> None:
        """Start the timeout of `item`, or start it again."""
        self._due.pop(item, None)
        due = self._due[item] = self._time() + self._seconds
        if due < self._alarm.due:  # rarely: this saves a call for each request
            self._alarm.set(due)

    def discard(self, item: _T) -> None:
        """Cancel the timeout of `item`, if there is one. The alarm stays set."""
        self._due.pop(item, None)

    def take_last(self) -> _T | None:
        """Remove and return the item that was added last, unless its time is over."""
        if self._due:
            item, due = self._due.popitem()
            if self._time() < due:
                return item
            self._on_expired(item)
        return None

    def first(self) -> _T | None:
        """The item whose timeout expires first."""
        return next(iter(self._due), None)

    def _expire_due(self) -> None:
        now = self._time()
        while (item := self.first()) is not None:
            if self._due[item] > now:
                self._alarm.set(self._due[item])
                return
            del self._due[item]
            self._on_expired(item)
