"""Makes the SDKs' own span calls with strict response validation.

A response with a missing or malformed field then raises. Prints the parsed responses as JSON.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

from agentex import Agentex, AsyncAgentex  # type: ignore[import-not-found]
from scale_gp_beta import AsyncSGPClient, SGPClient  # type: ignore[import-not-found]

START = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
END = datetime(2026, 1, 2, 3, 4, 6, 500000, UTC)


def items(prefix: str) -> list[dict[str, Any]]:
    """Return two items for SGP, one of them open."""
    shared = {"trace_id": "trace-1", "name": "n", "start_timestamp": START.isoformat()}
    ended = {"end_timestamp": END.isoformat(), "output": {"a": 1}, "status": "ERROR"}
    return [
        {"id": prefix + "open", "input": {}, **shared},
        {"id": prefix + "ended", "input": {"q": 1}, "type": "CUSTOM", **shared, **ended},
    ]


def span(id_: str) -> dict[str, Any]:
    """Return a START for Agentex."""
    given: dict[str, Any] = {"input": [{"q": 1}], "data": {"a": 1}}
    return {"id": id_, "trace_id": "trace-1", "name": "n", "start_time": START, **given}


def ended() -> dict[str, Any]:
    """Return the fields that the SDK's processor updates."""
    given = {"output": {"a": 1}, "data": {"b": 2}}
    return {"trace_id": "trace-1", "name": "n", "start_time": START, "end_time": END, **given}


async def main() -> None:
    """Make every call with each kind of client."""
    strict = {"_strict_response_validation": True}
    answers: list[Any] = []
    with SGPClient(**strict) as sgp, Agentex(**strict) as agentex:
        answers += sgp.spans.upsert_batch(items=items("sync-put-")).items
        answers += sgp.spans.batch(items=items("sync-post-")).items
        answers.append(agentex.spans.create(**span("sync")))
        answers.append(agentex.spans.update("sync", **ended()))
    async with AsyncSGPClient(**strict) as sgp, AsyncAgentex(**strict) as agentex:
        answers += (await sgp.spans.upsert_batch(items=items("async-put-"))).items
        answers += (await sgp.spans.batch(items=items("async-post-"))).items
        answers.append(await agentex.spans.create(**span("async")))
        answers.append(await agentex.spans.update("async", **ended()))
    sys.stdout.write(json.dumps([answer.model_dump(mode="json") for answer in answers]) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
