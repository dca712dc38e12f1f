"""Tells an interrupt, which the agent must see, from an error in a value that is being encoded.

Python raises an interrupt between any two instructions of the client: Ctrl-C, an interrupted
notebook cell, a time limit whose signal handler raises, `PyThreadState_SetAsyncExc`. Tracing hides
errors from the agent, but it must not hide these.
"""

import signal
import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType, FrameType, TracebackType

_PACKAGE = __name__.rpartition(".")[0]
_NOT_ENCODING = {
    f"{_PACKAGE}.{name}"
    for name in (
        *("blocks", "buffer", "delivery", "notices", "processors", "remote_flush", "sender"),
        *("span", "spans", "stack", "traced", "transport"),
    )
}


class ErrorsHidden:
    """A block whose errors the agent does not see, unless they are interrupts."""

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return isinstance(error, Exception) and not is_interrupt(error)


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
    # Set from another thread, it has no frame of its own: it is raised wherever the client was. But
    # so is what C code raises that encodes a value.
    place = _innermost(frames)
    if isinstance(error, Exception):
        return place in _NOT_ENCODING and not _is_common(type(error))
    return _is_in_package(place)


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _innermost(frames: list[FrameType]) -> str:
    """The module of the innermost code, apart from the standard library's."""
    modules = (frame.f_globals.get("__name__", "") for frame in reversed(frames))
    own = (name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names)
    return next(own, "")


def _is_common(kind: type) -> bool:
    """Whether Python, its library or the client may raise such an error by itself."""
    name = kind.__module__
    return name.partition(".")[0] in sys.stdlib_module_names or _is_in_package(name)


def _is_in_package(module: str) -> bool:
    return module == _PACKAGE or module.startswith(_PACKAGE + ".")


def _is_ours(frame: FrameType) -> bool:
    return _is_in_package(frame.f_globals.get("__name__", ""))


def _handlers() -> set[CodeType]:
    """The code of every signal handler that is written in Python."""
    try:
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    except Exception:  # noqa: BLE001 - Temporal's sandbox forbids it
        return set()
    return {code for handler in handlers for code in _codes(handler)}


def _codes(handler: object) -> list[CodeType]:
    while isinstance(handler, partial):
        handler = handler.func
    functions = (handler, getattr(type(handler), "__call__", None))  # noqa: B004 - its code
    codes = (getattr(function, "__code__", None) for function in functions)
    return [code for code in codes if isinstance(code, CodeType)]
