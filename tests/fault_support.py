"""A world for the fault tests: an agent, a sidecar and both stand-ins, over real HTTP.

All of it runs in one event loop whose clock skips the time in which nothing happens: an outage of
a minute takes as long as its requests do, and a slow machine sees the same times as a fast one.
`World.finish` is how every test ends: it holds the sidecar's promise against what arrived.
"""

import asyncio
import functools
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

import aiohttp

from sidecar.app import App
from sidecar.config import load
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Recorded, Scripted, StandIn

P = ParamSpec("P")
Json = dict[str, Any]

# Bytes on loopback are there at once; a busy kernel has this long, in seconds of the wall clock.
IDLE_S = 0.0002
# Loop time: longer than any test has to wait, so that a hang fails instead of hanging.
DEADLINE_S = 2 * 3600.0


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while there is something to do, and jumps when there isn't.

    Only for programs whose every byte comes from a socket of the same process.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def wait_or_jump(timeout: float | None) -> Any:
            ready = select(None if timeout is None else 0)
            if not ready and timeout:
                time.sleep(IDLE_S)  # select() itself waits for whole milliseconds
                ready = select(0)
                if not ready:
                    self._now += timeout
            return ready

        self._selector.select = wait_or_jump  # type: ignore[attr-defined]

    def time(self) -> float:
        """Seconds that were skipped."""
        return self._now


def run_fast(story: Coroutine[Any, Any, None]) -> None:
    """Run a test's story in a `FastLoop`."""

    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await story

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(within_deadline())


