"""The stand-ins behave as docs/upstreams.md says, over real HTTP."""

import asyncio
import gzip
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.bodies import digest_of, parse_time
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import (
    Answer,
    ApplyThen,
    Delay,
    Gate,
    Hang,
    Recorded,
    Reset,
    ResetMidBody,
    Scripted,
)

AT = "2026-01-02T03:04:05.678901+00:00"
LATER = "2026-01-02T03:04:06+00:00"
SPAN = {"id": "a", "trace_id": "t", "name": "n", "start_time": AT}
ITEM = {"id": "a", "trace_id": "t", "name": "n", "start_timestamp": AT}
JSON = {"Content-Type": "application/json"}


def deep(levels: int) -> dict[str, Any]:
    """Return a dict of this depth."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"d": value}
    return value


class Client:
    """Returns responses as (status, parsed body)."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def send(
        self, method: str, url: str, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        """Send a body as JSON; bytes are sent unchanged."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(
            method, url, data=data, headers=named, allow_redirects=False
        ) as response:
            return response.status, json.loads(await response.read() or b"null")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    # Agentex closes connections unannounced, so only the test of that reuses one.
    connector = aiohttp.TCPConnector(force_close=True)
    timeout = aiohttp.ClientTimeout(10)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(session)


@pytest.fixture
async def agentex() -> AsyncIterator[AgentexStandIn]:
    async with AgentexStandIn(tasks={"known"}) as stand_in:
        yield stand_in


@pytest.fixture
async def sgp() -> AsyncIterator[SgpStandIn]:
    async with SgpStandIn(prefix="/public") as stand_in:
        yield stand_in


async def put(client: Client, sgp: SgpStandIn, *items: Any) -> tuple[int, Any]:
    """Upsert a batch."""
    return await client.send("PUT", f"{sgp.url}/public/v5/spans/batch", {"items": items})


async def test_a_script_is_followed_then_requests_are_applied(
    client: Client, agentex: AgentexStandIn
) -> None:
    """Each request uses one entry of the script; after the last, responses are normal."""
    agentex.script = [503, Answer(429, b'"no"', {"Retry-After": "2"})]
    url = f"{agentex.url}/spans"
    assert await client.send("POST", url, SPAN) == (503, None)
    assert await client.send("POST", url, SPAN) == (429, "no")
    assert agentex.spans == {}
    status, row = await client.send("POST", url, SPAN)
    assert status == 200
    assert row == dict.fromkeys(("end_time", "parent_id", "task_id", "input", "output", "data")) | (
        SPAN | {"start_time": AT.replace("+00:00", "Z")}
    )
    assert [request.status for request in agentex.requests] == [503, 429, 200]
    assert json.loads(agentex.requests[0].body) == SPAN
    assert agentex.requests[0].headers["content-TYPE"] == "application/json"
    assert agentex.raw["a"] == json.dumps(SPAN).encode()


async def test_a_rule_is_asked_when_the_script_is_empty(
    client: Client, agentex: AgentexStandIn
) -> None:
    """The rule sees the request, and can leave it to the normal response."""

    def refuse_b(request: Recorded) -> Scripted:
        return 418 if json.loads(request.body)["id"] == "b" else None

    agentex.rule = refuse_b
    assert (await client.send("POST", f"{agentex.url}/spans", SPAN))[0] == 200
    assert (await client.send("POST", f"{agentex.url}/spans", SPAN | {"id": "b"}))[0] == 418
    assert list(agentex.spans) == ["a"]


async def test_a_bug_in_a_rule_is_raised_by_stop(client: Client) -> None:
    """A failing rule can't be mistaken for a failing upstream."""
    stand_in = AgentexStandIn()
    await stand_in.start()
    stand_in.rule = lambda request: int(request.method)
    assert (await client.session.get(f"{stand_in.url}/spans")).status == 500
    with pytest.raises(ValueError, match="GET"):
        await stand_in.stop()


