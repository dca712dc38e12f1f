"""Which signals end a sidecar, from the first moment on, and how."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sidecar.demo.stand_in import Hang
from tests.e2e import parts
from tests.support.kill import Rig, SidecarRun, parsed
from tests.support.lives import within
from tests.support.spans import make_event

ROOT = Path(__file__).parents[2]
# Ten times what starting, or stopping, takes.
BOUND_S = 20.0
# What no process can take, faults of the program itself, and job control, which SIGCONT undoes.
LEFT_ALONE = (
    *("SIGKILL", "SIGSTOP", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV"),
    *("SIGSYS", "SIGTSTP", "SIGTTIN", "SIGTTOU"),
)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NEW_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
DELAYS_MS = (0, 20, 50, 100, 200, 400, 800)
# Imports of this take most of the time of a start.
SLOW = {"argparse", "asyncio", "msgspec", "socket", "ssl", "structlog", "uvloop"}
# Runs before the program: prints the modules that are imported while SIGTERM would be lost.
WATCH_IMPORTS = """
import signal, sys
def see(event, arguments):
    if event == "import" and signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        print(arguments[0])
sys.addaudithook(see)
"""


@asynccontextmanager
async def upstreams(folder: Path) -> AsyncIterator[Rig]:
    rig = Rig(folder, seed=1)
    async with rig.agentex, rig.sgp:
        try:
            yield rig
        finally:
            await rig.kill_all()


async def ended(life: SidecarRun) -> tuple[int, str]:
    """The exit code, and the event of the last line; a process that goes on is killed."""
    try:
        async with asyncio.timeout(BOUND_S):
            await life.process.wait()
    except TimeoutError:
        life.process.kill()
    code = await life.ended()
    return code, life.log[-1]["event"]


async def takes_spans(life: SidecarRun) -> bool:
    """Whether the sidecar still accepts a span."""
    timeout = aiohttp.ClientTimeout(BOUND_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = life.url + "/v1/spans"
            async with session.post(url, json=make_event("s", kind="end")) as reply:
                return reply.status == 202
    except aiohttp.ClientError:
        return False


@pytest.mark.parametrize("number", STOPS)
async def test_a_stop(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM, SIGINT and SIGHUP each stop the sidecar in order."""
    async with upstreams(tmp_path) as rig:
        life = await rig.start()
        life.process.send_signal(number)
        assert await ended(life) == (0, "stopped")


async def test_any_other_signal(tmp_path: Path) -> None:
    """No other signal ends the sidecar or keeps it from its work."""
    left_alone = {*STOPS, *(getattr(signal, name) for name in LEFT_ALONE)}
    fatal = []
    async with upstreams(tmp_path) as rig:
        life = await rig.start()
        for number in sorted(signal.valid_signals() - left_alone):
            life.process.send_signal(number)
            if not await takes_spans(life):
                fatal.append(signal.Signals(number).name if number < signal.SIGRTMIN else number)
                await ended(life)
                life = await rig.start()
        life.process.send_signal(signal.SIGTERM)
        assert await ended(life) == (0, "stopped")
    assert fatal == []


async def test_quit_writes_the_stacks(tmp_path: Path) -> None:
    """SIGQUIT writes where each thread is to the log, and the sidecar goes on."""
    async with upstreams(tmp_path) as rig:
        life = await rig.start()
        before = len(life.log)
        life.process.send_signal(signal.SIGQUIT)
        assert await takes_spans(life)
        assert await within(
            BOUND_S, lambda: any("cli.py" in str(line) for line in life.log[before:])
        )
        life.process.send_signal(signal.SIGTERM)
        assert await ended(life) == (0, "stopped")


# The kernel ignores SIGTSTP in a process group whose parent is gone, as that of the tests may be.
OWN_GROUP = "import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])"


async def test_suspended_and_continued(tmp_path: Path) -> None:
    """A sidecar that was suspended goes on when it is continued."""
    async with upstreams(tmp_path) as rig:
        life = await rig.start(sys.executable, "-c", OWN_GROUP)
        life.process.send_signal(signal.SIGTSTP)
        stat = Path(f"/proc/{life.process.pid}/stat")
        assert await within(BOUND_S, lambda: ") T " in stat.read_text(encoding="utf-8"))
        life.process.send_signal(signal.SIGCONT)
        assert await takes_spans(life)
        life.process.send_signal(signal.SIGTERM)
        assert await ended(life) == (0, "stopped")


