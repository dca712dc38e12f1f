"""Times and long ids through every way in: what is accepted is delivered (docs/api.md)."""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.bodies import parse_time
from sidecar.demo.sgp import SgpStandIn
from tests.support.spans import make_event
from tests.support.world import Reply, Running, running_app

# The text that an agent sends, and the one that its upstreams get.
TIMES = {
    "2026-01-02T03:04:05.678901Z": "2026-01-02T03:04:05.678901Z",
    "2026-01-02T03:04:05.678901234-08:00": "2026-01-02T03:04:05.678901234-08:00",
    "2026-01-02 03:04": "2026-01-02 03:04+00:00",
    "2026-01-02T03:04:05.6": "2026-01-02T03:04:05.6+00:00",
    "2026-01-02t03:04:05z": "2026-01-02T03:04:05+00:00",
    "2026-01-02T03:04:05,678Z": "2026-01-02T03:04:05.678000+00:00",
    "2026-01-02T03:04:05+05": "2026-01-02T03:04:05+05:00",
    "2026-01-02T03:04:05+0530": "2026-01-02T03:04:05+05:30",
    "2026-01-02T03:04:05+01:02:03": "2026-01-02T02:02:02+00:00",
    "2026-01-02T03:04:05+05:30:10.5": "2026-01-01T21:33:54.500000+00:00",
    "2026-01-02 03:04:05 +0000": "2026-01-02T03:04:05+00:00",
}
OUTSIDE = "9999-12-31T23:59:59-00:01"


class World(NamedTuple):
    """A sidecar and its upstreams."""

    app: Running
    agentex: AgentexStandIn
    sgp: SgpStandIn

    async def drained(self) -> None:
        """Stop the sidecar; everything that it accepted must have been delivered."""
        assert await self.app.stop()
        assert [lane.totals()["dead_lettered"] for lane in self.app.app.lanes] == [0, 0]

    async def create(self, **fields: Any) -> Reply:
        """POST to the Agentex SDK's route."""
        body = make_event(kind="end", **fields)["span"]
        return await self.app.request("POST", "/spans", json=body)

    async def end(self, id_: str, **fields: Any) -> Reply:
        """PATCH on the Agentex SDK's route."""
        body = make_event(kind="end", **fields)["span"]
        return await self.app.request("PATCH", f"/spans/{id_}", json=body)

    async def put(self, **fields: Any) -> Reply:
        """PUT one item to the SGP SDK's route."""
        item = {"id": "s1", "trace_id": "t1", "name": "turn"} | fields
        return await self.app.request("PUT", "/v5/spans/batch", json={"items": [item]})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        async with running_app(environ) as app:
            yield World(app, agentex, sgp)


async def test_times_of_events(world: World) -> None:
    """Both upstreams accept the times of every event, in the form of the table."""
    events = [make_event(text, kind="end", start_time=text, end_time=text) for text in TIMES]
    events += [make_event(f"open {text}", start_time=text) for text in TIMES]
    assert (await world.app.post(events)).status == 202
    await world.drained()
    agentex, sgp = world.agentex.spans, {id_: row for (_, id_), row in world.sgp.spans.items()}
    for text, forwarded in TIMES.items():
        row, item = agentex[text], sgp[text]
        assert [row["start_time"], row["end_time"]] == [forwarded] * 2
        assert [item["start_timestamp"], item["end_timestamp"]] == [forwarded] * 2
        assert agentex[f"open {text}"]["start_time"] == forwarded


async def test_times_on_the_agentex_route(world: World) -> None:
    """POST and PATCH follow the table as well, and the response has the forwarded text."""
    for n, (text, forwarded) in enumerate(TIMES.items()):
        times = {"start_time": text, "end_time": text}
        for reply in (await world.create(id=f"s{n}", **times), await world.end(f"p{n}", **times)):
            assert reply.status == 200
            assert reply.body["start_time"] == reply.body["end_time"] == forwarded
    await world.drained()
    for n, forwarded in enumerate(TIMES.values()):
        for id_ in (f"s{n}", f"p{n}"):
            row = world.agentex.spans[id_]
            assert [row["start_time"], row["end_time"]] == [forwarded] * 2


