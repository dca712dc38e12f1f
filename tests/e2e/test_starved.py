"""A sidecar whose log can't be written, or that has few descriptors, still does its work."""

import asyncio
import os
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from tests.support.kill import POLL_S, Rig
from tests.support.lives import (
    ANSWER_S,
    GRACE_S,
    START_S,
    arrived,
    post_ends,
    stops,
)

# Where the log goes, as a shell writes it. `pipe` is one that is full, and that nobody reads.
LOGS = {
    "full pipe": ">{pipe} 2>&1",
    "closed pipe": ">{closed} 2>&1",
    "full disk": ">/dev/full 2>&1",
    "closed": ">&- 2>&-",
    "everything closed": "<&- >&- 2>&-",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def full_pipe(path: Path) -> int:
    """Make a pipe without room; returns a descriptor that keeps it open."""
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))
    return descriptor


@asynccontextmanager
async def rig(folder: Path, **settings: str) -> AsyncIterator[Rig]:
    """A rig whose sidecars listen on ports that are known before they start."""
    made = Rig(folder, seed=1)
    async with made.agentex, made.sgp:
        made.settings |= {
            "SIDECAR_LISTENER__PORT": str(free_port()),
            "SIDECAR_ADMIN__PORT": str(free_port()),
            "SIDECAR_SHUTDOWN__GRACE_S": str(GRACE_S),
            **settings,
        }
        try:
            yield made
        finally:
            await made.kill_all()


async def url_of(made: Rig, process: Process) -> str:
    """Wait until the sidecar is ready; return where it listens."""
    ready = f"http://127.0.0.1:{made.settings['SIDECAR_ADMIN__PORT']}/readyz"
    async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
        while True:
            assert process.returncode is None
            with suppress(aiohttp.ClientError):
                async with session.get(ready) as reply:
                    if reply.status == 200:
                        return f"http://127.0.0.1:{made.settings['SIDECAR_LISTENER__PORT']}"
            await asyncio.sleep(POLL_S)


@pytest.mark.parametrize("log", LOGS)
async def test_a_log_that_cannot_be_written(tmp_path: Path, log: str) -> None:
    """Spans are delivered, and SIGTERM ends the process, wherever the log can't be written.

    What is in the spool is still that: the next process delivers it.
    """
    with ExitStack() as stack:
        pipe, closed = tmp_path / "pipe", tmp_path / "closed"
        for path in (pipe, closed):
            stack.callback(os.close, full_pipe(path))
        run = f'exec "$@" {LOGS[log].format(pipe=pipe, closed=closed)}'
        async with rig(tmp_path) as made:
            process = await made.launch("sh", "-c", run, "sh")
            url = await url_of(made, process)
            if log == "closed pipe":
                stack.pop_all().close()
            first = {f"first-{number}" for number in range(20)}
            await post_ends(url, first)
            assert await arrived(made.agentex, first)
            assert await arrived(made.sgp, first)
            made.agentex.rule = made.sgp.rule = lambda _: 503
            second = {f"second-{number}" for number in range(20)}
            await post_ends(url, second)
            assert await stops(process) == 0
            made.agentex.rule = made.sgp.rule = None
            following = await made.start()
            assert await arrived(made.agentex, second)
            assert await arrived(made.sgp, second)
            assert await stops(following.process) == 0
            await following.ended()
            assert not [line for line in following.log if line["level"] == "error"]


@pytest.mark.parametrize("descriptors", [64, pytest.param(128, marks=pytest.mark.nightly)])
async def test_few_descriptors(tmp_path: Path, descriptors: int) -> None:
    """With few descriptors and a crowd on both ports, spans are taken, kept and delivered."""
    async with rig(tmp_path) as made:
        life = await made.start("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh")
        made.agentex.latency_s = made.sgp.latency_s = 0.3  # so that many connections are in use
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            for name in ("LISTENER", "ADMIN"):
                address = "127.0.0.1", int(made.settings[f"SIDECAR_{name}__PORT"])
                for _ in range(2 * descriptors):
                    idle = stack.enter_context(socket.socket())
                    idle.setblocking(False)
                    async with asyncio.timeout(ANSWER_S):
                        await loop.sock_connect(idle, address)
            spans = [f"s-{number}" for number in range(200)]
            await asyncio.gather(*(post_ends(life.url, spans[part::5]) for part in range(5)))
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as session:
                for path in ("/livez", "/metrics", "/status"):
                    async with session.get(life.admin_url + path) as reply:
                        assert reply.status == 200
            assert await arrived(made.agentex, set(spans))
            assert await arrived(made.sgp, set(spans))
            assert await stops(life.process) == 0
        await life.ended()
        assert not [line for line in life.log if line["level"] == "error"]
        assert life.log[-1]["event"] == "stopped"
