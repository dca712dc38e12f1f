"""The command line: what a person types, as a process."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

BASE = {
    "PATH": os.environ["PATH"],
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
}


async def start(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    """`sidecar ARGUMENTS` in an environment of its own."""
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
    """Exit code, standard output, standard error."""
    process = await start(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_run_and_sigterm() -> None:
    """It says where it listens; SIGTERM stops it with the books in the last line, and 0."""
    process = await start("run", AGENTEX_BASE_URL="http://127.0.0.1:9")
    assert process.stderr is not None
    started = json.loads(await process.stderr.readline())
    assert started["event"] == "started"
    process.send_signal(signal.SIGTERM)
    lines = (await process.stderr.read()).splitlines()
    last = json.loads(lines[-1])
    assert (last["event"], last["lost"], last["events"]["imbalance"]) == ("stopped", 0, 0)
    assert await process.wait() == 0


async def test_nothing_to_do_is_said() -> None:
    """No upstream: exit code 2 and what to set, no traceback."""
    code, _, err = await outcome("run")
    assert code == 2
    assert "AGENTEX_BASE_URL" in err
    assert "Traceback" not in err


async def test_a_bad_value_is_said_with_its_place() -> None:
    """The variable that set it, and why."""
    code, _, err = await outcome("check", SIDECAR_QUEUE__MAX_BYTES="many")
    assert code == 2
    assert "queue.max_bytes" in err
    assert "SIDECAR_QUEUE__MAX_BYTES" in err


async def test_a_port_in_use_is_said() -> None:
    """Exit code 2 and the address, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, err = await outcome(
            "run", AGENTEX_BASE_URL="http://127.0.0.1:9", SIDECAR_LISTENER__PORT=port
        )
    assert code == 2
    assert port in err
    assert "Traceback" not in err


async def test_check_shows_everything_but_secrets() -> None:
    """Every key as it is in force; the key itself never."""
    code, out, _ = await outcome("check", SGP_API_KEY="geheim", SGP_ACCOUNT_ID="a")
    assert code == 0
    assert "sgp: on" in out
    assert "agentex: off" in out
    assert "geheim" not in out


@pytest.mark.parametrize("arguments", [[], ["walk"], ["replay"]])
async def test_usage(arguments: list[str]) -> None:
    """A wrong command line gets the usage and 2."""
    code, _, err = await outcome(*arguments)
    assert code == 2
    assert "usage: sidecar" in err
