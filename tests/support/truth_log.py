"""Judges the lines of the log: each event is known here, and what it says is in the books."""

import re
from collections.abc import Callable
from typing import Any

from tests.support.truth import TITLES, Range
from tests.support.truth_answers import places
from tests.support.truth_claims import COUNT, Complaints, Moment, count, same_error, why_not
from tests.support.truth_top import NAME

Json = dict[str, Any]
Judge = Callable[[Moment, Json], Complaints]


def judge_line(moment: Moment, line: Json) -> list[str]:
    """What is wrong with a line of the log."""
    judged = _EVENTS.get(line["event"])
    if judged is None:
        return ["no claim fits this event"]
    return [*judged(moment, line), *_advice(line)]


def _advice(line: Json) -> Complaints:
    """Whoever reads a warning is told what to do, and where it is explained."""
    if line["level"] not in {"warning", "error", "critical"}:
        return
    if not line.get("hint"):
        yield "it does not say what to do"
    yield from places(str(line.get("hint")))


def _said(_: Moment, __: Json) -> Complaints:
    """Says nothing that the books know."""
    yield from ()


_WORDS = {
    "upstream_down": "is down",
    "upstream_throttled": "asked us to back off",
    "upstream_unauthorized": "is rejecting the credential",
    "upstream_braked": "is rejecting most writes",
}


def _trouble(m: Moment, line: Json) -> Complaints:
    title = TITLES[line["sink"]]
    if line["event"] == "upstream_unauthorized" and "credential" in line["error"]:
        return  # it has none: nothing was sent
    yield from why_not(m, f"{title} {_WORDS[line['event']]}")
    yield from same_error(m, title, line["error"])
    fates = m.fates(title)
    nexts = [each.at for each in fates.exchanges if each.at > m.t]
    wait = line["next_attempt_s"]
    if nexts and not fates.upstream.away and nexts[0] < m.t + wait - 0.2:
        yield f"the next request came after {nexts[0] - m.t:.2f} s"


def _up(m: Moment, line: Json) -> Complaints:
    title = TITLES[line["sink"]]
    if not any(each.kind in {"ok", "refused"} for each in m.fates(title).latest(m.t)):
        yield f"{title} has not accepted anything"


def _reachable(m: Moment, line: Json) -> Complaints:
    if m.books.upstreams[line["sink"]].is_away(m.t) != (line["event"] == "upstream_unreachable"):
        yield "it was the other way round"


def _dead(m: Moment, line: Json) -> Complaints:
    title = TITLES[line["sink"]]
    dead = m.fates(title).dead.get(line["span_id"])
    if dead is None or not m.t - 0.5 <= dead.ended <= m.t:
        yield f"{title} did not refuse it for good just now"
    elif dead.status != line["status"]:
        yield f"the last status was {dead.status}"
    if line["reason"] == "too_large" and dead is not None and dead.status != 413:
        yield "it was not too large"


def _not_kept(m: Moment, line: Json) -> Complaints:
    fates = m.fates(TITLES[line["sink"]])
    latest = [(e.not_kept, len(e.writes)) for e in fates.ended(m.t, m.t - 0.5) if e.kind == "ok"]
    if (line["count"], line["of"]) not in latest:
        yield f"the last requests had {latest}"


def _not_taken(m: Moment, line: Json) -> Complaints:
    times = m.fates(TITLES[line["sink"]]).not_taken.values()
    if not any(m.t - 0.5 <= at <= m.t + 0.5 for at in times):
        yield "nothing was not taken just now"


def _refusing(m: Moment, _: Json) -> Complaints:
    if not any(m.t - 0.5 <= each.at <= m.t + 0.5 and each.status == 429 for each in m.books.posts):
        yield "no agent got 429 just now"


def _taking(m: Moment, _: Json) -> Complaints:
    before = [each for each in m.books.posts if each.at < m.t - 1e-9]
    if not any(each.status in {429, 503} for each in before):
        yield "nothing was refused before"


def _rejected(m: Moment, line: Json) -> Complaints:
    near = [each for each in m.books.posts if m.t - 0.5 <= each.at <= m.t + 0.5]
    if all(each.is_accepted for each in near):
        yield "nothing was rejected just now"
    known = line.get("span_id")
    if known and not any(each.id == known and not each.is_accepted for each in near):
        yield "this one was not rejected just now"


def _refused(m: Moment, line: Json) -> Complaints:
    status = int(line["status"])
    if not any(e.status == status and m.t - 0.5 <= e.at <= m.t + 0.5 for e in m.books.posts):
        yield f"no agent got {status} just now"
    known = {"no_room": 429, "no_upstream": 503, "stopping": 503, "malformed": 400}
    if line["reason"] in known and known[line["reason"]] != status:
        yield f"{line['reason']} is not {status}"


def _kept(m: Moment, line: Json) -> Complaints:
    real = sum(at >= m.t - 2.0 for at in m.fates(TITLES[line["sink"]]).left.values())
    if line["count"] != real:
        yield f"{real} writes were left"