@pytest.mark.parametrize(
    ("behaviour", "stored"),
    [
        (Reset(), False),
        (Reset(after_apply=True), True),
        (ResetMidBody(), True),
        (Delay(0.001, Reset(after_apply=True)), True),
    ],
    ids=repr,
)
async def test_resets_lose_the_response(
    client: Client, agentex: AgentexStandIn, behaviour: Scripted, stored: bool
) -> None:
    """The client sees a broken connection, whether the span is stored or not."""
    agentex.script = [behaviour]
    with pytest.raises(aiohttp.ClientError):
        await client.send("POST", f"{agentex.url}/spans", SPAN)
    assert ("a" in agentex.spans) == stored
    assert agentex.in_flight == 0


async def test_applied_with_another_response(client: Client, agentex: AgentexStandIn) -> None:
    """ApplyThen stores the span, and responds with something else."""
    agentex.script = [ApplyThen(Answer(502))]
    assert (await client.send("POST", f"{agentex.url}/spans", SPAN))[0] == 502
    assert agentex.history == {"a": ["open"]}


async def test_a_hung_request_ends_with_its_client(client: Client, agentex: AgentexStandIn) -> None:
    """Hang neither responds nor applies; the request is in flight until its client is gone."""
    agentex.script = [Hang()]
    hung = asyncio.create_task(client.send("POST", f"{agentex.url}/spans", SPAN))
    await agentex.arrived(1)
    assert agentex.in_flight == 1
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
    while agentex.in_flight:
        await client.send("GET", f"{agentex.url}/__report")
    assert agentex.spans == {}
    assert agentex.requests[0].status is None


async def test_a_gate_holds_requests_and_a_client_that_leaves_undoes_nothing(
    client: Client, agentex: AgentexStandIn
) -> None:
    """Gated requests are applied when the gate opens, even after their clients have left."""
    gate = asyncio.Event()
    agentex.script = [Gate(gate), Gate(gate, Delay(0))]
    url = f"{agentex.url}/spans"
    gone = asyncio.create_task(client.send("POST", url, SPAN))
    stays = asyncio.create_task(client.send("POST", url, SPAN | {"id": "b"}))
    await agentex.arrived(2)
    assert agentex.peak_in_flight == 2
    assert agentex.spans == {}
    gone.cancel()
    await asyncio.wait([gone])
    gate.set()
    assert (await stays)[0] == 200
    assert sorted(agentex.spans) == ["a", "b"]


async def test_stop_is_hard_and_the_port_can_be_used_again(client: Client) -> None:
    """Open connections break, new ones are refused, and a restart on the port keeps the state."""
    agentex = AgentexStandIn()
    await agentex.start()
    url, port = f"{agentex.url}/spans", agentex.port
    await client.send("POST", url, SPAN)
    agentex.script = [Hang()]
    hung = asyncio.create_task(client.send("POST", url, SPAN))
    await agentex.arrived(2)
    await agentex.stop()
    with pytest.raises(aiohttp.ClientError):
        await hung
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.send("POST", url, SPAN)
    await agentex.start(port)
    assert (await client.send("POST", url, SPAN))[0] == 400
    await agentex.stop()


async def test_latency_and_keep_bodies(client: Client) -> None:
    """The response has the latency; without `keep_bodies`, the records hold no content."""
    async with AgentexStandIn(latency_s=0.02, keep_bodies=False) as agentex:
        before = asyncio.get_running_loop().time()
        await client.send("POST", f"{agentex.url}/spans", SPAN)
        assert asyncio.get_running_loop().time() - before >= 0.02
        assert (agentex.requests[0].body, agentex.raw) == (b"", {})


async def test_agentex_duplicate(client: Client, agentex: AgentexStandIn) -> None:
    """A second POST of an id is a 400 with the reason, and changes nothing."""
    await client.send("POST", f"{agentex.url}/spans", SPAN)
    status, body = await client.send("POST", f"{agentex.url}/spans", SPAN | {"name": "other"})
    assert status == 400
    assert body["message"].startswith("Item already exists")
    assert agentex.spans["a"]["name"] == "n"
    assert agentex.writes["a"] == 1


