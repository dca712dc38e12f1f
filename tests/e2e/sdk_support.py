"""Real agents with or without a real sidecar, and the spans that arrived from them."""

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
# Generous, for a busy machine; nothing is measured with it.
DEADLINE_S = 90.0
POLL_S = 0.05
# Variables that describe the agent in its pod, for both the agent and the sidecar.
IDENTITY = {
    "AGENT_NAME": "demo-agent",
    "AGENT_ID": "agent-1",
    "ACP_TYPE": "async",
    "AGENT_VERSION": "1.2.3",
}
_TIMES = ("start_time", "end_time", "start_timestamp", "end_timestamp")


def sdk_python() -> Path:
    """Return an interpreter with the newest SDKs."""
    return parts.venv("sdk", "agentex-sdk", "scale-gp-beta")


async def until(true: Callable[[], bool]) -> None:
    """Wait for a condition; fail after `DEADLINE_S`."""
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
        """Close its stdin so that it ends, and return its own report of its spans."""
        async with asyncio.timeout(DEADLINE_S):
            said, errors = await self._process.communicate(b"")
        assert self._process.returncode == 0, errors.decode()[-4000:]
        rows: list[Row] = json.loads(said.splitlines()[-1])
        return rows

    async def kill(self) -> None:
        """Kill it unless it has ended."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.communicate(b"")


@dataclass
class Pod:
    """Both upstreams and, if `life` is not None, a sidecar in front of them."""

    rig: Rig
    life: SidecarRun | None = None

    @property
    def agentex(self) -> AgentexStandIn:
        """The Agentex upstream."""
        return self.rig.agentex

    @property
    def sgp(self) -> SgpStandIn:
        """The SGP upstream."""
        return self.rig.sgp

    def arrived(self) -> Arrived:
        """Return the rows of both upstreams."""
        return Arrived(self.agentex.spans, {id_: row for (_, id_), row in self.sgp.spans.items()})

    async def more(self, spans: int) -> None:
        """Wait until SGP has this many more spans than now."""
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
            # Otherwise a package that the SDK imports fetches price lists from the Internet.
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
        """Run an agent to its end, then wait until the sidecar has delivered everything."""
        async with self.agent(name, *arguments, **environ) as agent:
            made = await agent.ended()
        await self.delivered()
        return made

    async def delivered(self) -> None:
        """Wait until the upstreams have all that the sidecar accepted; assert no loss."""
        if self.life is None:
            return
        status = await settled(self.life.admin_url)
        assert status["events"]["imbalance"] == 0
        for lane in status["sinks"].values():
            assert (lane["imbalance"], lane["lost"], lane["dead_lettered"]) == (0, 0, 0)


async def settled(admin_url: str) -> Row:
    """Wait until a sidecar has nothing left to deliver; returns its `/status`."""
    async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(admin_url + "/status") as reply:
                status: Row = await reply.json()
            waiting = any(lane["depth"] for lane in status["sinks"].values())
            if not status["events"]["held"] and not waiting:
                return status
            await asyncio.sleep(POLL_S)


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


@asynccontextmanager
async def pod(folder: Path, *, sidecar: bool, **settings: str) -> AsyncIterator[Pod]:
    """Run both upstreams, and optionally a sidecar with `settings` in its environment."""
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
    """End a sidecar unless it has ended, and return its exit code."""
    if life.process.returncode is None:
        life.process.send_signal(number)
    async with asyncio.timeout(DEADLINE_S):
        return await life.ended()


def comparable(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return rows by name, with everything normalized that differs between two runs of one agent.

    Ids become the names of their spans, times become whether they are present; `lost` checks both.
    """
    names = {id_: row["name"] for id_, row in rows.items()}
    assert len(set(names.values())) == len(names), "names are unique"
    made: dict[str, Row] = {}
    for row in rows.values():
        alike = row | {"id": row["name"]}
        for key in ("parent_id", "trace_id"):
            if key in row:
                # A trace id that the SDK generates differs in each run.
                alike[key] = names.get(row[key], "a trace" if key == "trace_id" else row[key])
        alike |= {key: row[key] is not None for key in _TIMES if key in row}
        made[row["name"]] = alike
    return made


def assert_equal(with_sidecar: Mapping[str, Row], without: Mapping[str, Row]) -> None:
    """Assert that two runs of one agent left the same spans.

    Spans that the run without a sidecar left incomplete are ignored: with START writes, the SDKs'
    sync queue flushes from two threads, and a START that arrives last replaces its END.
    """
    ours, theirs = comparable(with_sidecar), comparable(without)
    whole = {n: row for n, row in theirs.items() if row.get("end_time") or row.get("end_timestamp")}
    assert len(whole) > len(ours) / 2
    assert {name: ours.get(name) for name in whole} == whole


def instant(text: str) -> datetime:
    """Parse a time; without an offset it is UTC."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def lost(made: list[Row], rows: Mapping[str, Row]) -> int:
    """Return how many of the agent's spans did not arrive complete.

    Asserts that the others have exactly the agent's ids and times.
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
