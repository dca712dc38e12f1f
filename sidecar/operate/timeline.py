"""Says in words what happened to a span: the entries of its timeline, and where it is now."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sidecar.lanes import UPSTREAMS
from sidecar.telemetry.decisions import Decision

# Entries of one timeline: the first and the last ones. Between them, a failure may repeat for days.
FIRST, LAST = 20, 80
_TITLES = {each.name: each.title for each in UPSTREAMS}
# What the details of a decision mean (telemetry/accounting.py has the names).
_NOT_SENT = {
    "open_writes_off": "only complete writes are sent there",
    "hidden": "the upstream must not see what it adds (hide)",
    "unaddressable_id": "its id can't be part of a URL",
    "route_gone": "the upstream no longer has the route for it",
}
_GIVEN_UP = {
    "refused": "the upstream refuses it",
    "too_large": "it is too large for the upstream",
    "failing": "it kept failing while others got through",
    "expired": "it was not delivered within retry.max_age_s",
    "id_taken": "at the upstream, its id belongs to a span of another trace",
    "shutdown": "the process ended before it was delivered",
}
_INTAKE = {
    "accepted": "The sidecar accepted its {event}.",
    "joined": "Its END and its START became one complete write.",
    "written": "Its START was passed on as an open write.",
}
_SUPPLEMENT = "What its earlier writes lack was passed on in a write of its own."
_LANE = {
    "skipped": "The {kind} write was not sent to {title} on purpose: {why}.",
    "not taken": "There was no room for the {kind} write: it does not go to {title}.",
    "not accepted": "{title} did not accept the {kind} write: {detail}.",
    "forwarded": "{title} accepted the {kind} write.",
    "partly kept": (
        "{title} accepted a request with the {kind} write, but says that it did not keep all of "
        "it, and not which writes."
    ),
    "superseded": "A newer write replaced the {kind} write before {title} had accepted it.",
    "dead letter": "The {kind} write for {title} became a dead letter: {why}.",
}


class _Run(NamedTuple):
    """Decisions that are one entry."""

    first: Decision
    last: Decision
    times: int


class Clock:
    """Turns loop time into how long ago it was, and into UTC, as of one moment."""

    def __init__(self, now: float, utc: datetime) -> None:
        self._now, self._utc = now, utc

    def ago(self, at: float) -> float:
        """Seconds since loop time `at`."""
        return round(max(0.0, self._now - at), 3)

    def utc(self, at: float) -> str:
        """Loop time `at` in ISO 8601, to the millisecond."""
        time = self._utc - timedelta(seconds=self._now - at)
        return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def title(sink: str) -> str:
    """The name of a sink for people."""
    return _TITLES.get(sink, sink)


def timeline(decisions: Iterable[Decision], clock: Clock) -> tuple[list[dict[str, Any]], int]:
    """The entries about one span, oldest first; `decisions` are in this order, too.

    Failures of a sink that repeat are one entry, at the time of the last one. Of many entries there
    are the first and the last ones; also returns how many between them are left off.
    """
    runs: dict[int, _Run] = {}  # by number, oldest first
    open_runs: dict[str, int] = {}  # by sink, the number of its latest run
    for number, each in enumerate(decisions):
        run = None
        latest = open_runs.get(each.sink)
        if latest is not None and _repeats(runs[latest].last, each):
            run = runs.pop(latest)
        runs[number] = _Run(each, each, 1) if run is None else _Run(run.first, each, run.times + 1)
        open_runs[each.sink] = number
    shown = list(runs.values())
    left_off = max(0, len(shown) - FIRST - LAST)
    if left_off:
        shown = shown[:FIRST] + shown[-LAST:]
    return [_entry(*run, clock) for run in shown], left_off


def _repeats(earlier: Decision, later: Decision) -> bool:
    same = earlier.detail == later.detail and earlier.ended == later.ended
    return earlier.what == later.what == "not accepted" and same


def _entry(first: Decision, last: Decision, times: int, clock: Clock) -> dict[str, Any]:
    text = _sentence(last)
    if times > 1:
        text += f" {times:,} times, since {clock.utc(first.at)}."
    return {
        "at": clock.utc(last.at),
        "ago_s": clock.ago(last.at),
        "sink": last.sink,
        "what": last.what,
        "detail": last.detail or kind(last),
        "times": times,
        "text": text,
    }


def kind(decision: Decision) -> str:
    """Which event, or which write, a decision is about."""
    if decision.what == "accepted":
        return "end" if decision.ended else "start"
    return "complete" if decision.ended else "open"


def _sentence(decision: Decision) -> str:
    what, detail = decision.what, decision.detail
    if not decision.sink:
        if detail == "supplement":
            return _SUPPLEMENT
        return _INTAKE[what].format(event="END" if decision.ended else "START")
    text = _LANE[what].format(
        kind=kind(decision),
        title=title(decision.sink),
        detail=detail,
        why=_NOT_SENT.get(detail) or _GIVEN_UP.get(detail) or detail,
    )
    if detail == "end_of_open":
        text += " The upstream has its START, and keeps showing the span as running."
    return text


def summary(
    decisions: Iterable[Decision],
    start: str | None,
    lanes: Mapping[str, Mapping[str, Any] | None],
    on_disk: Iterable[str],
    letters: Sequence[Mapping[str, Any]],
) -> str:
    """Where a span is now, in one sentence for each lane that knows of it."""
    last: dict[str, Decision] = {}
    ended = set[str]()  # where its END is: nothing that comes later takes it back
    for each in decisions:
        if each.sink:
            last[each.sink] = each
            ended.update([each.sink] if each.what == "forwarded" and each.ended else [])
    letter = {each["sink"]: each for each in letters}
    on_disk = set(on_disk)
    parts = [f"its START is {start}"] if start else []
    for sink in dict.fromkeys([*lanes, *last, *letter]):
        if waits := lanes.get(sink):
            now = f"waiting for {waits['waits_for']}"
            if "next_attempt_s" in waits:
                failures = _counted(waits["failures"], "failure")
                now += f" ({failures} so far, the next attempt is in {waits['next_attempt_s']:g} s)"
        elif sink in on_disk:
            now = "waiting on disk"
        elif sink in last and not (last[sink].what == "not accepted" and sink in letter):
            now = _outcome(last[sink], ended=sink in ended)
            if sink in letter and _is_about(letter[sink], last[sink]):
                now += _replayed(letter[sink])
        elif sink in letter:
            now = f"dead letter ({letter[sink]['reason']})" + _replayed(letter[sink])
        else:
            continue
        parts.append(f"{title(sink)}: {now}")
    return "; ".join(parts) or "nothing is known of where it went"


def _is_about(letter: Mapping[str, Any], last: Decision) -> bool:
    decided = last.what, last.detail, kind(last)
    return decided == ("dead letter", letter["reason"], letter["kind"])


def _replayed(letter: Mapping[str, Any]) -> str:
    return ", replayed since" if letter["replayed"] else ""


def _outcome(last: Decision, *, ended: bool) -> str:
    if last.what == "forwarded":
        return "delivered" if ended else "its START is delivered, its END is not"
    return f"{'delivered, but a later write is: ' if ended else ''}{_not_delivered(last)}"


def _not_delivered(last: Decision) -> str:
    match last.what:
        case "dead letter":
            return f"dead letter ({last.detail})"
        case "not taken":
            return "not taken, because there was no room"
        case "skipped":
            return f"not sent on purpose ({last.detail})"
        case "partly kept":
            return "in a request of which the upstream did not keep all"
        case "superseded":
            return "replaced by a newer write"
        case _:
            return f"not delivered ({last.detail})"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