RANDOM_ID = "".join(random.Random(1).choices("abcdefgh", k=5000))
SPAN_BYTES = json.dumps(SPAN).encode()


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (422, {"trace_id": None}),
        (422, {"start_time": "soon"}),
        (422, {"start_time": "2026-01-02T03:04:05+05"}),
        (422, {"start_time": "2026-01-02T03:04:05+01:02:03"}),
        (422, {"end_time": "2026-01-02T03:04:05+05:30:10.5"}),
        (500, {"start_time": "0001-01-01T00:00:00+00:01"}),
        (500, {"end_time": "9999-12-31T23:59:59-00:01"}),
        (422, {"id": 7}),
        (422, {"input": ["text"]}),
        (422, {"output": "text"}),
        (500, {"task_id": "unknown"}),
        (500, {"id": "a\0"}),
        (500, {"name": "\0"}),
        (500, {"name": "\ud800"}),
        (500, {"parent_id": "\0"}),
        (500, {"trace_id": RANDOM_ID}),
        (500, {"input": {"x": [float("nan")]}}),
        (500, {"input": {"x": float("inf")}}),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_agentex_refuses(
    client: Client, agentex: AgentexStandIn, status: int, changes: dict[str, Any]
) -> None:
    """Whatever the real server refuses is refused, and not stored."""
    assert (await client.send("POST", f"{agentex.url}/spans", SPAN | changes))[0] == status
    assert agentex.spans == {}


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (422, b"{}", {}),
        (422, b"[]", {}),
        (422, b"", {}),
        (422, b"{", {}),
        (400, b'{"name": "\xff"}', {}),
        (500, SPAN_BYTES[:-1] + b',"data":{"n":1e400}}', {}),
        (400, SPAN_BYTES[:-1] + b',"data":{"n":' + b"1" * 5000 + b"}}", {}),
        (400, gzip.compress(SPAN_BYTES), {"Content_Encoding": "gzip"}),
        (400, SPAN_BYTES[:-1] + b',"data":' + b'{"d":' * 2000 + b"1" + b"}" * 2001, {}),
        (422, SPAN_BYTES, {"Content_Type": "text/plain"}),
        (401, SPAN_BYTES, {"x_agent_api_key": "any"}),
        (401, SPAN_BYTES, {"x_agent_identity": "any"}),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_agentex_refuses_bodies(
    client: Client, agentex: AgentexStandIn, status: int, body: bytes, headers: dict[str, str]
) -> None:
    """Bodies and headers that the real server does not accept are refused."""
    assert (await client.send("POST", f"{agentex.url}/spans", body, **headers))[0] == status
    assert agentex.spans == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"task_id": "known", "data": {}, "input": [], "output": [{"n": 10**399}]},
        {"input": {"nul\0": "\0"}, "start_time": "2026-01-02", "end_time": 1.5},
        {"input": deep(254), "id": "x" * 1000, "parent_id": "unknown"},
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_agentex_accepts(
    client: Client, agentex: AgentexStandIn, changes: dict[str, Any]
) -> None:
    """Odd but valid values are stored as sent."""
    status, row = await client.send("POST", f"{agentex.url}/spans", SPAN | changes)
    assert status == 200
    assert agentex.spans[row["id"]].items() >= (SPAN | changes).items()


