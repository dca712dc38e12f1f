"""Kills a sidecar that relays the keys of three accounts, while its spool fills up.

Like kill.py, which it extends. SGP's stand-in keeps the rows of each account apart and refuses a
key with another account. Each span names the account that it came with in its input, so that what
is wrong shows in every request, even in those that SGP never answered.
"""

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Unpack

import aiohttp

from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Hang, Options, Recorded, Refusal, Reset, Scripted
from tests.support.kill import DRAIN_S, POLL_S, SIZES, Json, Rig, SidecarRun, digest
from tests.support.spans import END_TIME, START_TIME

KEYS = {account: f"key-of-{account}" for account in ("red", "green", "blue")}
NOBODY = "nobody"  # the owner of a span that came without an account
LANES = frozenset({"agentex", "sgp"})
EVENTS, ITEMS = "/v1/spans", "/v5/spans/batch"
# How long a sidecar without agents is watched.
QUIET_S = 0.3

Weather = Sequence[Scripted]


class SgpOfAccounts(SgpStandIn):
    """SGP with several accounts, each with its own key and its own rows."""

    def __init__(self, keys: Mapping[str, str], **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.stores = {id_: SgpStandIn(api_key=key, account_id=id_) for id_, key in keys.items()}

    def reply(self, request: Recorded) -> Answer:
        """Apply the request in the account that it names, if it has the account's key."""
        store = self.stores.get(request.headers.get("x-selected-account-id", ""))
        if store is None:
            raise Refusal(Answer(401))
        return store.reply(request)


@dataclass(eq=False)
class Sent:
    """A span of an agent, and the lanes that took its events."""

    owner: str
    path: str
    span: Json
    started: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    tried: bool = False  # an END was posted, whether it was taken or not

    @property
    def id(self) -> str:
        return str(self.span["id"])

    @property
    def digest(self) -> str:
        """The hash of its input."""
        return digest(self.span["input"])

    @property
    def headers(self) -> dict[str, str]:
        """What its agent sends with it."""
        if self.owner == NOBODY:
            return {}
        return {"x-api-key": KEYS[self.owner], "x-selected-account-id": self.owner}

    @property
    def lanes(self) -> frozenset[str]:
        """The lanes that it is for."""
        return LANES if self.path == EVENTS else frozenset({"sgp"})

    def body(self, kind: str, *, thin: bool = False) -> Json:
        """One of its events; a `thin` END has only what the START has not."""
        span = self.span.copy()
        if kind == "end":
            span |= {"end_time": END_TIME, "output": {"text": self.owner + self.id}}
            if thin:
                del span["input"]
        if self.path == EVENTS:
            return {"event_type": kind, "span": span}
        times = {
            f"{name}stamp": span.pop(name) for name in ("start_time", "end_time") if name in span
        }
        return {"items": [span | times]}


def owner_of(item: Json) -> str:
    """The account that an item's span came with."""
    return str(item["input"]["prompt"]).partition(" ")[0]


@dataclass
class AccountsRig(Rig):
    """Both upstreams, and the events of three accounts that sidecars have accepted.

    `whole_ends`: no END leaves anything to its START, which a spool without room may forget.
    """

    whole_ends: bool = False
    sgp: SgpOfAccounts = field(default_factory=lambda: SgpOfAccounts(KEYS, latency_s=0.1))
    sent: dict[tuple[str, str], Sent] = field(default_factory=dict)
    # (key, account) of all requests to SGP -> (owner, id) of the spans in them.
    out: defaultdict[tuple[str, str], set[tuple[str, str]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    not_taken: int = 0
    refused_here: set[str] = field(default_factory=set)  # accounts whose key SGP refuses now
    present: Sequence[str] = tuple(KEYS)  # accounts whose agents are in the pod now
    away: dict[str, Weather] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Relay, and have the stand-ins record and misbehave."""
        super().__post_init__()
        self.settings = {
            "SGP_API_KEY": "",
            "SGP_ACCOUNT_ID": "",
            "SIDECAR_SGP__RELAY": "true",
            "SIDECAR_SGP__TIMEOUT_S": "2",
            "SIDECAR_AGENTEX__TIMEOUT_S": "2",
            "SIDECAR_RETRY__INITIAL_S": "0.1",
            "SIDECAR_RETRY__MAX_S": "0.5",
            **self.settings,
        }
        self.sgp.keep_bodies = self.agentex.keep_bodies = False
        self.sgp.rule = self._to_sgp
        self.agentex.rule = lambda _: self._now("agentex")
        self._lives = 0
        self._pod = tuple(KEYS)  # all accounts that have agents sometimes
        self._recent: deque[Sent] = deque(maxlen=20)
        self._left: defaultdict[str, list[Sent]] = defaultdict(list)

    def _now(self, upstream: str) -> Scripted:
        weather = self.away.get(upstream)
        return self.random.choice(weather) if weather else None

    def _to_sgp(self, request: Recorded) -> Scripted:
        pair = tuple(request.headers.get(n, "") for n in ("x-api-key", "x-selected-account-id"))
        items = json.loads(request.body)["items"]
        self.out[pair[0], pair[1]] |= {(owner_of(item), item["id"]) for item in items}
        return 401 if pair[1] in self.refused_here else self._now("sgp")

    def change_the_weather(self) -> None:
        """What the next life meets: who is in the pod, who is away, and whose key is refused."""
        # One account at first, as long as spans without one are not refused.
        anyone = self._pod = tuple(KEYS)[: 1 + self._lives // 8]
        self._lives += 1
        pick = self.random.choice
        for sent in self.sent.values():
            if sent.started and not sent.ended and sent not in self._left[sent.owner]:
                self._left[sent.owner].append(sent)
        self.present = pick([anyone] * 5 + [(pick(anyone),)] * 3 + [()])
        self.refused_here = pick([set(), set(), {pick(anyone)}])
        fine: Weather = ()
        flaky = (None, None, Reset(after_apply=True))
        for upstream in LANES:
            self.away[upstream] = pick([fine, fine, fine, (503,), (Hang(),), flaky])

    # Agents.

    async def agent(self, url: str, name: str) -> None:
        """Post the events of an account's spans until the sidecar is gone."""
        number = int(name.rpartition("-")[2])
        account = self._pod[number % len(self._pod)]
        if account not in self.present:
            return
        unnamed = self.random.choice((0, 0, 2))  # spans before the agent knows its account
        async with aiohttp.ClientSession() as session:
            with suppress(aiohttp.ClientError, OSError):
                await asyncio.sleep(self.random.uniform(0, 0.2))
                while True:
                    if unnamed <= 0 and (left := self._left_by(account)) is not None:
                        await self._end(session, url, left)
                    owner = account if unnamed <= 0 else NOBODY
                    await self._life_of(session, url, self._new(owner))
                    unnamed -= 1

    def _left_by(self, account: str) -> Sent | None:
        """A span that an earlier agent of this account left open; each is returned once."""
        left = self._left[account]
        return left.pop() if left else None

    def _new(self, owner: str) -> Sent:
        self.numbers += 1
        id_, path = f"s{self.numbers}", self.random.choice((EVENTS, EVENTS, ITEMS))
        if self._recent and owner != NOBODY and self.random.random() < 0.1:
            other = self.random.choice(self._recent)
            if (owner, other.id) not in self.sent:
                id_, path = other.id, other.path
        payload = {"prompt": f"{owner} {id_} " + "x" * self.random.choice(SIZES)}
        span = {"id": id_, "trace_id": "t", "name": "n", "start_time": START_TIME, "input": payload}
        sent = self.sent[owner, id_] = Sent(owner, path, span)
        if owner != NOBODY:
            self._recent.append(sent)
        return sent

    async def _life_of(self, session: aiohttp.ClientSession, url: str, sent: Sent) -> None:
        sent.started |= await self._post(session, url, sent, sent.body("start"))
        if not sent.started:
            return
        if self.random.random() < 0.1:
            await asyncio.sleep(0.7)  # longer than a START is held, so it is written open
        await self._end(session, url, sent)

    async def _end(self, session: aiohttp.ClientSession, url: str, sent: Sent) -> None:
        # A thin END that an earlier sidecar took must not be repeated once its START is gone.
        thin = not (self.whole_ends or sent.tried) and self.random.random() < 0.3
        sent.tried = True
        body = sent.body("end", thin=thin)
        sent.ended |= await self._post(session, url, sent, body)
        if sent.ended and sent.ended < sent.lanes and self.random.random() < 0.5:
            await asyncio.sleep(0.1)
            sent.ended |= await self._post(session, url, sent, body)

    async def _post(
        self, session: aiohttp.ClientSession, url: str, sent: Sent, body: Json
    ) -> frozenset[str]:
        """Post an event; returns the names of the lanes that took it."""
        method = "POST" if sent.path == EVENTS else "PUT"
        async with session.request(
            method, url + sent.path, json=body, headers=sent.headers
        ) as reply:
            text = await reply.text()
            if reply.status == 400 and sent.owner == NOBODY:
                assert "x-selected-account-id is required" in text
                return frozenset()
            if reply.status in {200, 202}:
                full: dict[str, int] = json.loads(text).get("not_taken_for", {})
                self.not_taken += len(full)
                assert full.keys() < sent.lanes
                return sent.lanes.difference(full)
            assert reply.status in {429, 503}, text
        await asyncio.sleep(0.05)
        return frozenset()

    # The end.

    def taken(self, lane: str = "sgp") -> list[Sent]:
        """The spans of which a lane took an event."""
        return [sent for sent in self.sent.values() if lane in sent.started | sent.ended]

    async def finish(self) -> Json:
        """Run a last sidecar until everything that was taken has arrived; return its last status.

        Nothing goes to SGP before an agent has come back, and then only what is its own.
        """
        self.away, self.refused_here = {}, set()
        life = await self.start(SIDECAR_SHUTDOWN__GRACE_S="20")
        async with asyncio.timeout(DRAIN_S), aiohttp.ClientSession() as session:
            before = self.sgp.requests_total
            await asyncio.sleep(QUIET_S)
            assert self.sgp.requests_total == before
            for account in KEYS:
                last = self._new(account)
                while not last.ended:
                    await self._life_of(session, life.url, last)
            status = await self._drained(session, life)
        life.process.terminate()
        assert await life.ended() == 0
        check_books(life)
        self._check()
        return status

    async def _drained(self, session: aiohttp.ClientSession, life: SidecarRun) -> Json:
        while True:
            async with session.get(life.admin_url + "/status") as reply:
                status: Json = await reply.json()
            lanes = status["sinks"].values()
            if not status["events"]["held"] and not any(lane["depth"] for lane in lanes):
                return status
            await asyncio.sleep(POLL_S)

    def _check(self) -> None:
        letters = self.folder / "letters.jsonl"
        assert not letters.exists() or not letters.read_bytes()
        assert self.agentex.late_opens == 0
        self._check_pairs()
        self._check_agentex()
        stores = self.sgp.stores
        for store in stores.values():
            assert (store.late_opens, store.second_rows) == (0, 0)
        for sent in self.taken():
            where = [sent.owner] if sent.owner != NOBODY else list(stores)
            rows = [
                stores[id_].spans[k] for id_ in where if (k := ("t", sent.id)) in stores[id_].spans
            ]
            assert len(rows) == 1, (sent.owner, sent.id, sent.started, sent.ended, len(rows))
            (row,) = rows
            assert digest(row["input"]) == sent.digest, (sent.owner, sent.id)
            if "sgp" in sent.ended:
                assert row.get("output") == {"text": sent.owner + sent.id}, (sent.owner, sent.id)
                assert "end_timestamp" in row

    def _check_pairs(self) -> None:
        """Nothing ever went out under a wrong pair, or under one that was not the span's own."""
        assert self.out.keys() <= {(key, account) for account, key in KEYS.items()}
        unnamed: dict[str, set[str]] = defaultdict(set)
        for (_, account), spans in self.out.items():
            for owner, id_ in spans:
                assert owner in {account, NOBODY}, (owner, account, id_)
                if owner == NOBODY:
                    unnamed[id_].add(account)
        assert all(len(accounts) == 1 for accounts in unnamed.values()), unnamed
        for account, store in self.sgp.stores.items():
            assert {owner_of(row) for row in store.spans.values()} <= {account, NOBODY}

    def _check_agentex(self) -> None:
        """Agentex knows no accounts: of two spans with one id, either may be there."""
        digests: dict[str, set[str]] = defaultdict(set)
        for sent in self.sent.values():
            digests[sent.id].add(sent.digest)
        for sent in self.taken("agentex"):
            assert digest(self.agentex.spans[sent.id]["input"]) in digests[sent.id]
            if "agentex" in sent.ended:
                assert sent.id in self.agentex.complete


def check_books(life: SidecarRun) -> None:
    """A sidecar that ended in order has accounted for every event and every write."""
    last = life.log[-1]
    assert (last["event"], last["lost"], last["events"]["imbalance"]) == ("stopped", 0, 0)
    for totals in last["writes"].values():
        assert (totals["imbalance"], totals["lost"], totals["dead_lettered"]) == (0, 0, 0)


def errors(life: SidecarRun) -> list[Json]:
    """The errors in its log, except that a lane was full, which is meant to happen."""
    lines: Iterable[dict[str, Any]] = life.log
    return [
        line for line in lines if line["level"] == "error" and line["event"] != "writes_not_taken"
    ]
