"""The work of both agents: one turn, traced with the Agentex SDK as in every agent of it."""

import asyncio
from contextlib import suppress

from agentex.lib.core.tracing.span_queue import shutdown_default_span_queue
from agentex.lib.core.tracing.tracer import AsyncTracer
from agentex.lib.core.tracing.tracing_processor_manager import shutdown_sync_tracing_processors


async def answer(question: str) -> str:
    """A tool that works, one that fails, then the model."""
    trace = AsyncTracer(None).trace("parcels")
    async with trace.span("turn", input={"question": question}) as turn:
        async with trace.span("search", parent_id=turn.id, input={"query": question}) as search:
            search.output = {"parcels": [{"number": 7, "status": "delivered"}]}
        with suppress(TimeoutError):
            async with trace.span("notify", parent_id=turn.id, input={"parcel": 7}):
                raise TimeoutError("the mail server gives no answer")
        prompt = [{"role": "user", "content": f"{question} Its status is: delivered."}]
        async with trace.span("model", parent_id=turn.id, input={"messages": prompt}) as model:
            model.output = {"role": "assistant", "content": "It was delivered."}
        turn.output = {"answer": "It was delivered."}
    return "It was delivered."


async def main() -> None:
    """Answer one question, then shut tracing down as the SDK's server does."""
    print(await answer("Where is my parcel?"))
    await shutdown_default_span_queue()
    await shutdown_sync_tracing_processors()


def run() -> None:
    """Run the agent."""
    asyncio.run(main())
