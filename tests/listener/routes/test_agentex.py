"""The Agentex SDK's requests: `POST /spans` and `PATCH /spans/{id}` (docs/api.md)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.spans import END_TIME, START_TIME
from tests.support.world import NOWHERE, Reply, Running, running_app


def span(id: str | None = "s1", *, ended: bool = True, **fields: Any) -> dict[str, Any]:  # noqa: A002
    """A POST body as the SDK sends it, with all ten keys."""
    return {
        "id": id,
        "trace_id": "t1",
        "name": "turn",
        "start_time": START_TIME,
        "end_time": END_TIME if ended else None,
        "parent_id": None,
        "task_id": None,
        "input": {"q": 1.50},
        "output": {"a": 2} if ended else None,
        "data": {"k": "v"},
    } | fields


def end(**fields: Any) -> dict[str, Any]:
    """A PATCH body as the SDK sends it, without nulls."""
    times = {"start_time": START_TIME, "end_time": END_TIME}
    return {"trace_id": "t1", "name": "turn"} | times | fields


@pytest.fixture
async def agentex() -> AsyncIterator[AgentexStandIn]:
    """A stand-in for the Agentex server."""
    async with AgentexStandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def app(agentex: AgentexStandIn) -> AsyncIterator[Running]:
    """A sidecar with both upstreams; SGP must not get any span."""
    async with SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        async with running_app(environ) as running:
            yield running
        assert not sgp.spans


async def post(app: Running, body: object) -> Reply:
    """Create a span."""
    return await app.request("POST", "/spans", json=body)


async def patch(app: Running, id_: str, body: object) -> Reply:
    """End a span."""
    return await app.request("PATCH", f"/spans/{id_}", json=body)


async def sent(app: Running, agentex: AgentexStandIn) -> list[tuple[str, Any]]:
    """All requests that the server received, after the app has delivered everything."""
    assert await app.stop()
    return [(request.method, json.loads(request.body)) for request in agentex.requests]


async def test_a_complete_span(app: Running, agentex: AgentexStandIn) -> None:
    """It gets the server's response and arrives unchanged."""
    reply = await post(app, span())
    assert (reply.status, reply.body) == (200, span())
    assert await sent(app, agentex) == [("POST", span())]


async def test_start_and_end_become_one_post(app: Running, agentex: AgentexStandIn) -> None:
    """POST and PATCH are joined, and the response to the PATCH is the whole span."""
    await post(app, span(ended=False))
    reply = await patch(app, "s1", end(output={"a": 2}))
    assert (reply.status, reply.body) == (200, span())
    assert await sent(app, agentex) == [("POST", span())]


@pytest.mark.parametrize("data", [{"b": {"d": 2}, "e": None}, {}, [{"d": 2}], []])
async def test_data_of_an_end_replaces_that_of_its_start(
    app: Running, agentex: AgentexStandIn, data: object
) -> None:
    """It counts whole, as if the SDK had written the span only once, at its end (D26)."""
    await post(app, span(ended=False, data={"a": 1, "b": {"c": 1}}))
    reply = await patch(app, "s1", end(data=data))
    assert reply.body["data"] == data
    ((_, body),) = await sent(app, agentex)
    assert body["data"] == data


async def test_an_end_without_data_has_that_of_its_start(
    app: Running, agentex: AgentexStandIn
) -> None:
    """The SDK leaves out what is null, so the span keeps what its START said."""
    await post(app, span(ended=False, data={"a": 1}))
    reply = await patch(app, "s1", end(output={"a": 2}))
    assert reply.body["data"] == {"a": 1}
    ((_, body),) = await sent(app, agentex)
    assert body["data"] == {"a": 1}


async def test_an_end_without_its_start(app: Running, agentex: AgentexStandIn) -> None:
    """The START went through another sidecar: the END is a complete POST."""
    assert (await patch(app, "a%20b", end(output={"a": 2}))).status == 200
    ((method, body),) = await sent(app, agentex)
    assert (method, body["id"], body["output"]) == ("POST", "a b", {"a": 2})


