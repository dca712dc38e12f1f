"""Tracing processors for the Agentex SDK: its spans go to the sidecar, for both upstreams at once.

`register()` is all that an agent calls. The SDK is duck-typed and never imported before that, so
this module loads without it. What a processor does costs an encoding and an append.
"""

import asyncio
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from .encoders import sdk_encoder
from .events import Kind, encode_event
from .sender import FLUSH_TIMEOUT_S, Sender, shared_sender


def _send(sender: Sender, kind: Kind, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
    """Encode one event and hand it to `sender`; never raises."""
    try:
        encoded = encode_event(kind, span, sdk_encoder())
    except Exception as error:  # noqa: BLE001 - not a span at all; tracing must not stop the agent
        sender.drop(f"no span: {type(error).__name__}")
    else:
        sender.send(encoded)


class SyncSidecarProcessor:
    """What `get_sync_tracing_processors()` holds: for `Trace`.

    `config` is there for the SDK's registry, which builds a processor from one; it is not used.
    """

    def __init__(self, config: object = None, *, sender: Sender | None = None) -> None:
        del config
        self._sender = sender or shared_sender()

    def on_span_start(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Take a START."""
        _send(self._sender, "start", span)

    def on_span_end(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Take an END."""
        _send(self._sender, "end", span)

    def shutdown(self) -> None:
        """Wait for up to 5 s until the sidecar has everything; spans may follow all the same."""
        self._sender.flush()


class AsyncSidecarProcessor:
    """What `get_async_tracing_processors()` holds: for `AsyncTrace`.

    `config` is there for the SDK's registry, which builds a processor from one; it is not used.
    """

    def __init__(self, config: object = None, *, sender: Sender | None = None) -> None:
        del config
        self._sender = sender or shared_sender()

    def put(self, kind: Kind, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Take one event at once, without a loop."""
        _send(self._sender, kind, span)

    async def on_span_start(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Take a START."""
        _send(self._sender, "start", span)

    async def on_span_end(self, span: Any) -> None:  # noqa: ANN401 - the SDK's Span
        """Take an END."""
        _send(self._sender, "end", span)

    async def on_spans_start(self, spans: Iterable[Any]) -> None:
        """Take STARTs; the loop runs between them."""
        for span in spans:
            _send(self._sender, "start", span)
            await asyncio.sleep(0)

    async def on_spans_end(self, spans: Iterable[Any]) -> None:
        """Take ENDs; the loop runs between them."""
        for span in spans:
            _send(self._sender, "end", span)
            await asyncio.sleep(0)

    async def shutdown(self) -> None:
        """Wait for up to 5 s until the sidecar has everything, without holding up the loop."""
        await asyncio.to_thread(self._sender.flush, FLUSH_TIMEOUT_S)


class SpanQueueProxy:
    """Takes the place of the SDK's span queue: our events do not wait in it.

    The SDK's queue belongs to the first event loop that uses it; under any other loop it loses
    every span without a word, before a processor sees it. Other processors keep that queue.
    """

    def __init__(self, queue: Any) -> None:  # noqa: ANN401 - the SDK's AsyncSpanQueue
        self._queue = queue

    def enqueue(self, event_type: Any, span: Any, processors: list[Any]) -> None:  # noqa: ANN401 - SDK types
        """Hand `span`, the SDK's own copy, to our processors now, to others by their queue."""
        others = []
        for processor in processors:
            if isinstance(processor, AsyncSidecarProcessor):
                processor.put(event_type.value, span)
            else:
                others.append(processor)
        if others:
            self._queue.enqueue(event_type, span, others)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - `depth`, `shutdown` and all others
        return getattr(self._queue, name)


def register(url: str | None = None) -> None:
    """Send the Agentex SDK's spans to the sidecar: call it once, before the first span.

    Args:
        url: The sidecar's address; else `TRACE_SIDECAR_URL`, else `http://127.0.0.1:8318`.

    Raises `ImportError` where there is no Agentex SDK. A second call changes nothing.
    """
    # Only on request, and by name: type checkers need no SDK, and neither do other agents.
    tracing = "agentex.lib.core.tracing."
    span_queue = import_module(tracing + "span_queue")
    manager = import_module(tracing + "tracing_processor_manager")

    synchronous = manager.get_sync_tracing_processors()
    if any(isinstance(processor, SyncSidecarProcessor) for processor in synchronous):
        return
    sender = shared_sender(url)
    synchronous.append(SyncSidecarProcessor(sender=sender))
    manager.get_async_tracing_processors().append(AsyncSidecarProcessor(sender=sender))
    # There is no setter. Its own shutdown ends this one, too, and forgets it: what comes later goes
    # through the SDK's queue.
    vars(span_queue)["_default_span_queue"] = SpanQueueProxy(span_queue.get_default_span_queue())
