"""What happened to one span: `sidecar explain SPAN_ID`.

Combines a running sidecar's ring of recent decisions, what it holds now (`/explain` on the admin
port), and the dead-letter file. Never shows content.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from sidecar.config import ConfigError
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.operate import letters
from sidecar.process.terminal import complain, show, show_json
from sidecar.queue.admission import Admission
from sidecar.telemetry.recent import Recent

# Exit codes. UNKNOWN also if a dead letter could not be read: it may be about the span.
KNOWN, UNKNOWN, NO_SIDECAR = 0, 1, 3
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Explainer:
    """Explains spans of one running sidecar; `clock` is loop time in seconds."""

    recent: Recent
    admission: Admission
    lanes: Sequence[Lane]
    accounts: Accounts
    clock: Callable[[], float]

    def about(self, id_: str) -> dict[str, Any]:
        """Return `{"id", "accounts", "start", "lanes": {sink: …}, "recent": [{"ago_s", …}]}`.

        `accounts` has the ids of the accounts that `lanes` and `recent` name: more than one if
        several have a span with this id. `start` says where its START is kept, or is null. A sink's
        value says what a write of the span is waiting for in memory, or is null.
        """
        now = self.clock()
        lanes = {lane.name: lane.waits_for(id_) for lane in self.lanes}
        recent = [
            {
                "ago_s": round(now - at, 3),
                "what": what,
                "sink": sink,
                "detail": detail,
                "account": self.accounts.id_of(account) or None,
            }
            for at, _, what, sink, detail, account in self.recent.about(id_)
        ]
        named = {each["account"] for each in (*recent, *lanes.values()) if each is not None}
        return {
            "id": id_,
            "accounts": sorted(named - {None}),
            "start": self.admission.open_spans.state_of(id_),
            "lanes": lanes,
            "recent": recent,
        }


def run(id_: str, url: str, dead_letters: str, *, as_json: bool) -> int:
    """Query the sidecar at `url` and the dead-letter file, print, and return the exit code."""
    # An argument is in the locale's encoding, an id in UTF-8.
    id_ = os.fsencode(id_).decode(errors="replace")
    try:
        answer = _ask(url, id_)
    except (URLError, HTTPException, OSError, ValueError, RecursionError) as error:
        complain(f"no sidecar responds at {url}: {_why(error)}")
        return NO_SIDECAR
    unreadable: Counter[str] = Counter()
    found = list(_letters(dead_letters, id_, unreadable))
    try:
        known = {**answer, "dead_letters": found}
        lines, is_known = list(_lines(known)), _is_known(known)
    except (LookupError, TypeError, ValueError, AttributeError):
        complain(f"{url}: /explain is not an answer from this version of the sidecar")
        return NO_SIDECAR
    if as_json:
        show_json(known, indent=2)
    else:
        for line in lines:
            show(line)
    return KNOWN if is_known and not unreadable else UNKNOWN


def _ask(url: str, id_: str) -> dict[str, Any]:
    # No proxy: the sidecar is in the same pod or reached through a port forward.
    opener = build_opener(ProxyHandler({}))
    target = f"{url.rstrip('/')}/explain?id={quote(id_, safe='')}"
    with opener.open(target, timeout=TIMEOUT_S) as response:
        known: dict[str, Any] = json.load(response)
        return known


def _why(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return getattr(cause, "strerror", None) or str(cause) or type(error).__name__


def _letters(path: str, id_: str, counts: Counter[str]) -> Iterator[str]:
    for each in (f"{path}.1", path) if path else ():
        try:
            found = letters.read(each, None, counts)
            yield from (str(letter) for letter in found if letter.span.id == id_)
        except ConfigError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                counts["unreadable"] += 1
                complain(str(error))


def _lines(known: Mapping[str, Any]) -> Iterator[str]:
    accounts = known["accounts"]
    of = f" of account {accounts[0]}" if len(accounts) == 1 else ""
    yield f"span {known['id']}{of}"
    several = len(accounts) > 1
    for each in known["recent"]:
        of = f" of account {each['account']}" if several and each["account"] else ""
        what = f"{each['what']} ({each['detail']}){of}"
        yield f"  {each['ago_s']:>10.3f} s ago  {each['sink']:8} {what}"
    if known["start"]:
        yield f"  now: its START is {known['start']}"
    for sink, waits in known["lanes"].items():
        if waits:
            more = ""
            if "next_attempt_s" in waits:
                more = f" in {waits['next_attempt_s']} s, after {waits['failures']} failures"
            of = f" of account {waits['account']}" if several and waits["account"] else ""
            yield f"  now: {sink} is waiting for {waits['waits_for']}{more}{of}"
    yield from (f"  dead letter: {line}" for line in known["dead_letters"])
    if not _is_known(known):
        yield "  unknown: it never arrived here, or it was settled long ago"


def _is_known(known: Mapping[str, Any]) -> bool:
    in_sidecar = known["recent"] or known["start"] or any(known["lanes"].values())
    return bool(in_sidecar or known["dead_letters"])
