"""The books of the truth test, kept by the agent and the upstreams, and never by the sidecar.

`Books` has what the agent posted and was answered, what each upstream was sent and answered, and
when. A scenario is judged when it is over: only then is it known that a write never arrived. All
times are loop times in seconds.
"""

import asyncio
import json
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import unquote

from sidecar.demo.stand_in import Answer, Recorded, Reset, Rule, Scripted, StandIn
from tests.support.otlp import OtlpStandIn, decoded, span_id, spans_in

Json = dict[str, Any]

TITLES = {"agentex": "Agentex", "sgp": "SGP", "otlp": "OTLP"}
# The lane that gets no open writes.
WHOLE_ONLY = "otlp"
# Statuses with which an upstream refuses a write for its content, or for its size.
REFUSALS = {400, 409, 413, 422}
FOREVER = float("inf")
# How exactly the end of a hold is known.
SLACK_S = 0.6


class Posted(NamedTuple):
    """One event that an agent posted; `status` and `at` are those of the response."""

    at: float
    id: str
    kind: str  # start, end
    status: int
    is_accepted: bool
    account: str
    key: str
    size: int = 0  # bytes of JSON


class Exchange(NamedTuple):
    """One request to an upstream; `kind` says how it ended, "" while it is under way."""

    at: float
    ended: float
    kind: str  # ok, refused, unauthorized, later, failed, silent, reset
    status: int
    writes: tuple[tuple[str, bool], ...]  # span id, whether it is complete
    account: str
    not_kept: int = 0  # how many of them the upstream said that it did not keep

    @property
    def ids(self) -> list[str]:
        return [id_ for id_, _ in self.writes]


class Range(NamedTuple):
    """What a number can be, as far as the books know."""

    least: float
    most: float


@dataclass
class Upstream:
    """What one upstream was sent, and answered."""

    name: str
    stand_in: StandIn
    away: list[tuple[float, float]] = field(default_factory=list)  # when it did not listen
    scripted: dict[int, Scripted] = field(default_factory=dict)

    def follow(self, rule: Rule | None) -> None:
        """Respond by `rule` from now on, and remember what it said."""
        if rule is None:
            self.stand_in.rule = None
            return

        def remembered(request: Recorded) -> Scripted:
            said = rule(request)
            self.scripted[id(request)] = said
            return said

        self.stand_in.rule = remembered

    @cached_property
    def exchanges(self) -> list[Exchange]:
        """All requests, in the order in which they ended."""
        return sorted(map(self._exchange, self.stand_in.requests), key=lambda each: each.ended)

    def _exchange(self, request: Recorded) -> Exchange:
        ended = FOREVER if request.ended is None else request.ended
        account = request.headers.get("x-selected-account-id", "")
        kind, writes, not_kept = self._kind(request), self._writes(request), 0
        if isinstance(self.stand_in, OtlpStandIn) and kind == "ok":
            not_kept = sum(map(self.stand_in.rejected, spans_in(decoded(request))))
            # What keeps nothing has refused all of it.
            kind = "refused" if not_kept == len(writes) else "ok"
        status = request.status or 0
        return Exchange(request.at, ended, kind, status, writes, account, not_kept)

    def _writes(self, request: Recorded) -> tuple[tuple[str, bool], ...]:
        if isinstance(self.stand_in, OtlpStandIn):
            return tuple((span_id(each), True) for each in spans_in(decoded(request)))
        if request.method == "GET":
            return ()
        body = json.loads(request.body) if request.body else {}
        if "items" in body:
            return tuple((i["id"], i.get("end_timestamp") is not None) for i in body["items"])
        id_ = body.get("id") or unquote(request.path.rpartition("/")[2])
        return ((id_, body.get("end_time") is not None),)

    def _kind(self, request: Recorded) -> str:
        said = self.scripted.get(id(request))
        status = request.status
        if status is None:
            return "reset" if isinstance(said, Reset) else "silent"
        if 200 <= status < 300:
            return "ok"
        if isinstance(said, Answer) and "Retry-After" in said.headers:
            return "later"
        if status in {401, 403}:
            return "unauthorized"
        if status in REFUSALS:
            return "refused"
        # Agentex says 404 of a span that it does not have: that is an answer.
        return "refused" if status == 404 and said is None else "failed"

    def is_away(self, t: float) -> bool:
        return any(begin <= t < end for begin, end in self.away)

    async def go(self) -> None:
        """Stop listening: connections are reset."""
        self.away.append((self._now(), FOREVER))
        self._port = self.stand_in.port
        await self.stand_in.stop()

    async def come_back(self) -> None:
        """Listen again, on the same port."""
        begin, _ = self.away.pop()
        await self.stand_in.start(self._port)
        self.away.append((begin, self._now()))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


