"""Plays a scenario, writes down what the sidecar says meanwhile, and has it judged at the end.

What is said: the answers and findings of `/status`, the lines of `sidecar top` at 80 and at 60
columns, and the log. The judge (truth_claims.py, truth_top.py, truth_log.py) sees only that and the
books (truth.py).
"""

import asyncio
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Never

import pytest
import structlog

from sidecar.config_load import load
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Rule, StandIn
from sidecar.operate import replay
from sidecar.operate.top_frame import frame
from sidecar.process.log_hints import add_hint
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.faults import World, now, world
from tests.support.otlp import OtlpStandIn
from tests.support.truth import FOREVER, Books, Posted, Process, Upstream
from tests.support.truth_answers import judge_answers
from tests.support.truth_claims import Moment
from tests.support.truth_log import judge_line
from tests.support.truth_top import judge_top

Json = dict[str, Any]

# Not on the second, so that a snapshot is not taken at the moment of a tick.
STEP_S = 1.0 + 0.0137
# How long what was posted is under way in the process.
AFTER_POST_S = 0.0311
# The grace period of a test's sidecar.
GRACE_S = 20.0
# Faults shown when a test fails.
SHOWN = 25


class Said(NamedTuple):
    """What the sidecar said at loop time `at`, `wall` seconds after the epoch."""

    at: float
    wall: float
    status: Json
    top: dict[int, str]  # by columns


class Line(NamedTuple):
    """A line of the log."""

    at: float
    wall: float
    fields: Json


class Fault(NamedTuple):
    """A sentence that is not true."""

    at: float
    where: str
    sentence: str
    because: str

    def __str__(self) -> str:
        return f"{self.at:.2f} s  {self.where}: {self.because}, but it says {self.sentence!r}"


