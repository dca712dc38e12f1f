"""An agent with `AsyncTrace`. Arguments: its processors, and its work (keys of `WORK`).

Prints the spans that it ended as JSON before it exits.
"""

import asyncio
import sys
from contextlib import suppress

from agentex.lib.core.tracing.span_queue import (  # type: ignore[import-not-found]
    shutdown_default_span_queue,
)
from agentex.lib.core.tracing.tracer import AsyncTracer  # type: ignore[import-not-found]
from agentex.lib.core.tracing.tracing_processor_manager import (  # type: ignore[import-not-found]
    shutdown_sync_tracing_processors,
)
from pydantic import create_model  # type: ignore[import-not-found]

from tests.e2e.agents.setup import Sdk, report, use

CONCURRENT = 200
# Seconds between groups of four spans of the agent that runs until told to stop.
PACE_S = 0.1

Question = create_model("Question", text=(str, ...), tags=(list[str], ...))
made: list[Sdk] = []


async def nested(trace: Sdk) -> None:
    """Make a turn with a model call and a tool call, with inputs of every shape."""
    question = Question(text="what is 2 + 2? \u2603 \U0001f600 \u0000", tags=["sum"])
    kind = {"__span_type__": "AGENT_WORKFLOW", "nothing": None}
    async with trace.span("turn", input=question, data=kind) as turn:
        asked = {"messages": [{"role": "user", "content": question.text}], "temperature": 0.1}
        async with trace.span("model", parent_id=turn.id, input=asked) as model:
            model.output = {"choices": [{"text": "4", "logprob": -1e-7}], "big": 2**60}
            model.data = {"usage": {"input_tokens": 9, "output_tokens": 1}, "cost_usd": 0.0001}
            async with trace.span("tool", parent_id=model.id) as tool:
                pass
        turn.output = {"answer": "4" * 60_000}
    made.extend((turn, model, tool))


async def failing(trace: Sdk) -> None:
    """Make a span that ends with an exception."""
    with suppress(ValueError):
        async with trace.span("failing", input={"n": 0}, data={"step": 1}) as span:
            made.append(span)
            raise ValueError("no \u201csuch\u201d thing")


async def cancelled(trace: Sdk) -> None:
    """Make a span whose task is cancelled."""
    inside = asyncio.Event()

    async def work() -> None:
        async with trace.span("cancelled", input={"n": 1}) as span:
            made.append(span)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])


async def concurrent(trace: Sdk) -> None:
    """Make many concurrent spans."""

    async def one(number: int) -> None:
        async with trace.span(f"task {number}", input={"number": number}) as span:
            await asyncio.sleep(0)
            span.output = {"square": number * number}
        made.append(span)

    await asyncio.gather(*(one(number) for number in range(CONCURRENT)))


async def everything(trace: Sdk) -> None:
    """Do all of the above."""
    await nested(trace)
    await failing(trace)
    await cancelled(trace)
    await concurrent(trace)


async def lists(trace: Sdk) -> None:
    """Make a span with a list as input and output, next to one without."""
    async with trace.span("list", input=[{"role": "user"}, {"role": "tool"}]) as span:
        span.output = [{"text": "a"}]
    async with trace.span("neighbour", input={"q": 1}) as neighbour:
        neighbour.output = {"a": 2}
    made.extend((span, neighbour))


async def until_told(trace: Sdk) -> None:
    """Make spans at a steady rate until stdin ends."""
    told = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    number = 0
    while not told.done():
        for _ in range(4):
            number += 1
            async with trace.span(f"span {number}", input={"prompt": "x" * 2000}) as span:
                span.output = {"number": number}
            made.append(span)
        await asyncio.wait([told], timeout=PACE_S)


WORK = {"everything": everything, "lists": lists, "until_told": until_told}


async def main(processors: str, work: str) -> None:
    """Run, and shut down as the SDK's server does."""
    use(processors)
    await WORK[work](AsyncTracer(None).trace("trace-1"))
    await shutdown_default_span_queue()
    await shutdown_sync_tracing_processors()
    report(made)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
