"""Judges the lines of `sidecar top`, at any width: every number in them, and that nothing is left.

The sentences of the answers are judged where `/status` says them; here they must be the same ones.
"""

# ruff: noqa: E501 (patterns and checks follow the sentences that they are for)

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from tests.support.truth import FOREVER, TITLES, Exchange, Fates, Range
from tests.support.truth_claims import (
    AGO,
    COUNT,
    DURATION,
    About,
    Complaints,
    Moment,
    caught_up_in,
    count,
    full_in,
    same_age,
    same_count,
    same_error,
    seconds,
)

Json = dict[str, Any]

_TAGS = {"[ok]": "ok", "[warn]": "warn", "[BAD]": "bad"}
RATE = r"(?:\d+\.\d|\d[\d,]*)"
SIZE = r"(?:\d+\.\d (?:GiB|MiB|KiB)|\d+ B)"
BAR = r"\[[#.]+\]"
NAME = f"(?:{'|'.join(TITLES)})"
STATE = "(?:not asked yet|no answer yet|up|throttled|down|unauthorized|braked|no credential)"
_ANSWERS = re.compile(r"(\[ok\]|\[warn\]|\[BAD\])\s+(Are we losing anything\?|Is it late\?|Why\?)")


def judge_top(
    moment: Moment, text: str, width: int, answers: list[Json]
) -> Iterator[tuple[str, str]]:
    """Yield a line, or part of one, and what is wrong with it."""
    for line in text.split("\n"):
        if len(line) > width:
            yield line, f"has {len(line)} columns"
    head, _, rest = text.partition("[")
    yield from _consume(moment, head, _HEAD)
    said, _, numbers = ("[" + rest).partition("\nlistener ")
    yield from _judge_answers(said, answers)
    yield from _consume(moment, "listener " + numbers, _FACTS)


def _judge_answers(text: str, answers: list[Json]) -> Iterator[tuple[str, str]]:
    parts = _ANSWERS.split(text)[1:]
    if len(parts) != 3 * len(answers):
        yield text, "it does not have the three answers"
        return
    for number, answer in enumerate(answers):
        tag, question, shown = parts[3 * number : 3 * number + 3]
        if _TAGS[tag] != answer["level"] or question != answer["question"]:
            yield f"{tag} {question}", f"/status says {answer['level']} to {answer['question']}"
        # Lines of a command that a shell joins.
        left = _squashed(re.sub(r"\\\n", "\n", re.sub(r"'\\\n'", "", shown)))
        findings = answer["findings"] or [{**answer, "text": answer["answer"]}]
        advice = {each for finding in findings for each in _advice(finding)}
        unsaid = {finding["hint"] for finding in findings if finding["hint"]}
        for finding in findings:
            sentence = f"{finding['text']}: {finding['detail']}"
            if not left.startswith(_squashed(sentence)):
                yield shown, f"/status says {sentence!r}"
            left = left.removeprefix(_squashed(sentence))
            # What to do about several findings may be said once.
            for each, hint in advice:
                if left.startswith(_squashed(each)):
                    left = left.removeprefix(_squashed(each))
                    unsaid.discard(hint)
        for each in unsaid:
            yield shown, f"/status says {each!r}"
        if left:
            yield left, "/status does not say that"


def _advice(finding: Json) -> Iterator[tuple[str, str]]:
    """What to do, as it may be shown, and the hint that it is of."""
    hint = finding["hint"]
    if not hint:
        return
    where = f" ({finding['runbook']})" if finding["runbook"] else ""
    yield f"do: {hint}{where}", hint
    text, colon, command = hint.partition(": ")
    if colon:
        yield f"do: {text}{where}: {command}", hint


def _squashed(text: str) -> str:
    return re.sub(r"\s+", "", text)


Fact = Callable[[Moment, re.Match[str]], Complaints]


def _consume(moment: Moment, text: str, facts: list[tuple[str, Fact]]) -> Iterator[tuple[str, str]]:
    """Judge facts that follow each other; each may be missing, and nothing else may be there."""
    flat = " ".join(text.split())
    while flat:
        for pattern, judged in facts:
            if found := re.match(rf"{pattern}(?: |$)", flat):
                yield from ((found[0].strip(), wrong) for wrong in judged(moment, found))
                flat = flat[found.end() :]
                break
        else:
            yield flat[:120], "no claim fits this"
            return


def _between(said: float, real: Range, what: str) -> Complaints:
    if not real.least <= said <= real.most:
        yield f"{real.least:g} to {real.most:g} {what}"


