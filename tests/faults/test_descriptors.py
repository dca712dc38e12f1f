"""With few file descriptors, idle connections take none from probes, posts and upstreams (D27)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.run_process import RunProcess, run_process
from tests.support.world import upstream

pytestmark = pytest.mark.process

IDLE = 150


@asynccontextmanager
async def idle_connections(*ports: int) -> AsyncIterator[None]:
    """Open `IDLE` connections to each port, which send nothing."""
    opened = []
    try:
        for port in ports:
            for _ in range(IDLE):
                opened.append(await asyncio.open_connection("127.0.0.1", port))  # noqa: PERF401
        yield
    finally:
        for _, writer in opened:
            writer.close()


def lines(log: Path) -> list[dict[str, object]]:
    """The lines of a log."""
    return [json.loads(line) for line in log.read_text().splitlines()]


async def answers(running: RunProcess) -> None:
    """Check that new connections to both ports are served."""
    for path in ("/livez", "/readyz", "/metrics", "/status"):
        assert await running.get(running.admin_url + path)
    assert await running.get(f"{running.url}/readyz") == "ready\n"


@pytest.mark.parametrize("spool", [False, True])
async def test_idle_connections_to_both_ports(tmp_path: Path, *, spool: bool) -> None:
    """All paths answer, a post gets 202 and arrives, and the log names the limits."""
    log = tmp_path / "log"
    settings: dict[str, object] = {"dead_letters__path": tmp_path / "letters.jsonl"}
    if spool:
        settings["spool__path"] = tmp_path / "spool"
    with log.open("wb") as file:
        async with (
            upstream() as agentex,
            run_process(
                agentex, stderr=file.fileno(), first="ulimit -n 64;", **settings
            ) as running,
            idle_connections(running.port, running.admin_port),
        ):
            await answers(running)
            for number in range(20):
                await running.post(f"span-{number}")
            await running.until('forwarded_writes_total{kind="complete",sink="agentex"}', 20)
            await answers(running)
            assert await running.metric("process_max_fds") == 64
            status = json.loads(await running.get(f"{running.admin_url}/status"))
            assert all(1 <= port["open"] < 20 for port in status["connections"].values())
            assert await running.metric("process_open_fds") <= 60
            assert await running.stop() == 0
    scarce = [line for line in lines(log) if line["event"] == "descriptors_scarce"]
    assert [line["limit"] for line in scarce] == [64]
    assert {line["event"] for line in lines(log) if line["level"] != "info"} == {
        "connections_full",
        "descriptors_scarce",
    }


@pytest.mark.parametrize(("limits", "limit"), [("-Sn 64; ulimit -Hn 4096", 4096), ("-n 48", 48)])
async def test_the_limit_is_raised(tmp_path: Path, limits: str, limit: int) -> None:
    """The soft limit is raised to the hard one; where that is not enough, the log says so."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        async with (
            upstream() as agentex,
            run_process(agentex, stderr=file.fileno(), first=f"ulimit {limits};") as running,
        ):
            assert await running.metric("process_max_fds") == limit
            await running.post_and_arrive(agentex, "a")
            await answers(running)
            assert await running.stop() == 0
    said = [line["event"] for line in lines(log)]
    assert ("descriptors_scarce" in said) is (limit < 1000)
