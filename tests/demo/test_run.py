"""`sidecar demo`: its processes, what it prints, and when it ends with success."""

import asyncio
import io
import os
import re
import shlex
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sidecar.demo import commands, outage, run
from sidecar.demo.children import Ports, Sidecar, StandIns, port_or_any
from sidecar.demo.run import progress, run_demo
from sidecar.demo.screen import Screen
from sidecar.operate import status
from tests.support.run_process import serves
from tests.support.world import running_app

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
POLL_S = 0.05


@pytest.mark.parametrize("known", [True, False])
async def test_memory_where_there_is_no_proc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: bool
) -> None:
    """The progress has the sidecar's memory, or says that it is unknown."""
    statm = tmp_path / "statm"
    if known:
        statm.write_text("9 0 0\n", encoding="utf-8")
    monkeypatch.setattr(status, "_STATM", statm)
    async with running_app() as app:
        line = progress(app.app.status())
    memory = "0 B" if known else "unknown"
    assert line.startswith(f"sidecar's RSS {memory}  agentex    0 sent   0 queued  ")
    assert line.endswith("     0 events received")


def test_ports_that_are_taken() -> None:
    """A port is used only if it is free at every host."""
    hosts = "127.0.0.1", "::1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port_or_any(port, hosts) == 0
    assert port_or_any(port, hosts) == port
    if socket.has_ipv6:
        with socket.create_server(("::1", port), family=socket.AF_INET6):
            assert port_or_any(port, hosts) == 0
            assert port_or_any(port, ["127.0.0.1"]) == port


def test_what_to_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lines have the ports in use, and the command that works from the current directory."""
    monkeypatch.chdir(tmp_path)
    script = tmp_path / ".venv/bin/sidecar"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(script), "demo"])
    page, post, watch = commands.what_to_copy(Ports(8318, 9318))
    assert page == "status page:  http://127.0.0.1:9318/"
    assert post.startswith("post a span:  curl -i http://127.0.0.1:8318/v1/spans -H ")
    assert watch == "watch:        .venv/bin/sidecar top"
    monkeypatch.setenv("PATH", str(script.parent))
    assert commands.explain_command(Ports(8318, 9318), "a") == "one span:     sidecar explain a"
    monkeypatch.setattr(sys, "argv", ["/any/where/sidecar/__main__.py", "demo"])
    monkeypatch.setattr(sys, "executable", "/an other/python")
    *taken, page, _, watch = commands.what_to_copy(Ports(1, 2))
    assert taken == [
        "port 8318 is taken, so agents post to 1 here",
        "port 9318 is taken, so the status page is on 2 here",
    ]
    assert page == "status page:  http://127.0.0.1:2/"
    assert watch == "watch:        '/an other/python' -m sidecar top --url http://127.0.0.1:2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal the progress has one line, as wide as there is room, below what stays."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "6")
    screen = Screen()
    screen.progress("1 \x07 of many")
    screen.say("stays")
    assert terminal.getvalue() == "\r\x1b[K1 \\x0\r\x1b[Kstays\n"
    monkeypatch.setenv("TERM", "dumb")
    Screen().progress("1 of many")
    assert terminal.getvalue().endswith("stays\n1 of many\n")


@asynccontextmanager
async def demo_forever(cwd: Path = ROOT) -> AsyncIterator[tuple[Process, dict[str, str]]]:
    """A demo in a session of its own, as in a terminal; yields what it prints to copy, by label."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "sidecar", "demo", "--forever"),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "SIDECAR_LISTENER__PORT": "x"},
        cwd=cwd,
        stdin=DEVNULL,
        stdout=PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        to_copy: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE_S):
            while "one span" not in to_copy:
                label, _, command = (await process.stdout.readline()).decode().partition(":")
                to_copy[label] = command.strip()
            yield process, to_copy
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def shell(command: str) -> tuple[int | None, str]:
    """Run a command; return its exit code and its output."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_shell(command, env=environ, stdout=PIPE)
    return process.returncode, (await process.communicate())[0].decode()


@pytest.mark.process
async def test_others_post_until_ctrl_c() -> None:
    """What it prints can be copied; what others post is not its business; Ctrl-C ends it in order.

    The Ctrl-C reaches the whole group of processes, as in a terminal.
    """
    async with demo_forever() as (process, to_copy), aiohttp.ClientSession() as session:
        *_, url, _, header, _, body = shlex.split(to_copy["post a span"])
        headers = dict([header.split(": ")])
        bad = b'[{"event_type": "end"}]'
        statuses = []
        for data in (body.encode(), body.encode(), bad, b"not JSON"):
            async with session.post(url, data=data, headers=headers) as response:
                statuses.append(response.status)
        assert statuses == [202, 202, 400, 400]
        async with session.get(f"{to_copy['status page']}status") as response:
            upstreams = (await response.json())["config"]
        for name in ("agentex", "sgp"):
            async with session.get(f"{upstreams[name]['base_url']}/not-for-you") as response:
                assert 400 <= response.status < 500
        top, explained = await asyncio.gather(
            shell(f"{to_copy['watch']} --once"), shell(to_copy["one span"])
        )
        assert "forwarded" in top[1]
        assert "accepted" in explained[1]
        os.killpg(process.pid, signal.SIGINT)
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert "2 events were posted by others" in out.decode()
    assert out.decode().endswith("the accounting balances; nothing was lost\n")


@pytest.mark.process
async def test_its_children_end_with_it(tmp_path: Path) -> None:
    """If the demo is killed, the sidecar and the stand-ins end by themselves.

    No process imports anything from the current directory.
    """
    (tmp_path / "json.py").write_text("raise ImportError", encoding="utf-8")
    async with demo_forever(tmp_path) as (process, to_copy), aiohttp.ClientSession() as session:
        async with session.get(f"{to_copy['status page']}status") as response:
            upstream = (await response.json())["config"]["sgp"]["base_url"]
        process.kill()
        urls = to_copy["status page"], to_copy["post a span"], upstream
        for port in [int(re.findall(r"127\.0\.0\.1:(\d+)", url)[0]) for url in urls]:
            while await serves(port):  # noqa: ASYNC110 (another process)
                await asyncio.sleep(POLL_S)


async def finished(capsys: pytest.CaptureFixture[str], *, outage: bool = False) -> tuple[int, str]:
    """Run the demo; return its exit code and what it printed."""
    async with asyncio.timeout(DEADLINE_S):
        code = await run_demo(forever=False, outage=outage)
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


@pytest.mark.process
async def test_an_outage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An upstream dies, the status page says so, it comes back, and the accounting balances."""
    monkeypatch.setattr(outage, "BEFORE_S", 0.0)
    monkeypatch.setattr(outage, "LATE_S", 0.3)
    code, out = await finished(capsys, outage=True)
    assert code == 0
    expected = [
        "An outage: SGP's stand-in dies.",
        "The status page says: SGP is down (127.0.0.1:",
        "The agent goes on.",
        "The status page says: No",  # it is not late yet: this outage is short
        "SGP's stand-in comes back, on the same port; ",
        "All of them have arrived, ",
        "the agent finished ",
        "SGP was away for ",
        "the accounting balances; nothing was lost",
    ]
    found = [line for line in out.splitlines() if line.startswith(tuple(expected))]
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected
    assert "sidecar warning: upstream_down (sink: sgp, error: " in out
    assert re.search(r"SGP was away for \d.*; [1-9]\d* spans waited for it", out)


