"""The client with the libraries that agents use: trio, LangGraph, and values of many others."""

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client_support import Wire, frameworks_python, ran, started
from tests.e2e.sdk_support import Pod
from tests.support.docs import ROOT, blocks, section

pytestmark = pytest.mark.asyncio(loop_scope="module")

TASKS = 5
MODEL = {"name": "n", "score": 0.5}
# What "How values are encoded" in docs/client.md promises for each.
VALUES: dict[str, Any] = {
    "numpy scalars": [0.5, 2**40, True],
    "numpy array": [[1, 2], [3, 4]],
    "numpy floats": [0.5, None, None],
    "numpy key": {"7": "seven", "8": "eight"},
    "pandas": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
    "pandas series": [1.5, 2.5],
    "pydantic 1": MODEL,
    "pydantic 2": MODEL,
    "attrs": MODEL,
    "nested": {"models": [{"name": "m", "score": 1.5}, {"deep": {"name": "p", "score": 3}}]},
}
# However large the value, its span fits in a batch with others.
MAX_VALUE_BYTES = 2**20


async def test_trio(shared_pod: Pod) -> None:
    """Spans nest in a nursery's tasks and in trio's threads; a canceled one ends."""
    expected: dict[str, str | None] = {"trio": None, "canceled": "trio"}
    for number in range(TASKS):
        task = f"task {number}"
        expected |= {task: "trio", f"step {number}": task, f"thread {number}": task}
    tree, _ = await ran(shared_pod, frameworks_python(), "libraries", "trio")
    assert tree == expected


async def test_langgraph(shared_pod: Pod) -> None:
    """A graph's nodes, in parallel or not, are children of the span that it is invoked in."""
    expected: dict[str, str | None] = {}
    for top in ("invoke", "ainvoke"):
        expected |= {top: None}
        expected |= {f"{node} of {top}": top for node in ("plan", "search", "read", "answer")}
    tree, _ = await ran(shared_pod, frameworks_python(), "libraries", "langgraph")
    assert tree == expected


async def test_langgraph_as_documented(shared_pod: Pod, tmp_path: Path) -> None:
    """The graph of docs/client.md runs as it stands."""
    (graph,) = blocks(section(ROOT / "docs/client.md", "LangGraph"))
    (tmp_path / "agent.py").write_text(graph, encoding="utf-8")
    async with Wire(shared_pod).running() as wire:
        program = (frameworks_python(), tmp_path / "agent.py")
        async with started(wire, *program, folder=tmp_path) as agent:
            await agent.ended()
        assert wire.tree() == {"turn": None, "answer": "turn"}
        await wire.delivered()


# A chain whose second step fails the first time, in its own threads.
CHAIN = """
from langchain_core.runnables import RunnableLambda


def fail(question):
    raise ValueError("no answer")


good = RunnableLambda(len).with_config(run_name="length")
chain = (good | RunnableLambda(str).with_config(run_name="text")).with_config(run_name="good")
failing = (good | RunnableLambda(fail).with_config(run_name="failure")).with_config(run_name="bad")
config = {"callbacks": [Tracer()]}
assert chain.invoke("question", config) == "8"
try:
    failing.invoke("question", config)
except ValueError:
    pass
else:
    raise AssertionError
"""


async def test_langchain_as_documented(shared_pod: Pod, tmp_path: Path) -> None:
    """The callback handler of docs/client.md nests a chain's runs, and records their errors."""
    (handler,) = blocks(section(ROOT / "docs/client.md", "LangChain"))
    (tmp_path / "agent.py").write_text(handler + CHAIN, encoding="utf-8")
    async with Wire(shared_pod).running() as wire:
        program = (frameworks_python(), tmp_path / "agent.py")
        async with started(wire, *program, folder=tmp_path) as agent:
            await agent.ended()
        ends = [event["span"] for event in wire.events if event["event_type"] == "end"]
    names = {span["id"]: span["name"] for span in ends}
    found = sorted((span["name"], names.get(span.get("parent_id"))) for span in ends)
    assert found == [
        *(("bad", None), ("failure", "bad"), ("good", None)),
        *(("length", "bad"), ("length", "good"), ("text", "good")),
    ]
    failed = {span["name"] for span in ends if "__error__" in (span.get("data") or {})}
    assert failed == {"bad", "failure"}


async def test_values(shared_pod: Pod) -> None:
    """Numbers of numpy and pandas stay numbers, models objects; large ones are cut, not lost."""
    async with Wire(shared_pod).running() as wire:
        agent = Path(__file__).parent / "agents/libraries.py"
        async with started(wire, frameworks_python(), agent, "values") as program:
            await program.ended()
        ends = [event["span"] for event in wire.events if event["event_type"] == "end"]
        assert wire.tree().keys() > VALUES.keys()
        await wire.delivered()
    sent = {span["name"]: span["input"]["value"] for span in ends}
    assert {name: sent[name] for name in VALUES} == VALUES
    assert "2026-01-02T03:04:05" in sent["pandas time"]
    for name, shape in (("large array", [1000, 1000]), ("large frame", [100_000, 20])):
        assert sent[name]["shape"] == shape
        assert sent[name]["head"]
        assert len(str(sent[name])) < MAX_VALUE_BYTES
