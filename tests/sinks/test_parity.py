"""The same events as the SDK saw leave the same spans upstream as the SDK's own processors.

`captured/sdk_0_28_4.jsonl` was recorded with agentex-sdk 0.28.4: an agent's environment, the events
in the listener's form, and every request that the SDK made of Agentex and of SGP.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.sinks.sgp import SPAN_TYPES
from tests.support.world import Request, running_app, upstream

Row = dict[str, Any]

CAPTURED = Path(__file__).parent / "captured" / "sdk_0_28_4.jsonl"
SCENARIOS: list[Row] = [json.loads(line) for line in CAPTURED.read_bytes().split(b"\n") if line]
NAMES = [f"{s['scenario']}-{'starts' if s['start_writes'] else 'ends'}" for s in SCENARIOS]
COLUMNS = "id trace_id name start_time end_time parent_id task_id input output data".split()  # noqa: SIM905


class Write(NamedTuple):
    """A request, ours or the SDK's."""

    method: str
    path: str
    body: Row


def recorded(requests: Iterable[Mapping[str, Any]]) -> list[Write]:
    """The SDK's requests."""
    return [Write(request["method"], request["path"], request["body"]) for request in requests]


def received(requests: Iterable[Request]) -> list[Write]:
    """Ours."""
    return [Write(request.method, request.path, request.body) for request in requests]


def instants(row: Row) -> Row:
    """Times by the instant that they name; without an offset that is UTC."""
    row = dict(row)
    for key in row:
        if key.endswith(("_time", "_timestamp")) and row[key] is not None:
            at = datetime.fromisoformat(row[key])
            row[key] = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    return row


def agentex_rows(writes: Iterable[Write], *, merge_data: bool) -> dict[str, Row]:
    """What the server stores: POST creates; PATCH leaves alone what is null, and merges `data`."""
    rows: dict[str, Row] = {}
    for method, path, body in writes:
        if method == "POST":
            assert path == "/spans"
            assert body["id"] not in rows, "created twice"
            rows[body["id"]] = dict.fromkeys(COLUMNS) | body
            continue
        assert method == "PATCH"
        row = rows[path.removeprefix("/spans/")]
        for key, value in body.items():
            if value is None:
                continue
            both = isinstance(value, dict) and isinstance(row[key], dict)
            merged = merge_data and key == "data" and both
            row[key] = row[key] | value if merged else value
    return {id_: instants(row) for id_, row in rows.items()}


def sgp_rows(writes: Iterable[Write]) -> dict[str, Row]:
    """What the server stores: the last item of an id."""
    rows: dict[str, Row] = {}
    for method, path, body in writes:
        assert (method, path) == ("PUT", "/v5/spans/batch")
        rows |= {item["id"]: item for item in body["items"]}
    return {id_: instants(row) for id_, row in rows.items()}


def enrichment(environ: Mapping[str, str]) -> Row:
    """What the SDK adds to metadata (docs/upstreams.md S2.2), for the variables of the captures."""
    return {
        "__source__": "agentex",
        "__acp_type__": environ["ACP_TYPE"],
        "__agent_name__": environ["AGENT_NAME"],
        "__agent_id__": environ["AGENT_ID"],
        "__agent_version__": environ["AGENT_VERSION"],
    }


def as_intended(item: Row, environ: Mapping[str, str]) -> Row:
    """The SDK's item with our differences: what SGP would refuse is repaired (D18)."""
    item = dict(item)
    for key in ("input", "output", "metadata"):
        if isinstance(item[key], list):
            item[key] = {"items": item[key]}
            if key == "metadata":
                item[key] |= enrichment(environ)
    if item["type"] not in SPAN_TYPES:
        item["type"] = "CUSTOM"
    return item


async def forwarded(scenario: Row, **overrides: object) -> tuple[list[Write], list[Write]]:
    """Our requests of Agentex and SGP for a scenario's events, posted one by one."""
    async with upstream() as agentex, upstream() as sgp:
        environ = scenario["env"] | {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "key",
            "SGP_ACCOUNT_ID": "account",
        }
        async with running_app(environ, **overrides) as app:
            for event in scenario["events"]:
                reply = await app.post(event)
                assert (reply.status, reply.body["rejected"]) == (202, [])
            assert await app.stop()
        return received(agentex.requests), received(sgp.requests)


def check(scenario: Row, agentex: list[Write], sgp: list[Write], *, merge_data: bool) -> None:
    """Both sides hold the same rows."""
    their_agentex = agentex_rows(recorded(scenario["agentex"]), merge_data=merge_data)
    their_sgp = sgp_rows(recorded(scenario["sgp"]))
    our_agentex, our_sgp = agentex_rows(agentex, merge_data=True), sgp_rows(sgp)
    if not scenario["start_writes"]:
        # Without start writes the SDK never sends a span that was not ended; we show it running.
        for id_ in our_agentex.keys() - their_agentex.keys():
            assert our_agentex.pop(id_)["end_time"] is None
            assert "end_timestamp" not in our_sgp.pop(id_)
    assert our_agentex == their_agentex
    environ = scenario["env"]
    assert our_sgp == {id_: as_intended(item, environ) for id_, item in their_sgp.items()}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
async def test_the_same_spans_as_the_sdk(scenario: Row) -> None:
    """START and END go out as one write, and leave what the SDK's writes leave.

    Intended: where the SDK writes STARTs too and an agent changes `data` in between, its PATCH is
    merged into the START's keys at the server, and a key that the agent removed stays. Our one
    write has the END's `data`, as the SDK has without start writes. So here a PATCH replaces it.
    """
    agentex, sgp = await forwarded(scenario)
    assert {write.method for write in agentex} <= {"POST"}
    check(scenario, agentex, sgp, merge_data=False)


STARTS = [
    pytest.param(scenario, id=name)
    for scenario, name in zip(SCENARIOS, NAMES, strict=True)
    if scenario["start_writes"]
]


@pytest.mark.parametrize("scenario", STARTS)
async def test_the_same_spans_with_start_writes(scenario: Row) -> None:
    """Open writes and the PATCH after them leave what the SDK's start writes and PATCHes leave."""
    agentex, sgp = await forwarded(scenario, queue__start_hold_s=0)
    assert {write.method for write in agentex} == {w["method"] for w in scenario["agentex"]}
    check(scenario, agentex, sgp, merge_data=True)
