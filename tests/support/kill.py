"""Kills a sidecar process repeatedly while agents post, then checks that nothing is missing.

The upstreams run in the test's process and outlive every sidecar. Each accepted event is recorded
with the hash of its payload, and `Rig.finish` looks for all of them upstream.
"""

import asyncio
import hashlib
import json
import os
import random
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.spans import END_TIME, START_TIME

Json = dict[str, Any]
AGENTS = 6
SIZES = (10, 3000, 30_000)
POLL_S = 0.05
# Longer than a drain takes on a busy machine.
DRAIN_S = 90.0


def digest(value: object) -> str:
    """The hash of a payload."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def parsed(line: bytes) -> Json:
    """A parsed log line; a line that is not JSON counts as an error."""
    if not line.startswith(b"{"):
        return {"level": "error", "event": line.decode()}
    decoded: Json = json.loads(line)
    return decoded


@dataclass
class SidecarRun:
    """One run of the sidecar process, and its log."""

    process: Process
    url: str
    admin_url: str
    log: list[Json]
    reading: asyncio.Task[None]
    code: int | None = None

    async def ended(self) -> int:
        """Wait for the process to end; return its exit code."""
        self.code = await self.process.wait()
        await self.reading
        return self.code


@dataclass
class Rig:
    """Both upstreams, and the events that sidecars have accepted from the agents."""

    folder: Path
    seed: int
    settings: dict[str, str] = field(default_factory=dict)
    agentex: AgentexStandIn = field(default_factory=lambda: AgentexStandIn(latency_s=0.05))
    sgp: SgpStandIn = field(default_factory=lambda: SgpStandIn(latency_s=0.3))
    started: dict[str, str] = field(default_factory=dict)  # span id -> hash of its input
    ended: dict[str, str] = field(default_factory=dict)
    numbers: int = 0
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Create the random generator, so that a seed is as reproducible as timing allows."""
        self.random = random.Random(self.seed)

    def _environ(self, extra: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {
            **kept,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "AGENTEX_BASE_URL": self.agentex.url,
            "SGP_CLIENT_BASE_URL": self.sgp.url,
            "SGP_API_KEY": "key",
            "SGP_ACCOUNT_ID": "account",
            "SIDECAR_LISTENER__HOSTS": "127.0.0.1",
            "SIDECAR_LISTENER__PORT": "0",
            "SIDECAR_ADMIN__HOST": "127.0.0.1",
            "SIDECAR_ADMIN__PORT": "0",
            "SIDECAR_QUEUE__MAX_BYTES": "8MiB",
            "SIDECAR_QUEUE__START_HOLD_S": "0.5",
            "SIDECAR_SPOOL__PATH": str(self.folder / "spool"),
            "SIDECAR_DEAD_LETTERS__PATH": str(self.folder / "letters.jsonl"),
            "SIDECAR_SHUTDOWN__QUIET_S": "0",
            **self.settings,
            **extra,
        }

    async def launch(self, *wrapper: str, **extra: str) -> Process:
        """Start the process of a sidecar, as `wrapper` does if there is one."""
        command = (*wrapper, sys.executable, "-m", "sidecar", "run")
        process = await asyncio.create_subprocess_exec(
            *command, stderr=PIPE, env=self._environ(extra)
        )
        self.processes.append(process)
        return process

    async def kill_all(self) -> None:
        """End what a test that failed left running."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def start(self, *wrapper: str, **extra: str) -> SidecarRun:
        """Start a sidecar on the spool that the last one left, and wait until it has started."""
        process = await self.launch(*wrapper, **extra)
        stderr = process.stderr
        assert stderr is not None
        log: list[Json] = []
        while not log or log[-1]["event"] != "started":
            line = await stderr.readline()
            assert line, log
            log.append(parsed(line))

        async def read() -> None:
            async for line in stderr:
                log.append(parsed(line))  # noqa: PERF401 (read while it grows)

        ports = log[-1]
        admin_url = f"http://127.0.0.1:{ports['admin_port']}"
        return SidecarRun(
            process, ports["listener"][0], admin_url, log, asyncio.create_task(read())
        )

    async def agent(self, url: str, name: str) -> None:
        """Post STARTs and ENDs, one per request, until the sidecar is gone."""
        async with aiohttp.ClientSession() as session:
            with suppress(aiohttp.ClientError, OSError):
                while True:
                    self.numbers += 1
                    await self._span(session, url, f"{name}-{self.numbers}")

    async def _span(self, session: aiohttp.ClientSession, url: str, id_: str) -> None:
        payload = {"prompt": id_ + "x" * self.random.choice(SIZES)}
        span = {"id": id_, "trace_id": "t", "name": "n", "start_time": START_TIME, "input": payload}
        if not await self._posted(session, url, "start", span):
            return
        self.started[id_] = digest(payload)
        if self.random.random() < 0.1:
            await asyncio.sleep(0.7)  # longer than a START is held, so it is written open
        done = {**span, "end_time": END_TIME, "output": {"text": id_}}
        if self.random.random() < 0.3:
            del done["input"]  # unchanged since the START
        if await self._posted(session, url, "end", done):
            self.ended[id_] = self.started[id_]

    async def _posted(
        self, session: aiohttp.ClientSession, url: str, kind: str, span: Json
    ) -> bool:
        event = {"event_type": kind, "span": span}
        async with session.post(url + "/v1/spans", json=event) as reply:
            assert reply.status in {202, 429, 503}, await reply.text()
            if reply.status == 202:
                return True
        await asyncio.sleep(0.05)
        return False

    async def live(self, seconds: float, *, kill: bool, **extra: str) -> SidecarRun:
        """Run a sidecar under load for `seconds`, then end it by SIGKILL or SIGTERM."""
        life = await self.start(**extra)
        names = [f"{life.process.pid}-{number}" for number in range(AGENTS)]
        agents = [asyncio.create_task(self.agent(life.url, name)) for name in names]
        await asyncio.sleep(seconds)
        if kill:
            life.process.kill()
        else:
            life.process.terminate()
        await life.ended()
        await asyncio.gather(*agents)
        return life

    async def finish(self) -> Json:
        """Run a last sidecar until everything accepted has arrived; return its last status."""
        life = await self.start(SIDECAR_SHUTDOWN__GRACE_S="20")
        async with asyncio.timeout(DRAIN_S), aiohttp.ClientSession() as session:
            while True:
                async with session.get(life.admin_url + "/status") as reply:
                    status: Json = await reply.json()
                lanes = status["sinks"].values()
                if not status["events"]["held"] and not any(lane["depth"] for lane in lanes):
                    break
                await asyncio.sleep(POLL_S)
        life.process.terminate()
        assert await life.ended() == 0
        for lane in lanes:
            assert (lane["imbalance"], lane["lost"], lane["dead_lettered"]) == (0, 0, 0)
        assert status["events"]["imbalance"] == 0
        self._check()
        return status

    def _check(self) -> None:
        letters = self.folder / "letters.jsonl"
        assert not letters.exists() or not letters.read_bytes()
        assert (self.agentex.late_opens, self.sgp.late_opens) == (0, 0)
        assert self.sgp.second_rows == 0
        stored = {
            "agentex": self.agentex.spans,
            "sgp": {k[1]: v for k, v in self.sgp.spans.items()},
        }
        for sink, rows in stored.items():
            missing = [id_ for id_ in self.started if id_ not in rows]
            assert not missing, (sink, len(missing), missing[:5])
            wrong = [i for i, sent in self.started.items() if digest(rows[i]["input"]) != sent]
            assert not wrong, (sink, len(wrong), wrong[:5])
        assert set(self.ended) <= self.agentex.complete & self.sgp.complete
