"""What the sidecar's sentences claim, and the judge who looks into the books.

`CLAIMS` has one pattern for each sentence. A sentence that matches none, or several, is a fault, as
is one that the books contradict. Nothing here is taken from the code that makes the sentences.
"""

# ruff: noqa: C901, E501 (patterns and checks follow the sentences that they are for)

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from tests.support.truth import FOREVER, TITLES, Books, Exchange, Fates, Range

LANES = {title: name for name, title in TITLES.items()}
# From this age on, a write is late; so much more if STARTs are held for longer than usual.
LATE_S, AFTER_HOLD_S = 5.0, 3.0
# The sidecar reads its counters once a second.
TICK_S = 1.2
RECENT_S = 900.0
# The writes by which an upstream is said to reject most of them.
BRAKE_WRITES = 10

DURATION = r"(?:\d+ ms|\d+\.\d s|\d+ s|\d+ min \d+ s|\d+ h \d+ min|\d+ d \d+ h)"
COUNT = r"\d{1,3}(?:,\d{3})*"
TITLE = f"(?:{'|'.join(LANES)})"
AGO = rf"(?:just now|{DURATION} ago)"
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class About(NamedTuple):
    """A number that is rounded: it stands for what is between `least` and `most`."""

    least: float
    most: float


def seconds(text: str) -> About:
    """What a duration stands for."""
    parts = re.findall(r"([\d.]+) (ms|s|min|h|d)", text)
    value = sum(float(number) * _UNITS[unit] for number, unit in parts)
    number, unit = parts[-1]
    half = _UNITS[unit] * (0.05 if "." in number else 0.5)
    # Hours and minutes are cut, not rounded.
    whole = _UNITS[unit] if unit in {"min", "h"} and len(parts) > 1 else half
    return About(value - half - 1e-6, value + whole + 1e-6)


def ago(text: str) -> About:
    """What "3 s ago" stands for, if it is looked at once a second."""
    found = About(0.0, 0.0) if text == "just now" else seconds(text)
    return About(found.least - TICK_S, found.most + TICK_S)


def count(text: str) -> int:
    return int(text.replace(",", ""))


@dataclass
class Moment:
    """A time at which the sidecar said something, and the books."""

    books: Books
    t: float
    wall: float  # seconds since the epoch

    @property
    def late_s(self) -> float:
        return max(LATE_S, self.books.hold_s + AFTER_HOLD_S)

    def fates(self, title: str) -> Fates:
        return self.books.fates(LANES[title])

    @property
    def began(self) -> float:
        """Just before the process began that speaks."""
        return self.books.process(self.t).started - 1e-6

    @property
    def has_inherited(self) -> bool:
        """Whether there was a process before this one."""
        return self.books.process(self.t) is not self.books.processes[0]

    def titles(self) -> list[str]:
        return [TITLES[name] for name in self.books.lanes()]

    # What is lost.

    def not_taken(self, title: str, back: float = 0.0) -> int:
        """How many writes of this process the lane did not take."""
        fates = self.fates(title)
        return sum(self.began <= at <= self.t - back for at in fates.not_taken.values())

    def dead(self, title: str, back: float = 0.0) -> dict[str, Exchange]:
        return {
            id_: each
            for id_, each in self.fates(title).dead.items()
            if self.began <= each.ended <= self.t - back
        }

    def not_kept(self, title: str, back: float = 0.0) -> list[float]:
        """When the upstream said of each write of this process that it did not keep it."""
        return self.fates(title).not_kept(self.t - back, self.began)

    def letters(self) -> int:
        """Dead letters that nobody has replayed or moved away."""
        books = self.books
        if not books.keeps_letters or self.t >= books.letters_gone_at:
            return 0
        total = 0
        for title in self.titles():
            fates = self.fates(title)
            gone = {**{id_: each.ended for id_, each in fates.dead.items()}, **fates.left}
            for id_, at in gone.items():
                if any(begin <= at < end for begin, end in books.letters_failed):
                    continue
                total += at <= self.t < fates.again.get(id_, FOREVER)
        return total

    def missed_lately(self, title: str) -> int:
        """Writes of the last 15 minutes that the upstream will not have, as far as is known."""
        books, fates = self.books, self.fates(title)
        since, until = self.t - RECENT_S + TICK_S, self.t - TICK_S
        missed = [at for at in fates.not_taken.values() if self.began <= at]
        if not books.keeps_letters:
            missed += [each.ended for each in fates.dead.values() if self.began <= each.ended]
        return sum(since < at <= until for at in missed)


Complaints = Iterator[str]
Judge = Callable[[Moment, re.Match[str]], Complaints]
CLAIMS: list[tuple[re.Pattern[str], Judge]] = []


def claim(*patterns: str) -> Callable[[Judge], Judge]:
    """The function judges sentences like these."""

    def add(judge: Judge) -> Judge:
        CLAIMS.extend((re.compile(pattern), judge) for pattern in patterns)
        return judge

    return add


def judge(moment: Moment, sentence: str) -> list[str]:
    """What is wrong with a sentence: nothing if the books say the same."""
    matches = [
        (found, judge) for pattern, judge in CLAIMS if (found := pattern.fullmatch(sentence))
    ]
    if len(matches) != 1:
        return [f"{len(matches)} claims fit this sentence"]
    found, judged = matches[0]
    return list(judged(moment, found))


# Parts that several claims share.


def same_count(m: Moment, title: str, text: str) -> Complaints:
    """Writes that wait."""
    said, real = count(text), m.fates(title).depth(m.t)
    if not real.least <= said <= real.most:
        yield f"{title} has {real.least:.0f} to {real.most:.0f} writes to deliver"


