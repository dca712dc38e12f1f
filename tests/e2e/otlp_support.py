"""A `sidecar run` whose only upstream is an OTLP receiver."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.kill import POLL_S, Rig, SidecarRun

Json = dict[str, Any]

DEADLINE_S = 90.0
IDENTITY = {"AGENT_NAME": "demo-agent", "AGENT_ID": "agent-1", "AGENT_VERSION": "1.2.3",
            "ACP_TYPE": "async"}  # fmt: skip
# A rig's other upstreams are off.
_ONLY_OTLP = {
    "AGENTEX_BASE_URL": "",
    "SGP_CLIENT_BASE_URL": "",
    "SGP_API_KEY": "",
    "SGP_ACCOUNT_ID": "",
}


def otlp_rig(folder: Path, endpoint: str, **settings: str) -> Rig:
    """A rig whose sidecars send to `endpoint`, and try again soon."""
    soon = {"SIDECAR_RETRY__INITIAL_S": "0.1", "SIDECAR_RETRY__MAX_S": "0.5"}
    return Rig(folder, 1, {**_ONLY_OTLP, "SIDECAR_OTLP__ENDPOINT": endpoint, **soon, **settings})


@asynccontextmanager
async def otlp_sidecar(folder: Path, endpoint: str, **settings: str) -> AsyncIterator[SidecarRun]:
    """A running sidecar; at the end it must stop with nothing lost."""
    rig = otlp_rig(folder, endpoint, **settings)
    try:
        life = await rig.start()
        yield life
        await stopped(life)
    finally:
        await rig.kill_all()


async def stopped(life: SidecarRun) -> Json:
    """End a sidecar with SIGTERM; it must lose nothing. Returns its last line."""
    life.process.terminate()
    async with asyncio.timeout(DEADLINE_S):
        assert await life.ended() == 0, life.log
    last = life.log[-1]
    assert (last["event"], last["lost"]) == ("stopped", 0)
    return last


async def post(life: SidecarRun, spans: list[Json], **headers: str) -> None:
    """Post the ENDs of spans in one request; all must be accepted."""
    events = [{"event_type": "end", "span": span} for span in spans]
    await send(life, "POST", "/v1/spans", events, 202, **headers)


async def send(
    life: SidecarRun, method: str, path: str, body: object, status: int, **headers: str
) -> None:
    """Send JSON, in UTF-8, to the agents' port. The keyword `a_b` is the header `a-b`."""
    data = json.dumps(body, ensure_ascii=False).encode()
    named = {"Content-Type": "application/json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, life.url + path, data=data, headers=named) as reply,
    ):
        assert reply.status == status, await reply.text()


async def lane(life: SidecarRun) -> Json:
    """Return what `/status` says of the lane, once nothing waits in it."""
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(life.admin_url + "/status") as reply:
                found: Json = (await reply.json())["sinks"]["otlp"]
            if not found["depth"]:
                return found
            await asyncio.sleep(POLL_S)
