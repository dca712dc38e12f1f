"""The decorator `@spans.traced`: a span for each call of a function of any kind."""
# ruff: noqa: ANN401 - any callable, with any arguments and any result

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from .blocks import SpanContextManager
from .span import Span
from .stack import Shown

if TYPE_CHECKING:
    from .spans import Spans

_OWN = ("self", "cls")


class Options(NamedTuple):
    """What the spans of a traced function are like."""

    name: str | None
    data: object
    capture_input: bool
    capture_output: bool


def trace(spans: "Spans", function: Any, options: Options) -> Any:
    """A function with the same signature, and of the same kind, that traces its calls."""
    if isinstance(function, (classmethod, staticmethod)):
        return type(function)(trace(spans, function.__func__, options))
    if isinstance(function, type) or not callable(function):
        raise TypeError(
            f"@spans.traced is for functions and methods, not for a {type(function).__name__}: "
            "with @property and the like, write it below them"
        )
    calls = _Calls(spans, function, options)
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        return calls.awaited()
    if inspect.isasyncgenfunction(function):
        return calls.async_generator()
    if inspect.isgeneratorfunction(function):
        return calls.generator()
    return calls.plain()


class _Calls:
    """Wraps one function, by its kind."""

    def __init__(self, spans: "Spans", function: Any, options: Options) -> None:
        self._spans = spans
        self._function = function
        self._options = options
        self._name = str(options.name or getattr(function, "__qualname__", type(function).__name__))
        self._arguments = _arguments_of(function) if options.capture_input else _no_arguments

    def _block(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SpanContextManager:
        input_ = self._arguments(args, kwargs)
        return self._spans.span(self._name, input=input_, data=self._options.data)

    def _keep(self, span: Span, result: object) -> None:
        if self._options.capture_output and span.output is None:
            span.output = result

    def plain(self) -> Any:
        @wraps(self._function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._block(args, kwargs) as span:
                result = self._function(*args, **kwargs)
                self._keep(span, result)
                return result

        return call

    def awaited(self) -> Any:
        @wraps(self._function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._block(args, kwargs) as span:
                result = await self._function(*args, **kwargs)
                self._keep(span, result)
                return result

        return call

    def generator(self) -> Any:
        @wraps(self._function)
        def generate(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            with self._block(args, kwargs).hidden() as span:
                result = yield from _Steps(self._function(*args, **kwargs), span)
                self._keep(span, result)
                return result

        return generate

    def async_generator(self) -> Any:
        @wraps(self._function)
        async def generate(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            with self._block(args, kwargs).hidden() as span:
                generator = self._function(*args, **kwargs)
                step = generator.asend(None)
                while True:
                    try:
                        with Shown(span):
                            item = await step
                    except StopAsyncIteration:
                        return
                    try:
                        sent = yield item
                    except GeneratorExit:
                        with Shown(span):
                            await generator.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001 - the generator decides
                        step = generator.athrow(error)
                    else:
                        step = generator.asend(sent)

        return generate


class _Steps(Generator[Any, Any, Any]):
    """A generator whose span is current only while it runs, not while its consumer does."""

    def __init__(self, generator: Generator[Any, Any, Any], span: Span) -> None:
        self._generator = generator
        self._span = span

    def send(self, value: Any) -> Any:
        with Shown(self._span):
            return self._generator.send(value)

    def throw(self, *error: Any) -> Any:  # as it was thrown: in one, two or three parts
        with Shown(self._span):
            return self._generator.throw(*error)

    def close(self) -> None:
        with Shown(self._span):
            self._generator.close()


def _no_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The input of a span that records none."""


def _arguments_of(function: Callable[..., Any]) -> Callable[..., dict[str, Any] | None]:
    """What names the arguments of a call, as the function's parameters do."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some functions written in C
        return lambda args, kwargs: {"args": args, **kwargs}
    first = next(iter(signature.parameters), None)
    own = first if first in _OWN else None

    def named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError:
            return None  # the call itself will say what is wrong
        if own is not None:
            arguments.pop(own, None)
        return arguments

    return named
