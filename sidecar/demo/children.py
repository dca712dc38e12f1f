"""The demo's two child processes: both stand-ins (serve.py), and a real `sidecar run`.

They are in sessions of their own: a Ctrl-C in the terminal reaches the demo only, which then stops
them in order. If the demo is killed, the stand-ins see their stdin close, and end the sidecar too.
"""

import asyncio
import json
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from errno import EADDRINUSE
from pathlib import Path
from typing import Any, NamedTuple, cast

START_S = 30.0
# The sidecar ends within its grace period and a second, whatever hangs (D28).
END_S = 40.0
# The longest line that a child prints.
_LINE_MAX = 2**20
# A child imports this package, whatever the current directory has in it.
_IMPORTS = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
# What Python itself may need. Everything else of the shell could change what the demo shows: a
# proxy, a SIDECAR_ variable, the base URL of a real upstream.
_KEPT = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")


class DemoError(Exception):
    """The demo can't go on; the text says why."""


def port_or_any(port: int, hosts: Sequence[str]) -> int:
    """Return `port` if it is free at each of `hosts` that this machine has, else 0: any port."""
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            if host != "::1" or error.errno == EADDRINUSE:
                return 0
    return port


async def _spawn(
    *arguments: str,
    stdin: int,
    stdout: int,
    stderr: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> Process:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**kept, **_IMPORTS, **(settings or {})},
        start_new_session=True,
        limit=_LINE_MAX,
    )


class Ports(NamedTuple):
    """Where the sidecar listens."""

    listener: int
    admin: int


class Child:
    """A child process; `title` is its name for people."""

    title = ""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def ended(self) -> int:
        """Wait until it has ended; returns its exit code."""
        return await self.process.wait()

    def terminate(self) -> None:
        """Send it a SIGTERM, if it still runs."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    async def kill(self) -> None:
        """End it now, if it still runs."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class StandIns(Child):
    """Both upstreams. `urls`: where they are, by sink."""

    title = "the process with the stand-ins"

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.urls: dict[str, str] = {}

    @classmethod
    async def spawn(cls, latency_ms: int, max_spans: int) -> "StandIns":
        """Start them."""
        options = f"--light --latency-ms {latency_ms} --max-spans {max_spans}".split()
        return cls(await _spawn("sidecar.demo.serve", *options, stdin=PIPE, stdout=PIPE))

    async def ready(self) -> None:
        """Wait until they serve; raises `DemoError`."""
        lines = cast("asyncio.StreamReader", self.process.stdout)
        with suppress(TimeoutError, ValueError):
            async with asyncio.timeout(START_S):
                self.urls = json.loads(await lines.readline())
        if not self.urls:
            raise DemoError(f"{self.title} did not start")

    def tell(self, command: str) -> None:
        """Send it a command, such as `stop sgp`."""
        cast("asyncio.StreamWriter", self.process.stdin).write(f"{command}\n".encode())


class Sidecar(Child):
    """A real sidecar. Whatever it logs as a warning or an error goes to `say`, for people.

    `stopped` is its last line, with the accounting.
    """

    title = "the sidecar"

    def __init__(self, process: Process, say: Callable[[str], None]) -> None:
        super().__init__(process)
        self.stopped: dict[str, Any] | None = None
        self._say = say
        self._started: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def spawn(cls, settings: Mapping[str, str], say: Callable[[str], None]) -> "Sidecar":
        """Start it with these variables, and nothing else of the environment."""
        command = "sidecar", "run"
        process = await _spawn(
            *command, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE, settings=settings
        )
        return cls(process, say)

    async def ready(self) -> Ports:
        """Wait until it has opened its ports; raises `DemoError`."""
        waits: list[asyncio.Future[Any]] = [self._started, self._reading]
        done, _ = await asyncio.wait(waits, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise DemoError(f"{self.title} did not start within {START_S:.0f} s")
        if not self._started.done():
            code = await self.ended()
            raise DemoError(f"{self.title} ended at its start, with exit code {code}: see above")
        return self._started.result()

    async def ended(self) -> int:
        """Wait until it has ended, and what it logged has been read; returns its exit code."""
        await self._reading
        return await self.process.wait()

    async def stop(self) -> int:
        """Stop it in order, and return its exit code; raises `DemoError`."""
        self.terminate()
        try:
            async with asyncio.timeout(END_S):
                return await self.ended()
        except TimeoutError:
            raise DemoError(f"{self.title} did not end within {END_S:.0f} s") from None

    async def _read(self) -> None:
        lines = cast("asyncio.StreamReader", self.process.stderr)
        while line := await lines.readline():
            text, event = line.decode(errors="replace").rstrip(), None
            with suppress(ValueError):
                event = json.loads(text)
            if isinstance(event, dict) and "event" in event:
                self._take(event)
            else:
                self._say(text)  # a complaint about the configuration, or a traceback

    def _take(self, event: dict[str, Any]) -> None:
        name, level, _ = (event.pop(key, "") for key in ("event", "level", "timestamp"))
        if name == "started":
            port = int(event["listener"][0].rpartition(":")[2])
            self._started.set_result(Ports(port, event["admin_port"]))
        elif name == "stopped":
            self.stopped = event
        if level not in {"debug", "info"}:
            details = ", ".join(f"{key}: {value}" for key, value in event.items())
            self._say(f"sidecar {level}: {name} ({details})")
