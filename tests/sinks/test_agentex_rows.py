"""The rows that Agentex has in the end, over HTTP.

The stand-in merges `data` as the real server does, and fails or corrupts it where that does. Only
Agentex is enabled.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sidecar.demo.behaviours import Reset
from tests.support.faults import Json, World, end, fast, span, start, world
from tests.support.one_span import (
    PAIRS,
    Post,
    each_route,
    ended,
    started,
)
from tests.support.spans import END_TIME

HOLD_S, TTL_S = 2.0, 60.0
INPUT, OUTPUT = {"prompt": "input of s"}, {"text": "output of s"}


@asynccontextmanager
async def agentex_world(**settings: Any) -> AsyncIterator[World]:
    """A world in which STARTs are held for `HOLD_S` and then kept for `TTL_S`."""
    settings = {"queue__start_hold_s": HOLD_S, "queue__open_span_ttl_s": TTL_S, **settings}
    async with world(without=("SGP_API_KEY",), **settings) as made:
        yield made


def check(w: World, data: object, *requests: str) -> None:
    """Check the row of a span that has ended, and which requests it took, if any are named."""
    row = w.agentex.spans["s"]
    said = {name: row[name] for name in ("input", "output", "data", "end_time")}
    assert said == {"input": INPUT, "output": OUTPUT, "data": data, "end_time": END_TIME}
    assert [request.method for request in w.agentex.requests] == list(requests) or not requests


def repaired(w: World) -> Json:
    """The repairs that were counted."""
    (lane,) = w.app.lanes
    return {reason: count for reason, count in lane.metrics.repaired.items() if count}


# A span that has ended.


@pytest.mark.parametrize(("at_start", "at_end"), PAIRS)
@each_route
@fast
async def test_an_ended_span_has_the_data_of_its_end(
    post: Post, at_start: object, at_end: object
) -> None:
    """Exactly that, whatever its START said, although the open write was delivered before."""
    async with agentex_world() as w:
        await post(w, started(at_start))
        await w.drained()
        assert w.agentex.spans["s"]["data"] is None
        await post(w, ended(at_end))
        await w.drained()
        check(w, at_end, "POST", "PATCH")
        assert repaired(w) == {}


@pytest.mark.parametrize(("at_start", "at_end"), PAIRS)
@fast
async def test_the_response_to_the_open_write_was_lost(at_start: object, at_end: object) -> None:
    """It was stored nevertheless; the END finds it, and its `data` is stored whole."""
    async with agentex_world() as w:
        w.agentex.script = [Reset(after_apply=True)]
        await w.post(start(started(at_start)))
        await w.agentex.arrived(1)
        await w.post(end(ended(at_end)))
        await w.drained()
        check(w, at_end, "POST", "POST", "GET", "PATCH")
        assert repaired(w) == {"exists": 1}


@each_route
@fast
async def test_an_end_without_data_has_that_of_its_start(post: Post) -> None:
    """And without input, the START's."""
    async with agentex_world() as w:
        await post(w, started([{"a": 1}]))
        await w.drained()
        await post(w, ended(None, input=None))
        await w.drained()
        check(w, [{"a": 1}], "POST", "PATCH")


@pytest.mark.parametrize(
    ("stored", "at_end", "merged", "repairs"),
    [
        ({"a": 1}, {"k": 1}, {"a": 1, "k": 1}, {}),
        ([{"a": 1}], {"k": 1}, [{"a": 1}], {"data_not_merged": 1}),
        ({"k": 1}, [{"a": 1}], {"k": 1}, {"data_not_merged": 1}),
        ({"k": 1}, [{}], {"k": 1}, {"data_not_merged": 1}),
    ],
)
@fast
async def test_data_that_was_stored_by_somebody_else(
    stored: object, at_end: object, merged: object, repairs: dict[str, int]
) -> None:
    """The server merges it; if that fails, all else that the END says is stored."""
    async with agentex_world() as w:
        await stored_elsewhere(w, started(stored))
        await w.post(end(ended(at_end)))
        await w.drained()
        check(w, merged, "POST", "POST", "GET", "PATCH", *["PATCH"] * len(repairs))
        assert repaired(w) == {"exists": 1, **repairs}
        assert w.app.lanes[0].metrics.retries == 0


async def stored_elsewhere(w: World, of: Json) -> None:
    """Another client stores a span."""
    async with w.running.client.post(w.agentex.url + "/spans", json=of) as response:
        assert response.status == 200


# A span that has not ended.