@dataclass
class Process:
    """One life of the sidecar: when it began, was told to stop, and had ended."""

    started: float
    grace_s: float
    told: float = FOREVER
    ended: float = FOREVER


@dataclass
class Books:
    """Everything that can be known about a scenario without asking the sidecar."""

    upstreams: dict[str, Upstream]
    posts: list[Posted] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    replayed: tuple[float, float] = (FOREVER, FOREVER)  # when `sidecar replay` ran
    letters_gone_at: float = FOREVER  # when their file was moved away
    disk_failed: list[tuple[float, float]] = field(default_factory=list)
    letters_failed: list[tuple[float, float]] = field(default_factory=list)
    memory_limit: int | None = None  # of the container, in bytes
    rss: dict[float, int] = field(default_factory=dict)  # bytes used, by time
    dropped: list[float] = field(default_factory=list)  # when a log line was
    hold_s: float = 2.0
    has_spool: bool = False
    queue_bytes: int = 2**26
    keeps_letters: bool = True
    concurrency: dict[str, int] = field(
        default_factory=lambda: {"agentex": 64, "sgp": 8, "otlp": 8}
    )

    # What was accepted.

    def process(self, t: float) -> Process:
        """The process at `t`."""
        return [each for each in self.processes if each.started <= t][-1]

    def accepted(self, kind: str = "", since: float = -1.0, until: float = FOREVER) -> list[Posted]:
        return [
            each
            for each in self.posts
            if each.is_accepted and kind in {"", each.kind} and since < each.at <= until
        ]

    def rejections(self, since: float, until: float) -> list[Posted]:
        return [each for each in self.posts if not each.is_accepted and since < each.at <= until]

    @cached_property
    def _first(self) -> dict[str, dict[str, float]]:
        """When START and END of each span were first accepted."""
        found: dict[str, dict[str, float]] = {"start": {}, "end": {}}
        for each in self.accepted():
            found[each.kind].setdefault(each.id, each.at)
        return found

    @cached_property
    def sizes(self) -> dict[tuple[str, str], int]:
        """Bytes of each accepted event by id and kind."""
        return {(each.id, each.kind): each.size for each in self.accepted()}

    # What became of a lane's writes.

    @cached_property
    def _fates(self) -> dict[str, "Fates"]:
        return {name: Fates(self, upstream) for name, upstream in self.upstreams.items()}

    def fates(self, lane: str) -> "Fates":
        """What became of the writes of a lane."""
        return self._fates[lane]

    def lanes(self) -> list[str]:
        return list(self.upstreams)


def range_of(when: tuple[float, float], exchanges: list[Exchange]) -> list[Exchange]:
    """The exchanges that began in a period."""
    return [each for each in exchanges if when[0] <= each.at <= when[1]]


