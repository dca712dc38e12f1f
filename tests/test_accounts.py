"""Accounts: whose spans a request has, in whatever order requests begin and end; and their keys."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.credentials import (
    ACCOUNT_HEADER,
    KEY_HEADER,
    MAX_ACCOUNTS,
    ONLY_ACCOUNT_HEADER,
    Account,
    AccountRefused,
    Accounts,
    AnotherAccount,
    Credentials,
    Secret,
    TooManyAccounts,
)


def of(id_: str = "", only: str = "") -> dict[bytes, bytes]:
    """The headers of a request that names an account, or the only one it may go out under."""
    named = {ACCOUNT_HEADER: id_, ONLY_ACCOUNT_HEADER: only}
    return {name.encode(): text.encode() for name, text in named.items() if text}


def accepted(accounts: Accounts, *ids: str) -> list[int]:
    """The numbers of the accounts of requests, one after the other, that were all accepted."""
    numbers = []
    for id_ in ids:
        account = accounts.of_request(of(id_))
        accounts.register(account)
        accounts.accept(account)
        numbers.append(account.number)
    return numbers


def by_request() -> tuple[Accounts, list[str]]:
    """Accounts that requests name, and the ids that number 0 was told to have."""
    accounts, named = Accounts(by_request=True), list[str]()
    accounts.named.append(named.append)
    return accounts, named


def test_the_first_named_account_has_number_0() -> None:
    """So have the spans that came before it without an account; the others get the next numbers."""
    accounts, named = by_request()
    assert accepted(accounts, "", "a", "", "a", "b", "a", "c") == [0, 0, 0, 0, 1, 0, 2]
    assert named == ["a"]
    assert [accounts.id_of(number) for number in range(4)] == ["a", "b", "c", ""]


def test_without_an_account_there_has_to_be_only_one() -> None:
    """With several, a request has to name its account."""
    accounts, _ = by_request()
    accepted(accounts, "a", "", "b")
    with pytest.raises(AccountRefused, match=f"{ACCOUNT_HEADER} is required: this pod has 2"):
        accounts.of_request({})


def test_a_ninth_account_has_no_place() -> None:
    """The eight known ones are still served."""
    accounts, _ = by_request()
    ids = [f"a{number}" for number in range(MAX_ACCOUNTS)]
    assert accepted(accounts, *ids) == list(range(MAX_ACCOUNTS))
    with pytest.raises(TooManyAccounts, match="8 accounts"):
        accounts.of_request(of("another"))
    assert accepted(accounts, *ids) == list(range(MAX_ACCOUNTS))


@pytest.mark.parametrize("known", [[], ["a"], ["b"], ["b", "a"]])
def test_the_only_account_of_a_request(known: list[str]) -> None:
    """It counts as its account, and may not be another one than that which it names."""
    accounts, _ = by_request()
    accepted(accounts, *known)
    account = accounts.of_request(of(only="a"))
    assert account.id == "a"
    assert account == accounts.of_request(of("a", only="a")) == accounts.of_request(of("a"))
    with pytest.raises(AnotherAccount):
        accounts.of_request(of("b", only="a"))


def test_the_configured_account_wins() -> None:
    """Other ids are only noted; but no request goes out under an account that it excludes."""
    accounts = Accounts("mine", by_request=True)
    assert not accounts.by_request
    assert accepted(accounts, "", "mine", "other", "other") == [0, 0, 0, 0]
    assert list(accounts.overridden) == ["other"]
    assert accounts.of_request(of(only="mine")) == Account(0, "mine")
    with pytest.raises(AnotherAccount):
        accounts.of_request(of(only="other"))
    assert accounts.ids == {0: "mine"}


def test_few_overridden_ids_are_noted() -> None:
    """However many there are in requests."""
    accounts = Accounts("mine")
    accepted(accounts, *(f"a{number}" for number in range(100)))
    assert len(accounts.overridden) == MAX_ACCOUNTS


@pytest.mark.parametrize("bad", [b"\xff", "schlüssel".encode(), b"a\tb", b"   ", b""])
def test_an_id_that_can_not_be_sent_is_none(bad: bytes) -> None:
    """It would break every request to the upstream."""
    accounts, _ = by_request()
    assert accounts.of_request({ACCOUNT_HEADER.encode(): bad}) == Account(0, "")


def test_spans_of_an_earlier_process() -> None:
    """Their ids get numbers as those of requests do, and keep them."""
    accounts, named = by_request()
    assert [accounts.number_of(id_) for id_ in ("", "a", "b", "a", "")] == [0, 0, 1, 0, 0]
    assert named == ["a"]
    configured = Accounts("mine")
    assert [configured.number_of(id_) for id_ in ("mine", "other", "")] == [0, 1, 0]


@pytest.mark.parametrize("known", [[], ["a"], ["a", "b"]])
@pytest.mark.parametrize("id_", ["", "a", "b", "c"])
def test_a_request_that_is_refused_changes_nothing(known: list[str], id_: str) -> None:
    """Whether it was registered, or refused before that."""
    accounts, named = by_request()
    accepted(accounts, *known)
    if id_ or len(known) < 2:
        account = accounts.of_request(of(id_))
        accounts.register(account)
        accounts.withdraw(account)
    accounts.withdraw(accounts.own)
    assert list(accounts.ids.values()) == known
    assert named == known[:1]


class InterleavedRequests(RuleBasedStateMachine):
    """Requests begin, pass on their spans and end in any order, as with a slow disk."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts, self.named = by_request()
        self.open: list[Account] = []
        self.owners: dict[int, str] = {}  # numbers that spans were passed on with -> ids
        self.ever_accepted: list[str] = []

    @rule(id_=st.sampled_from(["", *"abcdefghij"]))
    def begin(self, id_: str) -> None:
        """A request arrives: its spans get the number of its account."""
        known = list(self.accounts.ids.values())
        try:
            account = self.accounts.of_request(of(id_))
        except TooManyAccounts:
            assert id_ not in known
            assert len(known) == MAX_ACCOUNTS
            return
        except AccountRefused:
            assert not id_
            assert len(known) > 1
            return
        assert account.id == id_
        assert id_ not in known or account.number == known.index(id_)
        self.accounts.register(account)
        if id_:  # what is passed on without an account belongs to whoever is the first
            assert self.owners.setdefault(account.number, id_) == id_, "a number has two owners"
        self.open.append(account)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), is_accepted=st.booleans())
    def end(self, data: st.DataObject, is_accepted: bool) -> None:
        """A request ends: all of it was accepted, or nothing was passed on."""
        account = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        if is_accepted:
            self.accounts.accept(account)
            if account.id and account.id not in self.ever_accepted:
                self.ever_accepted.append(account.id)
            return
        self.accounts.withdraw(account)
        if account.id not in {*self.ever_accepted, *(each.id for each in self.open)}:
            self.owners.pop(account.number, None)

    @rule()
    def refuse_early(self) -> None:
        """A request is refused before its account is known."""
        self.accounts.withdraw(self.accounts.own)

    @invariant()
    def known(self) -> None:
        """Who was accepted is known, and number 0 is told its id once."""
        ids = list(self.accounts.ids.values())
        assert set(self.ever_accepted) <= set(ids)
        assert len(ids) == len(set(ids)) <= MAX_ACCOUNTS
        assert len(self.named) <= 1
        assert not self.named or self.named == ids[:1]
        for number, id_ in self.owners.items():
            if id_ in self.ever_accepted or any(each.id == id_ for each in self.open):
                assert self.accounts.id_of(number) == id_, "spans go out under another account"
        if not self.open and not self.ever_accepted:
            assert ids == []


