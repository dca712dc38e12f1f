"""What happens to the sidecar of a soak: a process that is stopped and started again, and stalls.

The process runs under the shim of tests/e2e/stall.c, with few descriptors, and its log goes into a
small pipe.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.stalls import LOG, Slots

from .processes import AS_IN_THE_IMAGE, ROOT, BenchError, clean_environment

START_S = 30.0
GRACE_S = 5.0
# Beyond the grace period and its second: a process is given up.
GIVE_UP_S = 20.0
DESCRIPTORS = 512
PIPE_BYTES = 4096
CROWD = 150
UPSTREAMS = ("agentex", "sgp")
# Each of these would end a process that does not take it.
HARMLESS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGRTMIN")

Json = dict[str, Any]


@dataclass
class Ending:
    """How a process ended: `over_s` after its grace period, while `hung` hung."""

    hung: str
    over_s: float
    code: int
    last: Json

    @property
    def lost(self) -> int:
        """The writes that it counted as lost."""
        return int(self.last.get("lost", 0))

    @property
    def imbalance(self) -> int:
        """What its books do not account for."""
        writes: Mapping[str, Json] = self.last.get("writes", {})
        lanes = sum(abs(int(lane["imbalance"])) for lane in writes.values())
        return lanes + abs(int(self.last.get("events", {}).get("imbalance", 0)))


@dataclass
class Watched:
    """The sidecar, which keeps its ports and its spool when it is started again."""

    settings: Mapping[str, str]
    slots: Slots
    ports: tuple[int, int] = (0, 0)  # of the listener and of the admin server
    endings: list[Ending] = field(default_factory=list)
    events: dict[str, int] = field(default_factory=dict)  # log lines by event

    async def start(self) -> None:
        """Start it, and wait until it has started."""
        listener, admin = self.ports
        ports = {"SIDECAR_LISTENER__PORT": str(listener), "SIDECAR_ADMIN__PORT": str(admin)}
        ours, theirs = os.pipe()
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        limited = ["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"]
        self._process = await asyncio.create_subprocess_exec(
            *limited, sys.executable, "-m", "sidecar", "run", cwd=ROOT, stderr=theirs,
            env=clean_environment({**AS_IN_THE_IMAGE, **self.settings, **ports}),
        )  # fmt: skip
        os.close(theirs)
        os.set_blocking(ours, False)
        self._pipe, self._rest, self._last = ours, b"", Json()
        self._started = asyncio.get_running_loop().create_future()
        self._ended = asyncio.Event()
        self.reads_log(True)
        self.pid = self._process.pid
        self.began = time.monotonic()
        async with asyncio.timeout(START_S):
            line = await self._started
        self.ports = int(line["listener"][0].rpartition(":")[2]), line["admin_port"]

    def reads_log(self, reads: bool) -> None:
        """Read its log, or let the pipe fill up."""
        loop = asyncio.get_running_loop()
        if reads and not self._ended.is_set():
            loop.add_reader(self._pipe, self._read)
        else:
            loop.remove_reader(self._pipe)

    def _read(self) -> None:
        data = os.read(self._pipe, 65536)
        if not data:
            asyncio.get_running_loop().remove_reader(self._pipe)
            self._ended.set()
            if not self._started.done():
                self._started.set_exception(BenchError(f"it did not start: {self._last}"))
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._last = json.loads(line)
            except ValueError:
                self._last = {"event": line.decode(errors="replace")}
                print(self._last["event"], flush=True)
            event = str(self._last.get("event"))
            self.events[event] = self.events.get(event, 0) + 1
            if event == "started" and not self._started.done():
                self._started.set_result(self._last)

    async def stop(self, hung: str = "") -> Ending:
        """End it with SIGTERM, and return how it ended."""
        began = time.monotonic()
        self.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE_S + GIVE_UP_S):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        took = time.monotonic() - began
        self.slots.forget()
        self.reads_log(True)
        async with asyncio.timeout(START_S):
            await self._ended.wait()
        os.close(self._pipe)
        last = self._last if self._last.get("event") == "stopped" else {}
        self.endings.append(Ending(hung, took - GRACE_S, code, last))
        return self.endings[-1]

    def send(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def rss_mib(self) -> float:
        """Resident memory now; 0.0 if it has ended."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmRSS"):
                    return int(line.split()[1]) / 1024
        return 0.0


class Troubles:
    """Makes something hang, or crowded, from time to time."""

    def __init__(self, watched: Watched, chance: random.Random, deaf: int) -> None:
        self._watched, self._chance, self._deaf = watched, chance, deaf
        self.counts: dict[str, int] = {}
        self.stopping = asyncio.Lock()  # held while the process is stopped and started

    def hang(self, what: str) -> Callable[[], None]:
        """Make one thing hang; return how it ends."""
        watched, slots = self._watched, self._watched.slots
        if what == LOG:
            watched.reads_log(False)
            watched.send(signal.SIGQUIT)  # its stacks fill the pipe
            return lambda: watched.reads_log(True)
        call, _, place = what.partition(":")
        if call == "slow":
            slots.slow("*", place, self._chance.randint(5, 50))
            call = "*"
        else:
            slots.hang(call, place, deaf_port=self._deaf if call == "connect" else 0)
        return lambda: slots.release(call, place)

    @property
    def hangs(self) -> tuple[str, ...]:
        """What can hang; a disk is named with all of its calls."""
        names = [f"{call}:{sink}" for call in ("getaddrinfo", "connect") for sink in UPSTREAMS]
        return (LOG, "*:spool", "*:spool", "*:letters", "slow:spool", *names)

    async def go_on(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(5, 15))
            async with self.stopping:
                what = self._chance.choice((*self.hangs, "signals", "crowd"))
                self.counts[what] = self.counts.get(what, 0) + 1
                if what == "signals":
                    for name in HARMLESS:
                        self._watched.send(getattr(signal, name))
                elif what == "crowd":
                    async with self._crowd():
                        await asyncio.sleep(self._chance.uniform(2, 8))
                else:
                    end = self.hang(what)
                    await asyncio.sleep(self._chance.uniform(2, 8))
                    end()

    @asynccontextmanager
    async def _crowd(self) -> AsyncIterator[None]:
        """Idle connections on both ports."""
        writers = []
        for port in self._watched.ports:
            for _ in range(CROWD):
                with contextlib.suppress(OSError):
                    writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
        try:
            yield
        finally:
            for writer in writers:
                writer.close()

    async def restart(self) -> Ending:
        """Stop the process, half of the times while something hangs, and start it again."""
        async with self.stopping:
            what = self._chance.choice(self.hangs) if self._chance.random() < 0.5 else ""
            end = self.hang(what) if what else None
            if what:
                await asyncio.sleep(self._chance.uniform(0.1, 3))
            ending = await self._watched.stop(what)
            await self._watched.start()
        del end  # `stop` has released it
        return ending
