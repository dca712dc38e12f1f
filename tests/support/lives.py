"""Lives of a sidecar while one of its system calls hangs, and what must be true of each.

Like kill.py, whose rig this extends. Each upstream has a host name of its own, so that the look-ups
of one can hang. `StalledRig.life` plays a full life; what it finds wrong, it adds to `problems`.
"""

import asyncio
import json
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM

import aiohttp

from sidecar.demo.stand_in import Answer, Recorded, Scripted, StandIn
from tests.support.kill import POLL_S, Json, Rig, SidecarRun, parsed
from tests.support.spans import END_TIME, START_TIME, make_event
from tests.support.stalls import LOG, Call, Slots, deaf_port

GRACE_S = 2.0
# The promise is one second beyond the grace period; the rest is for a busy machine.
STOP_S = GRACE_S + 1.0 + 2.0
# Before the configuration is read, the grace period is not known.
STOP_STARTING_S = 10.0
# A post waits for the disk until the spool is degraded, which takes a few seconds at most.
ANSWER_S = 10.0
ARRIVE_S = 20.0
START_S = 30.0
# Within this time a life without a stall has delivered its first part.
SETTLE_S = 3.0
LATE_SPANS = 20  # two posts each
DISK = ("spool", "letters", "keys")
# Read on the loop itself, where nothing that can hang may be: it stands for a bug that stops it.
LOOP, LOOP_PATH = "loop", "/proc/self"
POISON = "poison"
_AWAY = Answer(503, b"{}")
_REFUSED = Answer(422, b'{"detail":[{"type":"value_error","loc":["body"]}]}')


@dataclass
class Sent:
    """A span whose START was accepted. `hung`: whether a call hung before it was posted."""

    id: str
    hung: bool
    ended: bool = False
    ended_hung: bool = False


async def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait for `condition`; return whether it holds in time."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def shows(life: SidecarRun, condition: Callable[[Json], bool]) -> bool:
    """Wait until `condition` holds for what `/status` says; return whether it does."""
    end = asyncio.get_running_loop().time() + ARRIVE_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as session:
        while asyncio.get_running_loop().time() < end:
            async with session.get(life.admin_url + "/status") as reply:
                if condition(await reply.json()):
                    return True
            await asyncio.sleep(POLL_S)
    return False


async def post_ends(url: str, ids: Iterable[str], **headers: str) -> None:
    """Post finished spans, one at a time; each must be accepted."""
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        for id_ in ids:
            event = make_event(id_, kind="end")
            async with session.post(url + "/v1/spans", json=event) as reply:
                assert reply.status == 202


async def arrived(upstream: StandIn, ids: set[str]) -> bool:
    """Wait until spans are complete upstream; return whether they are."""
    return await within(ARRIVE_S, lambda: ids <= upstream.complete)


async def stops(process: Process) -> int:
    """End a sidecar with SIGTERM, in time; return its exit code."""
    process.send_signal(SIGTERM)
    async with asyncio.timeout(STOP_S):
        return await process.wait()


