"""`Spans`: nesting, exceptions and cancellation, without side effects on the agent."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from trace_sidecar_client import Sender, Spans, current

from tests.support.client import DEADLINE_S, ScriptedSidecar, scripted


class Traced:
    """A `Spans` and the events that its fake sidecar received."""

    def __init__(self, sidecar: ScriptedSidecar) -> None:
        self.spans = Spans(sender=Sender(sidecar.url))
        self._sidecar = sidecar

    def events(self, kind: str) -> dict[str, dict[str, Any]]:
        """The spans of all START or END events, by name."""
        assert self.spans.flush(DEADLINE_S)
        return {
            event["span"]["name"]: event["span"]
            for request in self._sidecar.requests
            for event in request.events
            if event["event_type"] == kind
        }


@contextmanager
def tracing() -> Iterator[Traced]:
    """`Spans` with a fake sidecar that accepts everything."""
    with scripted() as sidecar:
        yield Traced(sidecar)


@pytest.fixture
def traced() -> Iterator[Traced]:
    """`tracing` as a fixture."""
    with tracing() as made:
        yield made


def test_a_block_sends_its_start_and_its_end(traced: Traced) -> None:
    """The START has the values at entry, the END the values at exit."""
    value = {"q": [1]}
    with traced.spans.span("turn", input=value, data={"k": "v"}, task_id="task") as span:
        span.output = {"a": 1}
        value["q"].append(2)
    start, end = traced.events("start")["turn"], traced.events("end")["turn"]
    assert (start["id"], start["input"], start["data"]) == (span.id, {"q": [1]}, {"k": "v"})
    assert not {"output", "end_time", "parent_id"} & start.keys()
    assert (end["input"], end["output"], end["task_id"]) == ({"q": [1, 2]}, {"a": 1}, "task")
    assert end["start_time"] == start["start_time"] <= end["end_time"]


async def test_nesting_follows_the_context(traced: Traced) -> None:
    """Children find their parent across awaits and tasks; siblings are independent."""

    async def child(name: str) -> None:
        async with traced.spans.span(name):
            await asyncio.sleep(0)
            with traced.spans.span(name + ".inner"):
                await asyncio.sleep(0)

    async with traced.spans.span("root", task_id="task") as root:
        assert current() is root
        await asyncio.gather(child("a"), child("b"))
    assert current() is None
    ends = await asyncio.to_thread(traced.events, "end")
    assert {span["trace_id"] for span in ends.values()} == {root.trace_id}
    assert {span["task_id"] for span in ends.values()} == {"task"}
    assert ends["a"]["parent_id"] == ends["b"]["parent_id"] == root.id
    assert ends["b.inner"]["parent_id"] == ends["b"]["id"]
    assert "parent_id" not in ends["root"]


def test_a_thread_starts_its_own_trace_unless_it_runs_in_a_copied_context(traced: Traced) -> None:
    """Threads do not inherit `contextvars`. Explicit ids win over the current span."""

    def work(name: str, **ids: Any) -> None:
        with traced.spans.span(name, **ids):
            pass

    with traced.spans.span("root") as root:
        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=work, args=["alone"]),
            threading.Thread(target=context.run, args=[work, "inside"]),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        work("other trace", trace_id="t2", parent_id="p2")
        work("other parent", parent_id="p3")
    ends = traced.events("end")
    assert ends["alone"]["trace_id"] != root.trace_id
    assert (ends["inside"]["trace_id"], ends["inside"]["parent_id"]) == (root.trace_id, root.id)
    assert (ends["other trace"]["trace_id"], ends["other trace"]["parent_id"]) == ("t2", "p2")
    other = ends["other parent"]
    assert (other["trace_id"], other["parent_id"]) == (root.trace_id, "p3")


class Unprintable(Exception):
    """An exception whose `str` raises."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("data", [None, {"k": 1}, [{"k": 1}]])
@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), Unprintable()])
def test_an_exception_is_recorded_and_propagates(
    traced: Traced, data: object, error: BaseException
) -> None:
    """The agent sees its own exception; the span records it beside its data."""
    with pytest.raises(type(error)) as caught, traced.spans.span("turn", data=data):
        raise error
    assert caught.value is error
    assert current() is None
    recorded = traced.events("end")["turn"]["data"]
    expected = {
        "type": type(error).__name__,
        "message": "boom" if isinstance(error, ValueError) else "",
        "category": "unknown",
    }
    kept = {"k": 1} if isinstance(data, dict) else {} if data is None else {"value": data}
    assert recorded == {**kept, "__error__": expected}


async def test_a_cancelled_task_ends_its_span(traced: Traced) -> None:
    """The span is ended and the cancellation propagates."""
    inside = asyncio.Event()

    async def work() -> None:
        async with traced.spans.span("turn"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ended = (await asyncio.to_thread(traced.events, "end"))["turn"]
    assert ended["data"]["__error__"]["type"] == "CancelledError"


async def test_an_async_generator_closed_in_another_task_ends_its_span(traced: Traced) -> None:
    """Its context differs from the one it began in, and no error reaches the agent."""

    async def stream() -> AsyncIterator[int]:
        async with traced.spans.span("stream"):
            yield 1
            yield 2

    items = stream()
    assert await asyncio.create_task(anext(items)) == 1  # type: ignore[arg-type]
    await asyncio.create_task(items.aclose())  # type: ignore[attr-defined]
    assert "stream" in await asyncio.to_thread(traced.events, "end")


def test_a_span_that_can_not_be_encoded_is_counted_and_raises_nothing() -> None:
    """An error while encoding never reaches the agent."""
    with scripted() as sidecar:
        sender = Sender(sidecar.url)
        spans = Spans(sender=sender)
        with spans.span("turn") as span:
            span.start_time = None  # type: ignore[assignment]
        assert sender.dropped == {"encoding failed: TypeError": 1}
