"""What operators see of each upstream's room, of what was not taken, and of accounts."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.behaviours import Answer
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Recorded, Scripted
from sidecar.operate import explain
from tests.support.faults import fast
from tests.support.spans import make_event
from tests.support.telemetry import scrape
from tests.support.world import NOWHERE, Running, running_app

Json = dict[str, Any]
PAYLOAD = {"input": {"text": "x" * 2500}}
SGP_IS_DOWN = {
    "SGP_CLIENT_BASE_URL": NOWHERE,
    "SGP_API_KEY": "k",
    "SGP_ACCOUNT_ID": "acme",
}
ROOM = "16KiB"  # two of these spans for each upstream


def end(id_: str) -> Json:
    """An END of a few KiB."""
    return make_event(id_, kind="end", **PAYLOAD)


async def until(app: Running, look: Callable[[Json], bool]) -> Json:
    """Return SGP's part of the report once `look` accepts it."""
    async with asyncio.timeout(30):
        while not look(sgp := app.app.status()["sinks"]["sgp"]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # an HTTP exchange has no event to wait for here
    return dict(sgp)


async def explained(app: Running, capsys: pytest.CaptureFixture[str], id_: str) -> list[str]:
    """The lines of `sidecar explain`."""
    capsys.readouterr()  # the log
    code = await asyncio.to_thread(explain.run, id_, app.admin_url, "", as_json=False)
    assert code == explain.KNOWN
    return capsys.readouterr().out.splitlines()


async def test_what_a_full_lane_does_not_take_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics, `/status` and `explain` say which upstream has no room; the other one gets all."""
    async with AgentexStandIn() as agentex:
        environ = SGP_IS_DOWN | {"AGENTEX_BASE_URL": agentex.url}
        async with running_app(environ, queue__max_bytes=ROOM, shutdown__grace_s=0) as app:
            for number in range(4):
                assert (await app.post(end(f"s{number}"))).status == 202
                await agentex.arrived(number + 1)
            sgp = app.app.status()["sinks"]["sgp"]
            metrics = await scrape(app)
            lines = await explained(app, capsys, "s3")
    assert (sgp["offered"], sgp["written"], sgp["not_taken"]) == (4, 2, 2)
    assert sgp["not_taken_by_reason"] == {"no_room": 2, "end_of_open": 0}
    assert 0.8 < sgp["lane_bytes"] / sgp["lane_limit_bytes"] <= 1
    for line in (
        'not_taken_writes_total{reason="no_room",sink="sgp"} 2.0',
        'not_taken_writes_total{reason="no_room",sink="agentex"} 0.0',
        f'lane_bytes{{sink="sgp"}} {float(sgp["lane_bytes"])}',
        f'lane_limit_bytes{{sink="agentex"}} {float(sgp["lane_limit_bytes"])}',
    ):
        assert f"trace_sidecar_{line}\n" in metrics
    assert any(line.startswith("span s3 of account acme") for line in lines)
    not_taken = "sgp      not taken    There was no room for the complete write: "
    assert any(not_taken in line for line in lines)


@fast
async def test_a_loss_is_bad_while_it_lasts_and_a_warning_afterwards() -> None:
    """The first answer names the upstream and its reason; Agentex is said not to be affected."""
    async with AgentexStandIn() as agentex:
        environ = SGP_IS_DOWN | {"AGENTEX_BASE_URL": agentex.url}
        async with running_app(environ, queue__max_bytes=ROOM, shutdown__grace_s=0) as app:
            for number in range(4):
                await app.post(end(f"s{number}"))
                await asyncio.sleep(1)
            during = app.app.status()["answers"]
            await asyncio.sleep(10)
            after = app.app.status()["answers"]
    assert (during[0]["level"], during[0]["answer"]) == ("bad", "Yes, at SGP")
    assert during[0]["detail"].startswith("its room is full because SGP is down: ")
    assert "SGP gets no new spans; Agentex is not affected" in during[2]["detail"]
    assert (after[0]["level"], after[0]["answer"]) == ("warn", "Not now")


def refusing(key: str) -> Callable[[Recorded], Scripted]:
    """A rule that refuses one key."""
    return lambda request: Answer(401) if request.headers.get("x-api-key") == key else None


async def test_the_account_whose_key_is_refused_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`/status` has each account with its state, and the answer names the refused one."""
    async with SgpStandIn() as upstream:
        upstream.rule = refusing("bad")
        environ = {"SGP_CLIENT_BASE_URL": upstream.url}
        with structlog.testing.capture_logs() as logs:
            async with running_app(environ, sgp__relay="true", shutdown__grace_s=0) as app:
                await app.post(end("s1"), x_api_key="good", x_selected_account_id="acme")
                await app.post(end("s1"), x_api_key="bad", x_selected_account_id="umbrella")
                sgp = await until(app, lambda sgp: sgp["state"] == "unauthorized")
                sgp = await until(app, lambda sgp: sgp["forwarded"] == 1)
                why = app.app.status()["answers"][2]
                lines = await explained(app, capsys, "s1")
    states = [(each["id"], each["state"], each["depth"]) for each in sgp["accounts"]]
    assert states == [("acme", "up", 0), ("umbrella", "unauthorized", 1)]
    assert why["answer"] == "SGP refuses the key of account umbrella"
    said: dict[str, str] = {}
    for line in lines:
        if line.startswith("span s1 of account "):
            account = line.split()[4].rstrip(",")
        elif line.startswith("  now: "):
            said[account] = line
    assert said["acme"] == "  now: SGP: delivered"
    assert said["umbrella"].startswith("  now: SGP: waiting for ")
    seen = [(each["account"], each["accounts"]) for each in logs if each["event"] == "account_seen"]
    assert seen == [("acme", 1), ("umbrella", 2)]


async def test_an_account_that_the_configured_one_overrides_is_shown() -> None:
    """Each other account that requests name is logged once, and in `/status`; at most eight are."""
    with structlog.testing.capture_logs() as logs:
        async with running_app(SGP_IS_DOWN, shutdown__grace_s=0) as app:
            for number in (*range(10), 0, 1):
                named = f"other-{number}"
                reply = await app.post(end(str(number)), x_selected_account_id=named)
                assert reply.status == 202
            await app.post(end("own"), x_selected_account_id="acme")
            sgp = app.app.status()["sinks"]["sgp"]
    others = [f"other-{number}" for number in range(8)]
    assert sgp["overridden_accounts"] == others
    assert [each["id"] for each in sgp["accounts"]] == ["acme"]
    assert [each["account"] for each in logs if each["event"] == "account_overridden"] == others
    assert not [each for each in logs if each["event"] == "account_seen"]


async def test_agentex_has_no_accounts() -> None:
    """Its key names an agent, so its only entry has no id, whatever account the spans have."""
    async with running_app(
        {"AGENTEX_BASE_URL": NOWHERE, **SGP_IS_DOWN}, shutdown__grace_s=0
    ) as app:
        await app.post(end("s1"))
        agentex = app.app.status()["sinks"]["agentex"]
    assert [each["id"] for each in agentex["accounts"]] == [None]
    assert "overridden_accounts" not in agentex
