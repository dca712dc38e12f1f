"""Agents with the real SDKs leave the same spans upstream with the sidecar as without it."""

import asyncio
from pathlib import Path

import pytest

from tests.e2e.sdk_support import Arrived, Row, assert_equal, comparable, lost, pod

STARTS = {
    "ends only": {},
    "starts too": {
        "AGENTEX_TRACING_SKIP_SPAN_START": "0",
        "AGENTEX_TRACING_SKIP_AGENTEX_SPAN_START": "0",
    },
}
WORK = {"async_agent": ("everything",), "sync_agent": ()}


async def ran(
    folder: Path, agent: str, *arguments: str, sidecar: bool, **environ: str
) -> tuple[list[Row], Arrived]:
    """Run an agent once; return what it made and what arrived."""
    async with pod(folder, sidecar=sidecar) as here:
        made = await here.run(agent, *arguments, **environ)
        if sidecar:
            late = here.agentex.late_opens, here.sgp.late_opens
            assert (*late, here.sgp.second_rows) == (0, 0, 0)
        return made, here.arrived()


@pytest.mark.parametrize("starts", STARTS)
@pytest.mark.parametrize("agent", WORK)
async def test_unchanged_agents(tmp_path: Path, agent: str, starts: str) -> None:
    """The SDK's processors leave the same spans, field by field, with the sidecar as without."""
    arguments = ("sgp,agentex", *WORK[agent])
    (_, direct), (made, arrived) = await asyncio.gather(
        ran(tmp_path / "direct", agent, *arguments, sidecar=False, **STARTS[starts]),
        ran(tmp_path / "sidecar", agent, *arguments, sidecar=True, **STARTS[starts]),
    )
    assert len(made) > 200
    assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0
    assert_equal(arrived.agentex, direct.agentex)
    assert_equal(arrived.sgp, direct.sgp)


@pytest.mark.parametrize("agent", WORK)
async def test_agents_with_our_processors(tmp_path: Path, agent: str) -> None:
    """With `register()`, each upstream gets what the SDK's own processor for it sends."""
    # Two runs, because the SDK's SGP processor modifies the spans that its Agentex processor sends.
    (_, agentex), (_, sgp), (made, arrived) = await asyncio.gather(
        ran(tmp_path / "a", agent, "agentex", *WORK[agent], sidecar=False),
        ran(tmp_path / "s", agent, "sgp", *WORK[agent], sidecar=False),
        ran(tmp_path / "c", agent, "sidecar", *WORK[agent], sidecar=True),
    )
    assert len(made) > 200
    assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0
    assert_equal(arrived.agentex, agentex.agentex)
    assert_equal(arrived.sgp, sgp.sgp)


async def test_the_tracing_module_of_sgp(tmp_path: Path) -> None:
    """scale-gp-beta's own tracing, redirected by its environment only, leaves the same spans."""
    (_, direct), (made, arrived) = await asyncio.gather(
        ran(tmp_path / "direct", "sgp_agent", sidecar=False),
        ran(tmp_path / "sidecar", "sgp_agent", sidecar=True),
    )
    assert len(made) > 200
    assert lost(made, arrived.sgp) == 0
    assert_equal(arrived.sgp, direct.sgp)
    assert not arrived.agentex


@pytest.mark.parametrize("processors", ["sgp,agentex", "sidecar"])
async def test_lists_do_not_cost_their_batch(tmp_path: Path, processors: str) -> None:
    """A list as input reaches Agentex unchanged and SGP in an object, and so does its neighbor."""
    made, arrived = await ran(
        tmp_path / "sidecar", "async_agent", processors, "lists", sidecar=True
    )
    assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0
    agentex = comparable(arrived.agentex)["list"]
    messages, texts = [{"role": "user"}, {"role": "tool"}], [{"text": "a"}]
    assert (agentex["input"], agentex["output"]) == (messages, texts)
    sgp = comparable(arrived.sgp)["list"]
    assert (sgp["input"], sgp["output"]) == ({"items": messages}, {"items": texts})


async def test_strict_response_validation(tmp_path: Path) -> None:
    """The SDKs' clients accept the sidecar's responses under strict validation."""
    answers, arrived = await ran(tmp_path / "here", "strict_agent", sidecar=True)
    ids = {f"{client}-{verb}" for client in ("sync", "async") for verb in ("put", "post")}
    sgp = {f"{id_}-{state}" for id_ in ids for state in ("open", "ended")}
    assert {answer["id"] for answer in answers} == sgp | {"sync", "async"}
    assert set(arrived.sgp) == sgp
    for row in arrived.agentex.values():
        assert (row["input"], row["output"]) == ([{"q": 1}], {"a": 1})
        assert row["data"] == {"b": 2}  # that of its END, which counts whole (D26)


@pytest.mark.parametrize("processors", ["sgp,agentex", "sidecar"])
async def test_credentials_of_the_agent(tmp_path: Path, processors: str) -> None:
    """A sidecar without keys relays the agent's own, each to its upstream."""
    relay = {"SGP_API_KEY": "", "SGP_ACCOUNT_ID": "", "SIDECAR_SGP__RELAY": "true"}
    async with pod(tmp_path, sidecar=True, **relay) as here:
        here.agentex.api_key, here.sgp.api_key, here.sgp.account_id = "agent-key", "key", "account"
        environ = {"AGENT_API_KEY": "agent-key"}
        made = await here.run("async_agent", processors, "everything", **environ)
        arrived = here.arrived()
    assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0
