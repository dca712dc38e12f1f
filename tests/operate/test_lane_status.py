"""What `/status` says about a lane and its answers, while the world around it changes."""

import asyncio
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.stand_in import Answer, Hang
from sidecar.operate import replay
from sidecar.operate.top_frame import frame
from tests.support.faults import World, end, fast, ids_in, span, world
from tests.support.spans import make_event
from tests.support.world import Running, running_app

Json = dict[str, Any]


def answer(w: World, question: int) -> Json:
    """An answer of the running sidecar."""
    found: Json = w.app.status()["answers"][question]
    return found


async def until(app: Running, holds: Callable[[Json], bool]) -> None:
    """Wait until the report of a running sidecar is as it should be."""
    while True:
        if holds(app.app.status()):
            return
        await asyncio.sleep(0.01)


@fast
async def test_it_was_late_until() -> None:
    """After an outage, the second answer says until when it was late; a quarter later, no more."""
    async with world() as w:
        w.sgp.rule = lambda _: Answer(503)
        await w.post(end(span("s")))
        await asyncio.sleep(12)
        assert (w.lane("sgp")["late_until"], answer(w, 1)["level"]) == (None, "warn")
        w.sgp.rule = None
        await asyncio.sleep(60)
        assert w.lane("sgp")["late_until"].endswith("Z")
        assert w.lane("agentex")["late_until"] is None
        assert (answer(w, 1)["level"], answer(w, 1)["answer"]) == ("ok", "No longer")
        assert answer(w, 1)["detail"].startswith("SGP was late until ")
        await asyncio.sleep(900)
        assert (w.lane("sgp")["late_until"], answer(w, 1)["answer"]) == (None, "No")
        await w.finish()


@fast
async def test_what_failed_is_not_slow() -> None:
    """Writes that meet an HTTP 500 while others pass wait for a retry; nothing is slow."""
    async with world() as w:
        bad = {f"bad{number}" for number in range(3)}
        w.agentex.rule = lambda request: Answer(500) if bad & ids_in(request) else None
        for number in range(40):
            await w.post(end(span(f"good{number}")))
            await asyncio.sleep(0.1)
            if number < len(bad):
                await w.post(end(span(f"bad{number}")))
        lane, why = w.lane("agentex"), answer(w, 2)
        assert (lane["state"], lane["retrying"]) == ("up", 3)
        assert (why["level"], why["answer"]) == (
            "warn",
            "Writes to Agentex wait for their next attempt",
        )
        assert why["detail"].startswith("3 writes; last error ")
        assert why["detail"].endswith(": HTTP 500")
        w.agentex.rule = None
        await w.finish()
        assert w.lane("agentex")["retrying"] == 0


@fast
async def test_an_attempt_under_way() -> None:
    """While a probe waits for its answer, no other attempt is announced."""
    async with world(agentex__timeout_s=30.0) as w:
        w.agentex.rule = lambda _: Answer(503)
        for number in range(5):
            await w.post(end(span(f"s{number}")))
        await asyncio.sleep(15)
        assert w.lane("agentex")["next_attempt"].startswith(("next attempt in ", "an attempt"))
        w.agentex.rule = lambda _: Hang()
        await asyncio.sleep(28)
        lane = w.lane("agentex")
        assert (lane["state"], lane["requests_in_flight"]) == ("down", 1)
        assert lane["next_attempt"] == "an attempt is under way"
        assert lane["error"] == "HTTP 503"
        w.agentex.rule = None
        await w.finish()
        assert w.lane("agentex")["next_attempt"] is w.lane("agentex")["error"] is None


@fast
async def test_the_backlog_of_an_outage_is_not_slowness() -> None:
    """What waits after an outage is called a backlog, until it is delivered."""
    async with world(agentex__max_concurrency=1) as w:
        w.agentex.rule = lambda _: Answer(503)
        for number in range(60):
            await w.post(end(span(f"s{number}")))
            await asyncio.sleep(1)
        w.agentex.rule, w.agentex.latency_s = None, 1.0
        causes = set()
        for _ in range(60):
            await asyncio.sleep(1)
            lane = w.lane("agentex")
            if lane["catching_up"]:
                causes.add(answer(w, 2)["answer"])
        assert causes == {"Agentex is getting its backlog"}
        w.agentex.latency_s = 0.0
        await w.finish()
        await asyncio.sleep(2)
        assert not w.lane("agentex")["catching_up"]


@fast
async def test_time_until_full() -> None:
    """While an upstream is down and agents go on, its lane says when it will be full."""
    async with world(queue__max_bytes="1MiB") as w:
        w.sgp.rule = lambda _: Answer(503)
        for number in range(70):
            await w.post(end(span(f"s{number}", input={"text": "x" * 1000})))
            await asyncio.sleep(1)
        lane = w.lane("sgp")
        left = lane["lane_limit_bytes"] - lane["lane_bytes"]
        per_s = lane["lane_bytes"] / 70
        assert 0.9 < lane["full_in_s"] / (left / per_s) < 1.1
        assert "its room will be full in " in answer(w, 2)["detail"]
        assert w.lane("agentex")["full_in_s"] is None
        w.sgp.rule = None
        await w.finish()


async def test_dead_letters_are_over_once_replayed(tmp_path: Path) -> None:
    """They are a warning until `sidecar replay` has delivered them; the answer says so."""
    file = str(tmp_path / "dead.jsonl")
    async with AgentexStandIn() as agentex:
        agentex.rule = lambda _: Answer(422)
        async with running_app({"AGENTEX_BASE_URL": agentex.url}, dead_letters__path=file) as app:
            await app.post(make_event("s", kind="end"))
            async with asyncio.timeout(30):
                await until(app, lambda status: status["sinks"]["agentex"]["dead_lettered"] == 1)
                first = app.app.status()["answers"][0]
                agentex.rule = None
                assert (first["level"], first["answer"]) == ("warn", "Dead letters")
                assert first["hint"] == f"fix the cause, then run: sidecar replay {file}"
                done = await replay.through(file, None, app.url)
                assert dict(+done) == {"accepted": 1}
                await until(app, lambda status: status["dead_letters"]["kept"] == 0)
            first = app.app.status()["answers"][0]
            assert (first["level"], first["answer"]) == ("ok", "No dead letters are left")
            assert [each["id"] for each in app.app.status()["dead_letters"]["last"]] == ["s"]


async def test_the_first_span() -> None:
    """The command in the empty state works as it stands, also as `sidecar top` breaks it up."""
    async with (
        AgentexStandIn() as agentex,
        running_app({"AGENTEX_BASE_URL": agentex.url}) as app,
    ):
        status = app.app.status()
        assert status["answers"][0]["answer"] == "Nothing has arrived yet"
        command = shlex.split(status["answers"][0]["hint"].partition(": ")[2])
        for width in (60, 80):
            lines = [line.text for line in frame(status, None, width)]
            first = next(n for n, line in enumerate(lines) if "curl " in line)
            assert max(map(len, lines)) <= width
            joined = "\n".join(lines[first:]).replace("\\\n", "")  # as a shell does
            assert shlex.split(joined)[: len(command)] == command
        curl, url, _, header, _, body = command
        assert (curl, url) == ("curl", f"{app.url}/v1/spans")
        name, _, value = header.partition(":")
        reply = await app.request("POST", "/v1/spans", data=body, headers={name: value})
        assert reply.status == 202
        await agentex.arrived(1)
        assert app.app.status()["answers"][0]["answer"] == "No"
