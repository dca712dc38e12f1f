"""Spans for agents without the Agentex SDK: `with spans.span("name") as span:`.

Nesting follows `contextvars`, so it is correct across threads, tasks and event loops. A span ends
however its block exits; an exception or cancellation is recorded and propagates.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self, TypeVar, overload
from uuid import uuid4

from .blocks import SpanContextManager
from .interrupts import is_interrupt
from .sender import FLUSH_TIMEOUT_S, Sender, Until, shared_sender
from .span import Recording, Span, count
from .stack import current
from .traced import Options, trace

_Function = TypeVar("_Function")  # or a method, before its class makes it one
_UNTRACED_TIME = datetime.fromtimestamp(0, UTC)


class Spans:
    """Creates spans and sends their STARTs and ENDs to the sidecar.

    A deep copy is the object itself; a pickle holds the sidecar's URL only.

    Args:
        url: The sidecar's URL. Defaults to `TRACE_SIDECAR_URL`, then `http://127.0.0.1:8318`.
        sender: A sender with other limits or credentials. `url` is then ignored.
    """

    def __init__(self, url: str | None = None, *, sender: Sender | None = None) -> None:
        self._sender = sender or shared_sender(url)

    def span(
        self,
        name: str,
        *,
        input: object = None,  # noqa: A002 - the field's name in every API
        data: object = None,
        parent: Span | None = None,
        trace_id: str | None = None,
        parent_id: str | None = None,
        task_id: str | None = None,
    ) -> SpanContextManager:
        """Open a span for a `with` or `async with` block.

        It becomes a child of `parent`, by default the current span. If there is none, it starts a
        trace. Ids that are given come first.
        """
        return SpanContextManager(
            self._make(name, input, data, parent, trace_id, parent_id, task_id)
        )

    def start(
        self,
        name: str,
        *,
        input: object = None,  # noqa: A002 - as above
        data: object = None,
        parent: Span | None = None,
        trace_id: str | None = None,
        parent_id: str | None = None,
        task_id: str | None = None,
    ) -> Span:
        """Start a span without a block, for callbacks: end it with `finish` or `Span.end`.

        It is not made current: give it to its children as `parent`. Any thread may end it.
        """
        span = self._make(name, input, data, parent, trace_id, parent_id, task_id)
        if span.recording is not None:
            try:
                span.recording.start(span)
            except BaseException as interrupt:
                span.end(interrupt)
                raise
        return span

    def finish(
        self, span: Span, *, output: object = None, error: BaseException | None = None
    ) -> None:
        """End `span` with an output or with the error that ended it. Further calls do nothing."""
        if output is not None and span.is_open:
            span.output = output
        span.end(error)

    def _make(
        self,
        name: str,
        input_: object,
        data: object,
        parent: Span | None,
        trace_id: str | None,
        parent_id: str | None,
        task_id: str | None,
    ) -> Span:
        try:
            if parent is None or not parent.id:
                parent = current()
            if parent is not None and trace_id in {None, parent.trace_id}:
                trace_id, parent_id = parent.trace_id, parent_id or parent.id
                task_id = task_id or parent.task_id
            span = Span(
                id=str(uuid4()),
                trace_id=trace_id or str(uuid4()),
                name=name,
                start_time=datetime.now(UTC),
                parent_id=parent_id,
                task_id=task_id,
                input=input_,
                data=data,
            )
            span._recording = Recording(self._sender)  # noqa: SLF001 - only copies have none
        except Exception as bug:
            if is_interrupt(bug):
                raise
            # Temporal's sandbox restricts clocks and random ids.
            count(self._sender, f"span not started: {type(bug).__name__}")
            return Span("", "", name, _UNTRACED_TIME, input=input_, data=data)
        return span

    @overload
    def traced(
        self,
        name: str | None = None,
        *,
        data: object = None,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> Callable[[_Function], _Function]: ...

    @overload
    def traced(self, function: _Function, /) -> _Function: ...

    def traced(
        self,
        name: Any = None,
        *,
        data: object = None,
        capture_input: bool = True,
        capture_output: bool = True,
    ) -> Any:
        """Trace each call of a function: `@spans.traced`, `@spans.traced("name")`.

        Functions, coroutines, generators and async generators, methods of any kind. The arguments
        become the span's input, without `self` and `cls`, and the result its output. What a
        generator yields is not recorded.

        Args:
            name: The spans' name. Defaults to the function's qualified name.
            data: The data of each span.
            capture_input: Whether to record the arguments.
            capture_output: Whether to record the result.
        """
        function = None if isinstance(name, str) else name
        options = Options(name if function is None else None, data, capture_input, capture_output)
        if function is not None:
            return trace(self, function, options)
        return lambda function: trace(self, function, options)

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S, until: Until = "delivered") -> bool:
        """Wait up to `timeout_s` for all events of this moment; return whether it was enough.

        `until` says what for: the upstreams have them ("delivered"), the sidecar has them on disk
        ("disk"), or the sidecar has them ("accepted").
        """
        return self._sender.flush(timeout_s, until)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self._sender.url,)
