"""What the SGP SDK sends: `PUT /v5/spans/batch` (docs/api.md, second part)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from tests.support.world import NOWHERE, Running, make_event, running_app

PATH = "/v5/spans/batch"
HEADERS = {"x-api-key": "agent-key", "x-selected-account-id": "account-1"}


def item(id: str = "s1", **fields: Any) -> dict[str, Any]:  # noqa: A002
    """An item as the SDK makes it; a field that is None is left out."""
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
    """SGP."""
    async with SgpStandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def app(sgp: SgpStandIn) -> AsyncIterator[Running]:
    """A sidecar that takes SGP's credential from the agent, and has Agentex too."""
    async with AgentexStandIn() as agentex:
        environ = {"SGP_CLIENT_BASE_URL": sgp.url, "AGENTEX_BASE_URL": agentex.url}
        async with running_app(environ, sgp__relay="true", queue__start_hold_s=0.05) as running:
            yield running


async def put(app: Running, *items: Any, method: str = "PUT", **headers: str) -> tuple[int, Any]:
    """Send a batch; the status and the body of the answer."""
    reply = await app.request(method, PATH, json={"items": items}, headers=HEADERS | headers)
    return reply.status, reply.body


async def drained(app: Running) -> None:
    """Stop the app, so that all that it took is delivered."""
    assert await app.stop()


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_item_arrives_as_it_was_sent(app: Running, sgp: SgpStandIn, method: str) -> None:
    """Nothing is added, nothing is left out, and only SGP gets it."""
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


async def test_the_answer_has_what_the_response_model_needs(app: Running) -> None:
    """Required fields of the SDK's Span, in the order of the items, and no content."""
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
    """As on our own route: half the writes, and what the END leaves out comes from the START."""
    await put(app, item(end_timestamp=None, output={}))
    await put(app, item(input=None, output={"a": 2}))
    await drained(app)
    row = sgp.spans["t1", "s1"]
    assert (row["input"], row["output"]) == ({"q": "hi"}, {"a": 2})
    assert app.app.accounting.joined == 1


async def test_an_end_twice_is_one_write(app: Running, sgp: SgpStandIn) -> None:
    """The SDK's sync queue sends some complete items twice (docs/upstreams.md S3, unknown 6)."""
    await put(app, item(), item())
    await drained(app)
    assert sum(len(json.loads(request.body)["items"]) for request in sgp.requests) == 1


async def test_an_open_item_is_written_when_its_end_does_not_come(
    app: Running, sgp: SgpStandIn
) -> None:
    """People see it running."""
    await put(app, item(end_timestamp=None))
    await drained(app)
    assert "end_timestamp" not in sgp.spans["t1", "s1"]


async def test_the_same_span_of_both_sdks_stays_two(app: Running, sgp: SgpStandIn) -> None:
    """An SDK tells each upstream its own copy: neither is joined with the other."""
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
    """In SGP's words, with the place; its neighbours are taken, where SGP would drop them."""
    bad = {name: value for name, value in (item("bad") | fields).items() if value is not None}
    got, body = await put(app, item("a"), bad, item("b"))
    assert got == status
    (said,) = body["detail"]
    assert (said["loc"], said["type"]) == (where, "value_error")
    assert "text" not in said["msg"]
    await drained(app)
    assert {key[1] for key in sgp.spans} == {"a", "b"}


async def test_what_the_sdk_can_not_help_is_repaired(app: Running, sgp: SgpStandIn) -> None:
    """Lists are wrapped, an unknown type is CUSTOM, a lone surrogate U+FFFD (D18)."""
    body = json.dumps({"items": [item(input=[{"a": 1}], type="None", output={"t": "\ud800"})]})
    headers = {"content-type": "application/json"}
    reply = await app.request("PUT", PATH, data=body.encode(), headers=headers | HEADERS)
    assert reply.status == 200
    await drained(app)
    row = sgp.spans["t1", "s1"]
    assert row["input"] == {"items": [{"a": 1}]}
    assert row["type"] == "CUSTOM"
    assert row["output"] == {"t": "\ufffd"}


async def test_an_item_without_an_id_gets_one(app: Running, sgp: SgpStandIn) -> None:
    """A retry must not make a second span of it."""
    _, body = await put(app, item(id=None))  # type: ignore[arg-type]
    await drained(app)
    assert [("t1", body["items"][0]["id"])] == list(sgp.spans)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"items": 3}', b"\xff", b'{"items": [' + b"[" * 5000]
)
async def test_what_is_no_batch_is_a_422(app: Running, body: bytes) -> None:
    """With a detail, and counted."""
    headers = {"content-type": "application/json"}
    reply = await app.request("PUT", PATH, data=body, headers=headers)
    assert reply.status == 422
    assert reply.body["detail"]


async def test_an_empty_batch_is_fine(app: Running) -> None:
    """As at SGP."""
    assert await put(app) == (200, {"object": "list", "items": []})


async def test_other_methods_and_types(app: Running) -> None:
    """405 says what to use; another content type is a 415."""
    reply = await app.request("GET", PATH)
    assert (reply.status, reply.headers["Allow"]) == (405, "PUT, POST")
    reply = await app.request("PUT", PATH, data=b"{}", headers={"content-type": "text/plain"})
    assert (reply.status, list(reply.body)) == (415, ["detail"])


async def test_where_sgp_is_off() -> None:
    """404 says what to set."""
    async with running_app({"AGENTEX_BASE_URL": NOWHERE}, shutdown__grace_s=0) as app:
        status, body = await put(app, item())
    assert status == 404
    assert "sgp.relay" in body["detail"]


async def test_a_full_queue_is_a_429(sgp: SgpStandIn) -> None:
    """Nothing of the batch is taken, and the SDK is told when to come back."""
    environ = {"SGP_CLIENT_BASE_URL": sgp.url}
    async with running_app(environ, sgp__relay="true", queue__max_bytes="8KiB") as app:
        first = [item(str(n), input={"p": "x" * 300}, end_timestamp=None) for n in range(4)]
        await put(app, *first)
        reply = await app.request("PUT", PATH, json={"items": first * 2}, headers=HEADERS)
        assert reply.status == 413 or (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert list(reply.body) == ["detail"]


async def test_items_outlive_a_restart(sgp: SgpStandIn, tmp_path: Path) -> None:
    """An open item comes back from the spool as what it was, and its END finds it."""
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
