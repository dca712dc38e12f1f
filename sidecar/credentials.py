"""Credentials, and the accounts that they are for.

A credential is configured, read from a file that can change, or relayed from an agent's request
(D14; docs/api.md, "Credentials that come with a request"). A configured one wins. No credential is
ever shown. The id of an account is not secret.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

KEY_HEADER, ACCOUNT_HEADER = "x-api-key", "x-selected-account-id"
# Names the only account that the spans of a request may go out under (`sidecar replay`).
ONLY_ACCOUNT_HEADER = "x-trace-sidecar-account"
ACCOUNT_NAMES = frozenset({ACCOUNT_HEADER.encode(), ONLY_ACCOUNT_HEADER.encode()})
MAX_ACCOUNTS = 8


class Secret:
    """A string that prints as `***`, so that it can't leak into a log, a metric or a page."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The string itself, for a request header."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"


def is_header_safe(text: str) -> bool:
    """Whether `text` can be an HTTP header value: printable ASCII only."""
    return text.isascii() and text.isprintable()


class AccountRefused(Exception):
    """The spans of a request can't go out under the account that it names, or needs to name."""


class AnotherAccount(AccountRefused):
    """They would go out under another account than the only one that they may go out under."""


class TooManyAccounts(AccountRefused):
    """There is no place for one more account."""


class Account(NamedTuple):
    """An account: its number in this process, and its id, "" while that is unknown."""

    number: int
    id: str


class Accounts:
    """Numbers the accounts whose spans come through this pod (D25).

    Number 0 is the configured account. If each request names its own (`by_request`), it is the
    first one that was named, and spans that came earlier without an account belong to it, too. The
    others get the next numbers. A number means the same account as long as the process runs.

    `registered` is called with each new number and its id, "" if it is withdrawn; the functions in
    `named` with the id of number 0, when spans that came with it are accepted. `seen` is called
    when that happens first with an account that is not configured, `replaced` with an id that a
    request names although another account is configured; each at most once for an id.
    """

    def __init__(self, configured: str = "", *, by_request: bool = False) -> None:
        self.by_request = by_request and not configured
        self.own = Account(0, configured)
        self.ids = {0: configured} if configured else {}  # of all that are known, by number
        self._accepted: set[str] = set()  # ids in requests of which spans were accepted
        self._in_progress = Counter[str]()  # requests that are registered, by the id in them
        self.overridden: dict[str, None] = {}  # ids in requests, where another one is configured
        self.registered: Callable[[int, str], None] = _ignore
        self.seen: Callable[[int, str], None] = _ignore
        self.replaced: Callable[[str], None] = lambda _: None
        self.named: list[Callable[[str], None]] = []

    def id_of(self, number: int) -> str:
        """The id of an account, "" while it is unknown."""
        return self.ids.get(number, "")

    def restore(self, stored: Mapping[int, str]) -> None:
        """Take over the numbers of an earlier process."""
        for number, id_ in stored.items():
            if id_ and number not in self.ids:
                self.ids[number] = id_
                self._know(Account(number, id_))

    def number_of(self, id_: str) -> int:
        """The number of the account of a span that was accepted earlier; 0 for ""."""
        if not id_:
            return 0
        account = self._named(id_)
        self.register(account)
        self.accept(account)
        return account.number

    def of_request(self, headers: Mapping[bytes, bytes]) -> Account:
        """The account of a request, which is not registered yet; raises `AccountRefused`."""
        id_, only = _text(headers, ACCOUNT_HEADER), _text(headers, ONLY_ACCOUNT_HEADER)
        if not self.by_request:
            return self._configured(id_, only)
        if only and id_ and only != id_:
            raise AnotherAccount(f"{ACCOUNT_HEADER} is not {only}")
        ids = self.ids
        if id_ or only:
            account = self._named(id_ or only)
            if account.number not in ids and len(ids) >= MAX_ACCOUNTS:
                text = (
                    f"this pod has {MAX_ACCOUNTS} accounts already: there is no place for another"
                )
                raise TooManyAccounts(text)
            return account
        if len(ids) > 1:
            raise AccountRefused(f"{ACCOUNT_HEADER} is required: this pod has {len(ids)} accounts")
        # Without the id: such a request says nothing about the account, whatever becomes of it.
        return next((Account(number, "") for number in ids), self.own)

    def _configured(self, id_: str, only: str) -> Account:
        mine = self.own.id
        if mine and only and only != mine:
            raise AnotherAccount(f"sgp.account_id is not {only}")
        if mine and id_ not in {"", mine, *self.overridden} and len(self.overridden) < MAX_ACCOUNTS:
            self.overridden[id_] = None
            self.replaced(id_)
        return self.own

    def _named(self, id_: str) -> Account:
        for number, known in self.ids.items():
            if known == id_:
                return Account(number, id_)
        return Account(max(self.ids, default=0) + 1 if 0 in self.ids else 0, id_)

    def register(self, account: Account) -> None:
        """Keep the number of an account, before spans with it are passed on.

        If requests name their account, `accept` or `withdraw` has to follow.
        """
        number, id_ = account
        if id_ and self.by_request:
            self._in_progress[id_] += 1
        if id_ and number not in self.ids:
            self.ids[number] = id_
            self.registered(number, id_)

    def accept(self, account: Account) -> None:
        """Spans of a request with this account were accepted."""
        if not account.id or not self.by_request:
            return
        self._in_progress[account.id] -= 1
        self._know(account)

    def _know(self, account: Account) -> None:
        number, id_ = account
        if id_ not in self._accepted:
            self._accepted.add(id_)
            if number or self.by_request:
                self.seen(number, id_)
            if number == 0 and self.by_request:
                for named in self.named:
                    named(id_)

    def withdraw(self, account: Account) -> None:
        """No span of a request with this account was accepted: the request changes nothing."""
        if not account.id or not self.by_request:
            return
        self._in_progress[account.id] -= 1
        ids = self.ids
        # Only the last ones can go, because spans may have been passed on with a later number.
        while ids and not (self._in_progress[ids[max(ids)]] or ids[max(ids)] in self._accepted):
            self.registered(max(ids), "")
            del ids[max(ids)]