class Fates:
    """What became of each span at one upstream."""

    def __init__(self, books: Books, upstream: Upstream) -> None:
        self.books, self.upstream = books, upstream
        starts, ends = books._first["start"], books._first["end"]
        if upstream.name == WHOLE_ONLY:
            starts = {id_: at for id_, at in starts.items() if id_ in ends}
        self.starts, self.ends = starts, ends
        # What `sidecar replay` sent is not the sidecar's.
        replayed = range_of(books.replayed, upstream.exchanges)
        self.exchanges = [each for each in upstream.exchanges if each not in replayed]
        self._by_end = [each.ended for each in self.exchanges]
        self.complete: dict[str, float] = {}  # when it had the whole span
        self.opened: dict[str, float] = {}
        self.last: dict[str, Exchange] = {}
        self._waiting: dict[float, tuple[dict[str, float], dict[str, float]]] = {}
        self._oldest: dict[int, float] = {}
        alone: set[str] = set()
        for each in self.exchanges:
            for id_, is_complete in each.writes:
                if each.kind == "ok":
                    (self.complete if is_complete else self.opened).setdefault(id_, each.ended)
                if is_complete or id_ not in ends:
                    self.last[id_] = each
                    if len(each.writes) == 1 and each.kind != "ok":
                        alone.add(id_)
        # When the upstream had it from `sidecar replay`.
        self.again = {id_: e.ended for e in replayed for id_ in e.ids if e.kind == "ok"}
        self.dead: dict[str, Exchange] = {}
        self.not_taken: dict[str, float] = {}  # when
        self.left: dict[str, float] = {}  # when the process ended with it
        for id_, at in {**starts, **ends}.items():
            self._settle(id_, at, id_ in alone)

    def _settle(self, id_: str, at: float, was_alone: bool) -> None:
        books = self.books
        done = self.complete if id_ in self.ends else {**self.complete, **self.opened}
        if id_ in done:
            return
        life = books.process(at)
        stays = books.has_spool and not any(a <= at < b for a, b in books.disk_failed)
        last = self.last.get(id_)
        was_tried = was_alone and last is not None and last.ended < life.told
        if was_tried and last is not None and last.kind == "refused":
            self.dead[id_] = last
        elif life.ended < FOREVER and not stays and self._is_troubled(life.told):
            self.left[id_] = life.ended
        elif was_tried and last is not None and last.kind != "ok":
            self.dead[id_] = last
        elif last is None:
            self.not_taken[id_] = at

    def _is_troubled(self, t: float) -> bool:
        """Whether it takes nothing."""
        return self.upstream.is_away(t) or bool(self.failing(t))

    def waiting(self, t: float) -> tuple[dict[str, float], dict[str, float]]:
        """The spans that the lane has to deliver at `t`, and since when, and what else it may have.

        That is STARTs that are about to be released, or that are in flight while their END waits.
        """
        if t not in self._waiting:
            self._waiting[t] = self._waiting_at(t)
        return self._waiting[t]

    def depth_about(self, t: float) -> float:
        """The most that waits in the second of `t`."""
        return max(self.depth(at).most for at in (int(t), int(t) + 1))

    def oldest_about(self, t: float) -> float:
        """The most that the oldest has waited in the second of `t`."""
        second = int(t)
        if second not in self._oldest:
            self._oldest[second] = max(self.oldest(at).most for at in (second, second + 1))
        return self._oldest[second]

    def _waiting_at(self, t: float) -> tuple[dict[str, float], dict[str, float]]:
        found: dict[str, float] = {}
        more: dict[str, float] = {}
        hold = FOREVER if self.upstream.name == WHOLE_ONLY else self.books.hold_s
        for id_, at in self.ends.items():
            if at > t or id_ in self.not_taken or self._is_over(id_, t):
                continue
            if self.complete.get(id_, FOREVER) > t:
                found[id_] = at
                start = self.starts.get(id_, FOREVER)
                if start <= t < self.opened.get(id_, FOREVER) and at - start >= hold - SLACK_S:
                    more[id_] = start
        for id_, at in self.starts.items():
            released = at + hold
            if self.ends.get(id_, FOREVER) <= t or released - SLACK_S > t:
                continue
            if id_ in self.not_taken or self._is_over(id_, t):
                continue
            if self.opened.get(id_, FOREVER) > t:
                (more if released + SLACK_S > t else found)[id_] = at
        return found, more

    def _is_over(self, id_: str, t: float) -> bool:
        """Whether it is a dead letter, or was left when the process ended."""
        return (id_ in self.dead and self.dead[id_].ended <= t) or self.left.get(id_, FOREVER) <= t

    def depth(self, t: float) -> Range:
        """How many writes are waiting."""
        counts = []
        for at in (t, t - 0.02):
            found, more = self.waiting(at)
            counts += [len(found), len(found) + len(more)]
        return Range(min(counts), max(counts))

    def size(self, t: float) -> Range:
        """How many bytes of JSON are waiting."""
        found, more = self.waiting(t)
        sizes = self.books.sizes
        least = sum(sizes.get((id_, "end" if id_ in self.ends else "start"), 0) for id_ in found)
        return Range(least, least + sum(sizes.get((id_, "start"), 0) for id_ in more))

    def oldest(self, t: float) -> Range:
        """The age of the oldest one; a START may count as the beginning of its span's END."""
        found, more = self.waiting(t)
        since = {id_: min(at, self.starts.get(id_, FOREVER)) for id_, at in found.items()}
        least = max([t - at for at in found.values()], default=0.0)
        most = max([t - at for at in (*since.values(), *more.values())], default=0.0)
        return Range(least, most)

    def ended(self, t: float, since: float = -1.0) -> list[Exchange]:
        """The exchanges that have ended, in order."""
        return [
            each for each in self.exchanges[: bisect_right(self._by_end, t)] if each.ended > since
        ]

    def not_kept(self, t: float, since: float) -> list[float]:
        """When the upstream said of each write that it did not keep it, without saying which."""
        kept = [each for each in self.ended(t, since) if each.kind == "ok"]
        return [each.ended for each in kept for _ in range(each.not_kept)]

    def under_way(self, t: float) -> list[Exchange]:
        return [each for each in self.exchanges if each.at <= t < each.ended]

    def latest(self, t: float, account: str | None = None) -> list[Exchange]:
        """The exchange that ended last, with those that ended at the same time."""
        known = [each for each in self.ended(t) if account in {None, each.account}]
        return [each for each in known if each.ended > known[-1].ended - 0.05]

    def failing(self, t: float) -> list[Exchange]:
        """What it answered last, if that was no answer to a write."""
        return [each for each in self.latest(t) if each.kind not in {"ok", "refused"}]

    def failing_since(self, t: float) -> float:
        """When the first request failed after the last one that did not; `t` if none did."""
        since = t
        for each in reversed(self.ended(t)):
            if each.kind in {"ok", "refused"}:
                break
            since = each.ended
        return since

    def failing_writes(self, t: float) -> set[str]:
        """The writes in the requests that failed after the last one that did not."""
        since = self.failing_since(t)
        return {id_ for each in self.ended(t) if each.ended >= since for id_ in each.ids}

    def delivered(self, since: float, until: float) -> list[tuple[Range, float]]:
        """How long each write took that was delivered in a period, and when that was."""
        found = []
        for id_, at in self.complete.items():
            if since < at <= until and id_ in self.ends:
                first = min(self.ends[id_], self.starts.get(id_, FOREVER))
                found.append((Range(at - self.ends[id_], at - first), at))
        for id_, at in self.opened.items():
            if since < at <= until and id_ in self.starts:
                took = at - self.starts[id_]
                found.append((Range(took, took), at))
        return found

    def late_times(self, late_s: float, t: float) -> float:
        """Until when something was late, as far as is known at `t`; -1 if nothing was."""
        last = -1.0
        for range_, at in self.delivered(-1.0, t):
            if range_.most >= late_s:
                last = max(last, at)
        for each in self.dead.values():
            for id_ in each.ids:
                if each.ended <= t and each.ended - self.ends.get(id_, FOREVER) >= late_s:
                    last = max(last, each.ended)
        return last


__all__ = [
    "FOREVER",
    "TITLES",
    "Books",
    "Exchange",
    "Fates",
    "Posted",
    "Process",
    "Range",
    "Upstream",
]
