"""The command line, run as a process."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from tests.support.spans import make_span

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


async def test_replay_of_a_damaged_file(tmp_path: Path) -> None:
    """Exit code 1 for a bad line, which is located on standard error; 2 for no file at all."""
    file = tmp_path / "letters.jsonl"
    DeadLetters(str(file), 10_000).add("sgp", make_span("a"), "refused", Refused("", 422))
    listed = await outcome("replay", str(file), "--dry-run")
    assert (listed[0], listed[1].split()[-1], listed[2]) == (0, "a", "")
    with file.open("ab") as torn:
        torn.write(b'{"time":"secret')
    bad = f"sidecar: {file}:2: not a dead letter\n"
    again = await outcome("replay", str(file), "--dry-run")
    assert again == (1, listed[1], f"{bad}unreadable 1\n")
    off = "sidecar: 1 not sent: that upstream is not enabled"
    code, out, err = await outcome("replay", str(file), AGENTEX_BASE_URL="http://127.0.0.1:9")
    assert (code, out) == (1, "off 1, unreadable 1\n")
    assert err.startswith(bad + off)
    code, _, err = await outcome("replay", str(tmp_path / "none"))
    assert (code, "No such file" in err) == (2, True)


@pytest.mark.parametrize("gone", ["stdout", "stderr"])
@pytest.mark.parametrize("command", ["check", "replay FILE --dry-run", "--help"])
async def test_output_that_nobody_reads(command: str, gone: str, tmp_path: Path) -> None:
    """A command whose output is cut off (`| head`) ends without a traceback."""
    file = tmp_path / "letters.jsonl"
    file.write_text("bad\n" * 10_000)
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, gone: writer}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sidecar",
        *command.replace("FILE", str(file)).split(),
        env={**BASE, "AGENTEX_BASE_URL": "http://127.0.0.1:9"},
        cwd=Path(__file__).parent.parent,
        stdout=streams["stdout"],
        stderr=streams["stderr"],
    )
    os.close(writer)
    out, err = await process.communicate()
    assert b"Traceback" not in (err or b"")
    assert b"Exception" not in (err or b"")
    assert process.returncode == int(command.startswith("replay"))  # its letters are bad
    assert bool(out) is (gone == "stderr" and not command.startswith("replay"))


@pytest.mark.parametrize(
    ("command", "code"), [("check", 0), ("replay FILE --dry-run", 1), ("run --config FILE", 2)]
)
async def test_closed_streams(command: str, code: int, tmp_path: Path) -> None:
    """A command runs to its end although its output was closed before it started."""
    file = tmp_path / "letters.jsonl"
    file.write_text("bad\n")
    process = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        f'exec "$0" -m sidecar {command.replace("FILE", str(file))} 1>&- 2>&-',
        sys.executable,
        env={**BASE, "AGENTEX_BASE_URL": "http://127.0.0.1:9"},
        cwd=Path(__file__).parent.parent,
    )
    assert await process.wait() == code


async def test_replay_of_what_is_not_sent_again(tmp_path: Path) -> None:
    """An open write to SGP is skipped, which is said, with exit code 0."""
    file = tmp_path / "letters.jsonl"
    open_write = make_span("a", complete=False)
    DeadLetters(str(file), 10_000).add("sgp", open_write, "shutdown", Refused("", 0))
    code, out, err = await outcome("replay", str(file), "--to", "http://127.0.0.1:9")
    assert (code, out) == (0, "skipped 1\n")
    assert err.startswith("sidecar: 1 not sent: open writes")


async def test_replay_under_another_account(tmp_path: Path) -> None:
    """Exit code 1: the letter belongs to another account than `sgp.account_id`."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 10_000, lambda _: "acme")
    dead.add("sgp", make_span("a"), "refused", Refused("", 422))
    environ = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "other"}
    code, out, err = await outcome("replay", str(file), **environ)
    assert (code, out) == (1, "other_account 1\n")
    assert err.startswith("sidecar: 1 not sent: they belong to another account")