NOON = "2026-01-02T12:00:00+00:00"
PYDANTIC: list[tuple[object, str | None]] = [
    ("2026-01-02T12:00:00Z", NOON),
    ("2026-01-02t12:00:00z", NOON),
    ("2026-01-02_12:00:00", NOON),
    ("2026-01-02 12:00", NOON),
    ("2026-01-02T17:30:00+0530", NOON),
    ("2026-01-02T06:30\u221205:30", NOON),
    ("2026-01-02T12:00:00-00:00", NOON),
    ("2026-01-02T12:00:00,000000999999Z", NOON),
    ("2026-01-02", "2026-01-02T00:00:00+00:00"),
    ("1767355200", NOON),
    ("+1767355200.", NOON),
    (1767355200000, NOON),
    ("20260102", "1970-08-23T11:48:22+00:00"),
    (-1.5, "1969-12-31T23:59:58.500000+00:00"),
    (20000000000, "2603-10-11T11:33:20+00:00"),
    ("-20000000001", "1969-05-14T12:26:39.999000+00:00"),
    ("2026-01-02T12:00:00+12", None),
    ("2026-01-02T12:00:00+5:30", None),
    ("2026-01-02T12:00:00+01:02:03", None),
    ("2026-01-02T12:00:00+00:00:00", None),
    ("2026-01-02T12:00:00+05:60", None),
    ("2026-01-02T12:00:00+24:00", None),
    ("2026-01-02T12:00:00 +00:00", None),
    ("2026-01-02T12:00:00.Z", None),
    ("2026-01-02T12:00.5Z", None),
    ("2026-01-02T12Z", None),
    ("2026-01-02T24:00:00Z", None),
    ("2026-01-02T23:59:60Z", None),
    ("2026-01-02X12:00:00Z", None),
    ("2026-01-02T120000Z", None),
    ("20260102T120000Z", None),
    ("2026-W01-5T12:00:00Z", None),
    (" 2026-01-02T12:00:00Z", None),
    ("2026-01-02T12:00:00Z\n", None),
    ("2026-01-02T12:00:00Z\0", None),
    ("2026-01-02T12:00:0\u0660Z", None),
    ("2026-02-30T12:00:00Z", None),
    ("0000-01-01T12:00:00Z", None),
    ("0001-01-01T00:00:00+00:01", None),
    ("1e9", None),
    ("1_000", None),
    ("nan", None),
    ("", None),
    (True, None),
    (float("inf"), None),
    (253402300800000, None),
]


@pytest.mark.parametrize(("value", "utc"), PYDANTIC, ids=repr)
def test_times_are_judged_as_by_pydantic(value: object, utc: str | None) -> None:
    """The table holds the verdicts of pydantic itself (docs/upstreams.md A11)."""
    if utc is None:
        with pytest.raises(ValueError):  # noqa: PT011 (the text is of no importance)
            parse_time(value)
    else:
        assert parse_time(value).isoformat() == utc


async def test_agentex_errors_show_content(client: Client, agentex: AgentexStandIn) -> None:
    """As with the real server, error messages repeat the content, so they must not be logged."""
    bad = SPAN | {"input": {"prompt": "secret"}}
    _, body = await client.send("POST", f"{agentex.url}/spans", bad | {"task_id": "unknown"})
    assert "fk_spans_task_id_tasks" in body["message"]
    assert "secret" in body["message"]
    _, body = await client.send("POST", f"{agentex.url}/spans", bad | {"name": None})
    assert body["status_code"] == 10422
    _, body = await client.send("POST", f"{agentex.url}/spans", {"name": "secret"})
    assert "secret" in body["message"]


@pytest.mark.parametrize(
    "poison", [{"x": "\ud800"}, {"\udfff": 1}, deep(255)], ids=["value", "key", "depth"]
)
async def test_agentex_poison(client: Client, agentex: AgentexStandIn, poison: object) -> None:
    """A surrogate or too deep a value is a 500 that stores a row, unreadable until replaced."""
    url = f"{agentex.url}/spans"
    assert (await client.send("POST", url, SPAN | {"output": poison}))[0] == 500
    assert agentex.poisoned == {"a"}
    assert (await client.send("POST", url, SPAN))[0] == 400
    assert (await client.send("GET", f"{url}/a"))[0] == 500
    assert (await client.send("GET", f"{url}?trace_id=t"))[0] == 500
    assert (await client.send("PATCH", f"{url}/a", {"end_time": LATER}))[0] == 500
    assert (await client.send("PATCH", f"{url}/a", {"output": {}}))[0] == 200
    assert agentex.poisoned == set()
    assert (await client.send("GET", f"{url}?trace_id=t"))[1][0]["id"] == "a"


