"""What is known about spans, as `/explain` and `sidecar explain` say it."""

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.operate.timeline import Clock, summary, timeline
from sidecar.operate.words import duration
from sidecar.sinks.dead_letters import Head
from sidecar.telemetry.decisions import Decision

# How many spans of a trace are shown.
MAX_SPANS = 100


@dataclass(slots=True)
class Known:
    """What is known about one span. `trace_id` and `account` are "" if they are unknown."""

    id: str
    trace_id: str
    account: str
    decisions: deque[Decision] = field(default_factory=deque)
    start: str | None = None
    lanes: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    on_disk: list[str] = field(default_factory=list)
    letters: list[dict[str, Any]] = field(default_factory=list)

    @property
    def latest(self) -> float:
        """Loop time of the latest decision."""
        return self.decisions[-1].at if self.decisions else float("-inf")

    def shown(self, clock: Clock, *, has_spool: bool) -> dict[str, Any]:
        """What `/explain` says about it."""
        entries, left_off = timeline(self.decisions, clock)
        return {
            "id": self.id,
            "trace_id": self.trace_id or None,
            "account": self.account or None,
            "timeline": entries,
            "left_off": left_off,
            "start": self.start,
            "lanes": self.lanes,
            "on_disk": self.on_disk if has_spool else None,
            "dead_letters": self.letters,
            "summary": summary(self.decisions, self.start, self.lanes, self.on_disk, self.letters),
        }


class Spans:
    """What is known, by span. `left_off` has hashes of the ids of spans that are not looked at.

    Decisions have only hashes of ids, so spans are known by the hashes of theirs.
    """

    def __init__(self) -> None:
        self._spans: dict[tuple[int, int, str], Known] = {}
        self._accounts: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        self.left_off: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._spans)

    def named(self, trace_id: str, id_: str, account: str) -> Known:
        """The span with these ids, the whole texts; an account that is "" is the only one's."""
        trace, span = hash(trace_id), hash(id_)
        accounts = self._accounts[trace, span]
        if not account and len(accounts) == 1:
            (account,) = accounts
        accounts.add(account)
        known = self._spans.setdefault((trace, span, account), Known(id_, trace_id, account))
        known.id, known.trace_id = id_, trace_id
        return known

    def decided(self, decision: Decision, account: str, id_: str) -> None:
        """Add a decision that is newer than all others. `id_`: the span's, "" if it is unknown."""
        self._known(decision, account, id_).decisions.append(decision)

    def decided_before(self, decision: Decision, account: str, id_: str) -> bool:
        """Add one that is older than all others; False if it is about a span that is left off."""
        key = decision.trace_hash, decision.span_hash, account
        if key not in self._spans and len(self._spans) >= MAX_SPANS:
            self.left_off.add(decision.span_hash)
            return False
        self._known(decision, account, id_).decisions.appendleft(decision)
        return True

    def _known(self, decision: Decision, account: str, id_: str) -> Known:
        trace, span = decision.trace_hash, decision.span_hash
        known = self._spans.get((trace, span, account))
        if known is None:
            self._accounts[trace, span].add(account)
            known = self._spans[trace, span, account] = Known(id_ or decision.id, "", account)
        return known

    def newest(self) -> tuple[list[Known], int]:
        """Up to `MAX_SPANS`, the one with the latest decision first, and how many are left off."""
        order = sorted(self._spans.items(), key=lambda item: item[1].latest, reverse=True)
        shown = {span for (_, span, _), _ in order[:MAX_SPANS]}
        others = self.left_off.union(span for (_, span, _), _ in order[MAX_SPANS:])
        return [known for _, known in order[:MAX_SPANS]], len(others - shown)


def described(head: Head, kind: str, *, replayed: bool) -> dict[str, Any]:
    """What is said of a dead letter; `kind` is that of its write."""
    return {
        "time": head.time,
        "sink": head.sink,
        "reason": head.reason,
        "status": head.status,
        "kind": kind,
        "replayed": replayed,
    }


def unknown(remembered: Mapping[str, Any], searched: Mapping[str, bool | None]) -> str:
    """Where nothing was found, and what follows from that."""
    places = []
    if not remembered["decisions"]:
        places.append("decisions are not recorded (admin.decisions is 0)")
    else:
        since = "since the start, " if remembered["all"] else "in the last "
        ago = " ago" if remembered["all"] else ""
        places.append(f"nothing {since}{duration(remembered['span_s'])}{ago}")
    for place, words in (("spool", "in the spool"), ("dead_letters", "among the dead letters")):
        if searched[place]:
            places.append(f"nothing {words}")
        elif searched[place] is not None:
            places.append(f"not all {words} could be read in time")
    certain = False not in searched.values()
    end = "it was settled before that, or was never accepted here" if certain else "it may be there"
    return f"{', '.join(places)}: {end}"
