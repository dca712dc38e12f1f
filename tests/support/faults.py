"""The world of the fault tests: an agent, a sidecar and both stand-ins, over real HTTP.

All of it runs in one event loop whose clock skips idle time: an outage of a minute takes only as
long as its requests, and a slow machine sees the same times as a fast one. Every test ends with
`World.finish`, which compares what was accepted with what arrived.
"""

import asyncio
import functools
import io
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

from sidecar.app import App
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Recorded, Scripted, StandIn
from tests.support.spans import END_TIME, START_TIME
from tests.support.world import Reply, Running, assert_balanced, running_app

P = ParamSpec("P")
Json = dict[str, Any]

# How long a busy kernel can take to deliver bytes on loopback, in wall-clock seconds.
IDLE_S = 0.0001
# How often to look whether a call on a thread hangs.
THREAD_S = 0.001
# Loop time: longer than any test needs, so that a test that hangs fails.
DEADLINE_S = 2 * 3600.0


class FastLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands still while there is work, and otherwise jumps to the next timer.

    Works only if every byte comes from a socket of the same process. Work is also what a thread
    does for the loop, unless it hangs: see `hang`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._calls = Counter[Any]()  # those under way, by executor
        self._hangs: list[tuple[Any, threading.Event]] = []  # until when, by executor
        self._on_thread = threading.local()
        select = self._selector.select  # type: ignore[attr-defined]

        def wait_or_jump(timeout: float | None) -> list[Any]:
            ready: list[Any] = select(None if timeout is None else 0)
            if not ready and timeout:
                time.sleep(IDLE_S)  # select() itself waits for whole milliseconds
                ready = select(0)
                while not ready and self._is_working():
                    ready = select(THREAD_S)
                if not ready:
                    self._now += timeout
            return ready

        self._selector.select = wait_or_jump  # type: ignore[attr-defined]

    def time(self) -> float:
        """The skipped seconds."""
        return self._now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # noqa: ANN401
        """As usual, but the clock stands still until the call returns, or hangs."""

        def call() -> object:
            self._on_thread.executor = executor
            return func(*args)

        def returned(_: object) -> None:
            self._calls[executor] -= 1

        self._calls[executor] += 1
        done = super().run_in_executor(executor, call)
        done.add_done_callback(returned)
        return done

    def _is_working(self) -> bool:
        """Whether a thread works for the loop, and does not hang."""
        hung = {executor for executor, until in [*self._hangs] if not until.is_set()}
        return any(calls and executor not in hung for executor, calls in self._calls.items())

    def hang(self, until: threading.Event) -> None:
        """Called on a thread: its call hangs, and time goes on without it."""
        hang = self._on_thread.executor, until
        self._hangs.append(hang)
        until.wait()
        self._hangs.remove(hang)


def fast_loop() -> FastLoop:
    """The loop of the running test."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FastLoop)
    return loop


def run_fast(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run `coroutine` in a `FastLoop`."""

    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await coroutine

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        runner.run(within_deadline())