async def test_agentex_closes_after_an_unhandled_500() -> None:
    """Only an unhandled exception closes the connection, and without `Connection: close`."""
    async with AgentexStandIn(tasks=set()) as agentex:
        reader, writer = await asyncio.open_connection("127.0.0.1", agentex.port)
        for change, closed in (({"task_id": "unknown"}, False), ({"name": "\0"}, True)):
            body = json.dumps(SPAN | change).encode()
            writer.write(
                b"POST /spans HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 500")
            assert b"connection:" not in head
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            assert reader.at_eof() or not closed or await reader.read() == b""
        writer.close()


async def test_agentex_patch(client: Client, agentex: AgentexStandIn) -> None:
    """Null changes nothing, fields are replaced whole, `data` is merged one level deep."""
    first = {"input": {"i": 1}, "data": {"a": {"x": 1}, "b": 1}}
    await client.send("POST", f"{agentex.url}/spans", SPAN | first)
    change = {"id": "z", "name": None, "input": {}, "data": {"a": {"y": 2}}, "end_time": LATER}
    status, row = await client.send("PATCH", f"{agentex.url}/spans/a", change)
    assert status == 200
    assert (row["id"], row["name"], row["input"]) == ("a", "n", {})
    assert row["data"] == {"a": {"y": 2}, "b": 1}
    assert agentex.history["a"] == ["open", "complete"]
    assert (await client.send("PATCH", f"{agentex.url}/spans/a", {}))[0] == 200
    assert agentex.late_opens == 1
    assert (await client.send("PATCH", f"{agentex.url}/spans/a", []))[0] == 422
    assert (await client.send("PATCH", f"{agentex.url}/spans/a", {"data": [{"k": 1}]}))[0] == 500
    assert (await client.send("PATCH", f"{agentex.url}/spans/a", {"task_id": "?"}))[0] == 500


async def test_agentex_patch_of_list_data(client: Client, agentex: AgentexStandIn) -> None:
    """With a list stored in `data`, any new `data` is a 500, and the PATCH has no effect."""
    await client.send("POST", f"{agentex.url}/spans", SPAN | {"data": [{"a": 1}]})
    change = {"data": {"b": 1}, "end_time": LATER}
    assert (await client.send("PATCH", f"{agentex.url}/spans/a", change))[0] == 500
    assert agentex.spans["a"]["end_time"] is None
    assert (await client.send("PATCH", f"{agentex.url}/spans/a", {"end_time": LATER}))[0] == 200


async def test_agentex_paths(client: Client, agentex: AgentexStandIn) -> None:
    """Ids are percent-decoded before routing, so one with a slash can't be addressed."""
    url = f"{agentex.url}/spans"
    for id_ in ("a b%", "s/x"):
        await client.send("POST", url, SPAN | {"id": id_})
    assert (await client.send("GET", f"{url}/a%20b%25"))[0] == 200
    missing = await client.send("PATCH", f"{url}/who", {})
    assert missing == (
        404,
        {"message": "Item with id 'who' does not exist.", "code": 404, "data": None},
    )
    assert agentex.requests[-1].path == "/spans/who"
    raw = URL(f"{url}/s%2Fx", encoded=True)
    async with client.session.patch(raw, json={}) as response:
        assert (response.status, await response.json()) == (404, {"detail": "Not Found"})
    assert agentex.requests[-1].path == "/spans/s%2Fx"
    assert (await client.send("POST", f"{url}/", SPAN))[0] == 307
    assert (await client.send("POST", f"{url}/batch", SPAN))[0] == 405
    assert (await client.send("GET", f"{agentex.url}/healthz")) == (200, {"status": "ok"})


