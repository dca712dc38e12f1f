"""START and END of a span that reach Agentex through different sidecars, as in Temporal workers.

The other sidecar is played by a client of the stand-in. An orderly restart is another sidecar, too.
"""

import asyncio
from pathlib import Path

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.faults import Json, World, end, fast, span, start, world
from tests.support.one_span import started
from tests.support.spans import END_TIME
from tests.support.spool import EAGER, spool_world

DATA = [
    ({"state": "running"}, {"state": "done"}),
    ({"a": 1}, {"k": 1}),
    ([{"a": 1}], {"k": 1}),
    ({"a": 1}, [{"k": 1}]),
    ([{"a": 1}], [{"k": 1}]),
]
each_data = pytest.mark.parametrize(("at_start", "at_end"), DATA)


async def elsewhere(w: World, method: str, row: Json) -> None:
    """The other sidecar writes the span."""
    url = w.agentex.url + ("/spans" if method == "POST" else "/spans/s")
    async with w.running.client.request(method, url, json=row) as response:
        assert response.status == 200


def check(w: World, data: object) -> None:
    """The span has what its END said, and the input that only its START had."""
    row = w.agentex.spans["s"]
    assert (row["input"], row["output"]) == ({"prompt": "input of s"}, {"text": "output of s"})
    assert (row["data"], row["end_time"]) == (data, END_TIME)
    assert w.dead() == {}


@pytest.mark.parametrize("how", ["ttl", "stops"])
@each_data
@fast
async def test_the_start_came_here(at_start: object, at_end: object, how: str) -> None:
    """When it is forgotten, or the process stops, nothing of the finished span changes."""
    async with world(queue__open_span_ttl_s="60") as w:
        await w.post(start(started(at_start)))
        await asyncio.sleep(10)
        await elsewhere(w, "PATCH", span("s", data=at_end, input=None))
        if how == "ttl":
            await asyncio.sleep(200)
            await w.drained()
        else:
            assert await w.running.stop()
        check(w, at_end)


@each_data
@fast
async def test_the_end_came_here(at_start: object, at_end: object) -> None:
    """It finds the row that the other sidecar has written open, without `data`."""
    async with world() as w:
        await elsewhere(w, "POST", started())
        await w.post(end(span("s", data=at_end, input=None)))
        await w.drained()
        check(w, at_end)
        # A late START.
        await w.post(start(started(at_start)))
        await asyncio.sleep(10)
        await w.drained()
        check(w, at_end)


@fast
async def test_the_start_came_here_later() -> None:
    """The END, without input, was stored before it: its input is added."""
    async with world() as w:
        await elsewhere(w, "POST", span("s", input=None))
        await w.post(start(started({"a": 1})))
        await asyncio.sleep(10)
        await w.drained()
        check(w, {"note": "data of s"})


async def test_a_patch_before_its_post_and_a_restart_between(tmp_path: Path) -> None:
    """The next process does not know that the span has ended: its input is added all the same."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as before:
        ended = span("s", input=None)
        assert (await before.running.request("PATCH", "/spans/s", json=ended)).status == 200
        await before.drained()
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as w:
        assert (await w.running.request("POST", "/spans", json=started({"a": 1}))).status == 200
        await w.until(lambda: w.app.accounting.held == 0)
        await w.drained()
        check(w, {"note": "data of s"})
