"""For the same events, the sidecar leaves the same spans upstream as the SDK's processors.

`captured/sdk_0_28_4.jsonl` was recorded with agentex-sdk 0.28.4: an agent's environment, the events
in the listener's format, and every request that the SDK sent to Agentex and to SGP.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.sinks.sgp import SPAN_TYPES
from tests.support.world import running_app, upstream

Row = dict[str, Any]

CAPTURED = Path(__file__).parent / "captured" / "sdk_0_28_4.jsonl"
SCENARIOS: list[Row] = [json.loads(line) for line in CAPTURED.read_bytes().split(b"\n") if line]
NAMES = [f"{s['scenario']}-{'starts' if s['start_writes'] else 'ends'}" for s in SCENARIOS]
COLUMNS = "id trace_id name start_time end_time parent_id task_id input output data".split()  # noqa: SIM905


class Write(NamedTuple):
    """A request of the sidecar or of the SDK."""

    method: str
    path: str
    body: Row


def recorded(requests: Iterable[Mapping[str, Any]]) -> list[Write]:
    """The SDK's requests, as captured."""
    return [Write(request["method"], request["path"], request["body"]) for request in requests]


class Forwarded(NamedTuple):
    """The sidecar's requests as the upstreams received them, and the rows that Agentex stored."""

    agentex: list[Write]
    sgp: list[Write]
    rows: dict[str, Row]


def instants(row: Row) -> Row:
    """`row` with its timestamps as datetimes in UTC; without an offset they are UTC already."""
    row = dict(row)
    for key in row:
        if key.endswith(("_time", "_timestamp")) and row[key] is not None:
            at = datetime.fromisoformat(row[key])
            row[key] = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    return row


def agentex_rows(writes: Iterable[Write]) -> dict[str, Row]:
    """The rows that the SDK intends: POST creates, PATCH replaces everything but nulls."""
    rows: dict[str, Row] = {}
    for method, path, body in writes:
        if method == "POST":
            assert path == "/spans"
            assert body["id"] not in rows, "created twice"
            rows[body["id"]] = dict.fromkeys(COLUMNS) | body
        else:
            assert method == "PATCH"
            fields = {key: value for key, value in body.items() if value is not None}
            rows[path.removeprefix("/spans/")] |= fields
    return {id_: instants(row) for id_, row in rows.items()}


def sgp_rows(writes: Iterable[Write]) -> dict[str, Row]:
    """The rows that SGP stores: the last item of each id."""
    rows: dict[str, Row] = {}
    for method, path, body in writes:
        assert (method, path) == ("PUT", "/v5/spans/batch")
        rows |= {item["id"]: item for item in body["items"]}
    return {id_: instants(row) for id_, row in rows.items()}


def enrichment(environ: Mapping[str, str]) -> Row:
    """What the SDK adds to metadata (docs/upstreams.md S2.2), given the captured environment."""
    return {
        "__source__": "agentex",
        "__acp_type__": environ["ACP_TYPE"],
        "__agent_name__": environ["AGENT_NAME"],
        "__agent_id__": environ["AGENT_ID"],
        "__agent_version__": environ["AGENT_VERSION"],
    }


def as_intended(item: Row, environ: Mapping[str, str]) -> Row:
    """The SDK's item with the sidecar's repairs of what SGP would refuse (D18)."""
    item = dict(item)
    for key in ("input", "output", "metadata"):
        if isinstance(item[key], list):
            item[key] = {"items": item[key]}
            if key == "metadata":
                item[key] |= enrichment(environ)
    if item["type"] not in SPAN_TYPES:
        item["type"] = "CUSTOM"
    return item


