"""Repeated ENDs on every route."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.spans import END_TIME, START_TIME, make_event
from tests.support.world import Running, running_app, upstream

SMALL = {"queue__max_bytes": "4MiB", "spool__max_bytes": "256MiB", "queue__start_hold_s": 0}


def start(id: str = "s1", **fields: Any) -> dict[str, Any]:  # noqa: A002
    """A POST /spans body: a START."""
    return {
        "id": id,
        "trace_id": "t1",
        "name": "turn",
        "start_time": START_TIME,
        "input": {"q": 1},
        "output": None,
        "data": {"a": 1},
    } | fields


def end(**fields: Any) -> dict[str, Any]:
    """A PATCH /spans/{id} body."""
    times = {"start_time": START_TIME, "end_time": END_TIME}
    return {"trace_id": "t1", "name": "turn"} | times | fields


async def accepted(app: Running, event: dict[str, Any]) -> None:
    """Post until there is room: the lane has to forward some writes first."""
    async with asyncio.timeout(30):
        while (await app.post(event)).status != 202:
            pass


@pytest.mark.parametrize(("at_end", "stored"), [({}, {"a": 1}), ({"data": {"b": 2}}, {"b": 2})])
async def test_a_repeated_patch_does_not_change_a_waiting_end(
    at_end: dict[str, Any], stored: object
) -> None:
    """The SDK resends a PATCH when a response is lost; what the first one left out stays filled."""
    async with upstream(stalled=True) as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url}
        async with running_app(environ, agentex__max_concurrency=1) as app:
            await app.request("POST", "/spans", json=start("busy", end_time=END_TIME))
            await agentex.asked.wait()
            await app.request("POST", "/spans", json=start())
            for _ in range(2):
                await app.request("PATCH", "/spans/s1", json=end(output={"x": 2}, **at_end))
            agentex.gate.set()
            assert await app.stop()
    (got,) = [request.body for request in agentex.requests if request.body.get("id") == "s1"]
    assert (got["input"], got["output"], got["data"]) == ({"q": 1}, {"x": 2}, stored)


@pytest.mark.parametrize("how", ["patch", "event"])
async def test_a_repeated_end_after_a_restart_does_not_blank_the_first(
    tmp_path: Path, how: str
) -> None:
    """An agent that got no response resends its thin END to the restarted sidecar."""
    async with upstream(stalled=True) as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url}
        settings = {"spool__path": tmp_path, "agentex__max_concurrency": 1}
        event = make_event(kind="end", output={"x": 2})
        async with running_app(environ, **settings, shutdown__grace_s=0) as app:
            await app.request("POST", "/spans", json=start("busy", end_time=END_TIME))
            await agentex.asked.wait()
            if how == "patch":
                await app.request("POST", "/spans", json=start())
                await app.request("PATCH", "/spans/s1", json=end(output={"x": 2}))
            else:
                await app.post(make_event(input={"q": 1}))
                await app.post(event)
        agentex.requests.clear()
        async with running_app(environ, **settings) as app:
            if how == "patch":
                await app.request("PATCH", "/spans/s1", json=end(output={"x": 2}))
            else:
                await app.post(event)
            agentex.gate.set()
            assert await app.stop()
    first, *_ = [request.body for request in agentex.requests if request.body.get("id") == "s1"]
    assert first["input"] == {"q": 1}


@pytest.mark.slow
async def test_thin_ends_of_starts_on_disk_keep_to_the_memory_bound(tmp_path: Path) -> None:
    """Payloads are counted before they are loaded from disk; a refusal leaves room for others."""
    async with upstream() as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url}
        async with running_app(environ, spool__path=tmp_path, **SMALL) as app:
            for number in range(100):
                event = make_event(f"s{number}", input={"q": "x" * 100_000})
                await accepted(app, event)
            ends = [make_event(f"s{n}", kind="end", output={"x": 1}) for n in range(100)]
            reply = await app.post(ends)
            assert reply.status == 413
            assert app.app.budget.used <= app.app.budget.limit
            for thin in ends:
                await accepted(app, thin)
                assert app.app.budget.used <= app.app.budget.limit
            assert await app.stop()
    done = {
        request.path.rpartition("/")[2] if request.method == "PATCH" else request.body["id"]
        for request in agentex.requests
        if request.body.get("end_time") and request.body["input"]
    }
    assert len(done) == 100
