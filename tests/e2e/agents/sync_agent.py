"""An agent with `Trace`, in threads. Argument: its processors.

Prints the spans that it ended as JSON before it exits.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from agentex.lib.core.tracing.tracer import Tracer  # type: ignore[import-not-found]
from agentex.lib.core.tracing.tracing_processor_manager import (  # type: ignore[import-not-found]
    shutdown_sync_tracing_processors,
)

from tests.e2e.agents.setup import Sdk, report, use

CONCURRENT = 200
THREADS = 20


def work(trace: Sdk) -> list[Sdk]:
    """Make nested spans, one that ends with an exception, and many concurrent ones."""
    with trace.span(
        "turn", input={"q": "\u2603"}, data={"__span_type__": "AGENT_WORKFLOW"}
    ) as turn:
        with trace.span("model", parent_id=turn.id, input={"temperature": 0.1}) as model:
            model.data = {"usage": {"input_tokens": 9}}
        turn.output = {"answer": "4" * 60_000}
    made = [turn, model]
    with suppress(KeyError), trace.span("failing", input={"n": 0}) as failing:
        made.append(failing)
        raise KeyError("absent")

    def one(number: int) -> Sdk:
        with trace.span(f"task {number}", input={"number": number}) as span:
            span.output = {"square": number * number}
        return span

    with ThreadPoolExecutor(THREADS) as threads:
        return [*made, *threads.map(one, range(CONCURRENT))]


def main(processors: str) -> None:
    """Run, and shut down as the SDK's server does."""
    use(processors)
    made = work(Tracer(None).trace("trace-1"))
    asyncio.run(shutdown_sync_tracing_processors())
    report(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