async def test_a_span_without_an_id_gets_one(app: Running, agentex: AgentexStandIn) -> None:
    """A span without an id gets one, so that a retry does not create a second span."""
    reply = await post(app, span(None))
    await sent(app, agentex)
    assert list(agentex.spans) == [reply.body["id"]]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (span(name=""), "name"),
        (span(input="text"), "input"),
        (span(data=[1]), "data"),
        (span(start_time="soon"), "start_time"),
        (span(end_time="2020-01-01T00:00:00Z"), "end_time"),
        (span("x" * 300), "id"),
        ({"id": "s1"}, "trace_id"),
        ([], "object"),
    ],
)
async def test_bad_spans_get_the_servers_error_format(
    app: Running, body: object, where: str
) -> None:
    """422 with the server's three keys; the message names the field and repeats no content."""
    reply = await post(app, body)
    assert reply.status == 422
    assert set(reply.body) == {"status_code", "message", "data"}
    assert where in reply.body["message"]
    assert "text" not in reply.body["message"]


async def test_a_patch_without_an_end_is_refused(app: Running) -> None:
    """The 422 names the missing field; the SDK never sends such a PATCH."""
    reply = await patch(app, "s1", {"output": {"a": 1}})
    assert reply.status == 422
    reply = await patch(app, "s1", end(end_time=None))
    assert "end_time" in reply.body["message"]


async def test_lone_surrogates_are_replaced(app: Running, agentex: AgentexStandIn) -> None:
    """A lone surrogate becomes U+FFFD wherever it is (D18); the rest stays as it is."""
    reply = await post(app, span("\ud800", input={"t": "\udc00 \\ud800 \U0001f600"}))
    assert reply.status == 200
    ((_, body),) = await sent(app, agentex)
    assert (body["id"], body["input"]) == ("\ufffd", {"t": "\ufffd \\ud800 \U0001f600"})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "the body is empty"),
        (b"{", "the body is not JSON"),
        (b"\xff", "the body is not valid UTF-8"),
        (b"[]", "body: Expected `object`, got `array`"),
        (b"{}", "body: Object missing required field `trace_id`"),
        (b'{"trace_id":1}', "body.trace_id: Expected `str`, got `int`"),
    ],
)
async def test_a_body_that_is_not_a_span(app: Running, body: bytes, why: str) -> None:
    """422, as from the server; the message says where and why."""
    headers = {"content-type": "application/json"}
    reply = await app.request("POST", "/spans", data=body, headers=headers)
    assert reply.status == 422
    assert reply.body["message"].startswith(why)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/spans/s1"), ("GET", "/spans"), ("DELETE", "/spans/s1")]
)
async def test_the_rest_of_the_api_is_not_served(app: Running, method: str, path: str) -> None:
    """Agentex's other requests get 404."""
    assert (await app.request(method, path)).status == 404


async def test_agentex_not_enabled() -> None:
    """503, which names the key to set, and tells the SDK not to retry."""
    environ = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a", "SGP_CLIENT_BASE_URL": NOWHERE}
    async with running_app(environ, shutdown__grace_s=0) as app:
        reply = await post(app, span())
    assert (reply.status, reply.headers["X-Should-Retry"]) == (503, "false")
    assert "AGENTEX_BASE_URL" in reply.body["detail"]


@pytest.mark.parametrize(("at_end", "stored"), [({}, {"a": 1}), ({"data": {"b": 2}}, {"b": 2})])
async def test_what_an_end_leaves_out_outlives_a_restart(
    agentex: AgentexStandIn, tmp_path: Path, at_end: dict[str, Any], stored: object
) -> None:
    """The END has it from its START in the spool; `data` of its own replaces the START's."""
    async with running_app(
        spool__path=tmp_path, queue__start_hold_s=60, shutdown__grace_s=0
    ) as app:
        await post(app, span(ended=False, data={"a": 1}))
    async with running_app({"AGENTEX_BASE_URL": agentex.url}, spool__path=tmp_path) as app:
        await patch(app, "s1", end(output={"a": 2}, **at_end))
        assert await app.stop()
    assert [request.method for request in agentex.requests] == ["POST"]
    row = agentex.spans["s1"]
    assert (row["input"], row["output"], row["data"]) == ({"q": 1.5}, {"a": 2}, stored)
