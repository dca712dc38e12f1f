"""Accounts through restarts: nothing ever goes out under another account's key (D25).

These tests run in real time: see tests/support/spool.py.
"""

import asyncio
import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.stand_in import Answer
from sidecar.spool.rows import Changes
from tests.support.faults import Json, World, end, for_ids, span, start
from tests.support.kill_accounts import KEYS, SgpOfAccounts
from tests.support.spool import EAGER, SpoolWorld, down, large, spool_world, up
from tests.support.world import NOWHERE

RED, GREEN, BLUE = KEYS
# Nothing about SGP is configured: the agents' requests bring key and account.
RELAY: dict[str, Any] = {
    "sgp__relay": "true",
    "without": ("SGP_API_KEY", "SGP_ACCOUNT_ID"),
    "agentex__timeout_s": "0.2",
    **EAGER,
}
OLD_SPOOL = Path(__file__).parents[1] / "spool" / "version_1.sql"


def configured(account: str, *, relay: bool = False) -> dict[str, Any]:
    """Settings with the key and the id of an account."""
    own = {"sgp__account_id": account, "sgp__api_key": KEYS[account]}
    return {**EAGER, **own, "sgp__relay": str(relay).lower()}


def named(account: str) -> dict[str, str]:
    """The headers of an agent of this account."""
    return {"x_api_key": KEYS[account], "x_selected_account_id": account} if account else {}


async def post(w: World, account: str, *events: Json) -> None:
    """Post events as an agent of this account does, or without an account."""
    await w.post(*events, **named(account))


def of(account: str, id_: str = "") -> Json:
    """A span of an account; without an id, one that has the account's name."""
    return span(id_ or account, input={"of": account}, output={"of": account})


async def leave(w: World, *accounts: str) -> None:
    """Post a complete span and the START of another one, as each of these accounts."""
    for account in accounts:
        await post(w, account, end(of(account, "same")), start(of(account, f"open {account}")))


def stored(sgp: SgpOfAccounts) -> dict[str, set[tuple[str, str]]]:
    """For each account with rows at SGP: their ids, and whose input they have."""
    return {
        account: {(id_, row["input"]["of"]) for (_, id_), row in store.spans.items()}
        for account, store in sgp.stores.items()
        if store.spans
    }


def left_by(account: str) -> set[tuple[str, str]]:
    """What `stored` has of an account whose agent did `leave` it."""
    return {("same", account), (f"open {account}", account)}


def pairs(sgp: SgpOfAccounts) -> set[tuple[str | None, str | None]]:
    """Key and account of every request that SGP got, whatever it said."""
    names = ("x-api-key", "x-selected-account-id")
    return {(r.headers.get(names[0]), r.headers.get(names[1])) for r in sgp.requests}


def own_pairs(*accounts: str) -> set[tuple[str | None, str | None]]:
    """The right pairs of these accounts."""
    return {(KEYS[account], account) for account in accounts}


def waiting(w: World) -> int:
    """Writes that wait for SGP."""
    depth: int = w.lane("sgp")["depth"]
    return depth


@pytest.fixture
def agentex() -> AgentexStandIn:
    """Agentex, which knows no accounts."""
    return AgentexStandIn()


@pytest.fixture
def sgp() -> SgpOfAccounts:
    """SGP with three accounts."""
    return SgpOfAccounts(KEYS)


# Restarts.


@pytest.mark.parametrize("hold_s", [0.02, 0.5])
async def test_an_account_without_an_agent_waits(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts, hold_s: float
) -> None:
    """Two accounts are in the spool and one agent comes back: only its own spans go out."""
    settings = {**RELAY, "queue__start_hold_s": hold_s}
    down(sgp)
    async with spool_world(tmp_path, agentex, sgp, **settings) as before:
        await leave(before, RED, GREEN)
        await before.until(lambda: agentex.spans.keys() >= {"same", "open green"})
    up(sgp)
    sgp.requests.clear()
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        await post(w, GREEN, end(of(GREEN, "new")))
        await w.until(lambda: len(sgp.stores[GREEN].spans) == 3 and waiting(w) == 2)
        assert stored(sgp) == {GREEN: left_by(GREEN) | {("new", GREEN)}}
        assert not w.lane("sgp")["has_credential"]
        await post(w, RED, end(of(RED, "new")))
        await w.drained()
        assert stored(sgp)[RED] == left_by(RED) | {("new", RED)}
    assert pairs(sgp) == own_pairs(RED, GREEN)


