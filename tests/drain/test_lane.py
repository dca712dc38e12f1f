"""A lane with several accounts: no span goes out under another one, whatever happens (D25)."""

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.config_load import load
from sidecar.credentials import ACCOUNT_HEADER, KEY_HEADER, Accounts
from sidecar.drain.lane import Lane
from sidecar.http.messages import Response
from sidecar.lanes import build_lanes
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import DeadLetters, LetterWriter
from sidecar.spool.spool import Spool
from sidecar.telemetry.decisions import Decisions
from tests.drain.test_delivery import examples
from tests.support.delivery import (
    OF,
    TTL_S,
    Process,
    Upstream,
    new_directory,
    remove_directory,
)
from tests.support.spans import make_event

ACCOUNTS = ["a", "b", "c"]
KEYS = ["old", "new"]


class AccountsMachine(RuleBasedStateMachine):
    """Agents of several accounts post the same span ids; the upstream may refuse each one's key."""

    spooled: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = new_directory() if self.spooled else None
        self.many = Upstream("many", 4, keys={id_: set(KEYS) for id_ in ACCOUNTS})
        self.upstreams = [Upstream("one", 1, data_follows=True), self.many]
        self.accepted: set[tuple[str, int, bool]] = set()  # account, number, whether it is an END
        self.life = 0
        self.memory_only = False  # whether the disk has failed in this life
        self.ended: dict[tuple[str, int], int] = {}  # the life in which an END was posted first
        self.process = Process(self.upstreams, self.directory)

    @rule(
        account=st.sampled_from(ACCOUNTS),
        number=st.integers(0, 3),
        complete=st.booleans(),
        key=st.sampled_from(KEYS),
    )
    def post(self, account: str, number: int, complete: bool, key: str) -> None:
        """An agent posts an event of its account, with its key."""

        def done(response: Response) -> None:
            assert response.status == 202
            self.accepted.add((account, number, complete))

        self.send(account, number, complete, done, key)

    @rule(number=st.integers(0, 3), complete=st.booleans())
    def post_without_account(self, number: int, complete: bool) -> None:
        """An agent names no account: with several in the pod, it is told to."""
        ids = dict(self.process.accounts.ids)

        def done(response: Response) -> None:
            assert response.status == (400 if len(ids) > 1 else 202)
            if response.status == 202:
                self.accepted.add(("", number, complete))

        # With other ids than those of the first account, which they may belong to.
        number += 10
        self.send("", number, complete, done)

    def send(
        self,
        account: str,
        number: int,
        complete: bool,
        done: Callable[[Response], None],
        key: str = "",
    ) -> None:
        """Send a request whose span says whose it is.

        A new process does not know which spans ended in an earlier one (D20).
        """
        if complete:
            self.ended.setdefault((account, number), self.life)
        elif self.ended.get((account, number), self.life) != self.life:
            return
        kind = "end" if complete else "start"
        event = make_event(str(number), kind=kind, name=OF + account, input={"of": account})
        headers = {ACCOUNT_HEADER: account, KEY_HEADER: key}
        named = {name.encode(): text.encode() for name, text in headers.items() if text}
        self.process.send(msgspec.json.encode(event), named, done)
        self.process.run_ready()

    @rule(account=st.sampled_from(ACCOUNTS), keys=st.sets(st.sampled_from(KEYS)))
    def change_keys(self, account: str, keys: set[str]) -> None:
        """The upstream accepts these keys of an account from now on."""
        self.many.keys[account] = keys

    @rule(seconds=st.sampled_from([0.2, 2.5, 40.0]))
    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.process.pass_time(seconds)

    @precondition(lambda self: any(upstream.pending for upstream in self.upstreams))
    @rule(outcome=st.sampled_from(["ok", "ok", "unavailable", "timed out"]))
    def respond(self, outcome: str) -> None:
        """Both upstreams respond to all that is in flight."""
        for upstream in self.upstreams:
            for request in list(upstream.pending):
                upstream.respond(request, outcome, applied=True)
        self.process.run_ready()

    @invariant()
    def balanced(self) -> None:
        """Every event and write is accounted for."""
        self.process.check()
        self.memory_only |= self.process.spool.degraded
        assert self.process.lost() == [0, 0]

    def deliver_held_up(self) -> None:
        """An account whose key is accepted gets its spans although another one's is refused."""
        refused = min(ACCOUNTS)
        for account in ACCOUNTS:
            self.many.keys[account] = set() if account == refused else set(KEYS)
        for upstream in self.upstreams:
            upstream.recover()
        self.process.pass_time(500.0)
        for account, number, complete in self.accepted:
            if account not in {"", refused}:
                self.check_stored(self.many, account, number, complete)
        self.many.keys[refused] = set(KEYS)

    def name_accounts(self) -> None:
        """Each account's agent posts once more, so that its key is known."""
        for account in ACCOUNTS:
            self.send(account, 99, True, lambda _: None, "new")

    def teardown(self) -> None:
        """With all keys accepted, everything is delivered, once under its own account."""
        if self.process.loop.is_closed():
            return
        try:
            self.process.loop.held = False
            self.process.loop.complete_calls()
            self.process.pass_time(1.0)
            self.name_accounts()
            self.deliver_held_up()
            self.process.pass_time(2 * TTL_S)
            self.process.finish()
            for account, number, complete in self.accepted:
                for upstream in self.upstreams:
                    self.check_stored(upstream, account, number, complete)
        finally:
            if not self.process.loop.is_closed():
                self.process.kill(disk_call_done=False)
            remove_directory(self.directory)

    def check_stored(self, upstream: Upstream, account: str, number: int, complete: bool) -> None:
        """An event is stored, under its account."""
        kind, said = upstream.rows.get(f"{number}{OF}{account}", ("", b""))
        assert kind == "complete" or (kind == "open" and not complete), "a span is missing"
        assert msgspec.json.decode(said) == {"of": account}, "it has what another account said"


