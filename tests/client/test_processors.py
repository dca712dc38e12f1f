"""The processors for the Agentex SDK, with fakes of the SDK's objects."""

import asyncio
import shutil
import subprocess
import sys
import threading
import types
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import trace_sidecar_client
from trace_sidecar_client import AsyncSidecarProcessor, Sender, SyncSidecarProcessor, register
from trace_sidecar_client import sender as sender_module

from tests.support.client import ScriptedSidecar, scripted

PACKAGE = Path(trace_sidecar_client.__file__).parent


class SdkSpan:
    """The attributes of the SDK's `Span`."""

    def __init__(self, name: str) -> None:
        self.id, self.trace_id, self.name = f"id-{name}", "t1", name
        self.start_time = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
        self.end_time: datetime | None = None
        self.parent_id: str | None = None
        self.task_id: str | None = "task"
        self.input: Any = {"q": "hi"}
        self.output: Any = None
        self.data: Any = None

    def finish(self) -> None:
        """Set what the SDK sets before it ends a span."""
        self.end_time = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
        self.output = {"a": "hello"}


class SpanEventType(StrEnum):
    """The SDK's enum of the same name."""

    START = "start"
    END = "end"


EXPECTED = [
    {
        "event_type": "start",
        "span": {
            "id": "id-turn",
            "trace_id": "t1",
            "name": "turn",
            "start_time": "2026-01-02T03:04:05.678901+00:00",
            "task_id": "task",
            "input": {"q": "hi"},
        },
    },
    {
        "event_type": "end",
        "span": {
            "id": "id-turn",
            "trace_id": "t1",
            "name": "turn",
            "start_time": "2026-01-02T03:04:05.678901+00:00",
            "end_time": "2026-01-02T03:04:06+00:00",
            "task_id": "task",
            "input": {"q": "hi"},
            "output": {"a": "hello"},
        },
    },
]


def events(sidecar: ScriptedSidecar) -> list[dict[str, Any]]:
    """All events, in order of arrival."""
    return [event for request in sidecar.requests for event in request.events]


def test_the_sync_processor_encodes_a_span_during_each_call() -> None:
    """The SDK passes the same object twice; changes made after the START do not alter the START."""
    with scripted() as sidecar:
        processor = SyncSidecarProcessor(sender=Sender(sidecar.url))
        span = SdkSpan("turn")
        processor.on_span_start(span)
        span.finish()
        processor.on_span_end(span)
        processor.shutdown()
        assert events(sidecar) == EXPECTED


async def test_the_async_processor_accepts_single_spans_and_batches() -> None:
    """The SDK's queue calls either way; `shutdown` waits for delivery of both."""
    with scripted() as sidecar:
        processor = AsyncSidecarProcessor(sender=Sender(sidecar.url))
        span, batch = SdkSpan("turn"), [SdkSpan("b"), SdkSpan("c")]
        await processor.on_span_start(span)
        await processor.on_spans_start(batch)
        for each in (span, *batch):
            each.finish()
        await processor.on_span_end(span)
        await processor.on_spans_end(batch)
        await processor.shutdown()
        assert [e for e in events(sidecar) if e["span"]["name"] == "turn"] == EXPECTED
        assert sidecar.names == ["turn", "b", "c", "turn", "b", "c"]


async def test_shutdown_does_not_block_the_event_loop() -> None:
    """The loop runs while `shutdown` waits for a sidecar that hangs."""
    with scripted() as sidecar:
        sidecar.may_respond.clear()
        processor = AsyncSidecarProcessor(sender=Sender(sidecar.url))
        await processor.on_span_start(SdkSpan("turn"))
        stopping = asyncio.create_task(processor.shutdown())
        await asyncio.to_thread(sidecar.wait_for_requests, 1)
        assert not stopping.done()
        sidecar.may_respond.set()
        await stopping


async def test_shutdown_needs_no_thread() -> None:
    """It still delivers after the loop's threads have been shut down, and raises nothing."""
    with scripted() as sidecar:
        processor = AsyncSidecarProcessor(sender=Sender(sidecar.url))
        await processor.on_span_start(SdkSpan("turn"))
        await asyncio.get_running_loop().shutdown_default_executor()
        await processor.shutdown()
        assert sidecar.names == ["turn"]
        assert sidecar.flushes


