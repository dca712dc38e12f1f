"""A timer that can be set to several times and rings at the earliest of them."""

import asyncio
from collections.abc import Callable
from math import inf


class Alarm:
    """Calls `ring` once at `due`, the earliest loop time that was `set` since it last rang."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        # Stored here, because the handle of a uvloop timer that has fired has no `when`.
        self.due = inf

    def set(self, when: float) -> None:
        """Ring at `when` (loop time in seconds), unless it rings before that."""
        if when < self.due:
            self.cancel()
            self.due = when
            self._timer = self._loop.call_at(when, self._on_timer)

    def cancel(self) -> None:
        """Do not ring until it is set again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.due = inf

    def _on_timer(self) -> None:
        self._timer = None
        self.due = inf
        self._ring()
