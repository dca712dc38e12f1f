"""The SGP SDK's request: `PUT /v5/spans/batch` (docs/api.md)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.spans import make_event
from tests.support.world import NOWHERE, Running, running_app

PATH = "/v5/spans/batch"
HEADERS = {"x-api-key": "agent-key", "x-selected-account-id": "account-1"}


def item(id: str = "s1", **fields: Any) -> dict[str, Any]:  # noqa: A002
    """An item as the SDK sends it; a field that is None is left out."""
    values: dict[str, Any] = {
        "name": "turn",
        "id": id,
        "trace_id": "t1",
        "start_timestamp": "2026-01-02T03:04:05.678901+00:00",
        "end_timestamp": "2026-01-02T03:04:06+00:00",
        "input": {"q": "hi"},
        "output": {"a": "yo"},
        "metadata": {"__source__": "agentex", "n": 1.50},
        "status": "SUCCESS",
        "type": "AGENT_WORKFLOW",
    }
    return {name: value for name, value in (values | fields).items() if value is not None}


@pytest.fixture
async def sgp() -> AsyncIterator[SgpStandIn]:
    """A stand-in for SGP."""
    async with SgpStandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def app(sgp: SgpStandIn) -> AsyncIterator[Running]:
    """A sidecar that relays the agent's SGP credentials, with Agentex enabled as well."""
    async with AgentexStandIn() as agentex:
        environ = {"SGP_CLIENT_BASE_URL": sgp.url, "AGENTEX_BASE_URL": agentex.url}
        async with running_app(environ, sgp__relay="true", queue__start_hold_s=0.05) as running:
            yield running


async def put(app: Running, *items: Any, method: str = "PUT", **headers: str) -> tuple[int, Any]:
    """Send a batch; return the status and the body of the response."""
    reply = await app.request(method, PATH, json={"items": items}, headers=HEADERS | headers)
    return reply.status, reply.body


async def drained(app: Running) -> None:
    """Stop the app, which delivers everything that it accepted."""
    assert await app.stop()


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_item_arrives_unchanged(app: Running, sgp: SgpStandIn, method: str) -> None:
    """An item is forwarded without changes, and only to SGP."""
    sent = item(
        group_id="g1",
        parent_id="p1",
        expected={"e": [1]},
        obs_trace_id="a" * 32,
        brand_new={"x": 1},
    )
    status, body = await put(app, sent, method=method)
    assert status == 200
    assert body["object"] == "list"
    await drained(app)
    bodies = [json.loads(request.body) for request in sgp.requests]
    assert bodies == [{"items": [sent]}]
    agentex, _ = app.app.lanes
    assert agentex.metrics.accounting.written == 0


async def test_the_response_has_what_the_sdk_needs(app: Running) -> None:
    """It has the required fields of the SDK's Span, in the order of the items, and no content."""
    _, body = await put(app, item("a"), item("b"))
    assert body["items"] == [
        {
            "object": "span",
            "account_id": "account-1",
            "id": id_,
            "trace_id": "t1",
            "name": "turn",
            "start_timestamp": "2026-01-02T03:04:05.678901+00:00",
        }
        for id_ in ("a", "b")
    ]


async def test_start_and_end_become_one_write(app: Running, sgp: SgpStandIn) -> None:
    """START and END are joined, and the END is filled from the START."""
    await put(app, item(end_timestamp=None, output={}))
    await put(app, item(input=None, output={"a": 2}))
    await drained(app)
    row = sgp.spans["t1", "s1"]
    assert (row["input"], row["output"]) == ({"q": "hi"}, {"a": 2})
    assert app.app.accounting.joined == 1


async def test_a_repeated_end_is_one_write(app: Running, sgp: SgpStandIn) -> None:
    """The SDK's sync queue sends some complete items twice (docs/upstreams.md S3, unknown 6)."""
    await put(app, item(), item())
    await drained(app)
    assert sum(len(json.loads(request.body)["items"]) for request in sgp.requests) == 1