TestInterleavedRequests: Any = InterleavedRequests.TestCase


class KeysInTurn(RuleBasedStateMachine):
    """Agents offer keys, and the upstream accepts or refuses what is sent, possibly late."""

    def __init__(self) -> None:
        super().__init__()
        both = {KEY_HEADER: Secret(""), ACCOUNT_HEADER: Secret("a")}
        self.credentials = Credentials(both, relay=True, required=True)
        self.last_accepted = ""
        self.newest = ""
        self.sent: list[dict[str, str]] = []

    def key(self) -> str:
        """The key in use."""
        return (self.credentials.headers() or {}).get(KEY_HEADER, "")

    @rule(key=st.sampled_from(["k1", "k2", "k3"]))
    def offer(self, key: str) -> None:
        """A request with a key was accepted."""
        before = self.key()
        changed = self.credentials.offer({KEY_HEADER.encode(): key.encode()})
        assert changed == (self.key() != before)
        if changed:
            assert self.key() == key
            self.newest = key

    @precondition(lambda self: self.key())
    @rule()
    def send(self) -> None:
        """A request to the upstream, with what is in use."""
        headers = self.credentials.headers()
        assert headers is not None
        self.sent.append(headers)

    @precondition(lambda self: self.sent)
    @rule(data=st.data(), accepted=st.booleans())
    def respond(self, data: st.DataObject, accepted: bool) -> None:
        """The upstream responds. A late response says nothing about what is in use now."""
        headers = self.sent.pop(data.draw(st.integers(0, len(self.sent) - 1)))
        in_use = headers is self.credentials.headers()
        before = self.key()
        if accepted:
            self.credentials.accepted(headers)
            assert self.key() == before
            if in_use:
                self.last_accepted = before
            return
        self.credentials.refused(headers)
        if not in_use:
            assert self.key() == before
        elif self.last_accepted and before != self.last_accepted:
            assert self.key() == self.last_accepted, "the last accepted key was not kept"
        elif not self.last_accepted:
            assert self.key() == before

    @invariant()
    def one_of_two(self) -> None:
        """What is in use is the newest key, or that which was accepted last."""
        assert self.key() in {"", self.newest, self.last_accepted}
        assert self.key() or not self.newest

    def teardown(self) -> None:
        """Of two keys, the one that works is found, whichever that is."""
        for works in {self.newest, self.last_accepted} - {""}:
            for _ in range(2):
                headers = self.credentials.headers()
                assert headers is not None
                if headers[KEY_HEADER] == works:
                    break
                self.credentials.refused(headers)
            self.offer(works)
            for _ in range(2):
                headers = self.credentials.headers()
                assert headers is not None
                if headers[KEY_HEADER] != works:
                    self.credentials.refused(headers)
            assert self.key() == works


TestKeysInTurn: Any = KeysInTurn.TestCase
