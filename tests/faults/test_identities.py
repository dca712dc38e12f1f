"""Ids and times in every accepted form, and ids that are used twice: what both upstreams store."""

import asyncio
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.bodies import parse_time
from sidecar.demo.sgp import SgpStandIn
from tests.support.faults import Json, World, end, fast, span, start, world
from tests.support.spool import EAGER, depths, spool_world

# One id in several traces.


def of(trace: str, id_: str = "s") -> Json:
    """The span of a trace."""
    return span(id_, trace_id=trace, input={"of": trace}, output={"of": trace}, data={"of": trace})


async def post(w: World, *events: Json) -> None:
    """Post events; `World.post` would mix up the traces."""
    reply = await w.send(json.dumps(events).encode())
    assert (reply.status, reply.body["rejected"]) == (202, [])


def check_traces(w: World, first: str, *others: str, id_: str = "s", dead: bool = True) -> None:
    """Agentex has the span of the first trace, unharmed, and SGP that of each."""
    row = w.agentex.spans[id_]
    assert row["trace_id"] == first
    assert row["input"] == row["output"] == row["data"] == {"of": first}
    for trace in (first, *others):
        row = w.sgp.spans[trace, id_]
        assert row["input"] == row["output"] == {"of": trace}
        assert "end_timestamp" in row
    assert len(w.sgp.spans) == 1 + len(others)
    assert set(w.dead()) == ({("agentex", id_)} if dead else set())
    if dead:
        reasons = w.lane("agentex")["dead_lettered_by_reason"]
        assert {reason for reason, count in reasons.items() if count} == {"id_taken"}
        letters = map(json.loads, w.letters.read_bytes().splitlines())
        assert {letter["event"]["span"]["trace_id"] for letter in letters} == set(others)


ORDERS = {
    "first ends first": ["start one", "start two", "end one", "end two"],
    "first ends last": ["start one", "start two", "end two", "end one"],
    "one after the other": ["start one", "end one", "start two", "end two"],
    "ends alone": ["end one", "end two", "end one"],
    "three": ["start one", "start two", "start three", "end three", "end two", "end one"],
    "again": ["start one", "end one", "end two", "start three", "end two", "end three"],
}