async def test_an_open_item_without_its_end_is_written(app: Running, sgp: SgpStandIn) -> None:
    """An open item whose END never comes is written, so that people see it running."""
    await put(app, item(end_timestamp=None))
    await drained(app)
    assert "end_timestamp" not in sgp.spans["t1", "s1"]


async def test_the_copies_of_both_sdks_are_not_joined(app: Running, sgp: SgpStandIn) -> None:
    """An SDK sends each upstream its own copy of a span; neither is joined with the other."""
    await put(app, item(end_timestamp=None, metadata={"for": "sgp"}))
    await app.post(make_event("s2", kind="end", trace_id="t1"))
    event = make_event("s1", kind="end")["span"]
    reply = await app.request("POST", "/spans", json=event | {"data": {"for": "agentex"}})
    assert reply.status == 200
    await put(app, item(metadata={"for": "sgp"}))
    agentex = app.app.lanes[0].metrics.accounting
    await drained(app)
    assert sgp.spans["t1", "s1"]["metadata"] == {"for": "sgp"}
    assert agentex.forwarded["complete"] == 2


REFUSED: list[tuple[dict[str, Any], int, list[Any]]] = [
    ({"name": None}, 422, ["body", "items", 1, "name"]),
    ({"start_timestamp": "yesterday"}, 422, ["body", "items", 1, "start_timestamp"]),
    ({"end_timestamp": "2020-01-01T00:00:00Z"}, 422, ["body", "items", 1, "end_timestamp"]),
    ({"input": "text"}, 422, ["body", "items", 1, "input"]),
    ({"output": [1, 2]}, 422, ["body", "items", 1, "output"]),
    ({"metadata": 5}, 422, ["body", "items", 1, "metadata"]),
    ({"expected": []}, 422, ["body", "items", 1, "expected"]),
    ({"status": "RUNNING"}, 422, ["body", "items", 1, "status"]),
    ({"trace_id": 7}, 422, ["body", "items", 1, "trace_id"]),
    ({"id": "ä" * 200}, 400, ["body", "items", 1, "id"]),
    ({"group_id": "g\0"}, 400, ["body", "items", 1, "group_id"]),
]


@pytest.mark.parametrize(("fields", "status", "where"), REFUSED)
async def test_a_bad_item_is_refused_alone(
    app: Running, sgp: SgpStandIn, fields: dict[str, Any], status: int, where: list[Any]
) -> None:
    """The error has SGP's format and the item's location; the other items are accepted."""
    bad = {name: value for name, value in (item("bad") | fields).items() if value is not None}
    got, body = await put(app, item("a"), bad, item("b"))
    assert got == status
    (error,) = body["detail"]
    assert (error["loc"], error["type"]) == (where, "value_error")
    assert "text" not in error["msg"]
    await drained(app)
    assert {key[1] for key in sgp.spans} == {"a", "b"}


async def test_what_an_agent_can_not_fix_is_repaired(app: Running, sgp: SgpStandIn) -> None:
    """Lists are wrapped, an unknown type becomes CUSTOM, a lone surrogate U+FFFD (D18)."""
    body = json.dumps({"items": [item(input=[{"a": 1}], type="None", output={"t": "\ud800"})]})
    headers = {"content-type": "application/json"}
    reply = await app.request("PUT", PATH, data=body.encode(), headers=headers | HEADERS)
    assert reply.status == 200
    await drained(app)
    row = sgp.spans["t1", "s1"]
    assert row["input"] == {"items": [{"a": 1}]}
    assert row["type"] == "CUSTOM"
    assert row["output"] == {"t": "\ufffd"}


NULLABLE = ("parent_id", "group_id", "end_timestamp", "input", "output", "metadata")