def _rate(m: Moment, text: str, times: list[float], what: str) -> Complaints:
    said = float(text.replace(",", ""))
    real = []
    for step in range(14):
        window = min(4.9 + step / 10, max(1.0, m.t - m.began))
        real.append(sum(m.t - window < at <= m.t for at in times) / window)
    if not min(real) * 0.9 - 0.3 <= said <= max(real) * 1.1 + 0.3:
        yield f"{min(real):.1f} to {max(real):.1f} {what}"


def _nothing(_: Moment, __: re.Match[str]) -> Complaints:
    yield from ()


def _uptime(m: Moment, found: re.Match[str]) -> Complaints:
    said, real = seconds(found["up"]), m.t - m.began
    if not said.least - 0.3 <= real <= said.most + 0.3:
        yield f"it started {real:.1f} s ago"


def _listener(m: Moment, found: re.Match[str]) -> Complaints:
    books = m.books
    mine = books.accepted(since=m.began, until=m.t)
    yield from _rate(m, found["rate"], [each.at for each in mine], "events per second")
    yield from _between(count(found["n"]), Range(len(mine), len(mine)), "events were accepted")
    refused = books.rejections(m.t - 8.0, m.t)
    if float(found["refused"].replace(",", "")) and not refused:
        yield "nothing was refused in the last seconds"
    if found["refused"] == "0" and books.rejections(m.t - 4.0, m.t - 1.2):
        yield "events were refused in the last seconds"
    failed = any(begin <= m.t <= end + 40.0 for begin, end in books.disk_failed)
    if (found["where"] == "on disk") and not books.has_spool:
        yield "there is no spool"
    if found["where"] == "in memory" and books.has_spool and not failed:
        yield "the spool works"


def _open_spans(m: Moment, found: re.Match[str]) -> Complaints:
    fates = m.books.fates(m.books.lanes()[0]) if m.books.lanes() else None
    if fates is None:
        return
    starts, ends, hold = fates.starts, fates.ends, m.books.hold_s
    running = [at for id_, at in starts.items() if at <= m.t < ends.get(id_, FOREVER)]
    held = Range(
        sum(at + hold - 0.6 > m.t for at in running), sum(at + hold + 0.6 > m.t for at in running)
    )
    inherited = m.has_inherited
    if not inherited:
        # Those whose END some lane has not taken are kept, too: the END may come again.
        missed = {id_ for name in m.books.lanes() for id_ in m.books.fates(name).not_taken}
        more = sum(ends.get(id_, FOREVER) <= m.t for id_ in missed)
        real = Range(len(running), len(running) + more)
        yield from _between(count(found["kept"]), real, "spans are running")
        yield from _between(count(found["held"]), held, "STARTs are held")
    gaps = [
        ends[id_] - at for id_, at in starts.items() if m.began <= ends.get(id_, FOREVER) <= m.t
    ]
    joined = Range(sum(gap < hold - 0.6 for gap in gaps), sum(gap < hold + 0.6 for gap in gaps))
    if not inherited:
        yield from _between(count(found["joined"]), joined, "were joined")


def _room(m: Moment, found: re.Match[str]) -> Complaints:
    for name, share in re.findall(rf"({NAME}) {BAR} +(\d+)%", found[0]):
        fates = m.books.fates(name)
        refused = [each.at for each in m.books.posts if each.status == 429]
        at = min([*fates.not_taken.values(), *refused], default=FOREVER)
        now = fates.size(m.t)
        most = fates.size(at).most if at < FOREVER else 0.0
        if most:
            if int(share) > 100 * now.most / most + 8 or int(share) < 100 * now.least / most - 8:
                yield f"{now.most:.0f} bytes wait for {name}, of {most:.0f} that there is room for"
        elif int(share) > 5 and not now.most:
            yield f"no write waits for {name}"


# How long it may take until failures are a state.
SETTLED_S = 1.0
# So many different writes have to fail in a row before an upstream counts as down (DECISIONS.md 45).
HOLDING_WRITES = 3
_STATES = {
    "up": {"ok", "refused"},
    "throttled": {"later"},
    "down": {"failed", "silent", "reset", "later"},
    "unauthorized": {"unauthorized"},
}


