"""Accounts and rooms, as agents see them: two agents in a pod, and an upstream that is away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import orjson
import pytest

from sidecar.credentials import MAX_ACCOUNTS
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, StandIn
from tests.support.faults import fast, for_a_while
from tests.support.spans import END_TIME, START_TIME, make_event
from tests.support.world import Reply, Running, assert_balanced, running_app

A, B = ({"x-api-key": f"key-{id_}", "x-selected-account-id": id_} for id_ in "ab")
AWAY = Answer(503)
P = {"p": "x" * 6000}


class Pod:
    """A sidecar that relays credentials, and both upstreams."""

    def __init__(self, app: Running, agentex: AgentexStandIn, sgp: SgpStandIn) -> None:
        self.app, self.agentex, self.sgp = app, agentex, sgp

    async def post(
        self, id_: str, headers: dict[str, str] | None = None, *, kind: str = "end", **fields: Any
    ) -> Reply:
        """Post an event to the sidecar's own route."""
        named = {"content-type": "application/json", **(headers or {})}
        event = make_event(id_, kind=kind, **fields)
        return await self.app.request("POST", "/v1/spans", json=event, headers=named)

    async def put(self, *ids: str, headers: dict[str, str] | None = None, much: int = 0) -> Reply:
        """What the SGP SDK sends."""
        items = [
            {
                "id": id_,
                "trace_id": "t1",
                "name": "turn",
                "start_timestamp": START_TIME,
                "end_timestamp": END_TIME,
                "input": {"p": "x" * much},
            }
            for id_ in ids
        ]
        body = {"items": items}
        return await self.app.request("PUT", "/v5/spans/batch", json=body, headers=headers)

    async def post_to_agentex(
        self, id_: str, much: int = 0, headers: dict[str, str] | None = None
    ) -> Reply:
        """What the Agentex SDK sends."""
        span = make_event(id_, kind="end", input={"p": "x" * much})["span"]
        return await self.app.request("POST", "/spans", json=span, headers=headers)

    def ids(self) -> list[str]:
        """The accounts that the sidecar knows."""
        return list(self.app.app.accounts.ids.values())

    def credentials(self) -> set[tuple[str, str]]:
        """The pairs of key and account that SGP has seen."""
        return {
            (request.headers["x-api-key"], request.headers["x-selected-account-id"])
            for request in self.sgp.requests
        }

    def owners(self) -> dict[str, set[str]]:
        """The accounts that each span went out under, whether SGP took it or not."""
        found: dict[str, set[str]] = {}
        for request in self.sgp.requests:
            for item in orjson.loads(request.body)["items"]:
                found.setdefault(item["id"], set()).add(request.headers["x-selected-account-id"])
        return found