def _ignore(_: int, __: str) -> None:
    """Nobody needs to know."""


def _text(headers: Mapping[bytes, bytes], name: str) -> str:
    """A header's value, "" if it is missing or could not be sent on."""
    text = headers.get(name.encode(), b"").decode("latin-1").strip()
    return text if is_header_safe(text) else ""


class Credentials:
    """The credential headers of one upstream.

    `configured` maps header names to secrets, empty where nothing is configured. `in_file` returns
    the headers that a file has now, if any (sinks/credential_file.py); they win. `relay`: an agent
    can supply what is not configured. `required`: no request is sent unless all of `configured`
    are known; `needs_file`: none before the file could be read.

    Of relayed headers, those that the upstream accepted last are kept until it accepts newer ones:
    if it refuses the newest ones, the others are used again, and so on by turns.
    """

    def __init__(
        self,
        configured: Mapping[str, Secret],
        *,
        in_file: Callable[[], Mapping[str, Secret]] = dict,
        relay: bool,
        required: bool,
        needs_file: bool = False,
    ) -> None:
        self._configured = {name: secret for name, secret in configured.items() if secret}
        self._needed = len(configured) if required else 0
        self._in_file = in_file
        self._file: Mapping[str, Secret] = {}
        self._needs_file = needs_file
        # The headers that an agent can supply, in lower case.
        self.relayed = tuple(name.encode() for name in configured) if relay else ()
        self._relayed: dict[str, Secret] = {}
        self._accepted: dict[str, Secret] | None = None  # those that were accepted last
        self._newest: dict[str, Secret] | None = None  # newer ones that were not, yet
        self._headers = self._known()
        self.refresh()

    def headers(self) -> dict[str, str] | None:
        """The headers to send; None while a required one is missing."""
        return self._headers

    def refresh(self) -> bool:
        """Use what is in the file now; returns whether the headers have changed."""
        self._file = self._in_file()
        headers = self._known()
        if headers == self._headers:
            return False
        self._headers = headers
        return True

    def offer(self, headers: Mapping[bytes, bytes]) -> bool:
        """Use what an agent sent with an accepted request, for headers that are not configured.

        The names in `headers` are in lower case. Returns whether the headers to send have changed.
        A request that names another account than the configured one has another account's key.
        """
        account = self._configured.get(ACCOUNT_HEADER)
        if account is not None and _text(headers, ACCOUNT_HEADER) not in {"", account.reveal()}:
            return False
        relayed = dict(self._relayed)
        for header in self.relayed:
            name = header.decode()
            known = name in self._configured or name in self._file
            if not known and (text := _text(headers, name)):
                relayed[name] = Secret(text)
        if relayed in (self._relayed, self._accepted, self._newest):
            return False
        self._newest = relayed
        self._use(relayed)
        return True

    def name_account(self, id_: str) -> None:
        """From now on, the account is this one."""
        self._configured[ACCOUNT_HEADER] = Secret(id_)
        self._headers = self._known()

    def _use(self, relayed: dict[str, Secret]) -> None:
        self._relayed = relayed
        self._headers = self._known()

    def accepted(self, headers: Mapping[str, str]) -> None:
        """The upstream accepted a request with the result of `headers`."""
        if headers is self._headers and self._relayed is not self._accepted:
            self._accepted, self._newest = self._relayed, None

    def refused(self, headers: Mapping[str, str]) -> None:
        """The upstream refused the credential in the result of `headers`."""
        if headers is self._headers and self._accepted is not None and self._newest is not None:
            self._use(self._newest if self._relayed is self._accepted else self._accepted)

    def _known(self) -> dict[str, str] | None:
        secrets = self._relayed | self._configured | dict(self._file)
        if len(secrets) < self._needed or (self._needs_file and not self._file):
            return None
        return {name: secret.reveal() for name, secret in secrets.items()}