@pytest.mark.parametrize("data", [{"a": 1}, [{"a": 1}], {}, []])
@each_route
@fast
async def test_the_data_of_a_start_follows_after_its_ttl(post: Post, data: object) -> None:
    """The span never ends, as far as this sidecar knows; an END that comes then adds the rest."""
    async with agentex_world() as w:
        await post(w, started(data, parent_id="p"))
        await asyncio.sleep(2 * TTL_S)
        await w.drained()
        row = w.agentex.spans["s"]
        assert (row["input"], row["data"], row["end_time"]) == (INPUT, data, None)
        assert [request.method for request in w.agentex.requests] == ["POST", "GET", "PATCH"]
        await post(w, ended(None, input=None))
        await w.drained()
        row = w.agentex.spans["s"]
        assert (row["input"], row["output"], row["data"]) == (INPUT, OUTPUT, data)
        assert w.dead() == {}


@pytest.mark.parametrize("sent", [False, True])
@pytest.mark.parametrize(("at_start", "at_end"), PAIRS)
@fast
async def test_an_end_that_comes_while_the_data_of_its_start_waits(
    sent: bool, at_start: object, at_end: object
) -> None:
    """It has `data` of its own: that is all that is stored, and nothing is merged.

    `sent`: the START's was sent, but did not arrive.
    """
    async with agentex_world() as w:
        await w.post(start(started(at_start)))
        await w.drained()
        w.agentex.rule = lambda _: 503
        if not sent:  # the lane is held meanwhile
            await w.post(*[end(span(f"other{number}")) for number in range(20)])
        await asyncio.sleep(2 * TTL_S)
        await w.post(end(ended(at_end)))
        w.agentex.rule = None
        await w.drained()
        check(w, at_end)
        assert w.agentex.history["s"] == ["open", "complete"]
        assert repaired(w) == {}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("data", [{"a": 1}, [{"a": 1}]])
@fast
async def test_the_data_of_a_start_is_sent_when_the_process_stops(held: bool, data: object) -> None:
    """With the open write of a START that is held, behind that of one that is kept."""
    async with agentex_world() as w:
        await w.post(start(started(data)))
        if not held:
            await w.drained()
        assert await w.running.stop()
        assert w.agentex.spans["s"]["data"] == data
        assert w.agentex.history["s"] == (["open"] if held else ["open", "open"])


# A START that arrives after its END: an SDK's first request failed and was sent again.


@pytest.mark.parametrize("data", [{"a": 1}, [{"a": 1}]])
@each_route
@fast
async def test_a_late_start_adds_what_its_end_lacks(post: Post, data: object) -> None:
    """The END keeps what it said; nothing else of the span changes."""
    async with agentex_world() as w:
        await post(w, ended(None, input=None))
        await w.drained()
        for _ in range(2):
            await post(w, started(data, name="another"))
            await w.drained()
        check(w, data)
        assert w.agentex.spans["s"]["name"] == "step"
        assert w.agentex.history["s"] == ["complete", "open"]


@each_route
@fast
async def test_a_late_start_does_not_change_what_its_end_said(post: Post) -> None:
    """Neither input nor `data`."""
    async with agentex_world() as w:
        await post(w, ended({"k": 1}))
        await w.drained()
        await post(w, started({"a": 1}, input={"other": 1}))
        await w.drained()
        check(w, {"k": 1}, "POST")


# An id that is used in two traces.


@fast
async def test_the_span_of_another_trace_is_not_changed() -> None:
    """Not by a START, nor by its END; both are dead letters."""
    async with agentex_world() as w:
        await stored_elsewhere(w, started({"a": 1}, trace_id="another"))
        before = w.agentex.spans["s"]
        await w.post(start(started({"k": 1})))
        await asyncio.sleep(2 * HOLD_S)
        await w.post(end(ended({"k": 1})))
        await w.drained()
        assert w.agentex.spans["s"] == before
        assert w.dead() == {("agentex", "s"): 2}
        assert [request.method for request in w.agentex.requests].count("PATCH") == 0


@pytest.mark.parametrize("stops", [False, True])
@fast
async def test_the_span_of_another_trace_is_not_changed_by_what_follows(stops: bool) -> None:
    """A START that was refused is forgotten after its TTL, or when the process stops."""
    async with agentex_world() as w:
        await stored_elsewhere(w, started({"a": 1}, trace_id="another"))
        before = w.agentex.spans["s"]
        await w.post(start(started({"k": 1})))
        await w.drained()
        if stops:
            await w.running.stop()
        else:
            await asyncio.sleep(2 * TTL_S)
        assert w.agentex.spans["s"] == before
