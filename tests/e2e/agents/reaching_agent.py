"""Sends one span to each upstream with each client of the SDKs, as its environment says.

The span's id is the client's name. Prints as JSON, by id, "" or the exception that it got.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

from agentex import Agentex, AsyncAgentex  # type: ignore[import-not-found]
from scale_gp_beta import AsyncSGPClient, SGPClient  # type: ignore[import-not-found]

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ONCE = {"max_retries": 0, "timeout": 10.0}


def span(id_: str) -> dict[str, Any]:
    """Return a finished span for Agentex."""
    return {"id": id_, "trace_id": "t", "name": "n", "start_time": NOW, "end_time": NOW}


def items(id_: str) -> list[dict[str, Any]]:
    """Return the same for SGP."""
    times = dict.fromkeys(("start_timestamp", "end_timestamp"), NOW.isoformat())
    return [{"id": id_, "trace_id": "t", "name": "n", "input": {}, "output": {}, **times}]


async def agentex(id_: str) -> None:
    """Send a span with either client for Agentex."""
    if id_.endswith("async"):
        async with AsyncAgentex(**ONCE) as client:
            await client.spans.create(**span(id_))
    else:
        with Agentex(**ONCE) as client:
            client.spans.create(**span(id_))


async def sgp(id_: str) -> None:
    """Send a span with either client for SGP."""
    if id_.endswith("async"):
        async with AsyncSGPClient(**ONCE) as client:
            await client.spans.upsert_batch(items=items(id_))
    else:
        with SGPClient(**ONCE) as client:
            client.spans.upsert_batch(items=items(id_))


async def main() -> None:
    """Make each call once, whatever becomes of the others."""
    said = {}
    for send in (agentex, sgp):
        for kind in ("sync", "async"):
            id_ = f"{send.__name__}-{kind}"
            try:
                await send(id_)
                said[id_] = ""
            except Exception as error:  # noqa: BLE001 (whatever a client raises)
                said[id_] = repr(error.__cause__ or error)
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