class DyingSidecar(Sidecar):
    async def ready(self) -> Ports:
        ports = await super().ready()
        self.process.kill()
        return ports


class DyingStandIns(StandIns):
    def tell(self, command: str) -> None:
        self.process.kill()


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "dying", "title"),
    [
        ("Sidecar", DyingSidecar, "the sidecar"),
        ("StandIns", DyingStandIns, "the process with the stand-ins"),
    ],
)
async def test_a_child_that_dies(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    dying: type,
    title: str,
) -> None:
    """The demo says which process ended, ends the other, and fails."""
    monkeypatch.setattr(run, name, dying)
    code, out = await finished(capsys)
    assert code == 1
    text = f"SOMETHING IS WRONG: {title} ended by itself, with exit code -9"
    assert out.splitlines()[-1] == text


@pytest.mark.process
async def test_a_sidecar_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo shows what the sidecar says, and fails."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(run, "port_or_any", lambda _, hosts: port if hosts[1:] else 0)
        code, out = await finished(capsys)
    assert code == 1
    said, verdict = out.splitlines()
    assert said.startswith(f"sidecar: listener.port: 127.0.0.1:{port}: ")
    assert "Address already in use" in said
    text = "the sidecar ended at its start, with exit code 2: see above"
    assert verdict == f"SOMETHING IS WRONG: {text}"


@pytest.mark.slow
@pytest.mark.process
async def test_a_span_that_does_not_arrive(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without all of the agent's spans at both stand-ins, the demo fails."""
    monkeypatch.setattr(run, "CONVERSATIONS", run.CONCURRENT)
    monkeypatch.setattr(run, "MAX_SPANS", 1)  # they forget spans before the demo asks for them
    code, out = await finished(capsys)
    assert code == 1
    assert "the agent finished 45 spans: " in out
    assert out.endswith("SOMETHING IS WRONG: see above\n")
