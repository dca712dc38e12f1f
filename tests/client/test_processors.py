"""The processors for the Agentex SDK, with stand-ins of what the SDK hands to them."""

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
        """What the SDK sets before it ends a span."""
        self.end_time = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
        self.output = {"a": "hello"}


class SpanEventType(StrEnum):
    """As the SDK's."""

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
    return [event for post in sidecar.posts for event in post.events]


def test_the_sync_processor_takes_a_span_as_it_is_at_each_call() -> None:
    """The SDK hands over one object twice; what it was at the START stays so."""
    with scripted() as sidecar:
        processor = SyncSidecarProcessor(sender=Sender(sidecar.url))
        span = SdkSpan("turn")
        processor.on_span_start(span)
        span.finish()
        processor.on_span_end(span)
        processor.shutdown()
        assert events(sidecar) == EXPECTED


async def test_the_async_processor_takes_single_spans_and_batches() -> None:
    """Both ways that the SDK's queue has of calling it; shutdown waits beside the loop."""
    with scripted() as sidecar:
        processor = AsyncSidecarProcessor(sender=Sender(sidecar.url))
        span, more = SdkSpan("turn"), [SdkSpan("b"), SdkSpan("c")]
        await processor.on_span_start(span)
        await processor.on_spans_start(more)
        for each in (span, *more):
            each.finish()
        await processor.on_span_end(span)
        await processor.on_spans_end(more)
        await processor.shutdown()
        assert [e for e in events(sidecar) if e["span"]["name"] == "turn"] == EXPECTED
        assert sidecar.names == ["turn", "b", "c", "turn", "b", "c"]


async def test_shutdown_does_not_hold_up_the_loop() -> None:
    """While the sidecar hangs, the loop goes on; the processor waits for the answer."""
    with scripted() as sidecar:
        sidecar.hold.clear()
        processor = AsyncSidecarProcessor(sender=Sender(sidecar.url))
        await processor.on_span_start(SdkSpan("turn"))
        stopping = asyncio.create_task(processor.shutdown())
        await asyncio.to_thread(sidecar.wait_for_posts, 1)
        assert not stopping.done()
        sidecar.hold.set()
        await stopping


def test_what_is_no_span_is_counted_and_raises_nothing() -> None:
    """A processor's bug must not reach the agent."""
    sender = Sender("http://127.0.0.1:1")
    SyncSidecarProcessor(sender=sender).on_span_end(object())
    assert sender.dropped == {"encoding failed: AttributeError": 1}


class SdkQueue:
    """The parts of the SDK's queue that others use."""

    def __init__(self) -> None:
        self.items: list[tuple[Any, Any, list[Any]]] = []
        self.depth = 7

    def enqueue(self, event_type: Any, span: Any, processors: list[Any]) -> None:  # noqa: ANN401 - as the SDK's
        """Keep it."""
        self.items.append((event_type, span, processors))


class Sdk(types.SimpleNamespace):
    """The SDK's registry and queue."""

    queue: SdkQueue
    sync: list[Any]
    asynchronous: list[Any]
    module: types.ModuleType


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """Modules with the names that `register` looks for."""
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
    """They share one sender; calling it again changes nothing."""
    register("http://127.0.0.1:1")
    register("http://127.0.0.1:1")
    assert [type(p) for p in sdk.sync] == [SyncSidecarProcessor]
    assert [type(p) for p in sdk.asynchronous] == [AsyncSidecarProcessor]
    assert len(sender_module._SHARED_SENDERS) == 1


def test_spans_of_every_event_loop_arrive(sdk: Sdk) -> None:
    """The SDK's own queue belongs to one loop; ours belong to none, and others keep that queue."""
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
    """The standard output of a fresh interpreter."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


HEAVY = """
import sys, {name} as client
spans = client.Spans("http://127.0.0.1:1")
heavy = ["agentex", "aiohttp", "httpx", "msgspec", "orjson", "prometheus_client", "pydantic",
         "pydantic_core", "structlog", "uvloop"]
print([name for name in heavy if name in sys.modules])
"""


def test_importing_it_loads_no_sdk_and_no_part_of_the_daemon() -> None:
    """An agent pays for the standard library only."""
    code = HEAVY.format(name="trace_sidecar_client")
    assert run(code, PACKAGE.parents[1]) == "[]\n"


def test_the_folder_works_when_it_is_copied(tmp_path: Path) -> None:
    """It imports nothing of the project, so an agent may take it along under another name."""
    shutil.copytree(PACKAGE, tmp_path / "vendored_client")
    code = HEAVY.format(name="vendored_client") + "print('sidecar' in sys.modules)"
    assert run(code, tmp_path) == "[]\nFalse\n"


def test_without_the_sdk_register_says_so() -> None:
    """There is nothing to register with."""
    with pytest.raises(ImportError, match="agentex"):
        register()
