"""Whatever becomes of standard error, `sidecar run` takes spans, delivers them and stops (D27)."""

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.run_process import RunProcess, run_process
from tests.support.world import Upstream, upstream

pytestmark = pytest.mark.process


def full_pipe() -> tuple[int, int]:
    """A pipe in which the next write waits until somebody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"." * 4096)
    os.set_blocking(writer, True)
    return reader, writer


def standard_streams(pid: int) -> set[Path]:
    """The files that a process has as its standard streams."""
    return {Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)}


async def works_and_stops(running: RunProcess, agentex: Upstream) -> None:
    """Check that spans are delivered, and that SIGTERM ends the process."""
    for number in range(5):
        await running.post_and_arrive(agentex, f"span-{number}")
    await running.until('forwarded_writes_total{kind="complete",sink="agentex"}', 5)
    assert await running.stop() == 0


async def test_a_pipe_that_nobody_reads() -> None:
    """The log waits alone: that it does is counted, and it is dropped at the end."""
    reader, writer = full_pipe()
    async with upstream() as agentex, run_process(agentex, stderr=writer) as running:
        os.close(writer)
        await running.until('stalls_total{what="log"}', 1)
        await works_and_stops(running, agentex)
    os.close(reader)


async def test_a_pipe_that_is_read_late() -> None:
    """What was logged while nobody read arrives once somebody does, in order."""
    reader, writer = full_pipe()
    async with upstream() as agentex, run_process(agentex, stderr=writer) as running:
        os.close(writer)
        await running.until('stalls_total{what="log"}', 1)
        await running.post_and_arrive(agentex, "a")
        assert os.read(reader, 2**16).strip(b".") == b""
        assert json.loads(os.read(reader, 2**16).splitlines()[0])["event"] == "started"
        assert await running.stop() == 0
    rest = os.read(reader, 2**16).splitlines()
    assert [json.loads(line)["event"] for line in rest][-2:] == ["stopping", "stopped"]
    os.close(reader)


async def test_a_reader_that_is_gone() -> None:
    """Each line is dropped and counted, and `/status` says so."""
    reader, writer = os.pipe()
    os.close(reader)
    async with upstream() as agentex, run_process(agentex, stderr=writer) as running:
        os.close(writer)
        await running.until("log_lines_dropped_total", 1)
        status = json.loads(await running.get(f"{running.admin_url}/status"))
        assert status["log"]["lines_dropped_lately"] >= 1
        assert status["answers"][2]["answer"] == "Log lines were dropped"
        await works_and_stops(running, agentex)


async def test_a_disk_that_is_full() -> None:
    """A log file on a full disk stops nothing either."""
    full = os.open("/dev/full", os.O_WRONLY)
    async with upstream() as agentex, run_process(agentex, stderr=full) as running:
        os.close(full)
        await running.until("log_lines_dropped_total", 1)
        await works_and_stops(running, agentex)


async def test_standard_streams_that_are_closed(tmp_path: Path) -> None:
    """The log does not go to whatever is opened next, such as the spool or a connection."""
    async with (
        upstream() as agentex,
        run_process(
            agentex,
            stderr=2,
            first="exec 0<&- 1>&- 2>&-;",
            spool__path=tmp_path / "spool",
            dead_letters__path=tmp_path / "letters.jsonl",
        ) as running,
    ):
        assert standard_streams(running.process.pid) == {Path(os.devnull)}
        assert await running.metric("log_lines_dropped_total") == 0
        await works_and_stops(running, agentex)