async def test_nothing_goes_out_before_an_agent_is_back(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """Keys are never on disk: a sidecar that restarts has none until it is told."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        down(sgp)
        await leave(before, *KEYS)
        await before.until(lambda: agentex.complete)
    up(sgp)
    sgp.requests.clear()
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        await w.until(lambda: w.lane("sgp")["state"] == "unauthorized")
        await w.until(lambda: not w.app.accounting.held)
        assert (waiting(w), sgp.requests) == (6, [])
        for account in KEYS:
            await post(w, account, end(of(account, "new")))
        await w.drained()
        for account in KEYS:
            assert stored(sgp)[account] == left_by(account) | {("new", account)}
    assert pairs(sgp) == own_pairs(*KEYS)


@pytest.mark.parametrize("restart", [False, True])
async def test_spans_without_an_account_wait_for_the_first(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts, restart: bool
) -> None:
    """On disk as well; they then stay with that account, whoever comes next."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        await leave(before, "")
        if not restart:
            await post(before, RED, end(of(RED)))
            await before.drained()
        else:
            await before.until(lambda: len(agentex.spans) == 2)
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        if restart:
            await post(w, RED, end(of(RED)))
        await post(w, GREEN, end(of(GREEN)))
        await w.drained()
    assert stored(sgp) == {RED: left_by("") | {(RED, RED)}, GREEN: {(GREEN, GREEN)}}


async def test_the_end_of_a_span_comes_after_a_restart(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """It gets what its START said, and not what that of another account's span with its id said."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        down(sgp)
        for account in KEYS:
            await post(before, account, start(of(account, "same")))
    up(sgp)
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        for account in reversed(KEYS):
            thin = {name: value for name, value in of(account, "same").items() if name != "input"}
            await post(w, account, end(thin))
        await w.drained()
    assert stored(sgp) == {account: {("same", account)} for account in KEYS}
    for account in KEYS:
        assert sgp.stores[account].spans["trace", "same"]["output"] == {"of": account}


# Other settings after a restart.


@pytest.mark.parametrize("relay", [False, True])
async def test_another_account_is_configured_after_relaying(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts, relay: bool
) -> None:
    """The relayed spans wait, even if their agent posts, until the sidecar relays again."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        down(sgp)
        await leave(before, RED)
        await before.until(lambda: agentex.complete)
    up(sgp)
    async with spool_world(tmp_path, agentex, sgp, **configured(GREEN, relay=relay)) as other:
        await post(other, RED, end(of(GREEN)))
        await other.until(lambda: stored(sgp) and not other.app.accounting.held)
        await other.until(lambda: waiting(other) == 2)
        assert stored(sgp) == {GREEN: {(GREEN, GREEN)}}
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        await post(w, RED, end(of(RED, "new")))
        await w.drained()
    assert stored(sgp) == {GREEN: {(GREEN, GREEN)}, RED: left_by(RED) | {("new", RED)}}


async def test_only_the_start_of_another_account_is_left(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """An open span is released later than complete ones, and waits just as they do."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        await post(before, RED, start(of(RED)))
    async with spool_world(tmp_path, agentex, sgp, **configured(GREEN)) as w:
        await w.until(lambda: not w.app.accounting.held)
        await post(w, "", end(of(GREEN)))
        await w.until(lambda: stored(sgp) and waiting(w) == 1)
        assert stored(sgp) == {GREEN: {(GREEN, GREEN)}}


async def test_the_relayed_account_is_configured(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """Its spans are delivered with the configured key; those of the other account wait."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        down(sgp)
        await leave(before, GREEN, RED)
    up(sgp)
    async with spool_world(tmp_path, agentex, sgp, **configured(RED)) as w:
        await w.until(lambda: len(sgp.stores[RED].spans) == 2 and waiting(w) == 2)
    assert stored(sgp) == {RED: left_by(RED)}


async def test_a_corrected_account(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """Spans that came with no account of their own belong to the one that is configured now."""
    wrong = configured(RED) | {"sgp__account_id": "typo"}
    async with spool_world(tmp_path, agentex, sgp, **wrong) as before:
        await leave(before, "")
        await before.until(lambda: before.lane("sgp")["state"] == "unauthorized")
    async with spool_world(tmp_path, agentex, sgp, **configured(RED)) as w:
        await w.drained()
    assert stored(sgp) == {RED: left_by("")}
    sgp.requests.clear()
    async with spool_world(tmp_path, agentex, sgp, **configured(GREEN)) as w:
        await post(w, "", end(of("", "open ")))
        await w.drained()
    assert stored(sgp) == {RED: left_by(""), GREEN: {("open ", "")}}


async def test_relaying_after_an_account_was_configured(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """What it left belongs to it: another account's agent does not get it delivered."""
    async with spool_world(tmp_path, agentex, sgp, **configured(RED)) as before:
        down(sgp)
        await leave(before, "")
        await before.until(lambda: agentex.complete)
    up(sgp)
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        await post(w, GREEN, end(of(GREEN)))
        await w.until(lambda: stored(sgp) and waiting(w) == 2)
        assert stored(sgp) == {GREEN: {(GREEN, GREEN)}}
        await post(w, RED, end(of(RED)))
        await w.drained()
    assert stored(sgp)[RED] == left_by("") | {(RED, RED)}


async def test_a_spool_of_version_1_waits_for_the_first_account(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """Its rows have no account: they are like spans whose requests had none."""
    with closing(sqlite3.connect(tmp_path / "spool.db")) as file:
        file.executescript(OLD_SPOOL.read_text(encoding="utf-8"))
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        await w.until(lambda: agentex.complete and not w.app.accounting.held)
        found = waiting(w)
        assert found > 5
        assert sgp.requests == []
        await post(w, GREEN, end(of(GREEN)))
        await post(w, RED, end(of(RED)))
        await w.drained()
    assert len(sgp.stores[GREEN].spans) == found + 1
    assert sgp.stores[RED].spans.keys() == {("trace", RED)}


# What is refused.


async def test_dead_letters_have_their_account(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """Each that of its span, after a restart as well, so that none is replayed under another."""
    bad = for_ids({"same"}, Answer(422, b'{"detail":[]}'))
    letters = tmp_path / "letters.jsonl"
    settings = {**RELAY, "dead_letters__path": letters}
    async with spool_world(tmp_path, agentex, sgp, **settings) as before:
        down(sgp)
        await leave(before, *KEYS)
    sgp.rule = bad
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        for account in reversed(KEYS):
            await post(w, account, end(of(account, "new")))
        await w.drained()
    found = [json.loads(line) for line in letters.read_bytes().splitlines()]
    whose = {(each["account"], each["event"]["span"]["input"]["of"]) for each in found}
    assert whose == {(account, account) for account in KEYS}
    assert len(found) == 3


class SlowDisk:
    """The disk of a sidecar, which does nothing until `works` is set."""

    def __init__(self, w: SpoolWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.works, self.asked = threading.Event(), threading.Event()
        self._apply = w.spool.file.apply
        monkeypatch.setattr(w.spool.file, "apply", self.apply)

    def apply(self, changes: Changes) -> None:
        self.asked.set()
        assert self.works.wait(20)
        self._apply(changes)


async def test_a_request_that_waits_for_the_disk_keeps_its_account(
    tmp_path: Path,
    agentex: AgentexStandIn,
    sgp: SgpOfAccounts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another one of its account is refused meanwhile: the next account is still another one."""
    async with spool_world(tmp_path, agentex, sgp, **RELAY, spool__max_bytes="2MiB") as w:
        await post(w, RED, end(of(RED)))
        disk = SlowDisk(w, monkeypatch)
        first = asyncio.create_task(post(w, GREEN, end(of(GREEN))))
        await w.until(disk.asked.is_set)
        too_large = json.dumps(end(large("x", w.app.admission.limit))).encode()
        assert (await w.send(too_large, **named(GREEN))).status == 413
        disk.works.set()
        await first
        await post(w, BLUE, end(of(BLUE)))
        await w.drained()
    assert stored(sgp) == {account: {(account, account)} for account in KEYS}
    assert pairs(sgp) == own_pairs(*KEYS)


async def test_a_request_that_is_refused_at_the_end_takes_no_account_away(
    tmp_path: Path,
    agentex: AgentexStandIn,
    sgp: SgpOfAccounts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The spool knows whose spans it has, also of those that were still waiting for it."""
    down(sgp)
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as before:
        await post(before, RED, end(of(RED)))
        disk = SlowDisk(before, monkeypatch)
        first = asyncio.create_task(post(before, GREEN, end(of(GREEN))))
        await before.until(disk.asked.is_set)
        body = json.dumps(end(of(GREEN, "late"))).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", before.running.port)
        head = {"Host": "localhost", "Content-Type": "application/json"}
        head |= {"Content-Length": str(len(body)), "Expect": "100-continue"}
        head |= {name.replace("_", "-"): value for name, value in named(GREEN).items()}
        lines = [f"{name}: {value}" for name, value in head.items()]
        writer.write("\r\n".join(["POST /v1/spans HTTP/1.1", *lines, "", ""]).encode())
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        before.app.listener.stop()
        writer.write(body)
        assert b" 503 " in await reader.readline()
        writer.close()
        disk.works.set()
        await first
    up(sgp)
    async with spool_world(tmp_path, agentex, sgp, **RELAY) as w:
        for account in (BLUE, RED):
            await post(w, account, end(of(account, "new")))
        await w.until(lambda: len(stored(sgp)) == 2 and waiting(w) == 1)
        await post(w, GREEN, end(of(GREEN, "new")))
        await w.drained()
    left = {account: {("new", account), (account, account)} for account in (RED, GREEN)}
    assert stored(sgp) == {**left, BLUE: {("new", BLUE)}}


# A lane that is full of what waits for a key.

FULL: dict[str, Any] = {**RELAY, "spool__max_bytes": "1MiB", "agentex__base_url": NOWHERE}
SGP_ONLY = {**FULL, "without": (*RELAY["without"], "AGENTEX_BASE_URL")}
del SGP_ONLY["agentex__base_url"]


async def fill(w: SpoolWorld, account: str, **headers: str) -> int:
    """Post spans until there is no room even for a small one; returns how many were taken."""
    taken = 0
    for size in (20_000, 1):
        while True:
            event = end(large(f"{account} {taken}", size))
            reply = await w.send(json.dumps(event).encode(), **named(account) | headers)
            if reply.status == 429:
                break
            assert reply.status == 202
            taken += 1
    return taken


@pytest.mark.parametrize("settings", [FULL, SGP_ONLY], ids=["both away", "sgp only"])
async def test_a_full_spool_gets_its_key_after_a_restart(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts, settings: dict[str, Any]
) -> None:
    """The agents' requests are refused for want of room, but they have the key that makes room."""
    down(sgp)
    async with spool_world(tmp_path, agentex, sgp, **settings) as before:
        taken = await fill(before, RED)
    up(sgp)
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        for account in (GREEN, RED):
            await w.send(json.dumps(end(large("x", 20_000))).encode(), **named(account))
        await w.until(lambda: waiting(w) == 0)
    assert len(sgp.stores[RED].spans) == taken
    assert pairs(sgp) == own_pairs(RED)


async def test_a_full_lane_gets_a_new_key(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """SGP refuses the key until the agent has a new one, whose first requests find no room."""
    sgp.rule = lambda request: 401 if request.headers["x-api-key"] == "old" else None
    before = {"x_api_key": "old", "x_selected_account_id": RED}
    async with spool_world(tmp_path, agentex, sgp, **SGP_ONLY) as w:
        assert (await w.send(json.dumps(end(span("first"))).encode(), **before)).status == 202
        await w.until(lambda: w.lane("sgp")["state"] == "unauthorized")
        taken = 1 + await fill(w, RED, x_api_key="old")
        assert (await w.send(json.dumps(end(span("refused"))).encode(), **named(RED))).status == 429
        await w.until(lambda: waiting(w) == 0)
    assert len(sgp.stores[RED].spans) == taken


async def test_the_first_account_of_a_full_lane(
    tmp_path: Path, agentex: AgentexStandIn, sgp: SgpOfAccounts
) -> None:
    """Spans without an account fill it: they go out under the first account, room or not."""
    async with spool_world(tmp_path, agentex, sgp, **SGP_ONLY) as w:
        taken = await fill(w, "")
        await w.until(lambda: w.lane("sgp")["state"] == "unauthorized")
        assert (await w.send(json.dumps(end(span("refused"))).encode(), **named(RED))).status == 429
        await w.until(lambda: waiting(w) == 0)
    assert len(sgp.stores[RED].spans) == taken
