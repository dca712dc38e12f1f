"""The rows that both upstreams have in the end, however START and END reached them.

tests/sinks/test_agentex_rows.py has the simple cases at Agentex.
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Recorded, Reset, ResetMidBody, Scripted
from tests.support.faults import World, end, fast, page, start, world
from tests.support.one_span import (
    PAIRS,
    Post,
    each_route,
    ended,
    event,
    request_of_the_sdk,
    started,
)
from tests.support.spans import END_TIME
from tests.support.spool import EAGER, SpoolWorld, depths, down, spool_world, up

DATA = [
    *PAIRS,
    (None, [{"a": 1, "b": 2}]),
    (None, []),
    (None, {}),
    # Not in the table.
    (None, None),
    ({}, [{}]),
    ([], {"k": None}),
]
each_data = pytest.mark.parametrize(("at_start", "at_end"), DATA)
mostly_events = pytest.mark.parametrize(
    "post", [event, pytest.param(request_of_the_sdk, marks=pytest.mark.slow)]
)


def check(w: World, data: object, post: Post = event) -> None:
    """Check both rows of a span that has ended, and that nothing was given up."""
    row = w.agentex.spans["s"]
    assert (row["input"], row["output"]) == ({"prompt": "input of s"}, {"text": "output of s"})
    assert (row["data"], row["end_time"]) == (data, END_TIME)
    assert w.dead() == {}
    assert w.agentex.late_opens == w.sgp.late_opens == 0
    if post is request_of_the_sdk:
        assert w.sgp.spans == {}
        return
    row = w.sgp.spans["trace", "s"]
    said = {name: value for name, value in row["metadata"].items() if not name.startswith("__")}
    assert said == ({"items": data} if isinstance(data, list) else data or {})
    assert row["end_timestamp"] == END_TIME


@each_data
@mostly_events
@fast
async def test_an_end_within_the_hold(post: Post, at_start: object, at_end: object) -> None:
    """It is joined: one write, with the END's `data`."""
    async with world() as w:
        await post(w, started(at_start))
        await asyncio.sleep(1)
        await post(w, ended(at_end))
        await w.drained()
        check(w, at_end, post)
        assert w.agentex.history["s"] == ["complete"]


@each_data
@each_route
@fast
async def test_an_end_after_the_hold(post: Post, at_start: object, at_end: object) -> None:
    """The open row gets the END's `data`, and has none of the START's."""
    async with world() as w:
        await post(w, started(at_start))
        await asyncio.sleep(10)
        await post(w, ended(at_end))
        await w.drained()
        check(w, at_end, post)
        assert w.agentex.history["s"] == ["open", "complete"]


async def end_after_a_restart(w: SpoolWorld, data: object, post: Post) -> None:
    """Post the END to the second process."""
    await post(w, ended(data))
    await w.drained()
    check(w, data, post)