def fast(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Turn a coroutine function into a test that runs in a `FastLoop`."""

    @functools.wraps(function)
    def test(*args: P.args, **kwargs: P.kwargs) -> None:
        run_fast(function(*args, **kwargs))

    return test


def now() -> float:
    """Loop time, as in `Recorded.at`."""
    return asyncio.get_running_loop().time()


def span(id_: str, **fields: Any) -> Json:
    """A complete span as the SDK serializes it, with payloads that differ for each id."""
    return {
        "id": id_,
        "trace_id": "trace",
        "name": "step",
        "start_time": START_TIME,
        "end_time": END_TIME,
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
    """The ids of the spans in a request to a stand-in."""
    body = json.loads(request.body)
    if "items" in body:
        return {item["id"] for item in body["items"]}
    return {body.get("id") or request.path.rpartition("/")[2]}


def page(status: int, media_type: str = "text/html") -> Answer:
    """The response of a gateway: a page instead of the API's JSON."""
    return Answer(status, b"<html>go away</html>", {"Content-Type": media_type})


def for_a_while(seconds: float, response: Scripted) -> Callable[[Recorded], Scripted]:
    """A rule: `response` to every request for `seconds` from now on, then normal operation."""
    until = now() + seconds
    return lambda request: response if request.at < until else None


def for_ids(ids: Collection[str], response: Scripted) -> Callable[[Recorded], Scripted]:
    """A rule: `response` to every request with one of these spans."""
    return lambda request: None if ids_in(request).isdisjoint(ids) else response


@dataclass
class World:
    """A running sidecar between an agent, which the test plays, and both stand-ins."""

    running: Running
    agentex: AgentexStandIn
    sgp: SgpStandIn
    letters: Path
    accepted: dict[str, Json] = field(default_factory=dict)  # spans whose END was accepted
    opened: dict[str, Json] = field(default_factory=dict)  # spans whose START was accepted

    @property
    def app(self) -> App:
        """The sidecar."""
        return self.running.app

    @property
    def upstreams(self) -> tuple[StandIn, StandIn]:
        """Both stand-ins."""
        return self.agentex, self.sgp

    def lane(self, name: str) -> Json:
        """A lane as `/status` shows it."""
        shown: Json = self.app.status()["sinks"][name]
        return shown

    async def send(self, body: bytes, **headers: str) -> Reply:
        """Post a body unchanged."""
        named = {"content-type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        # aiohttp warns about large bodies given as bytes.
        data = io.BytesIO(body)
        return await self.running.request("POST", "/v1/spans", data=data, headers=named)

    async def post(self, *events: Json, **headers: str) -> None:
        """Post valid events, and record them as accepted."""
        reply = await self.send(json.dumps(events).encode(), **headers)
        assert reply.status == 202
        assert reply.body == {"accepted": len(events), "rejected": []}
        for event in events:
            accepted = self.opened if event["event_type"] == "start" else self.accepted
            accepted[event["span"]["id"]] = event["span"]

    async def feed(self, seconds: float, *, per_s: float = 5.0, prefix: str = "s") -> None:
        """Play a steady agent: every third span runs longer than its START is held."""
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

    async def feed_until(
        self, done: Callable[[], object], *, per_s: float = 5.0, prefix: str = "f"
    ) -> None:
        """Play a steady agent that only posts complete spans, until `done`."""
        began = now()
        number = 0
        while not done():
            await self.post(end(span(f"{prefix}{number}")))
            number += 1
            await asyncio.sleep(began + number / per_s - now())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds; checked once per second of loop time."""
        while not condition():
            if self.running.task.done():
                self.running.task.result()
            await asyncio.sleep(1)

    async def drained(self) -> None:
        """Return once no START is held and no lane has a write."""
        await self.until(
            lambda: not (self.app.accounting.held or any(lane.depth for lane in self.app.lanes))
        )

    def dead(self) -> Counter[tuple[str, str]]:
        """Sink and span id of every dead letter."""
        if not self.letters.exists():
            return Counter()
        lines = self.letters.read_bytes().splitlines()
        letters = [json.loads(line, parse_int=str) for line in lines]
        return Counter((letter["sink"], letter["event"]["span"]["id"]) for letter in letters)

    async def finish(self, dead: Collection[tuple[str, str]] = ()) -> None:
        """Check that everything accepted is upstream, complete and in order, except for `dead`."""
        await self.drained()
        assert_balanced(self.app)
        for lane in self.app.lanes:
            assert lane.metrics.accounting.lost.total() == 0
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
    agentex: AgentexStandIn | None = None,
    sgp: SgpStandIn | None = None,
    *,
    without: tuple[str, ...] = (),
    variables: Mapping[str, str] | None = None,
    **settings: object,
) -> AsyncIterator[World]:
    """Run a sidecar and its upstreams; `settings` are keys such as `queue__start_hold_s`.

    `without` names variables that the pod does not have, `variables` are others that it has.
    """
    with tempfile.TemporaryDirectory() as folder:
        letters = Path(folder) / "letters.jsonl"
        async with agentex or AgentexStandIn() as one, sgp or SgpStandIn() as many:
            environ = {
                "AGENT_NAME": "agent",
                "AGENTEX_BASE_URL": one.url,
                "SGP_CLIENT_BASE_URL": many.url,
                "SGP_API_KEY": "key",
                "SGP_ACCOUNT_ID": "account",
            }
            environ = {name: text for name, text in environ.items() if name not in without}
            environ |= variables or {}
            settings.setdefault("dead_letters__path", letters)
            async with running_app(environ, **settings) as running:
                yield World(running, one, many, letters)
            lost = sum(lane.metrics.accounting.lost.total() for lane in running.app.lanes)
            assert running.task.result() is (lost == 0)
