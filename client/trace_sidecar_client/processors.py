"""Tracing processors for the Agentex SDK that send its spans to the sidecar.

`register()` is all an agent calls, and the only place that imports the SDK, so this module loads
without it. A processor encodes the event and appends it to a buffer; it does no I/O.
"""

import asyncio
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from .encoders import default_encoder
from .events import Kind, encode_event
from .interrupts import is_interrupt
from .sender import Sender, shared_sender


def _send(sender: Sender, kind: Kind, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
    """Encode one event and queue it; never raises."""
    if sender.disabled:
        return
    try:
        encoded = encode_event(kind, span, default_encoder())
    except Exception as error:
        if is_interrupt(error):
            raise
        sender.drop(f"encoding failed: {type(error).__name__}")
    else:
        sender.send(encoded)


class SyncSidecarProcessor:
    """The processor for `Trace`, an entry of `get_sync_tracing_processors()`.

    `config` is ignored. It is accepted because the SDK's registry passes one.
    """

    def __init__(self, config: object = None, *, sender: Sender | None = None) -> None:
        del config
        self._sender = sender or shared_sender()

    def on_span_start(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Queue a START."""
        _send(self._sender, "start", span)

    def on_span_end(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Queue an END."""
        _send(self._sender, "end", span)

    def shutdown(self) -> None:
        """Wait up to 5 s for the delivery of every event. The processor remains usable."""
        self._sender.flush()


class AsyncSidecarProcessor:
    """The processor for `AsyncTrace`, an entry of `get_async_tracing_processors()`.

    `config` is ignored. It is accepted because the SDK's registry passes one.
    """

    def __init__(self, config: object = None, *, sender: Sender | None = None) -> None:
        del config
        self._sender = sender or shared_sender()

    def put(self, kind: Kind, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Queue one event synchronously; needs no event loop."""
        _send(self._sender, kind, span)

    async def on_span_start(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Queue a START."""
        _send(self._sender, "start", span)

    async def on_span_end(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Queue an END."""
        _send(self._sender, "end", span)

    async def on_spans_start(self, spans: Iterable[Any]) -> None:
        """Queue STARTs, yielding to the event loop after each."""
        for span in spans:
            _send(self._sender, "start", span)
            await asyncio.sleep(0)

    async def on_spans_end(self, spans: Iterable[Any]) -> None:
        """Queue ENDs, yielding to the event loop after each."""
        for span in spans:
            _send(self._sender, "end", span)
            await asyncio.sleep(0)

    async def shutdown(self) -> None:
        """Wait up to 5 s for the delivery of every event, without blocking the loop."""
        try:
            flushing = asyncio.get_running_loop().run_in_executor(None, self._sender.flush)
        except RuntimeError:  # no thread can be started, or none any more
            self._sender.flush()
        else:
            await flushing


class SpanQueueProxy:
    """Wraps the SDK's span queue and routes our events around it.

    The SDK's queue is bound to the first event loop that uses it. Under any other loop it silently
    loses every span before a processor sees it (docs/upstreams.md, S4).
    Other processors still use it.
    """

    def __init__(self, queue: Any) -> None:  # noqa: ANN401 - the SDK's AsyncSpanQueue
        self._queue = queue

    def enqueue(self, event_type: Any, span: Any, processors: list[Any]) -> None:  # noqa: ANN401 - SDK types
        """Pass `span`, the SDK's own copy, to our processors now and queue it for all others."""
        others = []
        for processor in processors:
            if isinstance(processor, AsyncSidecarProcessor):
                processor.put(event_type.value, span)
            else:
                others.append(processor)
        if others:
            self._queue.enqueue(event_type, span, others)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - `depth`, `shutdown`, ...
        return getattr(self._queue, name)


def register(url: str | None = None) -> None:
    """Send the Agentex SDK's spans to the sidecar. Call it once, before the first span.

    Further calls do nothing, and with `TRACE_SIDECAR_DISABLED=1` none does.

    Args:
        url: The sidecar's URL. Defaults to `TRACE_SIDECAR_URL`, then `http://127.0.0.1:8318`.

    Raises:
        ImportError: The Agentex SDK is not installed.
    """
    sender = shared_sender(url)
    if sender.disabled:
        return
    # Imported by name: type checkers and agents without the SDK can't resolve it.
    tracing = "agentex.lib.core.tracing."
    try:
        span_queue = import_module(tracing + "span_queue")
        manager = import_module(tracing + "tracing_processor_manager")
    except ImportError as error:
        raise ImportError(
            f"register() needs the Agentex SDK ({error}): install it (pip install agentex-sdk), "
            "or trace without it: Spans().span(...)"
        ) from error

    synchronous = manager.get_sync_tracing_processors()
    if any(isinstance(processor, SyncSidecarProcessor) for processor in synchronous):
        return
    synchronous.append(SyncSidecarProcessor(sender=sender))
    manager.get_async_tracing_processors().append(AsyncSidecarProcessor(sender=sender))
    # The SDK has no setter. Its shutdown reaches its own queue through the proxy and then discards
    # the proxy; spans after that go through the SDK's queue.
    vars(span_queue)["_default_span_queue"] = SpanQueueProxy(span_queue.get_default_span_queue())
