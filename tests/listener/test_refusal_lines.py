"""The log says what agents posted and was not accepted: ids, fields and rules, never a value."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import structlog

from tests.support.spans import make_event
from tests.support.world import Running, running_app, upstream

SECRET = "a-customers-word"
LIMIT = 10


@pytest.fixture
async def app() -> AsyncIterator[Running]:
    """An app whose upstreams are there, and which takes bodies up to 2 KiB."""
    async with upstream() as fake:
        environ = {"AGENTEX_BASE_URL": fake.url, "SGP_CLIENT_BASE_URL": fake.url}
        environ |= {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
        async with running_app(environ, listener__max_body="2Ki") as running:
            yield running


def said(lines: list[Any], event: str) -> list[dict[str, Any]]:
    """The lines of one event, without what all of them have."""
    common = {"event", "log_level"}
    found = [line for line in lines if line["event"] == event]
    assert {line["log_level"] for line in found} <= {"warning"}
    return [{key: line[key] for key in line if key not in common} for line in found]


def bad(**fields: object) -> dict[str, Any]:
    """An event of the span `x1` with these fields."""
    event = make_event("x1", kind="end")
    event["span"] |= fields
    return event


EVENTS: list[tuple[object, dict[str, str]]] = [
    (
        bad(end_time=SECRET),
        {"span_id": "x1", "field": "end_time", "error": "span.end_time is not an RFC 3339 time"},
    ),
    (
        bad(input=SECRET),
        {
            "span_id": "x1",
            "field": "input",
            "error": "span.input must be an object, an array of objects, or null",
        },
    ),
    (bad(id=SECRET * 20), {"field": "id", "error": "span.id is longer than 256 bytes"}),
    (bad(id=SECRET + "\0"), {"field": "id", "error": "span.id contains a NUL character"}),
    (bad(id=""), {"field": "id", "error": "span.id is empty"}),
    (
        {"event_type": SECRET, "span": make_event("x1")["span"]},
        {
            "span_id": "x1",
            "field": "event_type",
            "error": 'event_type must be "start" or "end"',
        },
    ),
    (
        bad(name=[SECRET]),
        {
            "span_id": "x1",
            "reason": "malformed",
            "field": "name",
            "error": "span.name: Expected `str`, got `array`",
        },
    ),
    (SECRET.encode(), {"reason": "malformed", "error": "not JSON: JSON is malformed"}),
    ([{SECRET: SECRET}], {"reason": "malformed", "error": "event: Object missing required field"}),
]


@pytest.mark.parametrize(("body", "line"), EVENTS)
async def test_a_rejected_event(app: Running, body: object, line: dict[str, str]) -> None:
    """The line has the id if it is valid, the field, the reason and the rule, and no value."""
    with structlog.testing.capture_logs() as lines:
        reply = await app.post(body)
    assert reply.status == 400
    (found,) = said(lines, "event_rejected")
    error = found.pop("error")
    assert error.startswith(line["error"])
    assert found == {"reason": "invalid"} | {key: line[key] for key in line if key != "error"}
    assert SECRET not in str(lines)


SDKS = [
    (
        "PUT",
        "/v5/spans/batch",
        {"items": [{"id": "s1", "trace_id": "t", "name": "n", "start_timestamp": SECRET}]},
        {"span_id": "s1", "field": "start_timestamp"},
    ),
    (
        "PUT",
        "/v5/spans/batch",
        {"items": [{"id": [SECRET], "trace_id": "t", "name": "n"}]},
        {"field": "id"},
    ),
    (
        "POST",
        "/spans",
        {"id": "a1", "trace_id": "t", "name": "n", "start_time": SECRET},
        {"span_id": "a1", "field": "start_time"},
    ),
    (
        "PATCH",
        "/spans/a2",
        {"trace_id": "t", "name": SECRET, "start_time": "2025-01-01T00:00:00Z"},
        {"span_id": "a2", "field": "end_time"},
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "line"), SDKS)
async def test_a_rejected_span_of_an_sdk(
    app: Running, method: str, path: str, body: object, line: dict[str, str]
) -> None:
    """The routes of the SDKs say the same."""
    headers = {"Content-Type": "application/json"}
    with structlog.testing.capture_logs() as lines:
        reply = await app.request(method, path, data=orjson.dumps(body), headers=headers)
    assert reply.status == 422
    (found,) = said(lines, "event_rejected")
    assert found.pop("error")
    assert found == {"reason": "invalid"} | line
    assert SECRET not in str(lines)


async def test_ten_a_minute(app: Running) -> None:
    """Of a thousand rejected events ten have a line, however many requests they come in."""
    many = [bad(name="") for _ in range(10)]
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            await app.post(many)
    assert len(said(lines, "event_rejected")) == LIMIT
    assert app.app.operations.intake.rejected["invalid"] == 1000


REFUSED = [
    ({"path": "/v1/spans", "data": b"x" * 3000}, {"status": 413, "reason": "too_large"}),
    (
        {"path": "/v1/spans", "data": b"{}", "headers": {"Content-Type": SECRET}},
        {"status": 415, "reason": "unsupported"},
    ),
    ({"path": f"/{SECRET}", "data": b"{}"}, {"status": 404, "reason": "not_ours"}),
    (
        {"path": "/v1/spans", "data": b"{}", "headers": {"Origin": f"http://{SECRET}"}},
        {"status": 403, "reason": "not_ours"},
    ),
]


@pytest.mark.parametrize(("request_", "line"), REFUSED)
async def test_a_refused_request(
    app: Running, request_: dict[str, Any], line: dict[str, object]
) -> None:
    """The line has the status and the reason, and nothing of the request."""
    options = {"headers": {}} | request_
    options["headers"] = {"Content-Type": "application/json"} | options["headers"]
    with structlog.testing.capture_logs() as lines:
        reply = await app.request("POST", **options)
        (found,) = said(lines, "request_refused")
        for _ in range(20):
            await app.request("POST", **options)
    assert reply.status == line["status"]
    assert found == line
    assert len(said(lines, "request_refused")) == LIMIT
    assert SECRET not in str(lines)


async def test_a_request_that_is_not_http(app: Running) -> None:
    """It has a line as well."""
    with structlog.testing.capture_logs() as lines:
        status, _ = await app.raw(f"{SECRET}\r\n\r\n".encode())
    assert said(lines, "request_refused") == [{"status": status, "reason": "malformed"}]
    assert SECRET not in str(lines)


async def test_while_it_stops(app: Running) -> None:
    """A sidecar that stops says so once; what it refuses then has no line."""
    app.app.listener.stop()
    with structlog.testing.capture_logs() as lines:
        reply = await app.post(make_event())
    assert (reply.status, said(lines, "request_refused")) == (503, [])