@dataclass
class StalledRig(Rig):
    """Two upstreams, and the lives of a sidecar under the shim `library`."""

    library: Path = Path()
    sent: dict[str, Sent] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)  # that came with requests
    away: bool = False  # both upstreams answer 503

    def prepare(self) -> None:
        """Set up folders and settings, once the upstreams listen."""
        places = {name: str(self.folder / name) for name in DISK}
        for folder in places.values():
            Path(folder).mkdir(parents=True, exist_ok=True)
        self.upstreams: dict[str, StandIn] = {"agentex": self.agentex, "sgp": self.sgp}
        hosts = {name: f"{name}.test:{up.port}" for name, up in self.upstreams.items()}
        self.slots = Slots.create(self.library, self.folder, {**places, **hosts, LOOP: LOOP_PATH})
        self.key = self.folder / "keys" / "key"
        self.key.write_text("first", encoding="utf-8")
        self.settings |= {
            **self.slots.environ,
            "AGENTEX_BASE_URL": "http://" + hosts["agentex"],
            "SGP_CLIENT_BASE_URL": "http://" + hosts["sgp"],
            "SGP_API_KEY": "",
            "SIDECAR_SGP__API_KEY_FILE": str(self.key),
            "SIDECAR_DEAD_LETTERS__PATH": str(self.folder / "letters" / "letters.jsonl"),
            "SIDECAR_RETRY__INITIAL_S": "0.1",
            "SIDECAR_RETRY__MAX_S": "0.5",
            "SIDECAR_SHUTDOWN__GRACE_S": str(GRACE_S),
        }
        self.agentex.rule = self.sgp.rule = self._answer
        self.agentex.latency_s = self.sgp.latency_s = 0.01

    def _answer(self, request: Recorded) -> Scripted:
        if self.away:
            return _AWAY
        self.keys.add(request.headers.get("x-api-key", ""))
        is_agentex = not request.path.startswith("/v5/")
        return _REFUSED if is_agentex and POISON.encode() in request.body else None

    def inherit(self, seeded: "StalledRig") -> None:
        """Begin with the backlog that another rig's sidecar left on disk."""
        shutil.copytree(seeded.folder / "spool", self.folder / "spool", dirs_exist_ok=True)
        self.sent = {id_: Sent(id_, hung=False, ended=True) for id_ in seeded.sent}

    async def begin(self) -> SidecarRun:
        """Start a sidecar in which nothing hangs yet."""
        self.slots.forget()
        async with asyncio.timeout(START_S):
            return await self.start()

    async def post(self, life: SidecarRun, ids: Iterable[str], *, hold_s: float = 0.0) -> None:
        """Post the START and the END of spans, five at a time; each must be accepted."""
        timeout = aiohttp.ClientTimeout(ANSWER_S)
        names = iter(ids)
        known = len(self.problems)

        async def agent(session: aiohttp.ClientSession) -> None:
            for id_ in names:
                if len(self.problems) > known:
                    return  # one is enough: each may take long
                hung = self.slots.hanging > 0
                span: Json = {"id": id_, "trace_id": "t", "name": "n", "start_time": START_TIME}
                span["input"] = {"prompt": id_ + "x" * self.random.choice((10, 3000))}
                if not await self._accepted(session, life, {"event_type": "start", "span": span}):
                    continue
                sent = self.sent[id_] = Sent(id_, hung)
                await asyncio.sleep(hold_s)
                span |= {"end_time": END_TIME, "output": {"text": id_}}
                if await self._accepted(session, life, {"event_type": "end", "span": span}):
                    sent.ended, sent.ended_hung = True, self.slots.hanging > 0

        async with aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(*(agent(session) for _ in range(5)))

    async def _accepted(
        self, session: aiohttp.ClientSession, life: SidecarRun, event: Json
    ) -> bool:
        try:
            async with session.post(life.url + "/v1/spans", json=event) as reply:
                if reply.status == 202:
                    return True
                self.problems.append(f"a post got {reply.status} {await reply.text()}")
        except TimeoutError:
            self.problems.append(f"a post had no answer after {ANSWER_S} s")
        except aiohttp.ClientError as error:
            self.problems.append(f"a post failed: {type(error).__name__}")
        return False

    async def look(self, life: SidecarRun) -> None:
        """Ask the admin port for everything that it shows."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as session:
            for path in ("/livez", "/readyz", "/status", "/metrics", "/"):
                try:
                    async with session.get(life.admin_url + path) as reply:
                        await reply.read()
                        if reply.status != 200:
                            self.problems.append(f"{path} got {reply.status}")
                except (TimeoutError, aiohttp.ClientError) as error:
                    self.problems.append(f"{path}: {type(error).__name__}")

    async def leave_backlog(self) -> None:
        """Leave a backlog on disk."""
        self.away = True
        life = await self.begin()
        await self.post(life, [f"seed-{number}" for number in range(20)])
        await self.stop(life)
        self.away = False

    async def stop(self, life: SidecarRun, *, hung: str = "") -> None:
        """End a sidecar with SIGTERM, while calls at the place `hung` hang."""
        life.process.send_signal(SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await life.process.wait()
        except TimeoutError:
            self.problems.append(f"still running {STOP_S} s after SIGTERM")
            life.process.kill()
            await life.ended()
            return
        code = await life.ended()
        last = life.log[-1]
        if hung == LOG:
            return
        if last["event"] != "stopped":
            self.problems.append(f"exit code {code}, and the last line is {last}")
        else:
            lost = last["lost"]
            if code != int(lost > 0):
                self.problems.append(f"exit code {code}, but {lost} lost")
            # The refused write can be kept nowhere else than where the disk hangs.
            if lost > int(hung in {"letters", "disk"}):
                self.problems.append(f"{lost} lost")

    async def start_hanging(self, name: str, place: str) -> None:
        """Start a sidecar whose start hangs, and send SIGTERM. It has accepted nothing."""
        self.slots.forget()
        self.slots.hang(name, place)
        process = await self.launch()
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read())
        try:
            await within(START_S, lambda: self.slots.hanging > 0 or process.returncode is not None)
            with suppress(ProcessLookupError):
                process.send_signal(SIGTERM)
            async with asyncio.timeout(STOP_STARTING_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        if code:
            lines = [parsed(line)["event"] for line in (await reading).splitlines()]
            self.problems.append(f"exit code {code}, lines {lines}")

    async def life(self, call: Call | None, skip: int = 0) -> dict[Call, int]:
        """Play a full life; return the calls after its start. `call` hangs after `skip` more."""
        name, place = call or ("", "")
        life = await self.begin()
        with deaf_port() as deaf:
            before = self.slots.counts()
            if call is not None:
                port = deaf if name == "connect" else 0
                self.hang(name, place, skip=skip, deaf_port=port)
            await self._live(life, place)
            await self.stop(life, hung=place if self.slots.hanging else "")
        counts = self.slots.counts()
        return {each: n - before.get(each, 0) for each, n in counts.items()}

    def hang(self, name: str, place: str, *, skip: int = 0, deaf_port: int = 0) -> None:
        """Have a call hang at a place; "disk" is every folder."""
        for each in DISK if place == "disk" else (place,):
            self.slots.hang(name, each, skip=skip, deaf_port=deaf_port)

    async def _live(self, life: SidecarRun, place: str) -> None:
        await self.post(life, [f"a-{number}" for number in range(5)])
        self.away = True
        await self.post(life, [f"b-{number}" for number in range(10)], hold_s=0.6)
        self.away = False
        await self.post(life, [POISON])
        new = self.key.with_name("new")
        new.write_text("second", encoding="utf-8")
        new.replace(self.key)
        # The file is looked at once a second.
        await self.post(life, [f"c-{number}" for number in range(5)], hold_s=1.2)
        # What all of this sets off has happened, or hangs.
        early = {id_ for id_ in self.sent if id_[0] in "abc"}
        letters = self.folder / "letters" / "letters.jsonl"
        await within(
            SETTLE_S,
            lambda: (
                bool(self.slots.hanging)
                or (early <= self.sgp.complete and letters.exists() and "second" in self.keys)
            ),
        )
        late = {f"late-{number}" for number in range(LATE_SPANS)}
        await self.post(life, sorted(late))
        if not self.problems:
            await self.look(life)
            await self.arrived(late, unless=place)

    async def arrived(self, ids: set[str], *, unless: str = "") -> bool:
        """Wait until spans are complete at the upstreams, `unless` at this one."""
        theirs = {name: up.complete for name, up in self.upstreams.items() if name != unless}
        if await within(ARRIVE_S, lambda: all(ids <= complete for complete in theirs.values())):
            return True
        for name, complete in theirs.items():
            if missing := len(ids - complete):
                self.problems.append(f"{missing} of {len(ids)} spans do not arrive at {name}")
        return False

    async def logs(self, life: SidecarRun, event: str, since: int = 0) -> bool:
        """Wait until a line is in the log after its first `since` lines."""
        return await within(
            ARRIVE_S, lambda: any(line["event"] == event for line in life.log[since:])
        )

    async def recover(self, *, hung: str) -> None:
        """Run a second sidecar on the same folders; check what both upstreams have."""
        life = await self.begin()
        if not await shows(life, lambda status: not _work_left(status)):
            self.problems.append("the next sidecar does not deliver what this one left")
        await self.stop(life)
        self.check(hung=hung)

    def check(self, *, hung: str) -> None:
        """Check that what was accepted is upstream, and complete, or in the dead letters."""
        for name, upstream in self.upstreams.items():
            kept = self._letters(name) | ({POISON} if name == "agentex" else set())
            written = set(upstream.history) | kept
            missing = {id_ for id_ in self.sent if id_ not in written}
            missing |= {
                id_ for id_, s in self.sent.items() if s.ended and id_ not in upstream.complete
            } - kept
            if missing:
                self.problems.append(f"{len(missing)} never arrived at {name}: {min(missing)}")
            late = {id_ for id_, writes in upstream.history.items() if _is_late(writes)}
            if hung in {"spool", "disk"}:
                # Its START is on the disk that hung until the end, its END was never there.
                late -= {id_ for id_, s in self.sent.items() if s.ended_hung and not s.hung}
            if late:
                self.problems.append(f"{len(late)} written open after complete at {name}")
        if self.sgp.second_rows:
            self.problems.append(f"{self.sgp.second_rows} second rows at sgp")

    def _letters(self, sink: str) -> set[str]:
        path = self.folder / "letters" / "letters.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        letters = [json.loads(line) for line in lines]
        return {each["event"]["span"]["id"] for each in letters if each["sink"] == sink}


def _work_left(status: Json) -> int:
    """The STARTs that are held, and the writes that are not settled."""
    depths = [int(lane["depth"]) for lane in status["sinks"].values()]
    return int(status["events"]["held"]) + sum(depths)


def _is_late(writes: list[str]) -> bool:
    """Whether an open write was applied after a complete one."""
    return "complete" in writes and "open" in writes[writes.index("complete") :]


@asynccontextmanager
async def stalled_rig(folder: Path, library: Path, seed: int = 1) -> AsyncIterator[StalledRig]:
    """A rig whose upstreams listen."""
    rig = StalledRig(folder, seed, library=library)
    async with rig.agentex, rig.sgp:
        rig.prepare()
        try:
            yield rig
        finally:
            await rig.kill_all()
