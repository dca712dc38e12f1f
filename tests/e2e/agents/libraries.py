"""Traces in trio's tasks, in LangGraph's nodes, and with values of the libraries that agents use.

Argument: what to do.
"""

import asyncio
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypedDict

from trace_sidecar_client import Spans, current

spans = Spans()
TASKS = 5


def in_trio() -> None:
    """Nest spans in a nursery, and cancel one."""
    import trio  # type: ignore[import-not-found]
    import trio.testing  # type: ignore[import-not-found]

    async def work(number: int) -> None:
        async with spans.span(f"task {number}"):
            await trio.lowlevel.checkpoint()
            with spans.span(f"step {number}"):
                await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(in_thread, number)

    def in_thread(number: int) -> None:
        with spans.span(f"thread {number}"):
            pass

    async def canceled() -> None:
        with spans.span("canceled"):
            await trio.sleep_forever()

    async def main() -> None:
        with spans.span("trio"):
            async with trio.open_nursery() as nursery:
                for number in range(TASKS):
                    nursery.start_soon(work, number)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(canceled)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        assert current() is None

    trio.run(main)


class State(TypedDict):
    """A graph's state. A reducer would copy it, and a checkpoint stores it."""

    question: str
    steps: list[str]


def in_langgraph() -> None:
    """Trace in nodes that run one after the other, in parallel, and under `ainvoke`."""
    from langgraph.checkpoint.memory import InMemorySaver  # type: ignore[import-not-found]
    from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]

    def node(name: str) -> Callable[[State], dict[str, Any]]:
        def run(state: State) -> dict[str, Any]:
            top = current()
            with spans.span(f"{name} of {top.name if top else None}", input=state) as span:
                span.output = {"question": state["question"]}
            return {}

        return run

    graph = StateGraph(State)
    for name in ("plan", "search", "read", "answer"):
        graph.add_node(name, node(name))
    graph.add_edge(START, "plan")
    for name in ("search", "read"):
        graph.add_edge("plan", name)
        graph.add_edge(name, "answer")
    graph.add_edge("answer", END)
    compiled = graph.compile(checkpointer=InMemorySaver())
    question: State = {"question": "Where is my parcel?", "steps": []}
    with spans.span("invoke"):
        compiled.invoke(question, {"configurable": {"thread_id": "1"}})

    async def main() -> None:
        async with spans.span("ainvoke"):
            await compiled.ainvoke(question, {"configurable": {"thread_id": "2"}})

    asyncio.run(main())
    assert current() is None


def with_values() -> None:
    """Trace values of numpy, pandas, pydantic (both versions of its models) and attrs."""
    # By name, because a type checker may find some of them.
    attrs, np, pd, v1, v2 = map(
        import_module, ("attrs", "numpy", "pandas", "pydantic.v1", "pydantic")
    )
    one = v1.create_model("One", name=(str, ...), score=(float, ...))
    two = v2.create_model("Two", name=(str, ...), score=(float, ...))
    plain = attrs.make_class("Plain", ["name", "score"])
    values: dict[str, Any] = {
        "numpy scalars": [np.float32(0.5), np.int64(2**40), np.bool_(True)],
        "numpy array": np.array([[1, 2], [3, 4]]),
        "numpy floats": np.array([0.5, float("nan"), float("inf")]),
        "numpy key": {np.int64(7): "seven", 8: "eight"},
        "pandas": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        "pandas series": pd.Series([1.5, 2.5]),
        "pandas time": pd.Timestamp("2026-01-02T03:04:05Z"),
        "pydantic 1": one(name="n", score=0.5),
        "pydantic 2": two(name="n", score=0.5),
        "attrs": plain("n", 0.5),
        "nested": {"models": [one(name="m", score=1.5), {"deep": plain("p", np.int8(3))}]},
        "large array": np.zeros((1000, 1000)),
        "large frame": pd.DataFrame(np.zeros((100_000, 20))),
    }
    for name, value in values.items():
        with spans.span(name, input={"value": value}):
            pass


if __name__ == "__main__":
    {"trio": in_trio, "langgraph": in_langgraph, "values": with_values}[sys.argv[1]]()