def _lane(m: Moment, found: re.Match[str]) -> Complaints:
    name = found["name"]
    fates, title = m.books.fates(name), TITLES[name]
    yield from same_count(m, title, found["waiting"])
    if found["oldest"] != "-":
        inherited = m.has_inherited
        yield from same_age(m, title, found["oldest"], at_least=inherited)
    elif fates.oldest(m.t).least > 1.0:
        yield f"a write has waited for {fates.oldest(m.t).least:.1f} s"
    ended = fates.ended(m.t, max(m.began, m.t - 8.0))
    kept = [(e.ended, len(e.writes) - e.not_kept) for e in ended if e.kind == "ok"]
    good = [at for at, number in kept for _ in range(number)]
    yield from _rate(m, found["sent"], good, f"writes per second went to {title}")
    bad = [each.ended for each in ended if each.kind != "ok" and each.status != HTTPStatus.OK]
    if not fates.upstream.away:
        yield from _rate(m, found["fail"], bad, f"requests to {title} failed per second")
    if found["p50"] != "-" and not fates.ended(m.t, m.t - 68.0) and not fates.upstream.away:
        yield "no request ended in the last minute"
    if count(found["limit"]) > m.books.concurrency[name] * max(1, len(_accounts(m))):
        yield f"at most {m.books.concurrency[name]} are configured"
    yield from _state(m, name, found["state"], None)


def _accounts(m: Moment) -> set[str]:
    return {each.account for each in m.books.posts}


def _state(m: Moment, name: str, state: str, account: str | None) -> Complaints:  # noqa: C901
    fates = m.books.fates(name)
    latest = [each for each in fates.latest(m.t, account) if each.at >= m.began]
    away = fates.upstream.is_away(m.t)
    if state in {"not asked yet", "no answer yet"}:
        if latest:
            yield f"{name} was asked"
        return
    if state in {"braked", "no credential"}:
        return  # judged where "Why?" says so
    if away and state == "down":
        return
    back = max((end for _, end in fates.upstream.away if end <= m.t), default=0.0)
    if fates.upstream.away and (not latest or latest[-1].ended < back):
        return  # not asked since it is back
    if state == "up" and not latest:
        yield f"{name} was not asked"
        return
    if state == "up" and (
        m.t - fates.failing_since(m.t) < SETTLED_S or _may_be_the_writes(fates, latest, m.t)
    ):
        return  # it takes more than one failure
    if account is None:  # the state of the worst account
        for each in {each.account for each in fates.ended(m.t, m.began)}:
            latest = latest + fates.latest(m.t, each)
    if not any(each.kind in _STATES[state] for each in latest):
        yield f"{name} answered last: {[(e.kind, e.status) for e in latest]}"


def _may_be_the_writes(fates: Fates, latest: list[Exchange], t: float) -> bool:
    """Whether what failed last says nothing about the upstream: the same few writes, again."""
    kinds = {each.kind for each in latest}
    return kinds <= {"failed", "silent", "reset"} and len(fates.failing_writes(t)) < HOLDING_WRITES


def _note(m: Moment, found: re.Match[str]) -> Complaints:
    """What is below the row of a lane: it does not say which, so it has to be true of one."""
    if found["error"]:
        wrong = [[*same_error(m, title, found["error"], found["ago"])] for title in m.titles()]
        if all(wrong):
            yield wrong[0][0]
    for text, judged in ((found["full"], full_in), (found["caught"], caught_up_in)):
        if text:
            each_way = [list(judged(m, title, text)) for title in m.titles()]
            if all(each_way):
                yield each_way[0][0]


def _not_taken(m: Moment, found: re.Match[str]) -> Complaints:
    said = sum(count(each) for each in re.findall(COUNT, found[0]))
    real = [m.not_taken(title) for title in m.titles()]
    if said not in real:
        yield f"{real} were not taken"


def _account(m: Moment, found: re.Match[str]) -> Complaints:
    yield from _state(m, "sgp", found["state"], found["id"] if found["id"] != "-" else None)


def _writes(m: Moment, found: re.Match[str]) -> Complaints:
    name = found["name"]
    fates, title = m.books.fates(name), TITLES[name]
    written, forwarded, superseded, skipped, dead, lost, depth, diff = (
        count(each) for each in found["numbers"].split()
    )
    ended = fates.ended(m.t, m.began)
    not_kept = len(fates.not_kept(m.t, m.began))
    real = sum(len(each.writes) for each in ended if each.kind == "ok") - not_kept
    yield from _between(forwarded, Range(real, real), f"writes went to {title}")
    yield from same_count(m, title, found["numbers"].split()[6])
    gone = len(m.dead(title))
    yield from _between(dead, Range(gone, gone), f"are {title}'s dead letters")
    if lost or not_kept:
        left = sum(m.began <= at <= m.t for at in fates.left.values())
        yield from _between(lost, Range(not_kept, not_kept + left), "were lost")
    if diff or written != forwarded + superseded + skipped + dead + lost + depth:
        yield "it does not add up"


