"""Takes signals on a thread of its own, and ends a process that does not end by itself (D28).

Nothing here needs the event loop, a new thread, or a file: any of them may be what hangs.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf
from time import monotonic

import structlog

from sidecar.process.signals import STOPS, block, taken

# How long the start may take to notice that it is to stop.
START_S = 5.0

log = structlog.get_logger()


def _leave() -> None:
    """End a start that hangs: nothing has been accepted."""
    os._exit(0)


class Watchdog:
    """Calls `stop` at each signal to stop, and `overdue` if that has no effect in time.

    Until `attach`, signals to stop are remembered. Both are called on threads that are not the
    loop's. A SIGQUIT writes the stacks of all threads to the log; other signals are ignored.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stops: list[float] = []  # when they came, on the monotonic clock
        self._stop: Callable[[float], object] | None = None
        self._overdue: Callable[[], None] = _leave
        self._limits_s = START_S, 0.0
        self._noted: set[int] = set()

    def start(self) -> None:
        """Take signals from now on. Call it on the main thread, before there are others."""
        block()
        for run in (self._take_signals, self._watch):
            threading.Thread(target=run, name=run.__name__.strip("_"), daemon=True).start()

    def attach(
        self,
        stop: Callable[[float], object],
        overdue: Callable[[], None],
        limits_s: tuple[float, float],
    ) -> None:
        """Pass signals on, with their age in seconds.

        `limits_s`: the time to stop after the first signal, and after the second one.
        """
        with self._changed:
            self._stop, self._overdue, self._limits_s = stop, overdue, limits_s
            for at in self._stops:
                stop(monotonic() - at)
            self._changed.notify()

    def _take_signals(self) -> None:
        numbers = taken()
        while True:
            number = signal.sigwait(numbers)
            with suppress(Exception):  # the next signal must find this thread alive
                self._take(number)

    def _take(self, number: int) -> None:
        if number in STOPS:
            with self._changed:
                self._stops.append(monotonic())
                self._changed.notify()
                if self._stop is not None:
                    self._stop(0.0)
        elif self._stop is None:
            pass  # the log is not set up yet
        elif number == signal.SIGQUIT:
            log.error("stacks", threads=stacks())
        elif number not in self._noted:
            self._noted.add(number)
            log.warning("signal_ignored", signal=_name(number))

    def _watch(self) -> None:
        with self._changed:
            while (left_s := self._due() - monotonic()) > 0:
                self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
            overdue = self._overdue
        overdue()

    def _due(self) -> float:
        """When the process must have ended: whichever limit is over first."""
        limits = zip(self._stops, self._limits_s, strict=False)
        return min((at + limit_s for at, limit_s in limits), default=inf)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"  # a real-time signal


def stacks() -> dict[str, list[str]]:
    """Where each thread is: its calls, innermost first, without any values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {names.get(ident, str(ident)): calls(ident) for ident in sys._current_frames()}  # noqa: SLF001 (its documented use)


def calls(thread: int) -> list[str]:
    """Where the thread with this number is: its calls, innermost first.

    The frames say where; the source files may be on the disk that hangs.
    """
    found = []
    frame = sys._current_frames().get(thread)  # noqa: SLF001 (its documented use)
    while frame is not None:
        code = frame.f_code
        found.append(f"{code.co_filename}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return found