@pytest.mark.parametrize("id_", ["s", "a/b", ".."])
@pytest.mark.parametrize("apart", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("order", ORDERS)
@fast
async def test_one_id_in_several_traces(order: str, apart: float, id_: str) -> None:
    """However far apart their events are: nothing of one trace is stored in the other's span."""
    events = {"start": start, "end": end}
    async with world(queue__open_span_ttl_s="60") as w:
        traces = []
        for step in ORDERS[order]:
            kind, trace = step.split()
            traces.append(trace)
            await post(w, events[kind](of(trace, id_)))
            await asyncio.sleep(apart)
        await w.drained()
        first, *others = dict.fromkeys(traces)
        if "/" in id_ or id_ == "..":
            # Nobody can ask Agentex whose span that is, and its first write is that of an END.
            first = w.agentex.spans[id_]["trace_id"]
            others = [trace for trace in dict.fromkeys(traces) if trace != first]
        check_traces(w, first, *others, id_=id_, dead=id_ == "s")


@pytest.mark.parametrize("killed", [False, True])
async def test_one_id_in_two_traces_with_a_restart(tmp_path: Path, killed: bool) -> None:
    """The next process knows neither span, but finds out whose it is."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    second = tmp_path / "first"
    async with spool_world(tmp_path / "first", agentex, sgp, **EAGER) as before:
        await post(before, start(of("one")))
        await before.until(lambda: len(agentex.spans) == 1 and depths(before) == (0, 0))
        await post(before, start(of("two")))
        await before.until(lambda: before.app.accounting.held == 0 and depths(before) == (0, 0))
        row = agentex.spans["s"]
        assert (row["trace_id"], row["input"]) == ("one", {"of": "one"})
        if killed:
            second = tmp_path / "second"
            await asyncio.to_thread(shutil.copytree, tmp_path / "first", second)
    async with spool_world(second, agentex, sgp, **EAGER) as w:
        await post(w, end(of("two")), end(of("one")))
        await w.drained()
        check_traces(w, "one", "two")


# Every accepted form.

DATES = [
    "2026-01-02",
    "0001-01-01",
    "9999-12-31",
    "2024-02-29",
    "2026-1-2",
    "20260102",
    "2026-W01-5",
]
SEPARATORS = ["T", "t", " ", "_", ""]
CLOCKS = [
    "03:04:05", "03:04", "03:04:05.6", "03:04:05,678", "03:04:05.678901", "03:04:05.678901234",
    "00:00:00", "23:59:59.999999", "24:00:00", "23:59:60", "03", "030405", "03:04:05.", "03:04.5",
]  # fmt: skip
OFFSETS = [
    "", "Z", "z", "+00:00", "-00:00", "+05:30", "-08:00", "+23:59", "-23:59", "+05", "-0530",
    "+05:30:00", "+01:02:03", "-010203", "+05:30:10.5", " Z", " +0000", "+24:00", "+05:60",
    "\u221205:30", "X", " UTC",
]  # fmt: skip


@pytest.mark.parametrize(
    "route",
    [
        "/v1/spans",
        *(pytest.param(route, marks=pytest.mark.slow) for route in ("/spans", "/v5/spans/batch")),
    ],
)
@pytest.mark.parametrize("date", DATES)
@fast
async def test_times(date: str, route: str) -> None:
    """Whatever form is accepted, both upstreams store it, and as the same instant."""
    forms = ["".join(parts) for parts in itertools.product([date], SEPARATORS, CLOCKS, OFFSETS)]
    async with world() as w:
        sent = {f"s{number}": text for number, text in enumerate(forms)}
        taken = await post_times(w, route, sent)
        assert ("2026-01-02T03:04:05Z" in taken.values()) == (date == "2026-01-02")
        await w.drained()
        assert w.dead() == {}
        stored = [{id_: row["start_time"] for id_, row in w.agentex.spans.items()}]
        stored += [{id_: row["start_timestamp"] for (_, id_), row in w.sgp.spans.items()}]
        for rows, is_used in zip(
            stored, (route != "/v5/spans/batch", route != "/spans"), strict=True
        ):
            assert rows.keys() == (taken.keys() if is_used else set())
            for id_, text in rows.items():
                try:
                    meant = parse_time(taken[id_])
                except ValueError:
                    continue  # a form that only the sidecar understands
                assert parse_time(text) == meant


async def post_times(w: World, route: str, sent: dict[str, str]) -> dict[str, str]:
    """Post spans that start and end at these times; returns those that were accepted."""
    if route == "/v1/spans":
        made = [span(id_, start_time=text, end_time=text) for id_, text in sent.items()]
        reply = await w.send(json.dumps(list(map(end, made))).encode())
        refused = {rejected["id"] for rejected in reply.body["rejected"]}
        return {id_: text for id_, text in sent.items() if id_ not in refused}
    taken = {}
    for id_, text in sent.items():
        if route == "/spans":
            body: Any = span(id_, start_time=text, end_time=text)
            reply = await w.running.request("POST", route, json=body)
        else:
            item = {"id": id_, "trace_id": "t", "name": "n"}
            times = {"start_timestamp": text, "end_timestamp": text}
            reply = await w.running.request("PUT", route, json={"items": [item | times]})
        assert reply.status in {200, 422}
        if reply.status == 200:
            taken[id_] = text
    return taken


ODD = [
    "s",
    "a b",
    "a/b",
    "%2F",
    "?q#f",
    "\u2713",
    "\U0001f600" * 64,
    "x" * 256,
    "\x01\x7f\n",
    '"\\',
    "\ud800",
]


@pytest.mark.parametrize("field", ["id", "trace_id", "parent_id", "task_id", "name"])
@fast
async def test_ids(field: str) -> None:
    """Whatever id is accepted, both upstreams store it, open and complete."""
    values = [*ODD, ".", "..", "y" * 1024, "nul\0", "\u00e9" * 512, "", "z" * 300]
    made = [
        span(f"s{number}", trace_id=f"t{number}") | {field: value}
        for number, value in enumerate(values)
    ]
    async with world() as w:
        taken = 0
        for each in made:
            reply = await w.send(json.dumps(start(each)).encode())
            taken += reply.status == 202
            await asyncio.sleep(3)
            assert (await w.send(json.dumps(end(each)).encode())).status == reply.status
        assert taken >= len(ODD)
        await w.drained()
        assert w.dead() == {}
        assert len(w.agentex.spans) == len(w.sgp.spans) == taken
        assert len(w.agentex.complete) == taken
        assert all("end_timestamp" in row for row in w.sgp.spans.values())