class SpooledAccountsMachine(AccountsMachine):
    """With a spool, whose disk may be slow, and whose process may be killed.

    After that, all accounts are numbered anew.
    """

    spooled = True

    @rule(held=st.booleans())
    def hold_disk(self, held: bool) -> None:
        """From now on calls of the disk wait, or are completed at once."""
        self.process.loop.held = held
        if not held:
            self.process.loop.complete_calls()
            self.process.run_ready()

    # What came while the disk did not answer is in memory only.
    @precondition(lambda self: not self.memory_only)
    @rule(disk_call_done=st.booleans())
    def kill(self, disk_call_done: bool) -> None:
        """Kill the process, and start it again."""
        self.process.kill(disk_call_done=disk_call_done)
        self.life += 1
        self.process = Process(self.upstreams, self.directory)
        self.process.run_ready()


TestAccounts: Any = AccountsMachine.TestCase
TestAccounts.settings = examples(0.3)
TestSpooledAccounts: Any = SpooledAccountsMachine.TestCase
TestSpooledAccounts.settings = examples(0.2)
# Each row has to name its account; and one without, that which was the first in its process.


async def test_an_account_that_is_found_after_the_end() -> None:
    """A slow disk yields rows of another account once the drains have ended: they stay on disk."""
    lane = lane_of(Accounts(by_request=True))
    running = asyncio.create_task(lane.run())
    await asyncio.sleep(0)
    lane.close()
    await asyncio.wait_for(running, 10)
    lane.recover([(1, lane.bit, 1)])
    assert lane.depth == 1
    assert set(lane.branches) == {0, 1}


async def test_an_account_that_is_found_while_the_lane_ends() -> None:
    """Its drain ends as well, instead of waiting for more writes."""
    lane = lane_of(Accounts(by_request=True))
    running = asyncio.create_task(lane.run())
    await asyncio.sleep(0)
    lane.close()
    lane.branch(1)
    await asyncio.wait_for(running, 10)


def lane_of(accounts: Accounts) -> Lane:
    """The lane of SGP."""
    environ = {"SIDECAR_SGP__RELAY": "true", "SGP_CLIENT_BASE_URL": "http://127.0.0.1:9"}
    letters, budget = LetterWriter(DeadLetters("", 0)), MemoryBudget(2**20)
    (lane,) = build_lanes(
        load(None, environ), environ, budget, letters, Spool(), Decisions(), accounts
    )
    return lane