def _over(m: Moment, line: Json) -> Complaints:
    depths = [m.fates(title).depth(m.t) for title in m.titles()]
    real = Range(sum(each.least for each in depths), sum(each.most for each in depths))
    said = line["depth"] if isinstance(line["depth"], int) else sum(line["depth"].values())
    if not real.least <= said <= real.most:
        yield f"{real} writes wait"


_STOPPED = re.compile(
    rf"stopped: (?:nothing was lost|(?P<lost>{COUNT}) writes? (?P<verb>was|were) lost \([^)]+\)); "
    rf"(?P<n>{COUNT}) events? received(?P<lanes>(?:; {NAME}: {COUNT} writes? forwarded"
    rf"(?:, {COUNT} (?:not taken for want of room|dead-lettered|waiting on disk|lost))*)*)"
)


def _stopped(m: Moment, line: Json) -> Complaints:
    found = _STOPPED.fullmatch(line["text"])
    if found is None:
        yield "no claim fits this sentence"
        return
    mine = len(m.books.accepted(since=m.began, until=m.t))
    if count(found["n"]) != mine:
        yield f"{mine} events were accepted"
    lost = 0
    for name in m.books.lanes():
        fates = m.books.fates(name)
        text = found["lanes"].partition(f"{name}: ")[2].partition(";")[0]
        said = {words: count(n) for n, words in re.findall(rf"({COUNT}) ([a-z -]+?)(?:,|$)", text)}
        not_kept = len(fates.not_kept(m.t, m.began))
        sent = sum(len(e.writes) for e in fates.ended(m.t, m.began) if e.kind == "ok") - not_kept
        left = sum(m.began <= at <= m.t + 2.0 for at in fates.left.values())
        dead = sum(m.began <= e.ended <= m.t for e in fates.dead.values())
        waiting, more = fates.waiting(m.t + 1.0)
        on_disk = (
            Range(len(waiting), len(waiting) + len(more)) if m.books.has_spool else Range(0, 0)
        )
        forwarded = next((n for words, n in said.items() if words.endswith("forwarded")), -1)
        if forwarded != sent:
            yield f"{sent} writes went to {name}"
        if said.get("not taken for want of room", 0) != m.not_taken(TITLES[name]):
            yield f"{name} did not take {m.not_taken(TITLES[name])}"
        letters = said.get("dead-lettered", 0)
        if letters != dead + (left if m.books.keeps_letters else 0):
            yield f"{name} has {dead + left} dead letters"
        lost += not_kept
        if not m.books.keeps_letters:
            lost += left
        if not on_disk.least <= said.get("waiting on disk", 0) <= on_disk.most:
            yield f"{on_disk} writes for {name} are on disk"
    said_lost = count(found["lost"]) if found["lost"] else 0
    if said_lost != lost:
        yield f"{lost} writes were lost"


def _letter_not_kept(m: Moment, line: Json) -> Complaints:
    if not any(begin <= m.t < end for begin, end in m.books.letters_failed):
        yield "the file can be written"
    if not any(line["span_id"] in m.books.fates(name).dead for name in m.books.lanes()):
        yield "this one is no dead letter"


def _lost(m: Moment, line: Json) -> Complaints:
    left = sum(at >= m.t - 2.0 for at in m.fates(TITLES[line["sink"]]).left.values())
    if line["count"] != left:
        yield f"{left} writes were left"


def _disk(m: Moment, _: Json) -> Complaints:
    if not any(begin <= m.t <= end for begin, end in m.books.disk_failed):
        yield "the disk works"


def _recovered(m: Moment, line: Json) -> Complaints:
    if any(begin + 0.1 < m.t < end for begin, end in m.books.disk_failed):
        yield "the disk does not work"
    if not m.books.has_spool:
        yield "there is no spool"
    del line


def _account(m: Moment, line: Json) -> Complaints:
    seen = {each.account for each in m.books.posts if each.at <= m.t + 0.5 and each.account}
    if line["account"] not in seen:
        yield "no agent has named it"


def _stopping(m: Moment, line: Json) -> Complaints:
    if m.t < m.books.process(m.t).told - 0.1:
        yield "nobody told it to stop"
    if line["grace_s"] != m.books.process(m.t).grace_s:
        yield f"the grace period is {m.books.process(m.t).grace_s} s"


_EVENTS: dict[str, Judge] = {
    "started": _said,
    "config_warning": _said,
    "stopping": _stopping,
    "grace_period_over": _over,
    "stopped": _stopped,
    "upstream_reachable": _reachable,
    "upstream_unreachable": _reachable,
    "upstream_up": _up,
    "upstream_route_gone": _said,
    **dict.fromkeys(_WORDS, _trouble),
    "write_dead_lettered": _dead,
    "dead_letters_kept": _kept,
    "dead_letter_not_kept": _letter_not_kept,
    "writes_lost": _lost,
    "writes_not_kept": _not_kept,
    "writes_not_taken": _not_taken,
    "intake_refusing": _refusing,
    "intake_taking": _taking,
    "event_rejected": _rejected,
    "request_refused": _refused,
    "spool_degraded": _disk,
    "spool_recovered": _recovered,
    "account_seen": _account,
}
