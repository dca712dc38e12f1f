"""`sidecar run` as a process whose standard error and limits a test chooses."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.support.spans import make_event
from tests.support.world import Upstream

# Starting and stopping take about a second; a hang is a failure, not a hung test.
DEADLINE_S = 30.0
POLL_S = 0.02
ROOT = Path(__file__).parents[2]


@dataclass
class RunProcess:
    """A process that serves both ports."""

    process: asyncio.subprocess.Process
    port: int
    admin_port: int

    @property
    def url(self) -> str:
        """The agents' port."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        """The admin port."""
        return f"http://127.0.0.1:{self.admin_port}"

    async def get(self, url: str) -> str:
        """Return what a new connection gets with status 200."""
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 200
            return await response.text()

    async def metric(self, series: str) -> float:
        """Return the value of a series, such as `stalls_total{what="log"}`."""
        text = await self.get(f"{self.admin_url}/metrics")
        names = f"trace_sidecar_{series} ", f"{series} "
        [value] = [x.rpartition(" ")[2] for x in text.splitlines() if x.startswith(names)]
        return float(value)

    async def until(self, series: str, least: float) -> None:
        """Wait until a series has at least this value."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.metric(series) < least:  # noqa: ASYNC110 (another process)
                await asyncio.sleep(POLL_S)

    async def post(self, id_: str) -> None:
        """Post the END of a span on a new connection; it must be accepted."""
        event = make_event(kind="end", id=id_)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/v1/spans", json=event) as response,
        ):
            assert response.status == 202, await response.text()

    async def post_and_arrive(self, upstream: Upstream, id_: str) -> None:
        """Post a span and wait until the upstream has it."""
        await self.post(id_)
        async with asyncio.timeout(DEADLINE_S):
            while all(id_ not in str(request.body) for request in upstream.requests):
                upstream.asked.clear()
                await upstream.asked.wait()

    async def stop(self) -> int:
        """End it with SIGTERM; return its exit code."""
        self.process.terminate()
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def run_process(
    upstream: Upstream, *, stderr: int, first: str = "", **settings: object
) -> AsyncIterator[RunProcess]:
    """A running process that delivers to `upstream` as Agentex.

    `stderr` is its descriptor. `first` is a shell's command for the process itself: a limit, as
    `ulimit -n 64;`, or a redirection, as `exec 2>&-;`. Keywords are `section__key` settings.
    """
    port, admin_port = free_ports()
    keys = {
        "listener__hosts": "127.0.0.1",
        "listener__port": port,
        "admin__host": "127.0.0.1",
        "admin__port": admin_port,
        "shutdown__quiet_s": 0,
        **settings,
    }
    environ = {f"SIDECAR_{key.upper()}": str(value) for key, value in keys.items()}
    environ |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    environ["AGENTEX_BASE_URL"] = upstream.url
    command = f'{first} exec "$0" -m sidecar run'
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", command, sys.executable, env=environ, cwd=ROOT, stderr=stderr
    )
    try:
        running = RunProcess(process, port, admin_port)
        async with asyncio.timeout(DEADLINE_S):
            while not await serves(port):
                assert process.returncode is None
                await asyncio.sleep(POLL_S)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def serves(port: int) -> bool:
    """Whether something listens on a port."""
    with suppress(OSError):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
        return True
    return False


def free_ports() -> tuple[int, int]:
    """Two ports on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as b:
        return one.getsockname()[1], b.getsockname()[1]
