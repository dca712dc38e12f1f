"""Flushes when the process ends, and starts afresh in a forked child.

Nothing is registered before the first span: a mere import has no side effects.

`atexit` is not enough. A child of `multiprocessing` ends without it on most Pythons, but runs
`multiprocessing.util.Finalize`. A server such as uvicorn ends by SIGTERM's default action, which
runs nothing; `flush_on_sigterm` is for those, and has to be asked for.
"""

import atexit
import os
import signal
import sys
import threading
import time
from _thread import RLock
from collections.abc import Callable
from types import FrameType
from typing import Any, Protocol

from .interrupts import ErrorsHidden
from .settings import SIGTERM_VARIABLE, is_on

EXIT_TIMEOUT_S = 5.0


class Sending(Protocol):
    """What takes part in exits and forks: a `Sender`."""

    def after_fork(self) -> None:
        """Start afresh in a forked child."""

    def finish(self, deadline: float) -> None:
        """Deliver what is held until `deadline`, and say what is not."""

    def give_up(self) -> None:
        """Say what is held and will not be delivered."""

    def go_on(self) -> None:
        """The process did not end after all."""


# Those that this process, or one that it was forked from, has sent with.
_SENDERS: set[Sending] = set()
_LOCK = RLock()
_hooked_pid = 0
_hooks_forks = False
_spent_s = 0.0


def watch(sender: Sending) -> None:
    """Have `sender` finish before this process ends, and start afresh in forked children."""
    global _hooked_pid, _hooks_forks  # noqa: PLW0603 - hooks belong to the process
    if sender in _SENDERS and _hooked_pid == os.getpid():
        return
    with _LOCK:
        if not _hooks_forks:
            os.register_at_fork(after_in_child=_after_fork)
            _hooks_forks = True
        _SENDERS.add(sender)
        if _hooked_pid != os.getpid():
            _hooked_pid = os.getpid()
            # `multiprocessing` may have cleared both registries in this child.
            atexit.unregister(finish_all)
            atexit.register(finish_all)
            util: Any = sys.modules.get("multiprocessing.util")
            if util is not None:
                util.Finalize(None, finish_all, exitpriority=0)


def finish_all() -> None:
    """Deliver what this process holds, for up to 5 s, even if several hooks call this."""
    global _spent_s  # noqa: PLW0603 - there is one end of a process
    begin = time.monotonic()
    deadline = begin + max(EXIT_TIMEOUT_S - _spent_s, EXIT_TIMEOUT_S / 10)
    senders = list(_SENDERS)
    try:
        while senders:
            now = time.monotonic()
            # Each gets its share of the time, and what others have left.
            senders.pop().finish(now + max(deadline - now, 0.0) / (len(senders) + 1))
    finally:
        _spent_s += time.monotonic() - begin
        for sender in senders:  # interrupted: have them say what they hold
            sender.give_up()


def _after_fork() -> None:
    global _LOCK, _hooked_pid, _spent_s  # noqa: PLW0603 - hooks belong to the process
    _LOCK = RLock()  # another thread of the parent may hold the old one
    _hooked_pid = 0
    _spent_s = 0.0
    for sender in list(_SENDERS):
        sender.after_fork()


_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
_signal: Callable[[int, _Handler], _Handler] = signal.signal
_wraps_signal = False
_DEFAULT_MARK = "trace_sidecar_client_default"


def flush_on_sigterm() -> None:
    """With `TRACE_SIDECAR_FLUSH_ON_SIGTERM=1`, flush before SIGTERM's default action.

    A handler of the agent's own stays as it is. uvicorn has one while it serves, restores what was
    there before, and raises the signal again. It has seen the default action long before the agent
    was imported, and so it is the restoring that has to be caught.
    """
    if is_on(SIGTERM_VARIABLE):
        with ErrorsHidden():  # a subinterpreter has no signals
            _watch_sigterm()


def _watch_sigterm() -> None:
    global _signal, _wraps_signal
    handler = signal.getsignal(signal.SIGTERM)
    is_default = handler is signal.SIG_DFL
    if not _wraps_signal:
        # Perhaps it is the wrapper of another copy of this package: then each flushes its own.
        _wraps_signal, _signal = True, signal.signal
        vars(signal)["signal"] = _set_handler
        is_default = is_default or hasattr(handler, _DEFAULT_MARK)
    if is_default and threading.current_thread() is threading.main_thread():
        _set_handler(signal.SIGTERM, signal.SIG_DFL)


def _set_handler(signalnum: int, handler: _Handler) -> _Handler:
    """`signal.signal`, with our handler as the default one for SIGTERM."""
    if signalnum == signal.SIGTERM and isinstance(handler, int) and handler == signal.SIG_DFL:
        handler = _on_sigterm
    before = _signal(signalnum, handler)
    return signal.SIG_DFL if before is _on_sigterm else before


def _on_sigterm(signalnum: int, frame: FrameType | None) -> None:
    del frame
    try:
        finish_all()
    finally:
        _signal(signalnum, signal.SIG_DFL)
        signal.raise_signal(signalnum)
        # Still here: the kernel ignores the default action for process 1.
        _signal(signalnum, _on_sigterm)
        for sender in list(_SENDERS):
            sender.go_on()


setattr(_on_sigterm, _DEFAULT_MARK, True)
