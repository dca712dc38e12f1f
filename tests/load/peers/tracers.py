"""The compared ways of tracing, as an agent uses them; runs in the peer's interpreter.

An agent waits for `start` and `end` on its loop; everything else happens in the background. Each
way is set up as in its documentation, with its defaults. Addresses come from the environment.
"""

import asyncio
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Protocol, TypeAlias

from .payload import NAME, TRACE, Payload, encoded

FLUSH_S = 120
# What `start` returns and `end` takes; each way has its own type.
Span: TypeAlias = Any


class Tracer(Protocol):
    """One way of tracing."""

    async def start(self, number: int, input_: Payload) -> Span:
        """Begin span `number`; return what `end` needs."""

    async def end(self, span: Span, output: Payload) -> None:
        """End it."""

    async def hand_over(self, *, last: bool) -> None:
        """Wait until everything is sent; some ways can do so only once, at the `last` call."""

    def dropped(self) -> int:
        """Return how many spans the way itself reports as dropped."""


class Untraced:
    """The control: the agent without tracing."""

    async def start(self, number: int, input_: Payload) -> None:
        """Do nothing."""

    async def end(self, span: None, output: Payload) -> None:
        """Do nothing."""

    async def hand_over(self, *, last: bool) -> None:
        """Do nothing."""

    def dropped(self) -> int:
        """Do nothing."""
        return 0


class AgentexSdk:
    """`AsyncTracer` of the Agentex SDK with its own queue and both of its processors."""

    def __init__(self) -> None:
        self._register()
        self._queue = import_module("agentex.lib.core.tracing.span_queue")
        tracer = import_module("agentex.lib.core.tracing.tracer").AsyncTracer
        self._tracer = tracer(import_module("agentex").AsyncAgentex())

    def _register(self) -> None:
        types = import_module("agentex.lib.types.tracing")
        manager = import_module("agentex.lib.core.tracing.tracing_processor_manager")
        manager.add_tracing_processor_config(types.AgentexTracingProcessorConfig())
        sgp = types.SGPTracingProcessorConfig(
            sgp_api_key="bench",
            sgp_account_id="bench",
            sgp_base_url=os.environ["SGP_CLIENT_BASE_URL"],
        )
        manager.add_tracing_processor_config(sgp)

    async def start(self, number: int, input_: Payload) -> Span:
        """Do what `adk.tracing.start_span` does."""
        trace = self._tracer.trace(f"trace-{number // TRACE}")
        return trace, await trace.start_span(name=NAME, input=input_)

    async def end(self, span: Span, output: Payload) -> None:
        """Do what `adk.tracing.end_span` does."""
        trace, open_span = span
        open_span.output = output
        await trace.end_span(open_span)

    async def hand_over(self, *, last: bool) -> None:
        """Shut the queue down at the `last` call: there is no other way to drain it."""
        if last:
            await self._queue.shutdown_default_span_queue(timeout=FLUSH_S)

    def dropped(self) -> int:
        """Return 0: the queue is gone by now, and the sinks show what arrived."""
        return 0


class OurProcessor(AgentexSdk):
    """`AsyncTracer` of the Agentex SDK with our processor instead of its own."""

    def _register(self) -> None:
        client = import_module("trace_sidecar_client")
        client.register(os.environ["SIDECAR"])
        self._client = client.Spans(os.environ["SIDECAR"])

    async def hand_over(self, *, last: bool) -> None:
        """Flush in a thread."""
        await asyncio.to_thread(self._client.flush, FLUSH_S)


class OurClient:
    """`trace_sidecar_client.Spans`: for agents without an SDK."""

    def __init__(self) -> None:
        self._spans = import_module("trace_sidecar_client").Spans(os.environ["SIDECAR"])

    async def start(self, number: int, input_: Payload) -> Span:
        """Enter the span's block."""
        block = self._spans.span(NAME, input=input_, trace_id=f"trace-{number // TRACE}")
        return block, await block.__aenter__()

    async def end(self, span: Span, output: Payload) -> None:
        """Leave the span's block."""
        block, open_span = span
        open_span.output = output
        await block.__aexit__(None, None, None)

    async def hand_over(self, *, last: bool) -> None:
        """Flush in a thread."""
        await asyncio.to_thread(self._spans.flush, FLUSH_S)

    def dropped(self) -> int:
        """Return 0: the client logs drops, and the sinks show them."""
        return 0


class OpenTelemetrySdk:
    """OpenTelemetry's `BatchSpanProcessor` with the OTLP/HTTP exporter; payloads as attributes."""

    def __init__(self) -> None:
        trace = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
        exporter = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        self._provider = trace.TracerProvider()
        processor = export.BatchSpanProcessor(exporter.OTLPSpanExporter(os.environ["OTLP"]))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("agent")

    async def start(self, number: int, input_: Payload) -> Span:
        """Begin a root span with its input."""
        return self._tracer.start_span(NAME, attributes={"input.value": encoded(input_).decode()})

    async def end(self, span: Span, output: Payload) -> None:
        """Set its output, and end it."""
        span.set_attribute("output.value", encoded(output).decode())
        span.end()

    async def hand_over(self, *, last: bool) -> None:
        """Flush in a thread."""
        flush = self._provider.force_flush
        await asyncio.get_running_loop().run_in_executor(None, flush, 1000 * FLUSH_S)

    def dropped(self) -> int:
        """Return 0: the SDK does not report it."""
        return 0


class PlainPosts:
    """Two POSTs per span with aiohttp, each in its own task: the simplest code for an agent."""

    def __init__(self) -> None:
        self._session: Any = None
        self._url = os.environ["SIDECAR"] + "/v1/spans"
        self._encode: Callable[[Payload], bytes] = _encoder()
        self._posts: set[asyncio.Task[None]] = set()
        self._refused = 0

    async def start(self, number: int, input_: Payload) -> Payload:
        """POST a START."""
        span = {
            "id": uuid.uuid4().hex,
            "trace_id": f"trace-{number // TRACE}",
            "name": NAME,
            "start_time": datetime.now(UTC).isoformat(),
            "input": input_,
        }
        self._post({"event_type": "start", "span": span})
        return span

    async def end(self, span: Payload, output: Payload) -> None:
        """POST an END."""
        ended = {**span, "output": output, "end_time": datetime.now(UTC).isoformat()}
        self._post({"event_type": "end", "span": ended})

    def _post(self, event: Payload) -> None:
        post = asyncio.get_running_loop().create_task(self._send(self._encode(event)))
        self._posts.add(post)
        post.add_done_callback(self._posts.discard)

    async def _send(self, body: bytes) -> None:
        if self._session is None:
            self._session = import_module("aiohttp").ClientSession()
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as answer:
            self._refused += answer.status != 202
            await answer.read()

    async def hand_over(self, *, last: bool) -> None:
        """Wait for the responses."""
        await asyncio.gather(*self._posts)
        if last and self._session is not None:
            await self._session.close()

    def dropped(self) -> int:
        """Return the events that were not accepted."""
        return self._refused


def _encoder() -> Callable[[Payload], bytes]:
    """Return orjson's encoder (the Agentex SDK has it), or else the standard library's."""
    try:
        dumps: Callable[[Payload], bytes] = import_module("orjson").dumps
    except ImportError:
        return encoded
    return dumps


TRACERS: dict[str, Callable[[], Tracer]] = {
    "untraced": Untraced,
    "agentex-sdk": AgentexSdk,
    "opentelemetry-sdk": OpenTelemetrySdk,
    "our-client": OurClient,
    "our-processor": OurProcessor,
    "plain-posts": PlainPosts,
}