def same_age(m: Moment, title: str, text: str, at_least: bool) -> Complaints:
    said, real = seconds(text), m.fates(title).oldest(m.t)
    if said.least > real.most + 0.1:
        yield f"the oldest for {title} has waited for {real.most:.2f} s only"
    if not at_least and said.most < real.least - 0.1:
        yield f"the oldest for {title} has waited for {real.least:.2f} s"


def same_error(m: Moment, title: str, text: str, when: str | None = None) -> Complaints:
    """`text` has to name the last failure; `when` says how long ago that was."""
    fates = m.fates(title)
    failed = [each for each in fates.ended(m.t) if each.kind != "ok"]
    if "refuses connections" in text or ("connection" in text and not failed):
        away = [end for begin, end in fates.upstream.away if begin <= m.t]
        if not away:
            yield f"{title} has listened all the time"
        elif when is not None and ago(when).most < m.t - max(away[-1], 0.0):
            yield f"{title} listens again for {m.t - away[-1]:.1f} s"
        return
    if "no credential" in text or "waiting for" in text:
        return
    if not failed:
        yield f"no request to {title} has failed"
        return
    last = [each for each in failed if each.ended > failed[-1].ended - 0.3]
    if when is not None:
        real = m.t - failed[-1].ended
        said = ago(when)
        if not said.least - 0.2 <= real <= said.most + 0.2:
            yield f"the last failure of {title} was {real:.1f} s ago"
    if not any(_names(text, each) for each in last):
        yield f"the last failures of {title} were {[(e.kind, e.status) for e in last]}"


def _names(text: str, each: Exchange) -> bool:
    if each.status:
        return f"HTTP {each.status}" in text
    if each.kind == "silent":
        return any(word in text for word in ("timed out", "no response", "within", "timeout"))
    return any(word in text for word in ("reset", "closed", "disconnected", "connection"))


def near(real: float, said: float, share: float, slack: float) -> bool:
    return abs(real - said) <= max(slack, share * max(real, said))


def full_in(m: Moment, title: str, text: str) -> Complaints:
    """A room that is full in so long: if all goes on, this is when writes are not taken."""
    fates = m.fates(title)
    after = [at for at in fates.not_taken.values() if at >= m.t]
    refused = [each.at for each in m.books.rejections(m.t, FOREVER) if each.status == 429]
    came = min([*after, *refused], default=FOREVER) - m.t
    said = seconds(text)
    answered = min(
        (e.ended for e in fates.exchanges if e.kind == "ok" and e.ended > m.t), default=FOREVER
    )
    if answered - m.t < min(came, said.most):
        return  # the upstream came back before that
    if came < FOREVER and not near(came, (said.least + said.most) / 2, 0.4, 8.0):
        yield f"the room for {title} was full {came:.1f} s later"
    if came == FOREVER and m.books.posts[-1].at - m.t > 1.5 * said.most + 10:
        yield f"the room for {title} was never full"


def caught_up_in(m: Moment, title: str, text: str) -> Complaints:
    """At this rate: that of the last readings, or what has come true."""
    fates, said = m.fates(title), seconds(text)
    middle = (said.least + said.most) / 2
    found, _ = fates.waiting(m.t)
    at_this_rate = []
    for end in range(7):
        for back in (5.0, 10.0, 15.0, 20.0):
            now, before = fates.depth(m.t - end), fates.depth(m.t - end - back)
            if before.most > now.least:
                at_this_rate.append(now.most * back / (before.most - now.least))
    came = max([fates.complete[id_] - m.t for id_ in found if id_ in fates.complete], default=0.0)
    if not any(near(real, middle, 0.3, 3.0) for real in (came, *at_this_rate)):
        yield (
            f"what waited for {title} had arrived {came:.1f} s later; at the rate of the last "
            f"seconds it takes {min(at_this_rate, default=FOREVER):.1f} s at least"
        )


def optional(m: Moment, found: re.Match[str], title: str) -> Complaints:
    """The parts that some sentences have."""
    groups = found.groupdict()
    if groups.get("full"):
        yield from full_in(m, title, groups["full"])
    if groups.get("caught"):
        yield from caught_up_in(m, title, groups["caught"])


# Are we losing anything?


@claim(
    rf"No: all (?P<n>{COUNT}) events are accounted for",
    r"No: the (?P<n>one) event is accounted for",
)
def nothing_is_lost(m: Moment, found: re.Match[str]) -> Complaints:
    said = 1 if found["n"] == "one" else count(found["n"])
    mine = [len(m.books.accepted(since=m.began, until=at)) for at in (m.t - 0.02, m.t)]
    inherited = 0
    for title in m.titles():
        found_before, _ = m.fates(title).waiting(m.began)
        inherited = max(inherited, len(found_before)) if m.has_inherited else 0
    most = mine[1] + 2 * inherited + (len(m.books.accepted(until=m.began)) if inherited else 0)
    if not mine[0] + inherited <= said <= most:
        yield f"{mine[1]} events were accepted, {inherited} at least were left before"
    if said > 1 and found["n"] == "one":
        yield "several events were accepted"
    for title in m.titles():
        if lost := m.not_taken(title, TICK_S):
            yield f"{title} did not take {lost} writes"
        if dead := m.dead(title, TICK_S):
            yield f"{title} refused {len(dead)} writes for good"
        if not_kept := m.not_kept(title, TICK_S):
            yield f"{title} did not keep {len(not_kept)} writes"
    if m.books.rejections(m.t - 4.0, m.t - TICK_S):
        yield "events were rejected in the last seconds"
    if (left := m.letters()) and m.t - m.began > 10.0:
        yield f"{left} dead letters wait for a replay"


