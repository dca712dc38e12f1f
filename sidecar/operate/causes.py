"""Why? What keeps the sidecar from delivering, as findings.

An upstream is called slow only if nothing failed there. What failed is named instead.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sidecar.config import Config, upstreams
from sidecar.lanes import UPSTREAMS
from sidecar.operate.hints import BAD, OK, WARN, Finding, found
from sidecar.operate.words import ago, are, counted, duration, listed

Json = Mapping[str, Any]

# Share of a lane's room, or of memory or the spool, from which it will soon be full.
NEARLY_FULL = 0.8
# Share of the container's memory limit from which the kernel may soon kill it.
NEAR_LIMIT = 0.9
# An upstream that is up is too slow when this many seconds of work are waiting for it.
BACKLOG_S = 2.0
# After so many seconds without an answer, and twice the usual time, a request takes long.
SILENT_S = 2.0
# A failure of the last minute explains what still waits.
FAILED_LATELY_S = 60.0

_NAMES = {each.name: each.title for each in UPSTREAMS}
_SECTIONS = upstreams(Config())  # for what their keys are named
_STATES = {
    "down": "is down",
    "throttled": "asked us to back off",
    "unauthorized": "is rejecting the credential",
    "braked": "is rejecting most writes",
}
_LEVELS = {"throttled": WARN}
# Of an upstream without a credential, by whether it could be that of the agents' requests.
_LACKING = {
    True: ("waiting for a key file or an agent's key", "agents_key"),
    False: ("waiting for its file of credentials", "credential"),
}


def causes(report: Json) -> Iterator[Finding]:
    """Yield what is wrong now."""
    sinks = report["sinks"]
    if not sinks:
        detail = "posts get 503: `sidecar check` says what to set"
        yield found(BAD, "No upstream is enabled", detail, "no_upstream")
    if report["phase"] == "stopping":
        yield Finding(WARN, "The sidecar is stopping", _stopping(report))
    if report["phase"] == "starting":
        yield Finding(WARN, "The sidecar is starting", "it accepts no events yet")
    for name, sink in sinks.items():
        yield from _upstream(report, name, sink)
    yield from _room(report)
    spool = report["spool"]
    if spool is not None and spool["degraded"]:
        detail = "new events are kept in memory only"
        yield found(BAD, "The spool's disk can't be used", detail, "disk")
    rss, limit = report["memory"]["rss_bytes"], report["memory"]["limit_bytes"]
    if rss and limit and rss >= NEAR_LIMIT * limit:
        detail = "at 100% the kernel kills the container"
        yield found(WARN, f"The container uses {rss / limit:.0%} of its memory", detail, "memory")
    yield from _of_agents(report["intake"])
    if dropped := report["log"]["lines_dropped_lately"]:
        detail = f"{counted(dropped, 'line')} in the last minute"
        yield found(WARN, "Log lines were dropped", detail, "log")


def _stopping(report: Json) -> str:
    left = sum(sink["depth"] for sink in report["sinks"].values()) + report["events"]["held"]
    if report["ready"]:
        return "it still accepts events, until the agents are quiet"
    if not left:
        return "nothing is left to forward"
    return f"it is forwarding the {counted(left, 'write')} that it still holds"


def all_is_well(report: Json, *, past: bool) -> Finding:
    """The answer if there are no findings. `past`: another answer has some."""
    facts = [_up(report["sinks"])]
    parts = [report["queue"], *([report["spool"]] if report["spool"] else [])]
    shares = [part["bytes"] / part["limit_bytes"] for part in parts]
    if max(shares) < NEARLY_FULL and report["events"]["received"]:
        facts.append("there is capacity to spare")
    text = "Nothing is wrong now" if past else "All is well"
    return Finding(OK, text, "; ".join(facts))


def _up(sinks: Json) -> str:
    groups: dict[str, list[str]] = {}
    for name, sink in sinks.items():
        groups.setdefault(sink["label"], []).append(_NAMES[name])
    parts = []
    for label, names in groups.items():
        several = len(names) > 1
        text = {
            "not asked yet": "were not asked yet" if several else "was not asked yet",
            "no answer yet": "have not answered yet" if several else "has not answered yet",
        }.get(label, "answered when last asked")
        parts.append(f"{listed(names)} {text}")
    return ", ".join(parts)


def trouble(title: str, sink: Json) -> str:
    """What keeps an upstream from accepting writes, "" if nothing does."""
    if not sink["has_credential"]:
        missing = [each for each in sink["accounts"] if not each["has_credential"]]
        return f"{title} has no credential{_of(missing, ' for')}"
    state = sink["state"]
    if state in {"not_asked", "up"}:
        return ""
    affected = [each for each in sink["accounts"] if each["state"] == state]
    if state == "unauthorized":
        if of := _of(affected, " of"):
            return f"{title} refuses the key{of}"
    elif len(affected) < len(sink["accounts"]):
        return f"{title} {_STATES[state]}{_of(affected, ' for')}"
    return f"{title} {_STATES[state]}"


def _of(accounts: Sequence[Json], word: str) -> str:
    ids = [each["id"] for each in accounts if each["id"]]
    return f"{word} account{'s' if len(ids) > 1 else ''} {', '.join(ids)}" if ids else ""


def _words(name: str) -> dict[str, str]:
    """What hints say about an upstream."""
    section = _SECTIONS[name]
    return {
        "sink": name,
        "title": _NAMES[name],
        "url": f"{name}.{section.url_key}",
        "file": f"{name}.{section.file_key}",
    }


def _upstream(report: Json, name: str, sink: Json) -> Iterator[Finding]:
    title, words = _NAMES[name], _words(name)
    problem, state, depth = trouble(title, sink), sink["state"], sink["depth"]
    error, waiting = sink["last_error"], f"{counted(depth, 'write')} {are(depth)} waiting"
    last = f"; last error {ago(error['age_s'])}: {error['text']}" if error else ""
    if problem and not sink["has_credential"]:
        yield found(BAD, problem, *_LACKING[_SECTIONS[name].relays], **words)
    elif problem:
        cause = f"{sink['error']}; " if sink["error"] else ""
        full = f"; its room {_full_in(sink['full_in_s'])}" if sink["full_in_s"] else ""
        detail = f"{cause}{sink['next_attempt']}{full}"
        yield found(_LEVELS.get(state, BAD), problem, detail, state, **words)
    elif error is not None and error["kind"] == "connection":
        detail = f"{error['text']}, {ago(error['age_s'])}"
        yield found(WARN, f"{title} could not be reached at the start", detail, "down", **words)
    elif sink["catching_up"] and _is_behind(report, sink):
        detail = f"{waiting}{_caught_up(sink)}{last}"
        yield Finding(WARN, f"{title} is getting its backlog", detail)
    elif sink["retrying"]:
        # Not that they failed: without a credential, say, no request was made.
        count = sink["retrying"]
        text = f"A write to {title} waits for its next attempt"
        if count > 1:
            text = f"Writes to {title} wait for their next attempt"
        yield found(WARN, text, f"{counted(count, 'write')}{last}", "failing", **words)
    elif not _is_behind(report, sink):
        return
    elif error is not None and error["age_s"] < FAILED_LATELY_S:
        detail = f"{error['text']}, {ago(error['age_s'])}; {waiting}{_caught_up(sink)}"
        yield found(WARN, f"Writes to {title} wait after an error", detail, "failing", **words)
    elif _is_silent(sink):
        asked = sink["requests_in_flight"]
        detail = f"{counted(asked, 'request')} {are(asked)} under way; {waiting}"
        yield found(WARN, f"{title} takes long to answer", detail, "slow", **words)
    else:
        limit = sink["concurrency_limit"]
        detail = f"{waiting}, at most {counted(limit, 'concurrent request')}{_caught_up(sink)}"
        yield found(WARN, f"{title} is slower than the agents", detail, "slow", **words)


def _is_silent(sink: Json) -> bool:
    """Whether requests wait for an answer for longer than usual, and none has come since."""
    if not sink["requests_in_flight"]:
        return False
    usual_s = 2 * (sink["request_p95_s"] or 0.0)
    age_s = sink["answer_age_s"]
    return age_s is None or age_s >= max(SILENT_S, usual_s) or not sink["requests_per_s"]


def _is_behind(report: Json, sink: Json) -> bool:
    """Whether writes wait longer than they should. A START is held for a while on purpose."""
    age = sink["oldest_write_age_s"]
    backlog = BACKLOG_S * max(1.0, sink["forwarded_per_s"])
    hold_s = report["config"]["queue"]["start_hold_s"]
    late: bool = age >= report["late_after_s"]
    return late or (age >= BACKLOG_S + hold_s and sink["depth"] > backlog)


def _caught_up(sink: Json) -> str:
    wait_s = sink["caught_up_in_s"]
    return f"; caught up in {duration(wait_s)} at this rate" if wait_s is not None else ""


def _full_in(seconds: float) -> str:
    return f"will be full in {duration(seconds)} at this rate"


def _room(report: Json) -> Iterator[Finding]:
    sinks = report["sinks"]
    full = {
        name: sink["lane_bytes"] / sink["lane_limit_bytes"]
        for name, sink in sinks.items()
        if sink["lane_bytes"] >= NEARLY_FULL * sink["lane_limit_bytes"]
    }
    for name, share in full.items():
        # One that is not nearly full may have no room for a large write all the same.
        others = [
            _NAMES[other]
            for other, sink in sinks.items()
            if other not in full and not sink["not_taken_per_s"]
        ]
        effect = "agents get 429"
        if len(sinks) > 1:
            effect = f"{_NAMES[name]} gets no new spans; "
            effect += (
                f"{listed(others)} {are(len(others))} not affected"
                if others
                else "agents get 429 while no upstream has room"
            )
        seconds, text = sinks[name]["full_in_s"], f"The room for {_NAMES[name]} is"
        if sinks[name]["not_taken_per_s"] or "no_room" in report["intake"]["rejected_now"]:
            yield found(BAD, f"{text} full", effect, "room")
        else:
            when = f"it {_full_in(seconds)}; " if seconds is not None else ""
            text += f" {_percent(share)} full"
            yield found(BAD, text, f"{when}once it is full, {effect}", "room")
    if full or "no_room" not in report["intake"]["rejected_now"]:
        return
    # No lane is full, but memory or the disk is: of open spans, or of bodies that are arriving.
    for what, part in (("Memory for spans", report["queue"]), ("The spool", report["spool"])):
        if part is not None and part["bytes"] >= NEARLY_FULL * part["limit_bytes"]:
            share = part["bytes"] / part["limit_bytes"]
            detail = "requests that do not fit get 429"
            yield found(BAD, f"{what} is {_percent(share)} full", detail, "no_room")


def _percent(share: float) -> str:
    return f"{int(100 * share)}%"  # not rounded up to full


def _of_agents(intake: Json) -> Iterator[Finding]:
    """What agents have to fix."""
    ours = {"no_room", "no_upstream", "stopping"}
    theirs = [each.replace("_", " ") for each in intake["rejected_now"] if each not in ours]
    if theirs:
        detail = f"refused in the last seconds: {', '.join(theirs)}"
        yield found(WARN, "Agents send what can't be accepted", detail, "rejected")
