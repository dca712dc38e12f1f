"""An agent in an environment of its own, together with the notebook widget called `sidecar`.

It is run as a file with `-I`, because its path must have nothing of this repository. Prints the
spans that it ended, as JSON; the client's flush at exit delivers them.
"""

import asyncio
import json
import sys
from importlib import import_module

from agentex.lib.core.tracing.tracer import AsyncTracer  # type: ignore[import-not-found]
from trace_sidecar_client import register


async def main() -> None:
    """Trace one turn while a widget is in use."""
    register()
    widget = import_module("sidecar").Sidecar(title="Where is my parcel?")
    trace = AsyncTracer(None).trace("trace-1")
    async with trace.span("turn", input={"question": widget.title}) as turn:
        async with trace.span("tool", parent_id=turn.id, input={"parcel": 7}) as tool:
            tool.output = {"status": "delivered"}
        turn.output = {"answer": "It was delivered."}
    sys.stdout.write(json.dumps([span.model_dump(mode="json") for span in (tool, turn)]) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