@pytest.mark.parametrize("upstreams", [up, pytest.param(down, marks=pytest.mark.slow)])
@each_data
@mostly_events
async def test_a_kill_before_the_end(
    tmp_path: Path,
    post: Post,
    at_start: object,
    at_end: object,
    upstreams: Callable[..., None],
) -> None:
    """The next process has the START in its spool, written open before or not at all."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    upstreams(agentex, sgp)
    async with spool_world(tmp_path / "killed", agentex, sgp, **EAGER) as before:
        await post(before, started(at_start))
        await before.until(lambda: before.app.accounting.held == 0)
        if upstreams is up:
            await before.until(lambda: depths(before) == (0, 0))
        # What is on disk at this moment.
        await asyncio.to_thread(shutil.copytree, tmp_path / "killed", tmp_path / "copy")
        down(agentex, sgp)
    up(agentex, sgp)
    async with spool_world(tmp_path / "copy", agentex, sgp, **EAGER) as w:
        await end_after_a_restart(w, at_end, post)


@pytest.mark.parametrize("at_stop", [up, down])
@pytest.mark.parametrize(("at_start", "at_end"), [DATA[0], DATA[2], DATA[5]])
async def test_an_orderly_stop_before_the_end(
    tmp_path: Path, at_start: object, at_end: object, at_stop: Callable[..., None]
) -> None:
    """What the first process sends when it stops, or leaves to send, is not in the END's way."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as before:
        await event(before, started(at_start))
        await before.until(lambda: before.app.accounting.held == 0)
        await before.until(lambda: depths(before) == (0, 0))
        at_stop(agentex, sgp)
    up(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as w:
        await end_after_a_restart(w, at_end, event)


@pytest.mark.parametrize(
    ("lost", "waits", "fault"),
    [
        ("both", 10, Reset(after_apply=True)),
        *(
            pytest.param(lost, waits, fault, marks=pytest.mark.slow)
            for lost in ("open", "complete")
            for waits in (1, 10)
            for fault in (Reset(after_apply=True), ResetMidBody())
        ),
    ],
)
@each_data
@fast
async def test_lost_responses(
    at_start: object, at_end: object, waits: float, lost: str, fault: Scripted
) -> None:
    """A write that is sent again, onto what it has stored itself, changes nothing."""

    def once(request: Recorded) -> Scripted:
        kind = "complete" if b'"output":{' in request.body else "open"
        if request.method == "GET" or kind in seen or lost not in (kind, "both"):
            return None
        seen.add(kind)
        return fault

    seen: set[str] = set()
    async with world() as w:
        w.agentex.rule = once
        await w.post(start(started(at_start)))
        await asyncio.sleep(waits)
        await w.post(end(ended(at_end)))
        await w.drained()
        check(w, at_end)


class Discreet(AgentexStandIn):
    """Agentex behind a proxy that replaces the page of each 500."""

    def reply(self, request: Recorded) -> Answer:
        """The same status, but no message."""
        answer = super().reply(request)
        return page(500) if answer.status == 500 else answer


@pytest.mark.parametrize("hides", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("stored", "at_end", "merges"),
    [
        ([{"a": 1}], {"k": 1}, False),
        ([{"a": 1}], [{"b": 2}], False),
        ({"k": 1}, [{"a": 1}], False),
        ([{"a": 1}], {}, False),
        ({"a": 1}, {"k": 1}, True),
        ({"a": 1}, {}, True),
        (None, [{"a": 1}], True),
    ],
)
@fast
async def test_a_row_of_somebody_else(
    stored: object, at_end: object, merges: bool, hides: bool
) -> None:
    """It may have `data`: the END's time and output are stored, and the repairs counted."""
    async with world(Discreet() if hides else AgentexStandIn()) as w:
        url, row = w.agentex.url + "/spans", started(stored)
        async with w.running.client.post(url, json=row) as response:
            assert response.status == 200
        await w.post(end(ended(at_end)))
        await w.feed_until(lambda: "s" in w.agentex.complete or w.dead())
        await w.drained()
        row = w.agentex.spans["s"]
        assert (row["output"], row["end_time"]) == ({"text": "output of s"}, END_TIME)
        assert w.dead() == {}
        repaired = w.app.lanes[0].metrics.repaired
        assert repaired["exists"] >= 1
        assert (repaired["data_not_merged"] == 0) == merges
        requests = w.app.lanes[0].metrics.requests
        assert hides or {outcome for outcome, count in requests.items() if count} == {"ok"}


@pytest.mark.parametrize("how", ["ttl", "stops", "stops while it is held", "stops while it waits"])
@pytest.mark.parametrize("data", [{"a": 1}, [{"a": 1}], [], {}])
@each_route
@fast
async def test_a_span_that_never_ends(post: Post, data: object, how: str) -> None:
    """Both upstreams have its `data` when its START is forgotten, or when the process stops."""
    async with world(queue__open_span_ttl_s="60") as w:
        await post(w, started(data))
        if how == "stops while it waits":
            w.agentex.rule = lambda _: 503
            await asyncio.sleep(20)
            asyncio.get_running_loop().call_later(3, setattr, w.agentex, "rule", None)
        elif how != "stops while it is held":
            await asyncio.sleep(10)
        if how == "ttl":
            await asyncio.sleep(120)
            await w.drained()
        else:
            assert await w.running.stop()
        row = w.agentex.spans["s"]
        assert (row["data"], row["end_time"]) == (data, None)
        assert row["input"] == {"prompt": "input of s"}
        assert w.dead() == {}


@pytest.mark.parametrize("outage", [False, True])
@fast
async def test_a_patch_before_its_post(outage: bool) -> None:
    """On the SDK's route: the row has the POST's input, and the PATCH's output and end."""
    async with world() as w:
        if outage:
            w.agentex.rule = lambda _: 503
        await request_of_the_sdk(w, ended({"k": 1}, input=None))
        await asyncio.sleep(10)
        await request_of_the_sdk(w, started({"a": 1}))
        await asyncio.sleep(10)
        w.agentex.rule = None
        await w.drained()
        row = w.agentex.spans["s"]
        assert (row["input"], row["output"]) == ({"prompt": "input of s"}, {"text": "output of s"})
        assert (row["data"], row["end_time"]) == ({"k": 1}, END_TIME)
        assert w.dead() == {}