async def test_times_on_the_sgp_route(world: World) -> None:
    """Items follow the table as well, and the response has the forwarded text."""
    for n, (text, forwarded) in enumerate(TIMES.items()):
        reply = await world.put(id=f"s{n}", start_timestamp=text, end_timestamp=text)
        assert reply.status == 200
        assert reply.body["items"][0]["start_timestamp"] == forwarded
    await world.drained()
    for n, forwarded in enumerate(TIMES.values()):
        row = world.sgp.spans["t1", f"s{n}"]
        assert [row["start_timestamp"], row["end_timestamp"]] == [forwarded] * 2


async def test_years_outside_1_to_9999_on_every_route(world: World) -> None:
    """The error names the route's own field and the rule."""
    problem = "is outside the years 1 to 9999 in UTC"
    reply = await world.app.post(make_event(start_time=OUTSIDE))
    assert reply.body["rejected"][0]["error"] == f"span.start_time {problem}"
    reply = await world.create(end_time=OUTSIDE)
    assert (reply.status, problem in reply.body["message"]) == (422, True)
    reply = await world.put(start_timestamp="2026-01-02T03:04:05Z", end_timestamp=OUTSIDE)
    assert (reply.status, problem in reply.body["detail"][0]["msg"]) == (422, True)


async def test_a_start_and_an_end_that_write_the_same_time_differently(world: World) -> None:
    """They are one span with one start, whichever way they came in."""
    await world.app.post(make_event("event", start_time="2026-01-02t03:04:05,5z"))
    end = {"start_time": "2026-01-02T08:34:05.5+0530", "end_time": "2026-01-02T04:04:05.5+01"}
    await world.app.post(make_event("event", kind="end", **end))
    await world.create(id="sdk", start_time="2026-01-02t03:04:05,5z", end_time=None)
    await world.end("sdk", **end)
    await world.put(id="sdk", start_timestamp="2026-01-02t03:04:05,5z")
    await world.put(
        id="sdk",
        start_timestamp="2026-01-02T08:34:05.5+0530",
        end_timestamp="2026-01-02T03:04:05.5",
    )
    await world.drained()
    rows = [world.agentex.spans[id_] for id_ in ("event", "sdk")]
    times = [(row["start_time"], row["end_time"]) for row in rows]
    items = [world.sgp.spans["t1", id_] for id_ in ("event", "sdk")]
    times += [(row["start_timestamp"], row["end_timestamp"]) for row in items]
    instant = parse_time("2026-01-02T03:04:05.5Z")
    assert {parse_time(text) for pair in times for text in pair} == {instant}
    assert world.sgp.second_rows == 0


@pytest.mark.parametrize("field", ["trace_id", "parent_id", "task_id"])
async def test_long_ids_on_every_route(world: World, field: str) -> None:
    """1,024 bytes of UTF-8 are delivered, one more is refused; SGP's items have no task id."""
    longest, too_long = "漢" * 341 + "i", "漢" * 341 + "é"
    problem = "is longer than 1024 bytes"
    start = {"start_timestamp": "2026-01-02T03:04:05Z"}
    assert (await world.app.post(make_event("event", **{field: longest}))).status == 202
    assert (await world.create(id="sdk", **{field: longest})).status == 200
    assert (await world.put(id="item", **start, **{field: longest})).status == 200
    reply = await world.app.post(make_event(**{field: too_long}))
    assert (reply.status, reply.body["rejected"][0]["error"]) == (
        400,
        f"span.{field} {problem}",
    )
    for reply in (
        await world.create(**{field: too_long}),
        await world.end("s", **{field: too_long}),
    ):
        assert (reply.status, reply.body["message"]) == (422, f"body.{field}: {problem}")
    reply = await world.put(**start, **{field: too_long})
    assert reply.status == (200 if field == "task_id" else 400)
    await world.drained()
    assert [world.agentex.spans[id_][field] for id_ in ("event", "sdk")] == [longest] * 2
