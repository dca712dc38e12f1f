"""Spans for agents without the Agentex SDK: `with spans.span("name") as span:`.

Nesting follows `contextvars`, so it is correct across threads, tasks and event loops. A span ends
however its block exits; an exception or cancellation is recorded and propagates.
"""

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import TracebackType
from uuid import uuid4

from .encoders import default_encoder
from .events import Kind, encode_event
from .sender import FLUSH_TIMEOUT_S, Sender, shared_sender


@dataclass
class Span:
    """One span. Set `output` and `data` while it is open. Times are UTC."""

    id: str
    trace_id: str
    name: str
    start_time: datetime
    parent_id: str | None = None
    task_id: str | None = None
    end_time: datetime | None = None
    input: object = None
    output: object = None
    data: object = None
    _started: float = field(default_factory=monotonic, repr=False)

    def end(self) -> None:
        """Set `end_time` from the monotonic clock: the wall clock may have been set back."""
        if self.end_time is None:
            self.end_time = self.start_time + timedelta(seconds=monotonic() - self._started)

    def record(self, error: BaseException) -> None:
        """Record an exception in `data`, as the Agentex SDK does. SGP shows the span as `ERROR`."""
        details = {"type": type(error).__name__, "message": _message(error), "category": "unknown"}
        if self.data is None:
            self.data = {"__error__": details}
        elif isinstance(self.data, dict):
            self.data = {**self.data, "__error__": details}
        else:
            self.data = {"value": self.data, "__error__": details}


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the agent must see its own exception, not this one
        return ""


_CURRENT: ContextVar[Span | None] = ContextVar("trace_sidecar_client_span", default=None)


class Spans:
    """Creates spans and sends their STARTs and ENDs to the sidecar.

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
        trace_id: str | None = None,
        parent_id: str | None = None,
        task_id: str | None = None,
    ) -> "SpanContextManager":
        """Open a span for a `with` or `async with` block.

        Without ids, it becomes a child of the current span. If there is none, it starts a trace.
        """
        parent = _CURRENT.get()
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
            input=input,
            data=data,
        )
        return SpanContextManager(span, self)

    def put(self, kind: Kind, span: Span, error: BaseException | None = None) -> None:
        """Encode one event and queue it; never raises. `error` is what ended the block, if any."""
        try:
            if kind == "end":
                span.end()
            if error is not None:
                span.record(error)
            encoded = encode_event(kind, span, default_encoder())
        except Exception as bug:  # noqa: BLE001 - tracing must not stop the agent
            self._sender.drop(f"encoding failed: {type(bug).__name__}")
        else:
            self._sender.send(encoded)

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait up to `timeout_s` for the buffer to empty; return whether it did."""
        return self._sender.flush(timeout_s)


class SpanContextManager(
    AbstractContextManager[Span, None], AbstractAsyncContextManager[Span, None]
):
    """Sends the START on entry and the END on exit; not reusable."""

    def __init__(self, span: Span, spans: Spans) -> None:
        self._span = span
        self._spans = spans
        self._token: Token[Span | None] | None = None

    def __enter__(self) -> Span:
        span = self._span
        self._token = _CURRENT.set(span)
        self._spans.put("start", span)
        return span

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._spans.put("end", self._span, error)
        if self._token is not None:
            try:
                _CURRENT.reset(self._token)
            except ValueError:
                # An async generator may be closed in a different context from the one it began in.
                _CURRENT.set(None)

    async def __aenter__(self) -> Span:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def current() -> Span | None:
    """The innermost open span, if any. Pass its ids along when work leaves the process."""
    return _CURRENT.get()
