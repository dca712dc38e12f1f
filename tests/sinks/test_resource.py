"""What SGP's rows say about the pod that the spans come from (docs/upstreams.md S5.1)."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.config_load import load
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer
from sidecar.operate import replay
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spans.span import Lanes, SdkFields
from tests.support.spans import make_event, make_span
from tests.support.world import Running, running_app

Json = dict[str, Any]
ERROR = Refused("HTTP 422", 422)
POD = {"pod__name": "agent-0", "pod__namespace": "agents", "pod__node": "node-1"}
RESOURCE = {
    "k8s.pod.name": "agent-0",
    "k8s.namespace.name": "agents",
    "k8s.node.name": "node-1",
}
ITEM = {
    "id": "item",
    "trace_id": "t",
    "name": "turn",
    "start_timestamp": "2026-01-02T03:04:05+00:00",
    "end_timestamp": "2026-01-02T03:04:06+00:00",
}


class World(NamedTuple):
    """A sidecar, its upstreams, and the variables that name them."""

    app: Running
    agentex: AgentexStandIn
    sgp: SgpStandIn
    environ: dict[str, str]

    async def metadata(self) -> dict[str, Json]:
        """Stop the sidecar; return the metadata of each of SGP's rows by its span's id."""
        assert await self.app.stop()
        return {key[1]: row["metadata"] for key, row in self.sgp.spans.items()}


@asynccontextmanager
async def world(acp_type: str = "async", **settings: object) -> AsyncIterator[World]:
    """Run a sidecar with both upstreams; `async` is the default of `ACP_TYPE`."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
            "AGENT_NAME": "invoice",
        } | ({} if acp_type == "async" else {"ACP_TYPE": acp_type})
        async with running_app(environ, **settings) as app:
            yield World(app, agentex, sgp, environ)


@pytest.mark.parametrize("known", [POD, {"pod__node": "node-1"}], ids=["all", "node"])
@pytest.mark.parametrize("kind", ["start", "end"])
@pytest.mark.parametrize("acp_type", ["async", "sync"])
async def test_what_is_known_of_the_pod_is_at_sgp(known: Json, kind: str, acp_type: str) -> None:
    """SGP's row has it beside what the SDK adds; Agentex's row is what the agent posted."""
    data = {"mine": [1.50]}
    async with world(acp_type, **known) as here:
        await here.app.post(make_event("s", kind=kind, data=data))
        rows = await here.metadata()
        expected = {key: RESOURCE[key] for key in list(RESOURCE)[-len(known) :]}
        added = {"__source__": "agentex", "__acp_type__": acp_type, "__agent_name__": "invoice"}
        assert rows == {"s": data | added | expected}
        assert here.agentex.spans["s"]["data"] == data


async def test_without_a_pod_nothing_is_added() -> None:
    """Nothing is said of what is not known."""
    async with world() as here:
        await here.app.post(make_event("event", kind="end"))
        status, _, _ = await here.app.request("PUT", "/v5/spans/batch", json={"items": [ITEM]})
        assert status == 200
        assert await here.app.stop()
        rows = {key[1]: row for key, row in here.sgp.spans.items()}
        assert rows["event"]["metadata"].keys() == {
            "__source__",
            "__acp_type__",
            "__agent_name__",
        }
        assert "metadata" not in rows["item"]


async def test_a_span_that_says_it_itself_wins() -> None:
    """A key in the span's own data is kept, whatever its value; so is one in an SDK's item."""
    own = {"k8s.pod.name": "job-7", "k8s.node.name": None, "mine": 1}
    async with world(**POD) as here:
        await here.app.post(make_event("event", kind="end", data=own))
        items = {"items": [ITEM | {"metadata": own}]}
        status, _, _ = await here.app.request("PUT", "/v5/spans/batch", json=items)
        assert status == 200
        rows = await here.metadata()
    assert rows["item"] == RESOURCE | own
    assert {key: rows["event"][key] for key in RESOURCE | own} == RESOURCE | own


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({"__agent_name__": "sdk"}, {"__agent_name__": "sdk"}),
        ({}, {}),
        (None, {}),
        ([{"a": 1}], {"items": [{"a": 1}]}),
    ],
)
async def test_an_item_of_the_sdk_gets_only_the_pod(metadata: object, kept: Json) -> None:
    """What the SDK built keeps all it has, and gets what the SDK can't know."""
    async with world(**POD) as here:
        items = {"items": [ITEM | {"metadata": metadata}]}
        status, _, _ = await here.app.request("PUT", "/v5/spans/batch", json=items)
        assert status == 200
        assert await here.metadata() == {"item": kept | RESOURCE}


@pytest.fixture
def letters(tmp_path: Path) -> str:
    """Return a file of three letters: an event, an SDK's item, and one that names its pod."""
    dead = DeadLetters(str(tmp_path / "letters.jsonl"), 100_000)
    sdk = SdkFields(Lanes.SGP, b'"status":"SUCCESS","type":"STANDALONE"')
    dead.add("sgp", make_span("event", data=b'{"mine":1}'), "refused", ERROR)
    dead.add("sgp", make_span("item", data=b'{"__agent_name__":"sdk"}', sdk=sdk), "refused", ERROR)
    dead.add("sgp", make_span("told", data=b'{"k8s.pod.name":"job-7"}'), "refused", ERROR)
    return str(tmp_path / "letters.jsonl")


@pytest.mark.parametrize("to", [False, True], ids=["directly", "through"])
async def test_a_replayed_letter(letters: str, *, to: bool) -> None:
    """Who replays says where and which agent it is, unless the letter says so itself."""
    async with world(**POD) as here:
        if to:
            done = await replay.through(letters, "sgp", here.app.url)
            assert dict(+done) == {"accepted": 3}
        else:
            own = {f"SIDECAR_{key.upper()}": name for key, name in POD.items()}
            config = load(None, here.environ | own)
            done = await replay.directly(letters, None, config, here.environ)
            assert dict(+done) == {"forwarded": 3}
        rows = await here.metadata()
    assert rows["event"].items() >= {"mine": 1, "__agent_name__": "invoice", **RESOURCE}.items()
    assert rows["item"] == {"__agent_name__": "sdk", **RESOURCE}
    assert rows["told"]["k8s.pod.name"] == "job-7"
    assert rows["told"]["k8s.node.name"] == "node-1"


async def test_a_letter_has_what_the_agent_posted(tmp_path: Path) -> None:
    """A write that SGP refuses is kept without what the sidecar would have added."""
    path = tmp_path / "letters.jsonl"
    async with world(**POD, dead_letters__path=path) as here:
        here.sgp.rule = lambda _: Answer(422)
        await here.app.post(make_event("s", kind="end", data={"mine": 1}))
        assert await here.app.stop()
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["event"]["span"]["data"] == {"mine": 1}
