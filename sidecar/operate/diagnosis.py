"""The operator's three questions, answered from a report: is anything lost, is it late, and why?

In: the `/status` report. Out: a level, a short answer, the supporting facts and what to do, for
each question. The status page and `sidecar top` show these texts unchanged. Every sentence is true
as it stands, in every state: tests judge them by what the upstreams and the agents saw.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.lanes import UPSTREAMS
from sidecar.operate.causes import all_is_well, causes
from sidecar.operate.hints import BAD, OK, WARN, WORST_FIRST, Finding, found
from sidecar.operate.losses import losses, nothing_lost
from sidecar.operate.words import counted, duration, listed

Json = Mapping[str, Any]

# The oldest write is late after this many seconds, and very late after the second number.
LATE_S, VERY_LATE_S = 5.0, 60.0
# Where a START is held for longer than by default, so much is left for its way (config.py).
AFTER_HOLD_S = 3.0

_NAMES = {each.name: each.title for each in UPSTREAMS}


def late_after(start_hold_s: float) -> float:
    """The age in seconds from which a write is late, if a START is held for `start_hold_s`."""
    return max(LATE_S, start_hold_s + AFTER_HOLD_S)


def answers(report: Json) -> list[dict[str, Any]]:
    """Return the three questions with their answers, in the order in which operators ask them."""
    lost, late, why = (_sorted(each(report)) for each in (losses, _late, causes))
    past = any(each.level != OK for each in (*lost, *late))
    now = _sorted([*why, all_is_well(report, past=past)]) if report["sinks"] else why
    return [
        _answer("Are we losing anything?", lost, nothing_lost(report)),
        _answer("Is it late?", late, _on_time(report)),
        _answer("Why?", why, now[0]),
    ]


def _sorted(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    # The sort is stable: equally bad findings stay in their order.
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.level))


def _answer(question: str, findings: list[Finding], otherwise: Finding) -> dict[str, Any]:
    first, *others = findings or [otherwise]
    details = [first.detail, *(f"{each.text}: {each.detail}" for each in others)]
    return {
        "question": question,
        "level": first.level,
        "answer": first.text,
        "detail": "; ".join(details),
        "hint": first.hint,
        "runbook": first.runbook,
        "findings": [each._asdict() for each in findings],
    }


def _late(report: Json) -> Iterator[Finding]:
    for name, sink in report["sinks"].items():
        age, title = sink["oldest_write_age_s"], _NAMES[name]
        if age >= report["late_after_s"]:
            # A clock of another process is not ours: what it left counts from our start.
            inherited = report["events"]["replayed"] and age >= report["uptime_s"] - LATE_S
            least = "at least " if inherited else ""
            writes = counted(sink["depth"], "write")
            detail = f"{title}: {writes} not delivered yet, the oldest for {least}{duration(age)}"
            if sink["caught_up_in_s"] is not None:
                detail += f"; caught up in {duration(sink['caught_up_in_s'])} at this rate"
            level = BAD if age >= VERY_LATE_S else WARN
            yield found(level, f"Yes, by {least}{duration(age)}", detail, "late")
        elif sink["late_until"] is not None:
            time = sink["late_until"].partition("T")[2].removesuffix("Z")
            yield Finding(OK, "No longer", f"{title} was late until {time} UTC")


def _on_time(report: Json) -> Finding:
    if not report["sinks"]:
        return Finding(OK, "No", "nothing is accepted")
    delays = [
        f"{duration(sink['delay_p95_s'])} at {_NAMES[name]}"
        for name, sink in report["sinks"].items()
        if sink["delay_p95_s"] is not None
    ]
    if delays:
        text = f"in the last minute, 95% were delivered within {listed(delays)}"
        return Finding(OK, "No", text)
    if not report["events"]["received"] + report["events"]["replayed"]:
        return Finding(OK, "No", "there was nothing to deliver yet")
    text = "nothing was delivered in the last minute, and nothing has been waiting for long"
    return Finding(OK, "No", text)