@dataclass
class Stage:
    """The stand-ins, the books, and what was said."""

    folder: Path
    agentex: StandIn = field(default_factory=AgentexStandIn)
    sgp: StandIn = field(default_factory=SgpStandIn)
    otlp: OtlpStandIn = field(default_factory=OtlpStandIn)
    lanes: tuple[str, ...] = ("agentex", "sgp")
    said: list[Said] = field(default_factory=list)
    log: list[Line] = field(default_factory=list)
    step_s: float = STEP_S

    def __post_init__(self) -> None:
        named = {"agentex": self.agentex, "sgp": self.sgp, "otlp": self.otlp}
        self.books = Books({name: Upstream(name, named[name]) for name in self.lanes})
        self._posting = 0

    @property
    def letters(self) -> Path:
        """The file of dead letters."""
        return self.folder / "letters.jsonl"

    # The scenario.

    def rule(self, rule: Rule | None, *lanes: str) -> None:
        """How the upstreams respond from now on."""
        for name in lanes or self.lanes:
            self.books.upstreams[name].follow(rule)

    @asynccontextmanager
    async def life(self, **settings: Any) -> AsyncIterator[World]:
        """One process, which is watched until it has ended."""
        settings = {"dead_letters__path": self.letters, **settings}
        books = self.books
        books.keeps_letters = bool(settings["dead_letters__path"])
        books.has_spool = bool(settings.get("spool__path"))
        books.hold_s = float(settings.get("queue__start_hold_s", books.hold_s))
        if text := settings.get("queue__max_bytes"):
            books.queue_bytes = int(text.removesuffix("MiB")) * 2**20
        for lane in self.lanes:
            if limit := settings.get(f"{lane}__max_concurrency"):
                books.concurrency[lane] = int(limit)
        life = Process(now(), float(settings.get("shutdown__grace_s", GRACE_S)))
        books.processes.append(life)
        async with AsyncExitStack() as listening:
            listening.enter_context(self._listening())
            if "otlp" in self.lanes:
                await listening.enter_async_context(self.otlp)
                settings["otlp__endpoint"] = self.otlp.url
            async with world(self.agentex, self.sgp, **settings) as w:  # type: ignore[arg-type]
                watching = asyncio.create_task(self._watch(w))
                yield w
                life.told = min(life.told, now())
                w.app.stop()
                await asyncio.wait([w.running.task])
                life.ended = now()
                await watching

    async def stop(self, w: World) -> None:
        """Tell the sidecar to stop, and wait until it has."""
        life = self.books.processes[-1]
        life.told = now()
        w.app.stop()
        await asyncio.wait([w.running.task])
        life.ended = now()

    async def _watch(self, w: World) -> None:
        await asyncio.sleep(0.0551)
        while not w.running.task.done():
            if not self._is_amid_a_post():
                self.look(w)
                await asyncio.sleep(self.step_s)
            else:
                await asyncio.sleep(AFTER_POST_S)

    def _is_amid_a_post(self) -> bool:
        """Whether the books and the sidecar may not agree at this very moment."""
        posts = self.books.posts
        return bool(self._posting) or bool(posts and now() - posts[-1].at < AFTER_POST_S)

    def look(self, w: World) -> None:
        """Take down what it says now."""
        status = json.loads(json.dumps(w.app.status()))
        history = json.loads(json.dumps(w.app.operations.status.history(0)))
        top = {
            width: "\n".join(
                line.show(width, color=False) for line in frame(status, history, width)
            )
            for width in (80, 60)
        }
        self.books.rss[now()] = _rss()
        self.said.append(Said(now(), time.time(), status, top))

    @contextmanager
    def _listening(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def note(_: object, level: str, fields: structlog.typing.EventDict) -> Never:
            # Threads log, too.
            said = add_hint(None, level, {"level": level, **fields})
            self.log.append(Line(loop.time(), time.time(), dict(said)))
            raise structlog.DropEvent

        processors = structlog.get_config()["processors"]
        before = processors.copy()
        try:
            processors[:] = [note]
            yield
        finally:
            processors[:] = before

    def limit_memory(self, w: World, share: float) -> None:
        """The process uses this share of what its container may use."""
        w.app.operations.status.memory_limit = self.books.memory_limit = int(_rss() / share)

    def drop_lines(self, w: World, count: int) -> None:
        """The log loses so many lines now."""
        dropped = self.books.dropped
        dropped.extend([now()] * count)
        w.app.operations.status.lines_dropped = lambda: len(dropped)

    def texts(self) -> set[str]:
        """The short texts of all findings."""
        return {
            finding["text"]
            for said in self.said
            for answer in said.status["answers"]
            for finding in answer["findings"]
        }

    def has_said(self, text: str) -> bool:
        """Whether a finding said this."""
        return text in self.texts()

    async def post(self, w: World, *events: Json, account: str = "", key: str = "") -> int:
        """Post events as an agent does, and write down the answer; returns its status."""
        named = {"x_selected_account_id": account, "x_api_key": key} if account else {}
        self._posting += 1
        reply = await w.send(json.dumps(events).encode(), **named)
        self._posting -= 1
        bad = (
            {each["index"] for each in reply.body.get("rejected", [])}
            if reply.status == 202
            else set()
        )
        for index, event in enumerate(events):
            ok = reply.status == 202 and index not in bad
            id_ = str(event.get("span", {}).get("id"))
            kind = str(event.get("event_type"))
            size = len(json.dumps(event))
            self.books.posts.append(Posted(now(), id_, kind, reply.status, ok, account, key, size))
        return reply.status

    async def post_raw(self, w: World, body: bytes) -> int:
        """Post a body that is no list of events."""
        reply = await w.send(body)
        self.books.posts.append(Posted(now(), "", "", reply.status, False, "", ""))
        return reply.status

    async def agent(
        self,
        w: World,
        seconds: float,
        make: Callable[[int], list[Json]],
        *,
        per_s: float = 5.0,
        **named: str,
    ) -> None:
        """Play a steady agent: `make(number)` returns the events of its next post."""
        began = now()
        for number in range(int(seconds * per_s)):
            await self.post(w, *make(number), **named)
            await asyncio.sleep(max(0.0, began + (number + 1) / per_s - now()))

    async def quiet(self, w: World, seconds: float, *, step_s: float = 30.0137) -> None:
        """Let time pass without traffic, and look less often."""
        del w
        before, self.step_s = self.step_s, step_s
        await asyncio.sleep(seconds)
        self.step_s = before

    async def replay(self) -> None:
        """Do what `sidecar replay` does with the file of dead letters."""
        began = now()
        environ = {
            "AGENTEX_BASE_URL": self.agentex.url,
            "SGP_CLIENT_BASE_URL": self.sgp.url,
            "SGP_API_KEY": "key",
            "SGP_ACCOUNT_ID": "account",
            **({"SIDECAR_OTLP__ENDPOINT": self.otlp.url} if "otlp" in self.lanes else {}),
        }
        await replay.directly(str(self.letters), None, load(None, environ), environ)
        self.books.replayed = (began, now())

    @contextmanager
    def failing_disk(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """No transaction of the spool succeeds."""

        def fail(*_: object) -> Never:
            raise sqlite3.OperationalError("disk I/O error")

        self.books.disk_failed.append((now(), FOREVER))
        with monkeypatch.context() as patched:
            patched.setattr(SpoolFile, "apply", fail)
            yield
        begin, _ = self.books.disk_failed.pop()
        self.books.disk_failed.append((begin, now()))

    # The judgement.

    def faults(self) -> list[Fault]:
        """Every sentence that the books contradict."""
        found = []
        for said in self.said:
            moment = Moment(self.books, said.at, said.wall)
            answers = list(judge_answers(moment, said.status))
            found += [Fault(said.at, *each) for each in answers]
            for width, text in said.top.items():
                for each in judge_top(moment, text, width, said.status["answers"]):
                    found.append(Fault(said.at, f"top at {width}", *each))
        for line in self.log:
            moment = Moment(self.books, line.at, line.wall)
            for because in judge_line(moment, line.fields):
                found.append(Fault(line.at, "log", str(line.fields), because))
        return found

    def judge(self) -> None:
        """Fail if a sentence is not true, or if nothing was said."""
        assert self.said
        assert self.log
        faults = self.faults()
        kinds = Counter(map(_kind, faults))
        first: dict[tuple[str, str, str], Fault] = {}
        for fault in faults:
            first.setdefault(_kind(fault), fault)
        shown = [f"{kinds[kind]:>4} x {fault}" for kind, fault in list(first.items())[:SHOWN]]
        assert not faults, "\n".join(["sentences that are not true:", *shown])


def _rss() -> int:
    """Bytes of memory that this process uses."""
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _kind(fault: Fault) -> tuple[str, str, str]:
    """What is the same in faults that differ in numbers."""
    return fault.where, _shape(fault.sentence), _shape(fault.because)


def _shape(text: str) -> str:
    return "".join("#" if each.isdigit() else each for each in text)
