"""Are we losing anything? What `/status` knows about it, as findings.

What is over stays a finding, at level `ok`: for 15 minutes it is a warning, as in the alerts.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.lanes import UPSTREAMS
from sidecar.operate.causes import trouble
from sidecar.operate.hints import BAD, OK, WARN, Finding, found
from sidecar.operate.words import ago, are, counted, duration, reasons, were

Json = Mapping[str, Any]

# How long what happened is a warning (helm/trace-sidecar/files/rules.yaml), and how long after the
# start the previous process's loss is.
RECENT_S, RECENT_START_S = 900.0, 3600.0

_NAMES = {each.name: each.title for each in UPSTREAMS}
_LOST_HINTS = {"shutdown": "lost_at_stop", "spool": "lost", "partial_success": "partial_success"}


def nothing_lost(report: Json) -> Finding:
    """The answer if there are no findings."""
    events, intake = report["events"], report["intake"]
    total = events["received"] + events["replayed"]
    if total:
        which = "the one event is" if total == 1 else f"all {total:,} events are"
        return Finding(OK, "No", f"{which} accounted for")
    since = f"in the {duration(report['uptime_s'])} since the start"
    if refused := reasons(intake["rejected_by_reason"]):
        return Finding(OK, "No", f"no event was accepted {since}; refused: {refused}")
    text, detail = "Nothing has arrived yet", f"no agent has sent an event {since}"
    if not report["sinks"] or intake["url"] is None:
        return Finding(OK, text, detail)
    return found(OK, text, detail, "first_span", send=_first_span(report))


def _first_span(report: Json) -> str:
    # What is unique in a pod's name.
    id_ = "hello-" + re.sub(r"[^A-Za-z0-9]", "", report["host"].rpartition("-")[2])[:12]
    time = report["time"]
    span = (
        f'{{"id":"{id_}","trace_id":"{id_}","name":"hello",'
        f'"start_time":"{time}","end_time":"{time}"}}'
    )
    return (
        f"send one in the pod: curl {report['intake']['url']}/v1/spans "
        f'-H content-type:application/json -d \'{{"event_type":"end","span":{span}}}\''
    )


def losses(report: Json) -> Iterator[Finding]:
    """Yield what is being lost, was lost, or may be."""
    sinks = report["sinks"]
    off = abs(report["events"]["imbalance"]) + sum(abs(s["imbalance"]) for s in sinks.values())
    if off:
        detail = f"{off:,} {are(off)} unaccounted for: this is a bug"
        yield found(BAD, "The accounting does not balance", detail, "imbalance")
    for name, sink in sinks.items():
        yield from _lost(_NAMES[name], sink)
        yield from _not_taken(_NAMES[name], sink)
    yield from _rejected(report["intake"])
    yield from _dead_letters(report)
    if report["spool"] is not None and report["spool"]["degraded"]:
        detail = "the spool's disk can't be used: a crash would lose what is waiting"
        yield found(WARN, "Not yet", detail, "disk")
    if lost := report["lost_at_last_shutdown"]:
        level = WARN if report["uptime_s"] < RECENT_START_S else OK
        detail = f"the process before this one lost {counted(lost, 'write')} when it stopped"
        yield found(level, "Lost at the last stop", detail, "lost_at_stop")


def _lost(title: str, sink: Json) -> Iterator[Finding]:
    lost, age_s = sink["lost"], sink["lost_age_s"]
    if not lost:
        return
    why = [reason for reason, count in sink["lost_by_reason"].items() if count]
    # What comes first in this table is what most can be done about.
    key = next((key for reason, key in _LOST_HINTS.items() if reason in why), "lost")
    detail = f"{counted(lost, 'write')} to {title} {were(lost)} lost"
    detail += f" ({reasons(sink['lost_by_reason'])}), {_last(lost, age_s)}"
    recent = age_s < RECENT_S
    yield found(BAD if recent else OK, "Yes" if recent else "Not now", detail, key)


def _not_taken(title: str, sink: Json) -> Iterator[Finding]:
    total, rate, ends = (
        sink["not_taken"],
        sink["not_taken_per_s"],
        sink["not_taken_by_reason"]["end_of_open"],
    )
    if not total:
        return
    running = f"; {counted(ends, 'span')} will be shown as running there" if ends else ""
    key = "left_running" if ends else "not_taken"
    if rate:
        cause = trouble(title, sink)
        because = f" because {cause}" if cause else ""
        detail = f"its room is full{because}: {rate:,.1f} writes per second are not taken, "
        detail += f"{total:,} so far{running}"
        yield found(BAD, f"Yes, at {title}", detail, key, title=title)
        return
    age_s = sink["not_taken_age_s"]
    recent = age_s < RECENT_S
    detail = f"{counted(total, 'write')} to {title} {were(total)} not taken for lack of room, "
    detail += f"{_last(total, age_s)}{running}"
    yield found(WARN if recent else OK, "Not now", detail, key, title=title)


def _rejected(intake: Json) -> Iterator[Finding]:
    rate, now = intake["rejected_per_s"], intake["rejected_now"]
    if not rate:
        return
    detail = f"{rate:,.1f} refusals per second: {', '.join(now).replace('_', ' ')}"
    # These are lost unless agents retry. Other refusals are for agents to fix.
    lacking = [reason for reason in ("no_upstream", "no_room") if reason in now]
    key = lacking[0] if lacking else "rejected"
    if now == ["stopping"]:
        key = ""  # the pod's next sidecar takes them
    yield found(BAD if lacking else WARN, "Events are being rejected", detail, key)


def _dead_letters(report: Json) -> Iterator[Finding]:
    letters = report["dead_letters"]
    yield from _not_kept(letters)
    kept, path = letters["kept"], letters["path"]
    mine = {name: sink for name, sink in report["sinks"].items() if sink["dead_lettered"]}
    parts = [_set_aside(_NAMES[name], sink) for name, sink in mine.items()]
    recent = any(sink["dead_lettered_age_s"] < RECENT_S for sink in mine.values())
    if kept:
        parts.append(f"{counted(kept, 'letter')} {are(kept)} in {path}, not replayed yet")
        detail = "; ".join(parts)
        yield found(WARN, "Dead letters", detail, "replay", replay=letters["replay"])
    elif not mine:
        return
    elif path is None:
        parts.append("no dead letter is kept: dead_letters.path is not set")
        level = WARN if recent else OK
        yield found(level, "Dead letters", "; ".join(parts), "keep_letters")
    elif kept is None:
        parts.append(f"{path} could not be read yet")
        yield found(WARN if recent else OK, "Dead letters", "; ".join(parts), "refused")
    else:
        parts.append(f"nothing is left to replay in {path}")
        yield Finding(OK, "No dead letters are left", "; ".join(parts))


def _set_aside(title: str, sink: Json) -> str:
    count = sink["dead_lettered"]
    by = reasons(sink["dead_lettered_by_reason"])
    text = f"{counted(count, 'write')} to {title} {were(count)} set aside ({by})"
    return f"{text}, {_last(count, sink['dead_lettered_age_s'])}"


def _not_kept(letters: Json) -> Iterator[Finding]:
    count, age_s = letters["not_kept"], letters["not_kept_age_s"]
    if not count:
        return
    recent = age_s < RECENT_S
    detail = f"{counted(count, 'dead letter')} {are(count)} not in the file, for lack of room or "
    detail += f"because its disk failed, {_last(count, age_s)}"
    text = "Dead letters are not kept" if recent else "Not now"
    yield found(BAD if recent else OK, text, detail, "letters_not_kept")


def _last(count: int, age_s: float) -> str:
    return ago(age_s) if count == 1 else f"the last {ago(age_s)}"