def test_an_object_that_is_no_span_is_counted_and_raises_nothing() -> None:
    """An error while encoding never reaches the agent."""
    sender = Sender("http://127.0.0.1:1")
    SyncSidecarProcessor(sender=sender).on_span_end(object())
    assert sender.dropped == {"encoding failed: AttributeError": 1}


class SdkQueue:
    """The SDK's span queue, as far as other code uses it."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, Any, list[Any]]] = []
        self.depth = 7

    def enqueue(self, event_type: Any, span: Any, processors: list[Any]) -> None:  # noqa: ANN401 - as the SDK's
        """Record the arguments."""
        self.items.append((event_type, span, processors))


class Sdk(types.SimpleNamespace):
    """What the fake SDK's registry and queue hold."""

    queue: SdkQueue
    sync: list[Any]
    asynchronous: list[Any]
    module: types.ModuleType


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """Fake modules under the names that `register` imports."""
    made = Sdk(queue=SdkQueue(), sync=[], asynchronous=[])
    tracing = "agentex.lib.core.tracing"
    for name in ("agentex", "agentex.lib", "agentex.lib.core", tracing):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    made.module = types.ModuleType(tracing + ".span_queue")
    vars(made.module)["get_default_span_queue"] = lambda: made.queue
    manager = types.ModuleType(tracing + ".tracing_processor_manager")
    vars(manager)["get_sync_tracing_processors"] = lambda: made.sync
    vars(manager)["get_async_tracing_processors"] = lambda: made.asynchronous
    monkeypatch.setitem(sys.modules, made.module.__name__, made.module)
    monkeypatch.setitem(sys.modules, manager.__name__, manager)
    monkeypatch.setattr(sender_module, "_SHARED_SENDERS", {})
    return made


def test_register_adds_both_processors_once(sdk: Sdk) -> None:
    """Both share one sender; a second call changes nothing."""
    register("http://127.0.0.1:1")
    register("http://127.0.0.1:1")
    assert [type(p) for p in sdk.sync] == [SyncSidecarProcessor]
    assert [type(p) for p in sdk.asynchronous] == [AsyncSidecarProcessor]
    assert len(sender_module._SHARED_SENDERS) == 1


def test_spans_from_every_event_loop_arrive(sdk: Sdk) -> None:
    """The proxy is bound to no loop; other processors still get their spans through the queue."""
    with scripted() as sidecar:
        register(sidecar.url)
        queue = vars(sdk.module)["_default_span_queue"]
        other = object()

        async def work(name: str) -> None:
            span = SdkSpan(name)
            queue.enqueue(SpanEventType.START, span, [*sdk.asynchronous, other])
            span.finish()
            queue.enqueue(SpanEventType.END, span, sdk.asynchronous)

        for name in "ab":
            asyncio.run(work(name))
        threads = [threading.Thread(target=asyncio.run, args=[work(name)]) for name in "cd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sdk.sync[0].shutdown()
        assert sorted(sidecar.names) == list("aabbccdd")
    assert [(kind, processors) for kind, _, processors in sdk.queue.items] == [
        (SpanEventType.START, [other])
    ] * 4
    assert queue.depth == 7


def run(code: str, cwd: Path) -> str:
    """Run `code` in a fresh interpreter and return its standard output."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


HEAVY = """
import sys, {name} as client
spans = client.Spans("http://127.0.0.1:1")
heavy = ["agentex", "aiohttp", "httpx", "msgspec", "prometheus_client", "pydantic",
         "pydantic_core", "structlog", "uvloop"]
print([name for name in heavy if name in sys.modules])
"""


@pytest.mark.process
def test_importing_the_client_loads_no_more_than_it_needs() -> None:
    """No SDK and no dependency of the daemon is loaded; of others, only a faster encoder."""
    code = HEAVY.format(name="trace_sidecar_client")
    assert run(code, PACKAGE.parents[1]) == "[]\n"


@pytest.mark.process
def test_a_copy_of_the_package_works(tmp_path: Path) -> None:
    """An agent may vendor the folder under another name: it imports nothing else of the project."""
    shutil.copytree(PACKAGE, tmp_path / "vendored_client")
    code = HEAVY.format(name="vendored_client") + "print('sidecar' in sys.modules)"
    assert run(code, tmp_path) == "[]\nFalse\n"


def test_register_without_the_sdk_raises() -> None:
    """An agent without the SDK gets an `ImportError` that says what to do, in one line."""
    with pytest.raises(ImportError, match=r"pip install agentex-sdk.*Spans"):
        register()
