"""The command line, run as a process."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

BASE = {
    "PATH": os.environ["PATH"],
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
}


async def start(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    """Start `sidecar ARGUMENTS` with a clean environment."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        *arguments,
        env={**BASE, **environ},
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def outcome(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    process = await start(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_run_and_sigterm() -> None:
    """SIGTERM ends `run` with exit code 0 and the accounting in the last log line."""
    process = await start("run", AGENTEX_BASE_URL="http://127.0.0.1:9")
    assert process.stderr is not None
    started = json.loads(await process.stderr.readline())
    assert started["event"] == "started"
    process.send_signal(signal.SIGTERM)
    lines = (await process.stderr.read()).splitlines()
    last = json.loads(lines[-1])
    assert (last["event"], last["lost"], last["events"]["imbalance"]) == ("stopped", 0, 0)
    assert await process.wait() == 0


async def test_run_without_an_upstream() -> None:
    """Exit code 2, and a message that names what to set, without a traceback."""
    code, _, err = await outcome("run")
    assert code == 2
    assert "AGENTEX_BASE_URL" in err
    assert "Traceback" not in err


async def test_a_bad_value_is_reported_with_its_source() -> None:
    """The message names the key and the variable that set it."""
    code, _, err = await outcome("check", SIDECAR_QUEUE__MAX_BYTES="many")
    assert code == 2
    assert "queue.max_bytes" in err
    assert "SIDECAR_QUEUE__MAX_BYTES" in err


async def test_a_port_in_use() -> None:
    """Exit code 2, and a message with the address, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = await outcome(
            "run", AGENTEX_BASE_URL="http://127.0.0.1:9", SIDECAR_LISTENER__PORT=port
        )
    assert code == 2
    assert port in err
    assert "Traceback" not in err


async def test_check_shows_everything_but_secrets() -> None:
    """`check` prints every key with its effective value, and secrets as `***`."""
    code, out, _ = await outcome("check", SGP_API_KEY="hidden", SGP_ACCOUNT_ID="a")
    assert code == 0
    assert "sgp: on" in out
    assert "agentex: off" in out
    assert "hidden" not in out


@pytest.mark.parametrize("arguments", [[], ["walk"], ["replay"]])
async def test_usage(arguments: list[str]) -> None:
    """A wrong command line prints the usage and exits with 2."""
    code, _, err = await outcome(*arguments)
    assert code == 2
    assert "usage: sidecar" in err
