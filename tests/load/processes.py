"""The three processes: started, observed through /proc and /status, stopped by their pids."""

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from .loads import Plan

ROOT = Path(__file__).parents[2]
START_S = 60.0  # generous, for a busy machine; nothing is measured with it
STOP_S = 10.0
STAND_IN = ("-m", "sidecar.demo.serve")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The benchmark itself failed to run."""


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return a minimal environment: no variable of the shell must change what is measured."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return {**kept, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'client'}", **extra}


@contextlib.contextmanager
def process(
    command: Sequence[str | Path],
    stderr: IO[bytes] | None = None,
    cgroup: str = "",
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` with pipes to it, in an environment without the shell's variables."""
    if cgroup:
        # The shell enters the cgroup, then becomes the process.
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{cgroup}/cgroup.procs", *command]
    started = subprocess.Popen(
        command, cwd=ROOT, env=clean_environment(environment), stderr=stderr,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield started
    finally:
        _stop(started)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM, then a second one (which ends the sidecar's drain), then SIGKILL."""
    for _ in range(2):
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S / 2)
            break
    else:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def line_of(speaker: subprocess.Popen[bytes], timeout_s: float) -> bytes | None:
    """Return the next line that `speaker` prints; None if none arrives in time."""
    assert speaker.stdout is not None
    if not select.select([speaker.stdout], [], [], timeout_s)[0]:
        return None
    line = speaker.stdout.readline()
    if not line:
        raise BenchError(f"{speaker.args!r} ended with {speaker.wait()}")
    return line


class StandIns:
    """Both upstreams in one process."""

    def __init__(self, process: subprocess.Popen[bytes], urls: Mapping[str, str]) -> None:
        self._process = process
        self._proc = Path(f"/proc/{process.pid}")
        self.urls = urls

    def tell(self, command: str) -> None:
        """Give the stand-ins a command, such as `stop sgp` (sidecar/demo/serve.py)."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def stop_or_go(self, *, away: bool) -> None:
        """Freeze the process, like a server that hangs, or let it continue."""
        self._process.send_signal(signal.SIGSTOP if away else signal.SIGCONT)

    def cpu_s(self) -> float:
        """User and system seconds so far."""
        return _cpu_s(self._proc)

    def report(self, sink: str, *, digests: bool = True) -> dict[str, Any]:
        """Return what arrived at `sink`; without `digests` it is short."""
        host = self.urls[sink].removeprefix("http://").rstrip("/")
        path = "/__report" if digests else "/__report?counts"
        with contextlib.closing(http.client.HTTPConnection(host, timeout=30)) as connection:
            return _get(connection, path)


@contextlib.contextmanager
def stand_ins(latency_ms: float, program: Sequence[str] = STAND_IN) -> Iterator[StandIns]:
    """Run the demo's stand-ins in light mode, or those of another `program`."""
    command = [sys.executable, *program, "--latency-ms", str(latency_ms), "--light"]
    with process(command) as serving:
        line = line_of(serving, START_S)
        if line is None:
            raise BenchError("the stand-ins did not start")
        yield StandIns(serving, json.loads(line))


class Sidecar:
    """A running sidecar."""

    def __init__(self, process: subprocess.Popen[bytes], started: Mapping[str, Any]) -> None:
        self._process = process
        self.pid = process.pid
        self._proc = Path(f"/proc/{process.pid}")
        self.port = int(str(started["listener"][0]).rpartition(":")[2])
        self._admin = http.client.HTTPConnection("127.0.0.1", started["admin_port"], timeout=30)

    def status(self) -> dict[str, Any]:
        """Fetch `/status`."""
        return _get(self._admin, "/status")

    def metrics(self) -> bytes:
        """Scrape `/metrics`."""
        self._admin.request("GET", "/metrics")
        return self._admin.getresponse().read()

    def end(self, number: signal.Signals, timeout_s: float) -> int:
        """Send a signal, and wait until the process has ended; returns its exit code."""
        self._process.send_signal(number)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"the sidecar did not end after {number.name}") from None

    def cpu_s(self) -> float:
        """User and system seconds so far."""
        return _cpu_s(self._proc)

    def rss_mib(self) -> float:
        """Resident memory now."""
        return self._memory("VmRSS")

    def peak_rss_mib(self) -> float:
        """Peak resident memory, as recorded by the kernel."""
        return self._memory("VmHWM")

    def _memory(self, field: str) -> float:
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise BenchError("the sidecar is gone")


# The variables that the image sets (Dockerfile).
AS_IN_THE_IMAGE = {"PYTHONOPTIMIZE": "2", "FROZENLIST_NO_EXTENSIONS": "1"}


@contextlib.contextmanager
def sidecar(profile: str = "", cgroup: str = "", **environment: str) -> Iterator[Sidecar]:
    """Run a sidecar, on free ports unless the environment has others.

    `profile`: where cProfile writes, "" for none. `cgroup`: the folder of one to run it in, if any.
    """
    environment = {
        **AS_IN_THE_IMAGE,
        "SIDECAR_LISTENER__PORT": "0",
        "SIDECAR_ADMIN__HOST": "127.0.0.1",
        "SIDECAR_ADMIN__PORT": "0",
        **environment,
    }
    wrapper = ["tests.load.profiled", profile] if profile else ["sidecar"]
    with (
        tempfile.TemporaryFile() as log,
        process([sys.executable, "-m", *wrapper, "run"], log, cgroup, **environment) as running,
    ):
        yield Sidecar(running, _started(running, log))


def _started(process: subprocess.Popen[bytes], log: IO[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        for line in os.pread(log.fileno(), 65536, 0).splitlines(keepends=True):
            if line.endswith(b"\n") and b'"started"' in line:
                started: dict[str, Any] = json.loads(line)
                return started
        time.sleep(0.02)
    text = os.pread(log.fileno(), 65536, 0).decode(errors="replace")
    raise BenchError(f"the sidecar did not start:\n{text}")


class Driver:
    """A driver that is connected and waits to start."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def begin(self) -> None:
        """Let it send."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def result(self, timeout_s: float) -> bytes | None:
        """Return its results; None if it does not end within `timeout_s`."""
        return line_of(self._process, timeout_s)


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def driver(plan: Plan, module: str = f"{__package__}.driver") -> Iterator[Driver]:
    """Run a driver for `plan`."""
    argument = msgspec.json.encode(plan).decode()
    with process([sys.executable, "-m", module, argument]) as sending:
        if line_of(sending, START_S) is None:
            raise BenchError("the driver did not connect")
        yield Driver(sending)


def _cpu_s(proc: Path) -> float:
    # The name, in parentheses, can contain spaces; utime and stime are fields 14 and 15.
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _get(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    if response.status != http.client.OK:
        raise BenchError(f"{path} answered {response.status}")
    decoded: dict[str, Any] = json.loads(body)
    return decoded