def fast(story: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test of a coroutine function, by `run_fast`."""

    @functools.wraps(story)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        run_fast(story(*args, **kwargs))

    return test


def now() -> float:
    """Loop time, as in `Recorded.at`."""
    return asyncio.get_running_loop().time()


def span(id_: str, **fields: Any) -> Json:
    """A complete span as the SDK gives it, whose payloads are its own."""
    return {
        "id": id_,
        "trace_id": "trace",
        "name": "step",
        "start_time": "2026-01-02T03:04:05.678901+00:00",
        "end_time": "2026-01-02T03:04:06+00:00",
        "parent_id": None,
        "task_id": None,
        "input": {"prompt": f"input of {id_}"},
        "output": {"text": f"output of {id_}"},
        "data": {"note": f"data of {id_}"},
    } | fields


def start(of: Json) -> Json:
    """The START of a span."""
    return {"event_type": "start", "span": of | {"end_time": None, "output": None}}


def end(of: Json) -> Json:
    """The END of a span."""
    return {"event_type": "end", "span": of}


def ids_in(request: Recorded) -> set[str]:
    """The ids of the spans that a request to a stand-in carries."""
    body = json.loads(request.body)
    if "items" in body:
        return {item["id"] for item in body["items"]}
    return {body.get("id") or request.path.rpartition("/")[2]}


def for_a_while(seconds: float, answer: Scripted) -> Callable[[Recorded], Scripted]:
    """A rule: `answer` from now on for so long, then normally."""
    well_at = now() + seconds
    return lambda request: answer if request.at < well_at else None


def for_ids(ids: Collection[str], answer: Scripted) -> Callable[[Recorded], Scripted]:
    """A rule: `answer` to requests that carry one of these spans."""
    return lambda request: None if ids_in(request).isdisjoint(ids) else answer


@dataclass
class World:
    """An agent's view of the sidecar, and the upstreams' own."""

    app: App
    agentex: AgentexStandIn
    sgp: SgpStandIn
    session: aiohttp.ClientSession
    letters: Path
    running: asyncio.Task[bool]
    accepted: dict[str, Json] = field(default_factory=dict)  # spans whose END was taken
    opened: dict[str, Json] = field(default_factory=dict)  # spans whose START was taken

    @property
    def upstreams(self) -> tuple[StandIn, StandIn]:
        """Both stand-ins."""
        return self.agentex, self.sgp

    @property
    def url(self) -> str:
        """The listener."""
        return f"http://127.0.0.1:{self.app.ports['listener']}"

    def lane(self, name: str) -> Json:
        """A lane as /status shows it."""
        shown: Json = self.app.status()["sinks"][name]
        return shown

    async def send(self, body: bytes, **headers: str) -> tuple[int, Any]:
        """Post a body; the status and the parsed answer."""
        named = {"Content-Type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.url}/v1/spans"
        async with self.session.post(url, data=io.BytesIO(body), headers=named) as response:
            return response.status, json.loads(await response.read())

    async def post(self, *events: Json, **headers: str) -> None:
        """Post events that are taken, and remember what was promised."""
        status, answer = await self.send(json.dumps(events).encode(), **headers)
        assert (status, answer) == (202, {"accepted": len(events), "rejected": []})
        for event in events:
            promised = self.opened if event["event_type"] == "start" else self.accepted
            promised[event["span"]["id"]] = event["span"]

    async def feed(self, seconds: float, *, per_s: float = 5.0, prefix: str = "s") -> None:
        """A steady agent: every third span runs for longer than its START is held."""
        due: dict[int, list[Json]] = {}
        for number in range(int(seconds * per_s)):
            made = span(f"{prefix}{number}")
            long = int(3 * per_s) if number % 3 == 0 else 0
            due.setdefault(number, []).append(start(made))
            due.setdefault(number + long, []).append(end(made))
        began = now()
        for tick, events in sorted(due.items()):
            await asyncio.sleep(began + tick / per_s - now())
            await self.post(*events)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; looked at once a second of loop time."""
        while not condition():
            if self.running.done():
                self.running.result()
            await asyncio.sleep(1)

    async def drained(self) -> None:
        """Return once nothing waits: no held START, and no write in any lane."""
        await self.until(
            lambda: not (self.app.books.held or any(lane.queue.depth for lane in self.app.lanes))
        )

    def dead(self) -> Counter[tuple[str, str]]:
        """Sink and span id of every dead letter in the file."""
        if not self.letters.exists():
            return Counter()
        letters = [json.loads(line) for line in self.letters.read_bytes().splitlines()]
        return Counter((letter["sink"], letter["event"]["span"]["id"]) for letter in letters)

    def balanced(self) -> None:
        """The books: nothing is unaccounted for."""
        assert self.app.books.imbalance == 0
        for lane in self.app.lanes:
            assert lane.metrics.imbalance == 0, lane.sink.name

    async def finish(self, dead: Collection[tuple[str, str]] = ()) -> None:
        """The promise: all that was taken is upstream, whole, in order, or in `dead`; no more."""
        await self.drained()
        self.balanced()
        for lane in self.app.lanes:
            assert lane.metrics.books.lost.total() == 0
        assert self.dead() == Counter(dead)
        for upstream in self.upstreams:
            assert upstream.late_opens == 0
            assert upstream.duplicates_in_batch == 0
        assert self.sgp.second_rows == 0
        for id_, sent in self.accepted.items():
            if ("agentex", id_) not in dead:
                row = self.agentex.spans[id_]
                assert {key: row[key] for key in sent if key != "task_id"} == {
                    key: value for key, value in sent.items() if key != "task_id"
                }
            if ("sgp", id_) not in dead:
                self._stored_by_sgp(sent)
        for id_, sent in self.opened.items():
            if id_ not in self.accepted:
                assert ("agentex", id_) in dead or self.agentex.spans[id_]["input"]
                assert ("sgp", id_) in dead or (sent["trace_id"], id_) in self.sgp.spans

    def _stored_by_sgp(self, sent: Json) -> None:
        row = self.sgp.spans[sent["trace_id"], sent["id"]]
        assert row["input"] == sent["input"]
        assert row["output"] == sent["output"]
        assert row["start_timestamp"] == sent["start_time"]
        assert row["end_timestamp"] == sent["end_time"]
        assert row["metadata"].items() >= sent["data"].items()


@asynccontextmanager
async def world(
    agentex: AgentexStandIn | None = None, sgp: SgpStandIn | None = None, **settings: str
) -> AsyncIterator[World]:
    """Run all of it; `settings` are keys such as `queue__start_hold_s`."""
    async with (
        agentex or AgentexStandIn() as one,
        sgp or SgpStandIn() as many,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout()) as session,
    ):
        with tempfile.TemporaryDirectory() as folder:
            letters = Path(folder) / "letters.jsonl"
            environ = _environ(one, many) | {"SIDECAR_DEAD_LETTERS__PATH": str(letters)}
            environ |= {f"SIDECAR_{key}".upper(): value for key, value in settings.items()}
            app = App(load(None, environ), {"AGENT_NAME": "agent"})
            started = asyncio.Event()
            running = asyncio.create_task(app.run(started))
            await _first(started.wait(), running)
            made = World(app, one, many, session, letters, running)
            try:
                yield made
            finally:
                if not running.done():
                    app.stop()
                    await asyncio.wait([running])
            lost = sum(lane.metrics.books.lost.total() for lane in app.lanes)
            assert running.result() is (lost == 0)
            made.balanced()


def _environ(agentex: StandIn, sgp: StandIn) -> Mapping[str, str]:
    return {
        "SIDECAR_LISTENER__HOSTS": "127.0.0.1",
        "SIDECAR_LISTENER__PORT": "0",
        "SIDECAR_ADMIN__HOST": "127.0.0.1",
        "SIDECAR_ADMIN__PORT": "0",
        "AGENTEX_BASE_URL": agentex.url,
        "SGP_CLIENT_BASE_URL": sgp.url,
        "SGP_API_KEY": "key",
        "SGP_ACCOUNT_ID": "account",
    }


async def _first(what: Awaitable[object], running: asyncio.Task[bool]) -> None:
    waiting = asyncio.ensure_future(what)
    await asyncio.wait([waiting, running], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