def _history(m: Moment, found: re.Match[str]) -> Complaints:
    """The highest value of 15 minutes, of which there is a sample every 5 s."""
    what, said = found["what"], found["max"]
    name = what.split()[0]
    times = [max(m.began, m.t - 900.0) + step for step in range(int(min(900.0, m.t - m.began)) + 1)]
    if what.endswith(" waiting"):
        most = max([m.books.fates(name).depth_about(t) for t in times], default=0.0)
        if count(said) > most + 1 and not m.books.fates(name).upstream.away:
            yield f"at most {most:.0f} waited"
    elif what.endswith(" oldest"):
        most = max([m.books.fates(name).oldest_about(t) for t in times], default=0.0)
        about: About = seconds(said)
        if about.least > most + 1.2:
            yield f"the oldest waited for {most:.1f} s"


_HEAD: list[tuple[str, Fact]] = [
    (
        (
            rf"trace sidecar \S+ version \S+ up (?P<up>{DURATION}) (?:{SIZE}|memory unknown) "
            r"[\d.]+% CPU"
        ),
        _uptime,
    ),
    (r"pod .*", _nothing),
]
_FACTS: list[tuple[str, Fact]] = [
    (
        (
            rf"listener (?P<rate>{RATE}) events/s accepted (?P<n>{COUNT}) refused (?P<refused>{RATE})/s "
            r"kept (?P<where>on disk|in memory)"
        ),
        _listener,
    ),
    (
        rf"open spans (?P<kept>{COUNT}) kept held (?P<held>{COUNT}) joined (?P<joined>{COUNT})",
        _open_spans,
    ),
    (rf"memory {BAR} {SIZE} of {SIZE}(?: full in {DURATION})?", _nothing),
    (
        rf"spool {BAR} {SIZE} of {SIZE}(?: full in {DURATION})?(?: its disk can't be used)?",
        _nothing,
    ),
    (rf"room(?: {NAME} {BAR} +\d+%(?: of {SIZE})?)+", _room),
    (r"upstream state waiting oldest sent/s p50 p95 fail/s limit", _nothing),
    (r"upstream none is enabled", _nothing),
    (
        (
            rf"(?P<name>{NAME}) (?P<state>{STATE}) (?P<waiting>{COUNT}) (?P<oldest>-|{DURATION}) "
            rf"(?P<sent>{RATE}) (?P<p50>-|{DURATION}) (?P<p95>-|{DURATION}) (?P<fail>{RATE}) "
            rf"(?P<limit>{COUNT})"
        ),
        _lane,
    ),
    (
        (
            rf"(?:last error (?P<ago>{AGO}): (?P<error>(?:(?!last error |writes written|; next |; an "
            rf"attempt|its room| {NAME} (?:{STATE}) \d| not taken: | caught up).)+))?"
            rf"(?:;? ?(?:next attempt (?:in {DURATION}|now|with the next span(?:, in {DURATION} at the "
            rf"earliest)?)|an attempt is under way))?"
            rf"(?: ?its room will be full in (?P<full>{DURATION}) at this rate)?"
            rf"(?: ?caught up in (?P<caught>{DURATION}) at this rate)?(?<=.)"
        ),
        _note,
    ),
    (
        rf"not taken: {COUNT} [a-z ]+(?:, {COUNT} [a-z ]+)?(?= {NAME}| writes| account|$)",
        _not_taken,
    ),
    (rf"account (?P<id>\S+) (?P<state>{STATE}) {COUNT} waiting", _account),
    (r"writes written forwarded superseded skipped dead lost in lane diff", _nothing),
    (rf"(?P<name>{NAME}) (?P<numbers>{COUNT}(?: {COUNT}){{7}})", _writes),
    (r"events received \+ replayed - joined - held - written = 0", _nothing),
    (r"last 15 minutes", _nothing),
    (
        (
            rf"(?P<what>events/s|memory|{NAME} waiting|{NAME} oldest)[ ▁▂▃▄▅▆▇█]* max "
            rf"(?P<max>{DURATION}|{SIZE}|{RATE}|unknown)"
        ),
        _history,
    ),
]
