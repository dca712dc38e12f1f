"""An agent with the tracing module of scale-gp-beta, configured by its environment.

Prints the spans that it ended as JSON before it exits.
"""

import json
import sys
from contextlib import suppress
from typing import Any, TypeAlias

from scale_gp_beta import SGPClient  # type: ignore[import-not-found]
from scale_gp_beta.lib import tracing  # type: ignore[import-not-found]

CONCURRENT = 200
Sdk: TypeAlias = Any  # the SDK's own types; the SDK is not installed where this is type-checked


def row(span: Sdk) -> dict[str, Any]:
    """Return the agent's own record of a span."""
    return {
        "id": span.span_id,
        "trace_id": span.trace_id,
        "name": span.name,
        "start_time": span.start_time,
        "end_time": span.end_time,
    }


def main() -> None:
    """Make a trace with nested spans; START and END of each are sent."""
    tracing.init(SGPClient())
    made = []
    with tracing.create_trace("turn", input={"q": "\u2603"}, group_id="group-1"):
        made.append(tracing.current_span())
        with tracing.create_span("model", "COMPLETION", metadata={"usage": {"n": 1}}) as model:
            model.output = {"answer": "4" * 60_000}
            with tracing.create_span("tool", input={"n": 1}) as tool:
                pass
        with suppress(ValueError), tracing.create_span("failing") as failing:
            made.append(failing)
            raise ValueError("no such thing")
        made.extend((model, tool))
        for number in range(CONCURRENT):
            with tracing.create_span(f"task {number}", input={"number": number}) as span:
                span.output = {"square": number * number}
            made.append(span)
    tracing.flush_queue()
    sys.stdout.write(json.dumps([row(span) for span in made]) + "\n")


if __name__ == "__main__":
    main()