async def test_agentex_keys(client: Client) -> None:
    """With a configured key, only that key is accepted; it can change."""
    async with AgentexStandIn(api_key="one") as agentex:
        url = f"{agentex.url}/spans"
        assert (await client.send("GET", url))[0] == 401
        assert (await client.send("GET", url, x_agent_api_key="one"))[0] == 200
        agentex.api_key = "two"
        assert (await client.send("GET", url, x_agent_api_key="one"))[0] == 401


async def test_sgp_echoes_and_replaces(client: Client, sgp: SgpStandIn) -> None:
    """Every item comes back in full; a second write replaces the whole row."""
    status, body = await put(client, sgp, ITEM | {"input": {"i": 1}})
    assert status == 200
    assert body["items"][0].items() >= (ITEM | {"input": {"i": 1}, "object": "span"}).items()
    assert {"account_id", "created_by"} <= body["items"][0].keys()
    await put(client, sgp, ITEM | {"end_timestamp": LATER})
    assert sgp.spans == {("t", "a"): ITEM | {"end_timestamp": LATER}}
    assert sgp.history == {"a": ["open", "complete"]}
    assert sgp.second_rows == 0
    await put(client, sgp, ITEM | {"start_timestamp": "2026-01-03T00:00:00Z"})
    assert (sgp.second_rows, sgp.late_opens) == (1, 1)


async def test_sgp_repeated_items(client: Client, sgp: SgpStandIn) -> None:
    """Within a batch a complete item beats an open one, else the last wins."""
    done = ITEM | {"end_timestamp": LATER}
    await put(client, sgp, done, ITEM, ITEM | {"id": "b"}, ITEM | {"id": "b", "name": "last"})
    assert sgp.spans["t", "a"] == done
    assert sgp.spans["t", "b"]["name"] == "last"
    assert sgp.duplicates_in_batch == 2
    assert sgp.writes == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (422, {"end_timestamp": "2025-01-01T00:00:00Z"}),
        (422, {"start_timestamp": "soon"}),
        (422, {"trace_id": None}),
        (422, {"id": "x" * 257}),
        (400, {"id": "é" * 200}),
        (400, {"trace_id": "\0"}),
        (400, {"id": "\0"}),
        (400, {"parent_id": "\0"}),
        (422, {"input": []}),
        (422, {"output": None}),
        (422, {"metadata": "text"}),
        (422, {"input": {"x": float("nan")}}),
        (422, {"type": "None"}),
        (422, {"status": "RUNNING"}),
        (409, {"parent_id": "elsewhere"}),
        (409, {"parent_id": "beside"}),
        (409, {"parent_id": "a"}),
        (409, {"parent_id": "child"}),
        (409, {"parent_id": "stored child"}),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_sgp_refuses_the_whole_batch(
    client: Client, sgp: SgpStandIn, status: int, changes: dict[str, Any]
) -> None:
    """One bad item means that nothing of its batch is stored."""
    stored = ITEM | {"id": "stored child", "parent_id": "a"}
    assert (await put(client, sgp, ITEM | {"id": "elsewhere", "trace_id": "o"}, stored))[0] == 200
    before = dict(sgp.spans)
    beside = ITEM | {"id": "beside", "trace_id": "o"}
    child = ITEM | {"id": "child", "parent_id": "a"}
    assert (await put(client, sgp, beside, ITEM | changes, child))[0] == status
    assert sgp.spans == before


async def test_sgp_missing_fields_and_sizes(client: Client, sgp: SgpStandIn) -> None:
    """Missing fields, more than 1000 items, too large a body and another path are refused."""
    for name in ("name", "start_timestamp", "trace_id"):
        assert (await put(client, sgp, {k: v for k, v in ITEM.items() if k != name}))[0] == 422
    many = [ITEM | {"id": str(n), "parent_id": str(n + 1)} for n in range(1001)]
    assert (await put(client, sgp, *many))[0] == 422
    assert (await put(client, sgp, *many[1:]))[0] == 200
    sgp.max_body = 1000
    assert (await put(client, sgp, *many[1:]))[0] == 413
    assert (await client.send("PUT", f"{sgp.url}/v5/spans/batch", {"items": []}))[0] == 404


