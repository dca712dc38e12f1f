"""Real agents beside a real sidecar, or without one, and what arrived of their spans."""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.e2e import parts
from tests.support.kill import Rig, SidecarRun

Row = dict[str, Any]

ROOT = Path(__file__).parents[2]
# For whatever a busy machine may take long for; nothing is measured by it.
DEADLINE_S = 90.0
POLL_S = 0.05
# What an agent's pod says of the agent, to the agent and to the sidecar alike.
IDENTITY = {
    "AGENT_NAME": "demo-agent",
    "AGENT_ID": "agent-1",
    "ACP_TYPE": "async",
    "AGENT_VERSION": "1.2.3",
}
_TIMES = ("start_time", "end_time", "start_timestamp", "end_timestamp")


def sdk_python() -> Path:
    """An interpreter with the newest SDKs."""
    return parts.venv("sdk", "agentex-sdk", "scale-gp-beta")


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition; fails after `DEADLINE_S`."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if true():
                return
            await asyncio.sleep(POLL_S)


class Arrived(NamedTuple):
    """The rows of both upstreams, by span id."""

    agentex: dict[str, Row]
    sgp: dict[str, Row]


class Agent:
    """A running agent."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ended(self) -> list[Row]:
        """Let it end, by the end of its stdin; what it says of its spans."""
        async with asyncio.timeout(DEADLINE_S):
            said, errors = await self._process.communicate(b"")
        assert self._process.returncode == 0, errors.decode()[-4000:]
        rows: list[Row] = json.loads(said.splitlines()[-1])
        return rows

    async def kill(self) -> None:
        """End it where it has not ended."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate(b"")


@dataclass
class Pod:
    """Both upstreams and, where `life` is one, a sidecar before them."""

    rig: Rig
    life: SidecarRun | None = None

    @property
    def agentex(self) -> AgentexStandIn:
        """The Agentex that all ends up at."""
        return self.rig.agentex

    @property
    def sgp(self) -> SgpStandIn:
        """The SGP that all ends up at."""
        return self.rig.sgp

    def arrived(self) -> Arrived:
        """What the upstreams have."""
        return Arrived(self.agentex.spans, {id_: row for (_, id_), row in self.sgp.spans.items()})

    async def more(self, spans: int) -> None:
        """Wait until SGP has so many spans more than now."""
        enough = len(self.sgp.spans) + spans
        await until(lambda: len(self.sgp.spans) >= enough)

    @asynccontextmanager
    async def agent(self, name: str, *arguments: str, **environ: str) -> AsyncIterator[Agent]:
        """Start the agent `name` from this repository's files, in the environment with the SDKs."""
        module = ("-m", f"tests.e2e.agents.{name}")
        path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}"}
        async with self.process(sdk_python(), *module, *arguments, **path, **environ) as agent:
            yield agent

    @asynccontextmanager
    async def process(self, *command: str | Path, **environ: str) -> AsyncIterator[Agent]:
        """Start an agent, with nothing but the environment to tell it where to send."""
        url = self.life.url if self.life else ""
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        settings = {
            "ACP_URL": "http://127.0.0.1",
            "AGENTEX_BASE_URL": url or self.agentex.url,
            "SGP_CLIENT_BASE_URL": url or self.sgp.url,
            "TRACE_SIDECAR_URL": url,
            "SGP_API_KEY": "key",
            "SGP_ACCOUNT_ID": "account",
            # A package that the SDK imports would ask the internet for prices.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**kept, **IDENTITY, **settings, **environ},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=2**24,
        )
        agent = Agent(process)
        try:
            yield agent
        finally:
            await agent.kill()

    async def run(self, name: str, *arguments: str, **environ: str) -> list[Row]:
        """Run an agent to its end; then wait until the sidecar has nothing left."""
        async with self.agent(name, *arguments, **environ) as agent:
            made = await agent.ended()
        await self.delivered()
        return made

    async def delivered(self) -> None:
        """Wait until all that the sidecar took is upstream; nothing of it may be lost."""
        if self.life is None:
            return
        async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
            while True:
                async with session.get(self.life.admin_url + "/status") as reply:
                    status: Row = await reply.json()
                lanes = status["sinks"].values()
                if not status["events"]["held"] and not any(lane["depth"] for lane in lanes):
                    break
                await asyncio.sleep(POLL_S)
        assert status["events"]["imbalance"] == 0
        for lane in lanes:
            assert (lane["imbalance"], lane["lost"], lane["dead_lettered"]) == (0, 0, 0)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@asynccontextmanager
async def pod(folder: Path, *, sidecar: bool, **settings: str) -> AsyncIterator[Pod]:
    """Upstreams, and a sidecar with `settings` in its environment if there is to be one."""
    rig = Rig(
        _made(folder),
        seed=0,
        settings={**IDENTITY, "SIDECAR_SPOOL__PATH": "", **settings},
        agentex=AgentexStandIn(latency_s=0.02),
        sgp=SgpStandIn(latency_s=0.05),
    )
    async with rig.agentex, rig.sgp:
        life = await rig.start() if sidecar else None
        here = Pod(rig, life)
        try:
            yield here
        finally:
            if here.life is not None:
                await stop(here.life)


async def stop(life: SidecarRun, number: signal.Signals = signal.SIGTERM) -> int:
    """End a sidecar, unless it has ended; its exit code."""
    if life.process.returncode is None:
        life.process.send_signal(number)
    async with asyncio.timeout(DEADLINE_S):
        return await life.ended()


def comparable(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Rows by name, with all that differs between two runs of one agent made alike.

    Ids become the names of their spans, times whether they are there; `lost` looks at both.
    """
    names = {id_: row["name"] for id_, row in rows.items()}
    assert len(set(names.values())) == len(names), "names are unique"
    made: dict[str, Row] = {}
    for row in rows.values():
        alike = row | {"id": row["name"]}
        for key in ("parent_id", "trace_id"):
            if key in row:
                # A trace id that an SDK made itself differs from run to run.
                alike[key] = names.get(row[key], "a trace" if key == "trace_id" else row[key])
        alike |= {key: row[key] is not None for key in _TIMES if key in row}
        made[row["name"]] = alike
    return made


def assert_equal(with_sidecar: Mapping[str, Row], without: Mapping[str, Row]) -> None:
    """Two runs of one agent left the same, as far as the one without a sidecar left spans whole.

    With START writes the SDKs' sync queue now and then does not: at its flush two threads send, and
    a START that comes last replaces its END.
    """
    ours, theirs = comparable(with_sidecar), comparable(without)
    whole = {n: row for n, row in theirs.items() if row.get("end_time") or row.get("end_timestamp")}
    assert len(whole) > len(ours) / 2
    assert {name: ours.get(name) for name in whole} == whole


def instant(text: str) -> datetime:
    """A time; without an offset it is UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def lost(made: list[Row], rows: Mapping[str, Row]) -> int:
    """How many of the spans that the agent made did not arrive complete.

    Those that did have the very ids and times that the agent gave them.
    """
    absent = 0
    for span in made:
        row = rows.get(span["id"])
        end = row and (row.get("end_time") or row.get("end_timestamp"))
        if row is None or not end:
            absent += 1
            continue
        assert (row["trace_id"], row["name"]) == (span["trace_id"], span["name"])
        start = row.get("start_time") or row["start_timestamp"]
        assert instant(start) == instant(span["start_time"])
        assert instant(end) == instant(span["end_time"])
    return absent