async def forwarded(scenario: Row, *, opens: bool = False) -> Forwarded:
    """What becomes of a scenario's events, posted one by one; `opens`: every START is written."""
    async with AgentexStandIn() as agentex, upstream() as sgp:
        environ = scenario["env"] | {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "key",
            "SGP_ACCOUNT_ID": "account",
        }
        hold = {"queue__start_hold_s": 0} if opens else {}
        async with running_app(environ, **hold) as app:
            for number, event in enumerate(scenario["events"], 1):
                response = await app.post(event)
                assert (response.status, response.body["rejected"]) == (202, [])
                if opens:
                    await agentex.arrived(number)
            assert await app.stop()
        return Forwarded(
            [Write(each.method, each.path, json.loads(each.body)) for each in agentex.requests],
            [Write(each.method, each.path, each.body) for each in sgp.requests],
            {id_: instants(row) for id_, row in agentex.spans.items()},
        )


def check(scenario: Row, sidecar: Forwarded) -> None:
    """Assert that the sidecar and the SDK leave the same rows."""
    expected_agentex = agentex_rows(recorded(scenario["agentex"]))
    expected_sgp = sgp_rows(recorded(scenario["sgp"]))
    actual_agentex, actual_sgp = sidecar.rows, sgp_rows(sidecar.sgp)
    if not scenario["start_writes"]:
        # Without start writes the SDK never sends a span that has not ended; the sidecar sends
        # it as running.
        for id_ in actual_agentex.keys() - expected_agentex.keys():
            assert actual_agentex.pop(id_)["end_time"] is None
            assert "end_timestamp" not in actual_sgp.pop(id_)
    assert actual_agentex == expected_agentex
    environ = scenario["env"]
    assert actual_sgp == {id_: as_intended(item, environ) for id_, item in expected_sgp.items()}


def bodies(writes: Iterable[Write]) -> dict[tuple[str, str], Row]:
    """The body of each request to Agentex, by method and id."""
    found: dict[tuple[str, str], Row] = {}
    for method, path, body in writes:
        key = method, body.get("id") or path.removeprefix("/spans/")
        assert key not in found
        found[key] = instants(body)
    return found


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_start_and_end_of_a_span_take_the_same_route(scenario: Row) -> None:
    """Open spans join per route (queue/open_spans.py): the SDK never mixes an upstream's API."""
    posted, patched = (
        {write.body.get("id") or write.path.rpartition("/")[2] for write in writes}
        for writes in (
            [write for write in recorded(scenario["agentex"]) if write.method == method]
            for method in ("POST", "PATCH")
        )
    )
    assert patched <= posted
    items = [item for write in recorded(scenario["sgp"]) for item in write.body["items"]]
    opened = {item["id"] for item in items if not item.get("end_timestamp")}
    ended = {item["id"] for item in items if item.get("end_timestamp")}
    assert opened <= ended or scenario["scenario"] == "never_ended"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
async def test_the_same_spans_as_the_sdk(scenario: Row) -> None:
    """START and END joined into one write leave the same rows as the SDK's writes.

    One difference is intended (D26). If the SDK writes STARTs as well, and the agent removes a key
    of `data` before the END, Agentex merges the PATCH into the START's `data` and keeps that key.
    The sidecar's rows have the END's `data`, like the SDK's without start writes, so the expected
    rows are computed with a PATCH that replaces `data`.
    """
    sidecar = await forwarded(scenario)
    assert {write.method for write in sidecar.agentex} <= {"POST"}
    check(scenario, sidecar)


STARTS = [
    pytest.param(scenario, id=name)
    for scenario, name in zip(SCENARIOS, NAMES, strict=True)
    if scenario["start_writes"]
]


@pytest.mark.parametrize("scenario", STARTS)
async def test_the_same_spans_with_start_writes(scenario: Row) -> None:
    """Open writes followed by a PATCH leave the same rows, with the END's `data` (see above).

    So the open POST differs from the SDK's on purpose: it has no `data`. The END's PATCH, with all
    of its `data`, is the SDK's own, and what both leave is compared as the stand-in stores it,
    which merges as the real server does.
    """
    sidecar = await forwarded(scenario, opens=True)
    check(scenario, sidecar)
    expected = bodies(recorded(scenario["agentex"]))
    for (method, _), body in expected.items():
        if method == "POST":
            body["data"] = None
    assert bodies(sidecar.agentex) == expected