async def test_sgp_credentials(client: Client) -> None:
    """Both the key and the account must match."""
    async with SgpStandIn(api_key="k", account_id="acc") as sgp:
        url, body = f"{sgp.url}/v5/spans/batch", {"items": [ITEM]}
        wrong: list[dict[str, str]] = [
            {},
            {"x_api_key": "k"},
            {"x_api_key": "no", "x_selected_account_id": "acc"},
        ]
        for headers in wrong:
            assert (await client.send("PUT", url, body, **headers))[0] == 401
        right = {"x_api_key": "k", "x_selected_account_id": "acc"}
        assert (await client.send("PUT", url, body, **right))[0] == 200


@pytest.mark.process
async def test_both_in_a_process_of_their_own(client: Client) -> None:
    """The light server counts writes and digests inputs, and ends with its stdin."""
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar.demo.serve", "--light", "--latency-ms", "1"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    urls = json.loads(await server.stdout.readline())
    spans, batch = f"{urls['agentex']}/spans", f"{urls['sgp']}/v5/spans/batch"
    opened = SPAN_BYTES[:-1] + b', "input": {"x":  [1]} }'
    assert await client.send("POST", spans, opened) == (200, {})
    assert (await client.send("POST", spans, opened))[0] == 400
    assert (await client.send("PATCH", f"{spans}/a", {"end_time": LATER}))[0] == 200
    assert (await client.send("PATCH", f"{spans}/b", {"end_time": LATER}))[0] == 404
    items = {"items": [ITEM, ITEM, ITEM | {"id": "b", "input": {}, "end_timestamp": LATER}]}
    assert (await client.send("PUT", batch, items))[1] == {"object": "list", "items": []}
    _, report = await client.send("GET", f"{urls['agentex']}/__report")
    assert report["digests"] == {"a": digest_of(b'{"x":  [1]}').hex()}
    assert (report["requests"], report["writes_max"], report["complete"]) == (4, 2, 1)
    _, report = await client.send("GET", f"{urls['sgp']}/__report?counts")
    assert (report["spans"], report["writes"], report["duplicates_in_batch"]) == (2, 3, 1)
    assert report["digests"] == {}
    server.stdin.close()
    assert await server.wait() == 0


async def test_bounded(client: Client) -> None:
    """With `max_spans` only the newest spans are known; a PATCH for one that is not is taken."""
    async with AgentexStandIn(digest=True, echo=False, max_spans=2) as agentex:
        for id_ in "abc":
            body = {**SPAN, "id": id_, "input": {}, "end_time": LATER}
            assert (await client.send("POST", f"{agentex.url}/spans", body))[0] == 200
        assert set(agentex.writes) == agentex.complete == set(agentex.digests) == {"b", "c"}
        digest = digest_of(b"{}").hex()
        url = f"{agentex.url}/__report"
        assert await client.send("POST", url, ["a", "b", "x"]) == (200, {"b": digest})
        patch = {"end_time": LATER}
        assert (await client.send("PATCH", f"{agentex.url}/spans/a", patch))[0] == 200
        assert agentex.complete == {"c", "a"}


@pytest.mark.parametrize("kind", [AgentexStandIn, SgpStandIn])
async def test_light_and_strangers(
    client: Client, kind: type[AgentexStandIn] | type[SgpStandIn]
) -> None:
    """The light stand-ins refuse what no sidecar sends, and go on."""
    async with kind(digest=True, echo=False) as stand_in:
        for method, body in (("GET", None), ("POST", b"?"), ("PUT", {}), ("PATCH", [])):
            status, _ = await client.send(method, f"{stand_in.url}/", body)
            assert 400 <= status < 500, (method, status)
        assert not stand_in.writes
