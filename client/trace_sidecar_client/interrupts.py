"""Tells an interrupt, which the agent must see, from an error in a value that is being encoded.

Python raises an interrupt between any two instructions of the client: Ctrl-C, an interrupted
notebook cell, a time limit whose signal handler raises, `PyThreadState_SetAsyncExc`. Tracing hides
errors from the agent, but it must not hide these.
"""

import signal
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType

_PACKAGE = __name__.rpartition(".")[0]


class Interrupted(BaseException):
    """The error of a span whose block was cut off before it could look at what ended it."""


def is_interrupt(error: BaseException) -> bool:
    """Whether `error` comes from outside, not from the values in a span or from the client.

    `SystemExit` may be either: from a signal handler, or from the `__repr__` of a value.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    frames = list(_frames(error.__traceback__))
    # Looking up the handlers takes 0.1 ms, and most errors are an encoder's own.
    others = [frame.f_code for frame in frames if not _is_ours(frame)]
    if others and not _handlers().isdisjoint(others):
        return True
    # Set from another thread, it has no frame of its own: it is raised wherever the client was.
    return not isinstance(error, Exception) and _raised_by_client(frames)


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _raised_by_client(frames: list[FrameType]) -> bool:
    """Whether the innermost code, apart from the standard library's, is the client's."""
    modules = (frame.f_globals.get("__name__", "") for frame in reversed(frames))
    own = (name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names)
    return next(own, "").startswith(_PACKAGE)


def _is_ours(frame: FrameType) -> bool:
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith(_PACKAGE)


def _handlers() -> set[CodeType]:
    """The code of every signal handler that is written in Python."""
    try:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    except Exception:  # noqa: BLE001 - Temporal's sandbox forbids it
        return set()
    codes = (getattr(handler, "__code__", None) for handler in handlers)
    return {code for code in codes if code is not None}