async def test_nohup(tmp_path: Path) -> None:
    """A SIGHUP that was ignored at the start stays ignored."""
    async with upstreams(tmp_path) as rig:
        life = await rig.start("nohup")
        life.process.send_signal(signal.SIGHUP)
        assert await takes_spans(life)
        assert life.process.returncode is None
        life.process.send_signal(signal.SIGTERM)
        assert await ended(life) == (0, "stopped")


async def test_a_job_in_the_background(tmp_path: Path) -> None:
    """SIGINT stops the sidecar even if a shell has it ignored, as for a job in the background."""
    async with upstreams(tmp_path) as rig:
        life = await rig.start("sh", "-c", 'trap "" INT; exec "$@"', "sh")
        life.process.send_signal(signal.SIGINT)
        assert await ended(life) == (0, "stopped")


async def test_signals_blocked_by_the_parent(tmp_path: Path) -> None:
    """A SIGTERM that the parent process blocked, and left so, stops the sidecar."""
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    async with upstreams(tmp_path) as rig:
        run = "os.execvp(sys.argv[1], sys.argv[1:])"
        life = await rig.start(sys.executable, "-c", f"{block}; {run}")
        life.process.send_signal(signal.SIGTERM)
        assert await ended(life) == (0, "stopped")


async def test_ctrl_c(tmp_path: Path) -> None:
    """Ctrl-C in the terminal of a sidecar stops it in order."""
    async with upstreams(tmp_path) as rig:
        ours, theirs = pty.openpty()
        try:
            run = f'exec setsid --ctty "$@" <{os.ttyname(theirs)}'
            life = await rig.start("sh", "-c", run, "sh")
            os.write(ours, b"\x03")
            assert await ended(life) == (0, "stopped")
        finally:
            os.close(ours)
            os.close(theirs)


@pytest.mark.parametrize("second", STOPS)
async def test_a_second_stop(tmp_path: Path, second: signal.Signals) -> None:
    """The second signal to stop ends the grace period; what is left stays in the spool."""
    async with upstreams(tmp_path) as rig:
        rig.agentex.rule = rig.sgp.rule = lambda _: Hang()
        life = await rig.start(SIDECAR_SHUTDOWN__GRACE_S="3600")
        assert await takes_spans(life)
        life.process.send_signal(signal.SIGTERM)
        assert await within(BOUND_S, lambda: any(line["event"] == "stopping" for line in life.log))
        life.process.send_signal(second)
        assert await ended(life) == (0, "stopped")
        assert life.log[-1]["lost"] == 0


def test_imports_before_signals_are_kept(tmp_path: Path) -> None:
    """SIGTERM is kept for later before anything slow is imported.

    Only while the interpreter itself starts is a SIGTERM for process 1 lost.
    """
    (tmp_path / "sitecustomize.py").write_text(WATCH_IMPORTS, encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "sidecar", "--version"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    seen = set(done.stdout.split())
    assert "sidecar" in seen
    assert not seen & SLOW


def is_past_the_interpreter(pid: int) -> bool:
    """Whether the process imports what takes long."""
    return "/uvloop/" in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


def keeps_sigterm(pid: int) -> bool:
    """Whether a SIGTERM for the process, which is process 1 somewhere, is not lost."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    masks = dict(line.split(":\t") for line in lines if line.startswith("Sig"))
    kept = int(masks["SigBlk"], 16) | int(masks["SigCgt"], 16)
    return bool(kept & 1 << (signal.SIGTERM - 1))


async def process_1(process: Process) -> int:
    """The process id, out here, of the sidecar that `unshare` started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    pid = 0

    def runs() -> bool:
        nonlocal pid
        pid = int(children.read_text(encoding="utf-8") or 0)
        return bool(pid) and b"sidecar" in Path(f"/proc/{pid}/cmdline").read_bytes()

    assert await within(BOUND_S, runs)
    return pid


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
async def test_process_1_in_its_first_second(tmp_path: Path, delay_ms: int) -> None:
    """As process 1 of a container, a sidecar ends in order whenever SIGTERM comes.

    Except for the interpreter's own first moments, in which no process 1 gets one: then the test
    sends it once more.
    """
    parts.run(*NEW_PIDS, "true")
    async with upstreams(tmp_path) as rig:
        process = await rig.launch(*NEW_PIDS)
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read())
        pid = await process_1(process)
        await asyncio.sleep(delay_ms / 1000)
        too_late = is_past_the_interpreter(pid)
        kept = keeps_sigterm(pid)
        os.kill(pid, signal.SIGTERM)
        if not kept:
            assert not too_late
            assert await within(BOUND_S, lambda: keeps_sigterm(pid))
            os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(BOUND_S):
            code = await process.wait()
        lines = (await reading).splitlines()
        assert code == 0
        assert parsed(lines[-1])["event"] == "stopped"
