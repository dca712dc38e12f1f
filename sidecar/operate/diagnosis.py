"""The operator's three questions, answered from a report: is anything lost, is it late, and why?

In: the `/status` report. Out: a level, a short answer, and the supporting facts for each question.
The status page and `sidecar top` show these texts unchanged.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.lanes import UPSTREAMS

Json = Mapping[str, Any]
Answer = tuple[str, str, str]  # level, answer, supporting facts

# The oldest write is late after this many seconds, and very late after the second number.
LATE_S, VERY_LATE_S = 5.0, 60.0
# Share of a lane's room, or of memory or the spool, from which it will soon be full.
NEARLY_FULL = 0.8
# An upstream that is up is too slow when this many seconds of work are waiting for it.
BACKLOG_S = 2.0

TENTHS_BELOW_S = 10  # shorter durations are shown with one decimal

_NAMES = {each.name: each.title for each in UPSTREAMS}
OK, WARN, BAD = "ok", "warn", "bad"
_STATES = {
    "down": "is down",
    "throttled": "asked us to back off",
    "unauthorized": "is rejecting the credential",
    "braked": "is rejecting most writes",
}


def answers(report: Json) -> list[dict[str, str]]:
    """Return the three questions with their answers, in the order in which operators ask them."""
    return [
        {"question": question, "level": level, "answer": answer, "detail": detail}
        for question, (level, answer, detail) in (
            ("Are we losing anything?", _losing(report)),
            ("Is it late?", _late(report)),
            ("Why?", _why(report)),
        )
    ]


def _losing(report: Json) -> Answer:
    found = list(_losses(report))
    if found:
        return _worst_first(found)
    total = report["events"]["received"] + report["events"]["replayed"]
    counted = "the one event is" if total == 1 else f"all {total:,} events are"
    return OK, "No", f"{counted} accounted for"


def _losses(report: Json) -> Iterator[Answer]:
    sinks = report["sinks"]
    off = abs(report["events"]["imbalance"]) + sum(abs(s["imbalance"]) for s in sinks.values())
    if off:
        detail = f"{off:,} unaccounted for: this is a bug, please report it"
        yield BAD, "The accounting does not balance", detail
    if any(sink["lost"] for sink in sinks.values()):
        yield BAD, "Yes", f"lost writes: {_by_reason(sinks, 'lost')}"
    for name, sink in sinks.items():
        if sink["not_taken_per_s"]:
            yield BAD, f"Yes, at {_NAMES[name]}", _not_taking(_NAMES[name], sink)
    if report["intake"]["rejected_per_s"]:
        rate, now = report["intake"]["rejected_per_s"], report["intake"]["rejected_now"]
        reasons = ", ".join(reason.replace("_", " ") for reason in now)
        # These are lost unless agents retry. Other refusals are for agents to fix.
        level = BAD if {"no_room", "no_upstream"}.intersection(now) else WARN
        yield level, "Events are being rejected", f"{rate:,.1f} refusals per second: {reasons}"
    before = {name: s for name, s in sinks.items() if s["not_taken"] and not s["not_taken_per_s"]}
    if before:
        yield WARN, "Not now", f"writes not taken earlier: {_by_reason(before, 'not_taken')}"
    if any(sink["dead_lettered"] for sink in sinks.values()):
        yield WARN, "Dead letters", f"writes set aside: {_by_reason(sinks, 'dead_lettered')}"
    if report["spool"] is not None and report["spool"]["degraded"]:
        yield WARN, "Not yet", "the spool's disk can't be used: a crash would lose what is waiting"


def _not_taking(title: str, sink: Json) -> str:
    trouble = _trouble(title, sink)
    cause = f" because {trouble}" if trouble else ""
    rate, so_far = sink["not_taken_per_s"], sink["not_taken"]
    detail = f"its room is full{cause}: {rate:,.1f} writes per second are not taken, "
    detail += f"{so_far:,} so far"
    ends = sink["not_taken_by_reason"]["end_of_open"]
    return f"{detail}, {ends:,} of them ENDs of spans that it shows as running" if ends else detail


def _worst_first(found: list[Answer]) -> Answer:
    # The sort is stable: equally bad findings stay in their order.
    found.sort(key=lambda finding: finding[0] is not BAD)
    (level, answer, detail), *others = found
    return level, answer, "; ".join([detail, *(f"{head}: {tail}" for _, head, tail in others)])


def _by_reason(sinks: Json, what: str) -> str:
    return ", ".join(
        f"{_NAMES[name]} {count:,} {reason.replace('_', ' ')}"
        for name, sink in sinks.items()
        for reason, count in sink[f"{what}_by_reason"].items()
        if count
    )


def _late(report: Json) -> Answer:
    if not report["sinks"]:
        return OK, "No", "nothing is accepted"
    name, sink = max(report["sinks"].items(), key=lambda item: item[1]["oldest_write_age_s"])
    age = sink["oldest_write_age_s"]
    if age >= LATE_S:
        level = BAD if age >= VERY_LATE_S else WARN
        writes = "1 write" if sink["depth"] == 1 else f"{sink['depth']:,} writes"
        detail = f"{_NAMES[name]}: {writes} waiting, the oldest for {duration(age)}"
        return level, f"Yes, by {duration(age)}", detail
    delays = [
        f"{_NAMES[name]} {duration(sink['delay_p95_s'])}"
        for name, sink in report["sinks"].items()
        if sink["delay_p95_s"] is not None
    ]
    if not delays:
        return OK, "No", "nothing was delivered in the last minute; nothing has been waiting long"
    return OK, "No", f"95% are delivered within: {', '.join(delays)}"


def _why(report: Json) -> Answer:
    found = list(_findings(report))
    if not found:
        return OK, "All is well", f"{_up(report['sinks'])}; there is capacity to spare"
    return _worst_first(found)


def _up(sinks: Json) -> str:
    up = [_NAMES[name] for name, sink in sinks.items() if sink["state"] == "up"]
    new = [_NAMES[name] for name, sink in sinks.items() if sink["state"] != "up"]
    parts = [f"{' and '.join(up)} {'are' if len(up) > 1 else 'is'} up"] if up else []
    if new:
        parts.append(f"{' and '.join(new)} {'were' if len(new) > 1 else 'was'} not asked yet")
    return ", ".join(parts)


def _findings(report: Json) -> Iterator[Answer]:
    if not report["sinks"]:
        yield BAD, "No upstream is enabled", "posts get 503: `sidecar check` says what to set"
    if not report["ready"]:
        yield WARN, "The sidecar is stopping", "it is forwarding what it still holds"
    for name, sink in report["sinks"].items():
        title = _NAMES[name]
        if sink["state"] == "not_asked" and (error := sink["last_error"]) is not None:
            yield WARN, f"{title} can't be reached", error["text"]
        backlog = BACKLOG_S * max(1.0, sink["forwarded_per_s"])
        trouble = _trouble(title, sink)
        if trouble and not sink["has_credential"]:
            yield BAD, trouble, "waiting for a key file or an agent's key"
        elif trouble:
            error, wait = sink["last_error"], sink["next_attempt_s"]
            cause = f"{error['text']}; " if error else ""
            when = f"in {duration(wait)}" if wait else "now"
            yield BAD, trouble, f"{cause}next attempt {when}"
        elif sink["oldest_write_age_s"] >= BACKLOG_S and sink["depth"] > backlog:
            limit = sink["concurrency_limit"]
            detail = f"{sink['depth']:,} writes waiting, at most {limit:,} concurrent requests"
            yield WARN, f"{title} is slower than the agents", detail
    yield from _room(report)
    spool = report["spool"]
    if spool is not None and spool["degraded"]:
        yield BAD, "The spool's disk can't be used", "new events are kept in memory only"
    if dropped := report["log"]["lines_dropped_lately"]:
        detail = f"{dropped:,} in the last minute: check what reads the container's log"
        yield WARN, "Log lines were dropped", detail


def _trouble(title: str, sink: Json) -> str:
    """What keeps an upstream from accepting writes, "" if nothing does."""
    if not sink["has_credential"]:
        missing = [each for each in sink["accounts"] if not each["has_credential"]]
        return f"{title} has no credential{_of(missing, ' for')}"
    if sink["state"] in {"not_asked", "up"}:
        return ""
    refused = [each for each in sink["accounts"] if each["state"] == "unauthorized"]
    if sink["state"] == "unauthorized" and (of := _of(refused, " of")):
        return f"{title} refuses the key{of}"
    return f"{title} {_STATES[sink['state']]}"


def _of(accounts: list[Json], word: str) -> str:
    ids = [each["id"] for each in accounts if each["id"]]
    return f"{word} account{'s' if len(ids) > 1 else ''} {', '.join(ids)}" if ids else ""


def _room(report: Json) -> Iterator[Answer]:
    sinks = report["sinks"]
    full = {
        name: sink["lane_bytes"] / sink["lane_limit_bytes"]
        for name, sink in sinks.items()
        if sink["lane_bytes"] >= NEARLY_FULL * sink["lane_limit_bytes"]
    }
    for name, share in full.items():
        others = [_NAMES[other] for other in sinks if other != name]
        effect = "once it is full, agents get 429"
        if others:
            verb = "is" if len(others) == 1 else "are"
            effect = f"once it is full, {_NAMES[name]} gets no new spans; "
            effect += f"{' and '.join(others)} {verb} not affected"
        yield BAD, f"The room for {_NAMES[name]} is {share:.0%} full", effect
    if full or "no_room" not in report["intake"]["rejected_now"]:
        return
    # No lane is full, but memory or the disk is: of open spans, or of bodies that are arriving.
    for what, part in (("Memory for spans", report["queue"]), ("The spool", report["spool"])):
        if part is not None and part["bytes"] >= NEARLY_FULL * part["limit_bytes"]:
            share = part["bytes"] / part["limit_bytes"]
            yield BAD, f"{what} is {share:.0%} full", "requests that do not fit get 429"


def duration(seconds: float) -> str:
    """Format seconds: `40 ms`, `2.5 s`, `40 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < TENTHS_BELOW_S:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"
