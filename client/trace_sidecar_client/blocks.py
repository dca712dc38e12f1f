"""The block of a span: `with` and `async with`, which end the span however they are left."""

from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, overload

from .span import Span

_Result = TypeVar("_Result")
_Leave = Callable[
    [Span, type[BaseException] | None, BaseException | None, TracebackType | None], _Result
]


class _Exit(Generic[_Result]):
    """`__exit__` or `__aexit__`, as an object that only the `with` statement holds.

    Ctrl-C may strike as the first thing in a method, before it can catch anything, and then its
    frame lives on in the traceback, with `self`. But the statement drops this object at once, which
    ends the span (`Recording.guard`).
    """

    def __init__(self, leave: _Leave[_Result]) -> None:
        self._leave = leave

    @overload
    def __get__(self, manager: None, owner: object) -> Callable[..., _Result]: ...

    @overload
    def __get__(self, manager: "SpanContextManager", owner: object) -> "partial[_Result]": ...

    def __get__(
        self, manager: "SpanContextManager | None", owner: object
    ) -> "Callable[..., _Result]":
        if manager is None:  # `ExitStack` calls it with the manager
            return lambda manager, *error: self._leave(manager.span, *error)
        leave = partial(self._leave, manager.span)
        recording = manager.span.recording
        if recording is not None and not recording.entered:
            recording.guard(manager.span, leave)
        return leave


def _leave(
    span: Span,
    kind: type[BaseException] | None,  # noqa: ARG001 - as `with` calls it
    error: BaseException | None,
    traceback: TracebackType | None,  # noqa: ARG001 - as above
) -> None:
    # A generator that is left early has not failed.
    span.end(None if isinstance(error, GeneratorExit) else error)


class _Done:
    """What an `async with` awaits when there is nothing to wait for."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


def _leave_async(
    span: Span,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
) -> _Done:
    _leave(span, kind, error, traceback)
    return _Done()


class SpanContextManager(
    AbstractContextManager[Span, None], AbstractAsyncContextManager[Span, None]
):
    """Sends the START on entry and the END on exit; not reusable."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._hidden = False

    def hidden(self) -> Self:
        """Do not make the span current: for a block that runs other code in between."""
        self._hidden = True
        return self

    def __enter__(self) -> Span:
        span = self.span
        recording = span.recording
        if recording is not None and not recording.entered:
            try:
                recording.enter(span, hidden=self._hidden)
            except BaseException as interrupt:
                span.end(interrupt)
                raise
        return span

    async def __aenter__(self) -> Span:
        return self.__enter__()

    __exit__ = _Exit(_leave)
    __aexit__ = _Exit(_leave_async)  # type: ignore[assignment] # no coroutine, but awaitable