@asynccontextmanager
async def pod(agent_key: str | None = None, **settings: object) -> AsyncIterator[Pod]:
    """A running pod. `agent_key` is the only one that Agentex accepts."""
    async with AgentexStandIn(api_key=agent_key) as agentex, SgpStandIn() as sgp:
        environ = {"AGENTEX_BASE_URL": agentex.url, "SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, **{"sgp__relay": "true", **settings}) as app:
            yield Pod(app, agentex, sgp)


@fast
async def test_two_agents_with_two_accounts() -> None:
    """SGP is away for a moment: what waited for it goes out under its own account, as all else."""
    async with pod() as it:
        it.sgp.rule = for_a_while(30.0, AWAY)
        for number in range(10):
            assert (await it.post(f"a{number}", A)).status == 202
            assert (await it.post(f"b{number}", B, kind="start")).status == 202
            assert (await it.put(f"sa{number}", headers=A)).status == 200
            assert (await it.put(f"sb{number}", headers=B)).status == 200
            # The same span id in both accounts: two spans.
            assert (await it.post(f"same{number}", A, input={"of": "a"})).status == 202
            assert (await it.post(f"same{number}", B, input={"of": "b"})).status == 202
            await asyncio.sleep(1)
        await asyncio.sleep(60)
        assert await it.app.stop()
        owners = it.owners()
        for number in range(10):
            assert owners[f"a{number}"] == owners[f"sa{number}"] == {"a"}
            assert owners[f"b{number}"] == owners[f"sb{number}"] == {"b"}
            assert owners[f"same{number}"] == {"a", "b"}
        for request in it.sgp.requests:
            account = request.headers["x-selected-account-id"]
            assert request.headers["x-api-key"] == f"key-{account}"
            for item in orjson.loads(request.body)["items"]:
                if item["id"].startswith("same"):
                    assert item["input"] == {"of": account}
        assert_balanced(it.app.app)


@fast
async def test_a_refused_key_holds_its_own_account_only() -> None:
    """The other one's spans arrive, and its own once the key is accepted."""
    async with pod() as it:
        refused = True
        it.sgp.rule = lambda request: (
            Answer(401) if refused and request.headers["x-api-key"] == "key-a" else None
        )
        await it.post("of-a", A)
        await it.post("of-b", B)
        await asyncio.sleep(60)
        assert {id_ for _, id_ in it.sgp.spans} == {"of-b"}
        refused = False
        assert await it.app.stop()
        assert {id_ for _, id_ in it.sgp.spans} == {"of-a", "of-b"}
        assert it.owners() == {"of-a": {"a"}, "of-b": {"b"}}


@fast
async def test_the_key_of_an_account_whose_first_event_is_a_start() -> None:
    """It is used although nothing of that account is written until the START's hold is over."""
    async with pod() as it:
        await it.post("of-a", A)
        await it.post("of-b", B, kind="start")
        await asyncio.sleep(10)
        assert it.owners() == {"of-a": {"a"}, "of-b": {"b"}}


def big(id_: str) -> dict[str, Any]:
    """An event that no lane has room for."""
    return make_event(id_, kind="end", input={"p": "x" * 70_000})


# Requests of which nothing is taken, each with the status of its response.
REFUSED: dict[str, tuple[int, str, str, object]] = {
    "an empty array": (400, "POST", "/v1/spans", []),
    "no valid event": (400, "POST", "/v1/spans", [{}]),
    "not JSON": (400, "POST", "/v1/spans", b"{"),
    "too large": (413, "POST", "/v1/spans", big("s")),
    "an empty SGP batch": (200, "PUT", "/v5/spans/batch", {"items": []}),
    "an SGP batch without a valid item": (422, "PUT", "/v5/spans/batch", {"items": [{}]}),
    "a span that Agentex refuses": (422, "POST", "/spans", {}),
    "an unknown path": (404, "POST", "/spanz", {}),
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", REFUSED)
@fast
async def test_a_request_of_which_nothing_is_taken(name: str, known: bool) -> None:
    """It changes no credential and no account, whether another one is known or none is."""
    status, method, path, body = REFUSED[name]
    async with pod("agent", queue__max_bytes="100KB") as it:
        if known:
            await it.post("before", A | {"x-agent-api-key": "agent"})
        headers = B | {"content-type": "application/json", "x-agent-api-key": "other"}
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        reply = await it.app.request(method, path, data=data, headers=headers)
        assert reply.status == status
        assert it.ids() == (["a"] if known else [])
        await it.post("after", A | {"x-agent-api-key": "agent"})
        assert it.ids() == ["a"]
        assert await it.app.stop()
        assert it.credentials() == {("key-a", "a")}
        assert {request.headers["x-agent-api-key"] for request in it.agentex.requests} == {"agent"}


@fast
async def test_a_request_without_room_changes_nothing() -> None:
    """429: no upstream has room, and neither the account nor the key is known afterwards."""
    async with pod(queue__max_bytes="64KB") as it:
        it.sgp.rule = it.agentex.rule = lambda _: AWAY
        for number in range(30):
            reply = await it.post(f"s{number}", A, input=P)
        assert reply.status == 429
        assert (await it.post("more", B, input=P)).status == 429
        assert (await it.post_to_agentex("more", 6000)).status == 429
        assert (await it.put("more", headers=B, much=6000)).status == 429
        assert it.ids() == ["a"]
        it.sgp.rule = it.agentex.rule = None
        assert await it.app.stop()
        assert it.credentials() == {("key-a", "a")}


@fast
async def test_without_an_account() -> None:
    """It waits for the first one, belongs to the only one, and has to be named among several."""
    async with pod() as it:
        assert (await it.post("early")).status == 202
        await asyncio.sleep(10)
        assert it.sgp.requests == []
        assert (await it.post("of-a", A)).status == 202
        assert (await it.post("later")).status == 202
        assert (await it.put("sdk")).status == 200
        assert (await it.post("of-b", B)).status == 202
        reply = await it.post("whose")
        assert reply.status == 400
        assert reply.body["error"].startswith("x-selected-account-id is required")
        assert (await it.put("whose")).status == 400
        # Agentex has no accounts.
        assert (await it.post_to_agentex("nobodys")).status == 200
        assert await it.app.stop()
        owners = it.owners()
        assert owners.pop("of-b") == {"b"}
        assert owners == {id_: {"a"} for id_ in ("early", "of-a", "later", "sdk")}
        assert "nobodys" in it.agentex.spans


@fast
async def test_agentex_routes_bring_no_account() -> None:
    """Whatever they name, and whether they are accepted or not."""
    async with pod() as it:
        assert (await it.post_to_agentex("s", headers=A)).status == 200
        assert it.ids() == []
        assert (await it.post("of-b", B)).status == 202
        assert await it.app.stop()
        assert it.credentials() == {("key-b", "b")}


@fast
async def test_a_ninth_account() -> None:
    """It gets 503 with the reason, and the others are still served."""
    async with pod() as it:
        ids = [f"account-{number}" for number in range(MAX_ACCOUNTS)]
        headers = [{"x-api-key": "key", "x-selected-account-id": id_} for id_ in ids]
        for each in headers:
            assert (await it.post("s", each)).status == 202
        reply = await it.post("s", B)
        assert reply.status == 503
        assert "8 accounts" in reply.body["error"]
        assert reply.headers["retry-after"] == "1"
        assert (await it.put("s", headers=B)).status == 503
        assert (await it.post("again", headers[-1])).status == 202
        assert it.ids() == ids
        assert await it.app.stop()
        assert {account for _, account in it.credentials()} == set(ids)


@fast
async def test_the_only_account_of_a_request() -> None:
    """A request that names another one than it may go out under is refused, and changes nothing."""
    async with pod() as it:
        only = {"x-trace-sidecar-account": "a"}
        assert (await it.post("wrong", B | only)).status == 409
        assert it.ids() == []
        assert (await it.post("s", A | only)).status == 202
        assert (await it.post("wrong", B | only)).status == 409
        assert it.ids() == ["a"]
        assert await it.app.stop()
        assert it.owners() == {"s": {"a"}}


@pytest.mark.parametrize("away", ["agentex", "sgp"])
@fast
async def test_an_upstream_that_is_away_fills_its_own_lane_only(away: str) -> None:
    """The 202 says what it does not take, SDKs' routes to it get 429, and the other gets it all."""
    async with pod(queue__max_bytes="64KB") as it:
        there: StandIn = it.sgp if away == "agentex" else it.agentex
        gone: StandIn = it.agentex if away == "agentex" else it.sgp
        gone.rule = lambda _: AWAY
        taken, not_taken = list[str](), list[str]()
        for number in range(30):
            reply = await it.post(f"s{number}", A, input=P)
            assert reply.status == 202
            full = reply.body.get("not_taken_for")
            assert full in (None, {away: 1})
            (not_taken if full else taken).append(f"s{number}")
            await asyncio.sleep(1)
        assert taken
        assert not_taken
        full_route: Callable[[], Any] = partial(it.post_to_agentex, "sdk", 6000)
        other_route: Callable[[], Any] = partial(it.put, "sdk", headers=A, much=6000)
        if away == "sgp":
            full_route, other_route = other_route, full_route
        refused = await full_route()
        assert refused.status == 429
        assert "no room" in str(refused.body)
        assert (await other_route()).status == 200
        gone.rule = None
        assert await it.app.stop()
        lanes = {lane.name: lane for lane in it.app.app.lanes}
        assert lanes.pop(away).totals()["not_taken"] == len(not_taken)
        assert [lane.totals()["not_taken"] for lane in lanes.values()] == [0]
        assert there.complete >= {*taken, *not_taken, "sdk"}
        assert gone.complete == set(taken)


@fast
async def test_idle_starts_make_room_for_a_body() -> None:
    """STARTs that only wait for their END do not keep a large request out."""
    async with pod(queue__max_bytes="64KB", queue__start_hold_s=0.1) as it:
        for number in range(30):
            assert (await it.post(f"s{number}", A, kind="start", input=P)).status == 202
            await asyncio.sleep(1)
        assert (await it.post("large", A, input={"p": "x" * 20_000})).status == 202