@claim(
    rf"Nothing has arrived yet: no agent has sent an event in the (?P<ago>{DURATION}) since the start"
)
def nothing_came(m: Moment, found: re.Match[str]) -> Complaints:
    yield from _start(m, found["ago"])
    if any(m.began < each.at <= m.t for each in m.books.posts):
        yield "agents have sent events"


@claim(
    rf"No: no event was accepted in the (?P<ago>{DURATION}) since the start; refused: (?P<why>.+)"
)
def nothing_accepted(m: Moment, found: re.Match[str]) -> Complaints:
    yield from _start(m, found["ago"])
    if m.books.accepted(since=m.began, until=m.t):
        yield "events were accepted"
    if not m.books.rejections(m.began, m.t):
        yield "none was refused"


def _start(m: Moment, text: str) -> Complaints:
    said, real = seconds(text), m.t - m.began
    if not said.least - 0.3 <= real <= said.most + 0.3:
        yield f"it started {real:.1f} s ago"


@claim(rf"The accounting does not balance: {COUNT} (?:is|are) unaccounted for: this is a bug")
def imbalance(_: Moment, __: re.Match[str]) -> Complaints:
    yield "the books balance"


@claim(
    rf"(?P<head>Yes|Not now): (?P<n>{COUNT}) writes? to (?P<title>{TITLE}) (?P<verb>was|were) lost "
    rf"\((?P<why>[^)]+)\), (?:the last )?(?P<ago>{AGO})"
)
def lost(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    left = [at for at in m.fates(title).left.values() if at <= m.t]
    times = left + m.not_kept(title)
    yield from _number(count(found["n"]), Range(len(times), len(times)), f"are lost to {title}")
    yield from _plural(found["n"], found["verb"])
    if not left:
        yield from _last(m, found["ago"], times)
    if ("partial success" in found["why"]) != bool(m.not_kept(title)):
        yield f"{title} kept {'not ' * bool(m.not_kept(title))}everything"


def _number(said: float, real: Range, what: str) -> Complaints:
    if not real.least <= said <= real.most:
        yield f"{real.least:g} to {real.most:g} {what}"


def _plural(number: str, verb: str) -> Complaints:
    if (number == "1") != (verb in {"was", "is"}):
        yield f"{number} {verb}"


def _running(m: Moment, found: re.Match[str], title: str) -> Complaints:
    """Spans whose START the upstream has, and whose END it will never have."""
    fates = m.fates(title)
    real = sum(
        id_ in fates.opened and fates.ends.get(id_, FOREVER) <= m.t
        for id_ in fates.not_taken
        if fates.not_taken[id_] <= m.t
    )
    said = count(found["ends"]) if found["ends"] else 0
    if said != real:
        yield f"{title} shows {real} ended spans as running"


@claim(
    rf"Yes, at (?P<title>{TITLE}): its room is full(?: because (?P<why>.+?))?: (?P<rate>[\d,.]+) writes "
    rf"per second are not taken, (?P<n>{COUNT}) so far"
    rf"(?:; (?P<ends>{COUNT}) spans? will be shown as running there)?"
)
def not_taking(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    times = [at for at in m.fates(title).not_taken.values() if m.began <= at]
    counts = [sum(at <= m.t - back for at in times) for back in (0.0, 0.02)]
    yield from _number(
        count(found["n"]), Range(min(counts), max(counts)), f"writes to {title} were not taken"
    )
    yield from _rate(m, float(found["rate"].replace(",", "")), times, "writes not taken per second")
    if found["why"]:
        yield from why_not(m, found["why"])
    yield from _running(m, found, title)


def _rate(m: Moment, said: float, times: list[float], what: str) -> Complaints:
    """A rate of the last 5 to 6 s: readings are a second apart."""
    real = []
    for step in range(14):
        # A young process has seen less.
        window = min(4.9 + step / 10, max(1.0, m.t - m.began))
        real.append(sum(m.t - window < at <= m.t for at in times) / window)
    if not min(real) * 0.85 - 0.25 <= said <= max(real) * 1.15 + 0.25:
        yield f"{min(real):.1f} to {max(real):.1f} {what}"


@claim(
    rf"Not now: (?P<n>{COUNT}) writes? to (?P<title>{TITLE}) (?P<verb>was|were) not taken for lack of "
    rf"room, (?:the last )?(?P<ago>{AGO})(?:; (?P<ends>{COUNT}) spans? will be shown as running there)?"
)
def was_not_taken(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    times = [at for at in m.fates(title).not_taken.values() if m.began <= at <= m.t]
    yield from _number(count(found["n"]), Range(len(times), len(times)), "writes were not taken")
    yield from _plural(found["n"], found["verb"])
    yield from _last(m, found["ago"], times)
    if any(at > m.t - 4.9 for at in times):
        yield "it goes on"
    yield from _running(m, found, title)


def _last(m: Moment, text: str, times: list[float]) -> Complaints:
    said = ago(text)
    if not times:
        yield "it never happened"
    elif not said.least <= m.t - max(times) <= said.most:
        yield f"the last was {m.t - max(times):.1f} s ago"


@claim(r"Events are being rejected: (?P<rate>[\d,.]+) refusals per second: (?P<why>[a-z, ]+)")
def rejecting(m: Moment, found: re.Match[str]) -> Complaints:
    refused = m.books.rejections(m.t - 7.0, m.t)
    if not refused:
        yield "nothing was rejected in the last seconds"
    for word, statuses in {
        "no room": {429}, "no upstream": {503}, "stopping": {503}, "malformed": {400},
    }.items():  # fmt: skip
        if word in found["why"] and not statuses & {each.status for each in refused}:
            yield f"no agent was refused with {statuses}"
    times = [each.at for each in refused]
    # A whole request counts once.
    once = sorted({(each.at, each.status) for each in refused if each.status != 202})
    said = float(found["rate"].replace(",", ""))
    each_way = [times, [at for at, _ in once] + [e.at for e in refused if e.status == 202]]
    wrong = [list(_rate(m, said, way, "refusals per second")) for way in each_way]
    if all(wrong):
        yield wrong[0][0]


_SET_ASIDE = rf"{COUNT} writes? to {TITLE} (?:was|were) set aside \([^)]+\), (?:the last )?{AGO}"
_EACH_SET_ASIDE = re.compile(
    rf"(?P<n>{COUNT}) writes? to (?P<title>{TITLE}) (?P<verb>was|were) set aside "
    rf"\((?P<why>[^)]+)\), (?:the last )?(?P<ago>{AGO})"
)


@claim(
    rf"Dead letters: (?:{_SET_ASIDE}; )*(?P<kept>{COUNT}) letters? (?P<verb>is|are) in (?P<path>\S+), "
    r"not replayed yet",
    rf"Dead letters: {_SET_ASIDE}(?:; {_SET_ASIDE})*; (?P<none>no dead letter is kept: "
    r"dead_letters.path is not set)",
    rf"Dead letters: {_SET_ASIDE}(?:; {_SET_ASIDE})*; (?P<unread>\S+ could not be read yet)",
    rf"No dead letters are left: {_SET_ASIDE}(?:; {_SET_ASIDE})*; nothing is left to replay in \S+",
)
def dead_letters(m: Moment, found: re.Match[str]) -> Complaints:
    seen = set()
    for part in _EACH_SET_ASIDE.finditer(found[0]):
        title = part["title"]
        seen.add(title)
        dead = {**m.dead(title)}
        gone = [each.ended for each in dead.values()]
        gone += [at for at in m.fates(title).left.values() if m.began <= at <= m.t]
        yield from _number(
            count(part["n"]), Range(len(gone), len(gone)), f"are {title}'s dead letters"
        )
        yield from _plural(part["n"], part["verb"])
        yield from _last(m, part["ago"], gone)
        statuses = {each.status for each in dead.values()}
        if "too large" in part["why"] and 413 not in statuses:
            yield f"{title} refused none as too large"
        # A success that keeps nothing is a refusal.
        if "refused" in part["why"] and not statuses & {200, 400, 409, 422}:
            yield f"{title} refused none"
    for title in m.titles():
        if title not in seen and m.dead(title, TICK_S):
            yield f"{title} has dead letters, too"
    groups = found.groupdict()
    # The files are looked at every 5 s.
    books = m.books
    left = [replaced.letters() for replaced in (m, Moment(books, m.t - 6.0, m.wall))]
    if groups.get("kept"):
        yield from _number(
            count(groups["kept"]), Range(min(left), max(left)), "letters wait for a replay"
        )
        yield from _plural(groups["kept"], groups["verb"])
    elif groups.get("none"):
        if books.keeps_letters:
            yield "a path is set"
    elif found[0].startswith("No dead letters are left") and min(left):
        yield f"{min(left)} letters wait for a replay"
    elif groups.get("unread") and m.t - m.began > 10.0 and not books.letters_failed:
        yield "nothing keeps it from being read"


@claim(
    r"Not yet: the spool's disk can't be used: a crash would lose what is waiting",
    r"The spool's disk can't be used: new events are kept in memory only",
)
def disk(m: Moment, _: re.Match[str]) -> Complaints:
    if not any(begin <= m.t <= end + 40.0 for begin, end in m.books.disk_failed):
        yield "the disk works"


@claim(
    rf"Lost at the last stop: the process before this one lost (?P<n>{COUNT}) writes? when it stopped"
)
def lost_before(m: Moment, found: re.Match[str]) -> Complaints:
    before = sum(at <= m.began for title in m.titles() for at in m.fates(title).left.values())
    yield from _number(count(found["n"]), Range(before, before), "writes were left")


# Is it late?


@claim(
    rf"Yes, by (?P<least>at least )?(?P<by>{DURATION}): (?P<title>{TITLE}): (?P<n>{COUNT}) writes? not "
    rf"delivered yet, the oldest for (?:at least )?(?P<age>{DURATION})"
    rf"(?:; caught up in (?P<caught>{DURATION}) at this rate)?"
)
def is_late(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    for text in (found["by"], found["age"]):
        yield from same_age(m, title, text, bool(found["least"]))
    yield from same_count(m, title, found["n"])
    yield from optional(m, found, title)
    if found["least"] and not m.has_inherited:
        yield "no process was before this one"


def on_time(m: Moment) -> Complaints:
    for title in m.titles():
        age = m.fates(title).oldest(m.t).least
        inherited = m.has_inherited
        if min(age, m.t - m.began if inherited else age) >= m.late_s + TICK_S:
            yield f"a write to {title} waits for {age:.1f} s"


@claim(rf"No longer: (?P<title>{TITLE}) was late until (?P<time>\d\d:\d\d:\d\d) UTC")
def no_longer(m: Moment, found: re.Match[str]) -> Complaints:
    fates = m.fates(found["title"])
    until = fates.late_times(m.late_s, m.t)
    age = fates.oldest(m.t).least
    if age >= m.late_s + TICK_S:
        yield f"a write to {found['title']} waits for {age:.1f} s"
    if until < 0:
        yield f"nothing was late at {found['title']}"
        return
    real = datetime.fromtimestamp(m.wall - (m.t - until), UTC)
    said = datetime.strptime(found["time"], "%H:%M:%S").replace(tzinfo=UTC)
    apart = (said - real.replace(year=said.year, month=said.month, day=said.day)).total_seconds()
    if min(abs(apart), 86400 - abs(apart)) > 2.5:
        yield f"it was late until {real:%H:%M:%S}"


@claim(
    rf"No: in the last minute, 95% were delivered within (?P<each>{DURATION} at {TITLE}"
    rf"(?:, {DURATION} at {TITLE})*(?: and {DURATION} at {TITLE})?)"
)
def delivered_within(m: Moment, found: re.Match[str]) -> Complaints:
    yield from on_time(m)
    for text, title in re.findall(rf"({DURATION}) at ({TITLE})", found["each"]):
        said = seconds(text)
        fates = m.fates(title)
        wrong: list[str] = []
        for back in range(54, 68):
            delays = fates.delivered(max(m.began, m.t - back), m.t)
            problem = _quantile(said, [delay for delay, _ in delays])
            wrong.append(problem)
        if all(wrong):
            yield f"{title}: {wrong[6]}"


def _quantile(said: About, delays: list[Range]) -> str:
    if not delays:
        return "nothing was delivered in that minute"
    least = sorted(each.least for each in delays)
    most = sorted(each.most for each in delays)
    # Our clock sees a write arrive a little earlier than the sidecar sees the answer.
    if said.least > most[-1] * 1.01 + 0.002:
        return f"the longest took {most[-1]:.3f} s"
    low = least[max(0, int(0.93 * len(least)) - 1)] * 0.88 - 0.01
    high = most[min(len(most) - 1, int(0.97 * len(most)))] * 1.12 + 0.01
    if said.most < low or said.least > high:
        return f"it is {low:.3f} to {high:.3f} s"
    return ""


@claim(r"No: there was nothing to deliver yet")
def nothing_to_deliver(m: Moment, _: re.Match[str]) -> Complaints:
    if m.books.accepted(since=m.began, until=m.t - 0.1):
        yield "events were accepted"


@claim(r"No: nothing was delivered in the last minute, and nothing has been waiting for long")
def nothing_lately(m: Moment, _: re.Match[str]) -> Complaints:
    yield from on_time(m)
    for title in m.titles():
        if m.fates(title).delivered(max(m.began, m.t - 59.0), m.t - TICK_S):
            yield f"writes to {title} were delivered"


@claim(r"No: nothing is accepted")
def nothing_is_accepted(m: Moment, _: re.Match[str]) -> Complaints:
    if m.books.lanes():
        yield "an upstream is enabled"


# Why?


@claim(r"No upstream is enabled: posts get 503: `sidecar check` says what to set")
def no_upstream(m: Moment, _: re.Match[str]) -> Complaints:
    if m.books.lanes():
        yield "an upstream is enabled"
    if any(each.status != 503 for each in m.books.posts):
        yield "posts get another status"


@claim(
    r"The sidecar is stopping: (?P<open>it still accepts events, until the agents are quiet)",
    r"The sidecar is stopping: (?P<empty>nothing is left to forward)",
    rf"The sidecar is stopping: it is forwarding the (?P<n>{COUNT}) writes? that it still holds",
)
def stopping(m: Moment, found: re.Match[str]) -> Complaints:
    if m.t < m.books.process(m.t).told:
        yield "nobody told it to stop"
    depths = [m.fates(title).depth(m.t) for title in m.titles()]
    groups = found.groupdict()
    if groups.get("empty") and sum(each.least for each in depths):
        yield "writes wait"
    if groups.get("n"):
        yield from _number(
            count(groups["n"]),
            Range(sum(each.least for each in depths), sum(each.most for each in depths)),
            "writes wait",
        )


@claim(r"The sidecar is starting: it accepts no events yet")
def starting(m: Moment, _: re.Match[str]) -> Complaints:
    if m.books.accepted(since=m.began, until=m.t):
        yield "it has accepted events"


_TROUBLE = (
    rf"{TITLE} (?:is down|asked us to back off|is rejecting the credential|is rejecting most writes)"
    r"(?: for accounts? [\w, -]+)?|"
    rf"{TITLE} refuses the key(?: of accounts? [\w, -]+)?|"
    rf"{TITLE} has no credential(?: for accounts? [\w, -]+)?"
)
_KINDS = {
    "is down": {"failed", "silent", "reset", "later"},
    "asked us to back off": {"later"},
    "is rejecting the credential": {"unauthorized"},
    "refuses the key": {"unauthorized"},
}


def why_not(m: Moment, text: str) -> Complaints:
    """What keeps an upstream from accepting writes."""
    if not re.fullmatch(_TROUBLE, text):
        yield f"unknown: {text}"
        return
    title, words = text.split(" ", 1)
    fates = m.fates(title)
    named = re.search(r" (?:for|of) accounts? (.+)", words)
    accounts: list[str | None] = [*named[1].split(", ")] if named else [None]
    if words.startswith("is rejecting most writes"):
        # The last verdict on each of the last spans.
        verdicts = {id_: each.kind for each in fates.ended(m.t) for id_ in each.ids}
        newest = [*dict.fromkeys(id_ for each in reversed(fates.ended(m.t)) for id_ in each.ids)]
        lately = [verdicts[id_] for id_ in newest[:BRAKE_WRITES]]
        refused = lately.count("refused")
        if refused * 2 <= len(lately):
            yield f"{title} refused {refused} of the last {len(lately)} writes"
        return
    if words.startswith("has no credential"):
        yield from _no_credential(m, title, accounts)
        return
    for phrase, kinds in _KINDS.items():
        if not words.startswith(phrase):
            continue
        if phrase == "is down" and fates.upstream.is_away(m.t):
            return
        for account in accounts:
            latest = fates.latest(m.t, account)
            back = [each for begin, end in fates.upstream.away if end <= m.t for each in [end]]
            if back and (not latest or latest[-1].ended < back[-1]):
                continue  # not asked since it is back
            if not any(each.kind in kinds for each in latest):
                yield f"{title} answered last: {[(e.kind, e.status) for e in latest]}"


def _no_credential(m: Moment, title: str, accounts: Sequence[str | None]) -> Complaints:
    if title == "OTLP" and m.fates(title).ended(m.t, m.began):
        yield "it was asked"
    for account in accounts:
        mine = [each for each in m.books.posts if each.account == account]
        if account is not None and any(m.began <= each.at <= m.t for each in mine):
            yield f"an agent of {account} has sent its key"


@claim(
    rf"(?P<trouble>{_TROUBLE}): (?:(?P<error>[^;]+); )?(?P<attempt>an attempt is under way|next attempt "
    rf"(?:in (?P<in>{DURATION})|now|with the next span(?:, in (?P<earliest>{DURATION}) at the earliest)?))"
    rf"(?:; its room will be full in (?P<full>{DURATION}) at this rate)?",
    rf"(?P<trouble>{TITLE} has no credential(?: for accounts? [\w, -]+)?): waiting for a key file or an "
    r"agent's key",
    r"(?P<trouble>OTLP has no credential): waiting for its file of credentials",
)
def trouble(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["trouble"].split(" ", 1)[0]
    fates, groups = m.fates(title), found.groupdict()
    yield from why_not(m, found["trouble"])
    if groups.get("error"):
        yield from same_error(m, title, groups["error"])
    attempt = groups.get("attempt") or ""
    depth = fates.depth(m.t)
    if (
        attempt == "an attempt is under way"
        and not fates.under_way(m.t)
        and not fates.upstream.is_away(m.t)
    ):
        yield f"no request to {title} is under way"
    if attempt.startswith("next attempt with the next span") and depth.least:
        yield f"{depth.least:.0f} writes wait"
    if groups.get("in"):
        said = seconds(groups["in"])
        named = re.search(r" (?:for|of) accounts? ([\w-]+)$", found["trouble"])
        # Of this very moment, a request may be the one before.
        begin = m.t + (0.001 if said.least > 0.002 else 0.0)
        nexts = [
            each.at
            for each in fates.exchanges
            if each.at > begin and (named is None or each.account == named[1])
        ]
        away = fates.upstream.is_away(m.t + said.most) or fates.upstream.is_away(m.t)
        if named is not None and _new_key(m, named[1], said.most):
            return  # it is tried at once
        ends = m.books.process(m.t).told
        if nexts and not away and m.t + said.most < ends and nexts[0] < m.t + said.least - 0.2:
            yield f"the next request came after {nexts[0] - m.t:.1f} s"
        if (
            not away
            and m.t + said.most + 5.0 < ends
            and (not nexts or nexts[0] > m.t + said.most + 2.0)
        ):
            yield f"the next request came after {(nexts or [FOREVER])[0] - m.t:.1f} s"
    yield from optional(m, found, title)


def _has_no_key(m: Moment, title: str, error: str | None) -> bool:
    """Whether writes wait because no agent has sent a key, as the error has to say."""
    early = not any(each.kind for each in m.fates(title).ended(m.t))
    return early and error == "no credential yet"


def _new_key(m: Moment, account: str, within_s: float) -> bool:
    """Whether an agent of an account comes with another key in the next seconds."""
    posts = [each for each in m.books.posts if each.account == account]
    before = {each.key for each in posts if each.at <= m.t}
    return any(m.t < e.at <= m.t + within_s and e.key not in before for e in posts)


@claim(rf"(?P<title>{TITLE}) could not be reached at the start: (?P<error>.+), (?P<ago>{AGO})")
def unreachable(m: Moment, found: re.Match[str]) -> Complaints:
    fates = m.fates(found["title"])
    if fates.ended(m.t, m.began):
        yield f"{found['title']} was asked since"
    yield from same_error(m, found["title"], found["error"])


@claim(
    rf"(?:A write to (?P<one>{TITLE}) waits for its|Writes to (?P<many>{TITLE}) wait for their) next "
    rf"attempt: (?P<n>{COUNT}) writes?(?:; last error (?P<ago>{AGO}): (?P<error>.+))?"
)
def retrying(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["one"] or found["many"]
    fates = m.fates(title)
    waiting, _ = fates.waiting(m.t)
    if _has_no_key(m, title, found["error"]):
        return
    busy = {id_ for each in fates.under_way(m.t) for id_ in each.ids}
    failed: dict[str, str] = {}
    for each in fates.ended(m.t):
        for id_ in each.ids:
            failed[id_] = each.kind
    real = sum(failed.get(id_, "ok") != "ok" and id_ not in busy for id_ in waiting)
    if fates.upstream.away:  # it has no book of the connections that it did not take
        if count(found["n"]) > len(waiting):
            yield f"only {len(waiting)} writes wait"
    elif real != count(found["n"]):
        yield f"{real} writes to {title} have failed and wait"
    if (found["n"] == "1") != bool(found["one"]):
        yield f"{found['n']} wait"
    if found["error"]:
        yield from same_error(m, title, found["error"], found["ago"])


@claim(
    rf"Writes to (?P<title>{TITLE}) wait after an error: (?P<error>.+?), (?P<ago>{AGO}); (?P<n>{COUNT}) writes? "
    rf"(?:is|are) waiting(?:; caught up in (?P<caught>{DURATION}) at this rate)?"
)
def failed(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    yield from same_error(m, title, found["error"], found["ago"])
    yield from same_count(m, title, found["n"])
    yield from optional(m, found, title)


@claim(
    rf"(?P<title>{TITLE}) is getting its backlog: (?P<n>{COUNT}) writes? (?:is|are) waiting"
    rf"(?:; caught up in (?P<caught>{DURATION}) at this rate)?"
    rf"(?:; last error (?P<ago>{AGO}): (?P<error>.+))?"
)
def backlog(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    fates = m.fates(title)
    yield from same_count(m, title, found["n"])
    yield from optional(m, found, title)
    if found["error"]:
        yield from same_error(m, title, found["error"], found["ago"])
    waiting, _ = fates.waiting(m.t)
    if not fates.delivered(m.t - 60.0, m.t + 60.0) and waiting:
        yield f"nothing arrives at {title}"
    troubled = [each for each in fates.ended(m.t) if each.kind != "ok"]
    inherited = m.has_inherited
    if not troubled and not fates.upstream.away and not inherited and not found["error"]:
        yield f"{title} has had no outage"


@claim(
    rf"(?P<title>{TITLE}) takes long to answer: (?P<asked>{COUNT}) requests? (?:is|are) under way; "
    rf"(?P<n>{COUNT}) writes? (?:is|are) waiting"
)
def slow_answer(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    fates = m.fates(title)
    asked = len(fates.under_way(m.t))
    yield from _number(count(found["asked"]), Range(asked, asked), "requests are under way")
    yield from same_count(m, title, found["n"])
    yield from _not_failing(fates, m)
    if fates.ended(m.t, m.t - 1.9):
        yield f"{title} answers"


def _not_failing(fates: Fates, m: Moment) -> Complaints:
    troubled = [e for e in fates.ended(m.t, m.t - 30.0) if e.kind not in {"ok", "refused"}]
    if troubled:
        yield f"requests failed: {[(e.kind, e.status) for e in troubled[-3:]]}"


@claim(
    rf"(?P<title>{TITLE}) is slower than the agents: (?P<n>{COUNT}) writes? (?:is|are) waiting, at most "
    rf"(?P<limit>{COUNT}) concurrent requests?(?:; caught up in (?P<caught>{DURATION}) at this rate)?"
)
def slower(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    fates = m.fates(title)
    yield from same_count(m, title, found["n"])
    yield from _not_failing(fates, m)
    yield from optional(m, found, title)
    if count(found["limit"]) > m.books.concurrency[LANES[title]]:
        yield "the configured limit is lower"
    busy = max((e.ended - e.at for e in fates.ended(m.t, m.t - 6.2)), default=0.0)
    if busy < 0.2:
        yield f"{title} answers within {busy:.2f} s, or not at all"


_EFFECT = (
    rf"(?:(?P<refused>agents get 429)|(?P<again>{TITLE}) gets no new spans; "
    rf"(?:(?P<other>{TITLE}(?: and {TITLE})? (?:is|are)) not affected|(?P<all>agents get 429 while no upstream has room)))"
)


@claim(rf"The room for (?P<title>{TITLE}) is full: {_EFFECT}")
def full(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    missed = [at for at in m.fates(title).not_taken.values() if m.t - 7.0 < at <= m.t]
    if not missed and not any(each.status == 429 for each in m.books.rejections(m.t - 7.0, m.t)):
        yield "everything was taken"
    yield from _others(m, found)


def _others(m: Moment, found: re.Match[str]) -> Complaints:
    others = re.findall(TITLE, found["other"] or "")
    if found["again"] and (found["again"] != found["title"] or found["title"] in others):
        yield "it names the wrong upstream"
    if found["other"] and (len(others) > 1) != found["other"].endswith(" are"):
        yield f"{len(others)} are named"
    for other in others:
        missed = m.fates(other).not_taken.values()
        if any(m.t - 4.9 < at <= m.t for at in missed):
            yield f"{other} is affected"
    if found["refused"] and len(m.titles()) > 1:
        yield "another upstream may have room"
    if found["all"] and not all(m.fates(title).depth(m.t).least for title in m.titles()):
        yield "an upstream has nothing to wait for"


@claim(
    rf"The room for (?P<title>{TITLE}) is (?P<share>\d+)% full: (?:it will be full in (?P<full>{DURATION}) "
    rf"at this rate; )?once it is full, {_EFFECT}"
)
def room(m: Moment, found: re.Match[str]) -> Complaints:
    title = found["title"]
    fates = m.fates(title)
    yield from optional(m, found, title)
    if found["full"] and any(m.t - 2.0 < at <= m.t for at in fates.not_taken.values()):
        yield "it is full: writes are not taken"
    yield from _share(m, fates, int(found["share"]), title)
    yield from _others(m, found)


def _share(m: Moment, fates: Fates, said: int, title: str) -> Complaints:
    """A share of what waits when the room is full."""
    full = list(fates.not_taken.values())
    refused = [each.at for each in m.books.posts if each.status == 429]
    at = min([*full, *refused], default=FOREVER)
    if at == FOREVER:
        # Never full: how large it is at least, and how much a span needs beside its JSON at most.
        room, now = 0.3 * m.books.queue_bytes, fates.depth(m.t)
        if 2 * (fates.size(m.t).most + 4096 * now.most) < room * said / 100:
            yield f"{now.most:.0f} writes wait for {title}, with room for {room:.0f} bytes"
        return
    most, now = fates.size(at).most, fates.size(m.t)
    if most and not 100 * now.least / most - 6 <= said <= 100 * now.most / most + 6:
        yield f"{now.most:.0f} bytes wait for {title}, of {most:.0f} for which there was room"


@claim(r"(?:Memory for spans|The spool) is \d+% full: requests that do not fit get 429")
def memory(m: Moment, _: re.Match[str]) -> Complaints:
    if not any(each.status == 429 for each in m.books.rejections(m.t - 7.0, m.t)):
        yield "no request got 429"


@claim(
    rf"(?P<head>Dead letters are not kept|Not now): (?P<n>{COUNT}) dead letters? (?P<verb>is|are) not in "
    rf"the file, for lack of room or because its disk failed, (?:the last )?(?P<ago>{AGO})"
)
def not_kept(m: Moment, found: re.Match[str]) -> Complaints:
    books = m.books
    times = [
        each.ended
        for title in m.titles()
        for each in m.dead(title).values()
        if any(begin <= each.ended < end for begin, end in books.letters_failed)
    ]
    # A file that is written on a thread is noticed with the next look.
    least = sum(at <= m.t - TICK_S for at in times)
    yield from _number(count(found["n"]), Range(least, len(times)), "letters are not kept")
    yield from _plural(found["n"], found["verb"])
    yield from _last(m, found["ago"], times)
    if (found["head"] == "Not now") != (m.t - max(times, default=0.0) > RECENT_S):
        yield "it is as long ago as that" if found["head"] != "Not now" else "it was just now"


@claim(r"The container uses (?P<share>\d+)% of its memory: at 100% the kernel kills the container")
def container(m: Moment, found: re.Match[str]) -> Complaints:
    limit = m.books.memory_limit
    used = m.books.rss[m.t] / limit if limit else 0.0
    if abs(100 * used - int(found["share"])) > 1:
        yield f"it uses {used:.0%}"
    elif used < 0.9:
        yield "that is no reason to worry"


@claim(rf"Log lines were dropped: (?P<n>{COUNT}) lines? in the last minute")
def dropped(m: Moment, found: re.Match[str]) -> Complaints:
    lines = m.books.dropped
    real = [sum(m.t - window < at <= m.t for at in lines) for window in range(58, 68)]
    yield from _number(count(found["n"]), Range(min(real), max(real)), "lines were dropped")


@claim(r"Agents send what can't be accepted: refused in the last seconds: (?P<why>[a-z, ]+)")
def bad_events(m: Moment, found: re.Match[str]) -> Complaints:
    theirs = [e for e in m.books.rejections(m.t - 7.0, m.t) if e.status not in {429, 503}]
    if not theirs:
        yield "nothing like that was sent"
    if "malformed" in found["why"] and not any(each.status == 400 for each in theirs):
        yield "no request was malformed"
    if "invalid" in found["why"] and not any(each.status in {202, 422} for each in theirs):
        yield "no event was invalid"


_UP = (
    rf"(?P<names>{TITLE}(?:, {TITLE})*(?: and {TITLE})?) (?P<words>answered when last asked|"
    r"(?:has|have) not answered yet|(?:was|were) not asked yet)"
)


@claim(
    r"(?P<head>All is well|Nothing is wrong now): (?P<up>(?:[^;]+))(?P<spare>; there is capacity to spare)?"
)
def well(m: Moment, found: re.Match[str]) -> Complaints:
    named: list[str] = []
    if left := re.sub(_UP, "", found["up"]).strip(", "):
        yield f"unknown: {left}"
    for match in re.finditer(_UP, found["up"]):
        titles = re.findall(TITLE, match["names"])
        named += titles
        for title in titles:
            yield from _is_up(m, title, match["words"])
        plural = match["words"].split(" ")[0]
        if plural in {"has", "have", "was", "were"} and (len(titles) > 1) != (
            plural in {"have", "were"}
        ):
            yield f"{len(titles)} {plural}"
    if sorted(named) != sorted(m.titles()):
        yield f"it names {named}"
    yield from on_time(m)
    for title in m.titles():
        yield from _no_trouble(m, title)
        if found["head"] == "All is well" and (missed := m.missed_lately(title)):
            yield f"{title} did not get {missed} writes"
    if found["head"] == "All is well" and m.letters() and m.t - m.began > 10.0:
        yield f"{m.letters()} dead letters wait for a replay"
    if m.books.rejections(m.t - 4.0, m.t - TICK_S):
        yield "events were rejected in the last seconds"
    if any(begin + 12.0 <= m.t <= end for begin, end in m.books.disk_failed):
        yield "the disk can't be used"
    if m.t > m.books.process(m.t).told + 0.1:
        yield "it was told to stop"


def _is_up(m: Moment, title: str, words: str) -> Complaints:
    fates = m.fates(title)
    latest = [each for each in fates.latest(m.t) if each.at >= m.began]
    if words == "answered when last asked":
        # Any answer: what it means for what waits is judged for itself.
        if not any(each.status for each in latest):
            yield f"{title} answered last: {[(e.kind, e.status) for e in latest]}"
    elif latest:
        yield f"{title} has answered"
    elif "not asked" in words and fates.under_way(m.t):
        yield f"a request to {title} is under way"
    elif "not answered" in words and not fates.under_way(m.t) and not fates.upstream.is_away(m.t):
        yield f"no request to {title} is under way"


def _no_trouble(m: Moment, title: str) -> Complaints:
    fates = m.fates(title)
    last = [each for each in fates.failing(m.t) if each.at >= m.began]
    if last and fates.depth(m.t).least and m.t - last[-1].ended > 0.1:
        yield f"{title} failed last: {[(e.kind, e.status) for e in last]}"
    if fates.upstream.is_away(m.t) and fates.oldest(m.t).least > TICK_S:
        yield f"{title} does not listen"