async def test_null_is_the_same_as_absent(app: Running, sgp: SgpStandIn) -> None:
    """SGP refuses null in every member of its own, so none is forwarded."""
    absent = [*NULLABLE, "expected", "status", "type"]
    null = {name: value for name, value in item().items() if name not in absent}
    status, _ = await put(app, null | dict.fromkeys(absent))
    assert status == 200
    await drained(app)
    ((request,),) = [json.loads(each.body)["items"] for each in sgp.requests]
    assert {name for name, value in request.items() if value is None} == set()
    assert set(sgp.spans) == {("t1", "s1")}


async def test_an_item_without_an_id_gets_one(app: Running, sgp: SgpStandIn) -> None:
    """An item without an id gets one, so that a retry does not create a second span."""
    _, body = await put(app, item(id=None))  # type: ignore[arg-type]
    await drained(app)
    assert [("t1", body["items"][0]["id"])] == list(sgp.spans)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"items": 3}', b"\xff", b'{"items": [' + b"[" * 5000]
)
async def test_a_malformed_batch_is_a_422(app: Running, body: bytes) -> None:
    """A body that is not a batch gets 422 with a `detail`."""
    headers = {"content-type": "application/json"}
    reply = await app.request("PUT", PATH, data=body, headers=headers)
    assert reply.status == 422
    assert reply.body["detail"]


async def test_an_empty_batch_is_accepted(app: Running) -> None:
    """An empty batch gets 200, as from SGP."""
    assert await put(app) == (200, {"object": "list", "items": []})


async def test_other_methods_and_types(app: Running) -> None:
    """The 405 names the allowed methods; another content type gets 415."""
    reply = await app.request("GET", PATH)
    assert (reply.status, reply.headers["Allow"]) == (405, "PUT, POST")
    reply = await app.request("PUT", PATH, data=b"{}", headers={"content-type": "text/plain"})
    assert (reply.status, list(reply.body)) == (415, ["detail"])


async def test_sgp_not_enabled() -> None:
    """503, which names the keys to set, and tells the SDK not to retry."""
    async with running_app({"AGENTEX_BASE_URL": NOWHERE}, shutdown__grace_s=0) as app:
        reply = await app.request("PUT", PATH, json={"items": [item()]})
    assert (reply.status, reply.headers["X-Should-Retry"]) == (503, "false")
    assert "SGP_ACCOUNT_ID" in reply.body["detail"]


async def test_a_full_queue_is_a_429(sgp: SgpStandIn) -> None:
    """No item of the batch is accepted, and `Retry-After` tells the SDK when to retry."""
    environ = {"SGP_CLIENT_BASE_URL": sgp.url}
    async with running_app(environ, sgp__relay="true", queue__max_bytes="8KiB") as app:
        first = [item(str(n), input={"p": "x" * 300}, end_timestamp=None) for n in range(4)]
        await put(app, *first)
        reply = await app.request("PUT", PATH, json={"items": first * 2}, headers=HEADERS)
        assert reply.status == 413 or (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert list(reply.body) == ["detail"]


async def test_items_outlive_a_restart(sgp: SgpStandIn, tmp_path: Path) -> None:
    """Items are recovered from the spool unchanged, and an END is joined with its open item."""
    environ = {"SGP_CLIENT_BASE_URL": sgp.url, "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
    async with running_app(
        environ | {"SGP_CLIENT_BASE_URL": NOWHERE},
        spool__path=tmp_path,
        queue__start_hold_s=60,
        shutdown__grace_s=0,
    ) as app:
        await put(app, item("open", end_timestamp=None, group_id="g"))
        await put(app, item("done", group_id="g"))
    async with running_app(environ, spool__path=tmp_path) as app:
        await put(app, item("open", input=None))
        await drained(app)
    sent = {i["id"]: i for r in sgp.requests for i in json.loads(r.body)["items"]}
    assert sent["done"] == item("done", group_id="g")
    assert sent["open"] == item("open")
