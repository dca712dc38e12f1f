"""A sidecar between scripted upstreams and a scripted disk, for stateful tests in virtual time.

No sockets and no waiting: the test chooses how upstreams respond, when the disk completes a call or
fails it, when time passes, and when the process is killed.
"""

import asyncio
import shutil
import sqlite3
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sidecar.credentials import ACCOUNT_HEADER, KEY_HEADER, Accounts, Credentials, Secret
from sidecar.drain.branch import Branch
from sidecar.drain.failures import RetryPolicy
from sidecar.drain.lane import Lane
from sidecar.drain.throttle import Backoff, Throttle
from sidecar.drain.workers import Drain
from sidecar.http.messages import Request, Response
from sidecar.lanes import LANE_SHARE
from sidecar.listener.ingest import Ingest
from sidecar.listener.refusals import Limits
from sidecar.listener.routes.ingest import IngestRoute
from sidecar.queue.admission import Admission, QueueFull
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.room import SPARE
from sidecar.queue.span_queue import SpanQueue
from sidecar.recovery import SpoolRecovery
from sidecar.sinks import Misdirected, Refused, Sink, SinkError, TooLarge, Unauthorized, Unavailable
from sidecar.sinks.credential_file import CredentialFile, key_as
from sidecar.spans.span import PAYLOADS, SPAN_OVERHEAD, Span
from sidecar.spool.disk_spool import DiskSpool
from sidecar.spool.rows import Backlog, Changes, StoredRow
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import SpoolFile
from sidecar.telemetry.accounting import IntakeAccounting, LaneAccounting
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import IntakeMetrics, LaneMetrics
from tests.support.upstream_connection import new_dialer
from tests.support.virtual_time import VirtualTimeLoop

_T = TypeVar("_T")

MAX_BYTES = 60_000
SPOOL_BYTES = 2 * 2**20
HOLD_S, TTL_S = 2.0, 30.0
MAX_ATTEMPTS = 4
# Longer than any write that an upstream takes alone may wait for its delivery.
LIVE_S = 2_000.0
START_S = 20.0  # the longest that a process may take to open its ports
ALL_LANES = 3
OF = "of "  # what the name of a span begins with if the rest of it is its account

OUTCOMES: dict[str, Callable[[], SinkError | None]] = {
    "ok": lambda: None,
    "unavailable": lambda: Unavailable("HTTP 503", 503),
    "throttled": lambda: Unavailable("HTTP 429", 429, retry_after=3.0),
    "internal error": lambda: Unavailable("HTTP 500", 500),
    "down": lambda: Unavailable("refused", reached=False),
    "refused": lambda: Refused("HTTP 422", 422),
    "too large": lambda: TooLarge("HTTP 413", 413),
    "unauthorized": lambda: Unauthorized("HTTP 401", 401),
    "misdirected": lambda: Misdirected("HTTP 404", 404),
    "timed out": lambda: Unavailable("timed out"),
    "a page": lambda: Misdirected("HTTP 200 that is not JSON", 200),
}
FAILURES = sorted(OUTCOMES.keys() - {"ok"})
# What an upstream, or a gateway in front of it, can say because of what was sent to it.
ABOUT_CONTENT = sorted(OUTCOMES.keys() - {"ok", "down"})
# After these, the upstream may have stored the batch all the same.
UNCERTAIN = {"unavailable", "internal error", "timed out"}


@dataclass(repr=False)
class Pending:
    """A request without a response yet."""

    batch: list[Span]
    response: asyncio.Future[None]

    def __repr__(self) -> str:
        return f"a request with {[f'{span.kind} {span.id}' for span in self.batch]}"


@dataclass
class Whims:
    """Answers that do not depend on the test's choice, but on what was sent, and when."""

    max_writes: int = 1_000
    when_larger: str = "timed out"
    hated: dict[str, str] = field(default_factory=dict)  # ids -> outcomes
    closed_until: float = 0.0  # loop time
    when_closed: str = "down"

    def outcome(self, batch: Sequence[Span], now: float) -> str | None:
        """The outcome for a batch at loop time `now`; None if there is no whim against it."""
        if now < self.closed_until:
            return self.when_closed
        if len(batch) > self.max_writes:
            return self.when_larger
        return next((self.hated[span.id] for span in batch if span.id in self.hated), None)


def label(span: Span) -> str:
    """What a test calls a span: its id, and whose it is (`OF`) if the test says so in its name."""
    return f"{span.id}{span.name}" if span.name.startswith(OF) else span.id


@dataclass(repr=False)
class Upstream:
    """An upstream whose responses the test chooses one by one, unless `whims` decide.

    `rows` has what it has stored, by `label`: the kind of the write and its input. `data` has the
    `data` of each row, and `not_taken` counts the writes that its lane had no room for.
    `failed_alone` counts the failures of each write that was sent alone. With `keys`, it has
    accounts, and accepts for each only the keys that it names.
    """

    name: str
    max_batch: int
    max_batch_bytes: int = 2**20
    data_follows: bool = False
    reasons: frozenset[str] = frozenset()
    repairs: bool = False
    stopped: bool = False
    orphans: int = 0  # supplements of spans that it does not have
    whims: Whims = field(default_factory=Whims)
    data: dict[str, bytes] = field(default_factory=dict)
    failed_alone: Counter[str] = field(default_factory=Counter)
    pending: list[Pending] = field(default_factory=list)
    rows: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    not_taken: Counter[str] = field(default_factory=Counter)
    keys: dict[str, set[str]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)  # of spans that came without an account
    always_ok: bool = False

    def __repr__(self) -> str:
        return self.name

    async def try_out(self) -> bool:
        """Nothing is tried out here."""
        return True

    def stopping(self) -> None:
        """Open writes have their `data` from now on."""
        self.stopped = True

    def skips(self, span: Span) -> str | None:
        """Nothing is skipped."""
        del span
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
        """Wait until the test responds."""
        del suspicion
        ids = [label(span) for span in batch]
        assert ids, "an empty batch was sent"
        assert len(ids) == len(set(ids)), "a span twice in one batch"
        in_flight = {label(span) for request in self.pending for span in request.batch}
        assert not in_flight.intersection(ids), "a span twice in flight"
        request = Pending(list(batch), asyncio.get_running_loop().create_future())
        if self.always_ok:
            self.respond(request, "ok", applied=True)
            await request.response
            return 0
        self.pending.append(request)
        try:
            await request.response
        finally:
            self.pending.remove(request)
        return 0

    def lacks(self, id_: str) -> bool:
        """Whether it has no write of the span, and still may get one."""
        return id_ not in self.rows and id_ not in self.dead

    def apply(self, request: Pending) -> None:
        """Store a batch, and check the order of its writes."""
        for span in request.batch:
            id_ = label(span)
            before = self.rows.get(id_)
            if span.is_supplement:
                self.orphans += before is None and id_ not in self.dead
                self.data[id_] = self.data.get(id_) or span.data
                continue
            assert not (span.kind == "open" and before is not None and before[0] == "complete")
            self.rows[id_] = (span.kind, span.input)
            if span.end_time is not None or self.stopped or not self.data_follows:
                self.data[id_] = span.data

    def respond(self, request: Pending, outcome: str, *, applied: bool) -> None:
        """Respond to one request; `applied`: store its batch although an error is reported."""
        now = request.response.get_loop().time()
        outcome = self.whims.outcome(request.batch, now) or outcome
        error = OUTCOMES[outcome]()
        if error is None or (applied and outcome in UNCERTAIN):
            self.apply(request)
        if error is None:
            request.response.set_result(None)
        else:
            if len(request.batch) == 1:
                self.failed_alone[label(request.batch[0])] += 1
            request.response.set_exception(error)

    def recover(self) -> None:
        """Accept everything from now on."""
        self.always_ok = True
        for request in self.pending:
            self.respond(request, "ok", applied=True)

    async def note_dead(self, span: Span, reason: str, error: SinkError) -> None:
        """Keep the id of a dead letter, which has to have failed alone."""
        del error
        needed = MAX_ATTEMPTS if reason == "failing" else 1
        assert self.failed_alone[label(span)] >= needed, "given up for the failures of others"
        self.dead.add(label(span))

    async def close(self) -> None:
        """Nothing to close."""


@dataclass
class AccountSink:
    """What the branch of one account sends through to an `Upstream` with accounts."""

    upstream: Upstream
    account: int
    credentials: Credentials

    def __post_init__(self) -> None:
        self.name, self.max_batch = self.upstream.name, self.upstream.max_batch
        self.max_batch_bytes = self.upstream.max_batch_bytes
        self.data_follows = self.upstream.data_follows
        self.reasons, self.repairs = self.upstream.reasons, self.upstream.repairs

    async def try_out(self) -> bool:
        """Nothing is tried out here."""
        return True

    def stopping(self) -> None:
        """Open writes have their `data` from now on."""
        self.upstream.stopping()

    def skips(self, span: Span) -> str | None:
        """Nothing is skipped."""
        return self.upstream.skips(span)

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
        """Send a batch under the account of the credentials, which has to be that of its spans."""
        assert {span.account for span in batch} == {self.account}, "a batch of several accounts"
        headers = self.credentials.headers()
        if headers is None:
            raise Unauthorized("no credential")
        account = headers[ACCOUNT_HEADER]
        for span in batch:
            # What came without an account belongs to one, and never to another.
            owner = span.name.removeprefix(OF) or self.upstream.owners.setdefault(span.id, account)
            assert owner == account, f"a span of {owner} goes out under {account}"
        if headers[KEY_HEADER] not in self.upstream.keys[account]:
            self.credentials.refused(headers)
            raise Unauthorized("HTTP 401", 401)
        unkept = await self.upstream.send(batch, suspicion=suspicion)
        self.credentials.accepted(headers)
        return unkept

    async def close(self) -> None:
        """Nothing to close."""


class RecordingLane(Lane):
    """A lane that notes which spans it had no room for."""

    upstream: Upstream
    noted = 0

    def not_taken(self, span: Span, start: Span | None) -> None:
        """Count it, and remember the span."""
        super().not_taken(span, start)
        self.upstream.not_taken[label(span)] += 1
        self.noted += 1


@dataclass
class Call:
    """A call on the disk's thread."""

    done: asyncio.Future[Any]
    run: Callable[[], Any]

    def complete(self) -> None:
        """Run it now."""
        try:
            result = self.run()
        except Exception as error:  # noqa: BLE001 (as a thread pool does)
            if not self.done.done():
                self.done.set_exception(error)
        else:
            if not self.done.done():
                self.done.set_result(result)


class DiskLoop(VirtualTimeLoop):
    """Virtual time; calls on threads run at once or, while `held`, when the test completes them."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.killed = False
        self.calls: deque[Call] = deque()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]  # noqa: ANN401
        """Run `func` on this thread: now, later, or never once the process was killed."""
        del executor
        call = Call(self.create_future(), partial(func, *args))
        if self.killed:
            return call.done
        self.calls.append(call)
        if not self.held:
            self.complete_calls()
        return call.done

    def complete_calls(self, count: int = 1_000) -> None:
        """Complete up to `count` calls that are waiting, oldest first."""
        while self.calls and count:
            count -= 1
            self.calls.popleft().complete()


class ScriptedFile(SpoolFile):
    """A spool file that fails when it is told to, before or after a call has had its effect."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        super().__init__(str(directory), max_bytes, sync_full=False)
        self.broken = False
        self.fails_once = ""  # "before" or "after"

    def _call(self, call: Callable[[], _T]) -> _T:
        when, self.fails_once = self.fails_once, ""
        if self.broken or when == "before":
            raise sqlite3.OperationalError("disk I/O error")
        result = call()
        if when == "after":
            raise sqlite3.OperationalError("disk I/O error")
        return result

    def open(self) -> Backlog:
        return self._call(super().open)

    def apply(self, changes: Changes) -> None:
        self._call(partial(super().apply, changes))

    def read(self, seqs: Iterable[int], max_bytes: int) -> list[StoredRow | None]:
        return self._call(partial(super().read, seqs, max_bytes))

    def shrink(self) -> None:
        self._call(super().shrink)

    def close(self) -> None:
        self._call(super().close)

    def damage(self, seq: int) -> bool:
        """Make the body of a row unreadable; whether there is such a row."""
        if self._connection is None or self._connection.in_transaction:
            return False
        statement = "UPDATE bodies SET body = ? WHERE seq = ?"
        return self._connection.execute(statement, (b"\xff", seq)).rowcount > 0

    def abandon(self) -> None:
        """What the kernel does when the process is killed."""
        super().close()
        self.unlock()


class Process:
    """One process: everything between the listener and the upstreams, on a loop of its own."""

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        directory: Path | None,
        spool_bytes: int = SPOOL_BYTES,
    ) -> None:
        self.upstreams = upstreams
        for upstream in upstreams:
            upstream.stopped = False
        self.loop = DiskLoop()
        self.file = None if directory is None else ScriptedFile(directory, spool_bytes)
        self.requests: list[tuple[asyncio.Task[int], Callable[[int], None]]] = []
        self.responses: list[tuple[asyncio.Task[Response], Callable[[Response], None]]] = []
        self.loop.run_until_complete(asyncio.wait_for(self._build(), START_S))

    async def _build(self) -> None:
        self.budget = MemoryBudget(MAX_BYTES)
        self.accounting = IntakeAccounting()
        self.spool = Spool()
        self.accounts = Accounts(by_request=any(upstream.keys for upstream in self.upstreams))
        if self.file is not None:
            self.spool = DiskSpool(self.file, ALL_LANES)
        self.accounts.registered = self.spool.name_account
        self.lanes = [self._lane(n, upstream) for n, upstream in enumerate(self.upstreams)]
        self.admission = Admission(
            self.lanes,
            self.budget,
            self.accounting,
            self.spool,
            Decisions(),
            hold_s=HOLD_S,
            ttl_s=TTL_S,
        )
        self.ingest = Ingest(
            self.admission,
            IntakeMetrics(self.accounting),
            self.lanes,
            Limits(self.budget, MAX_BYTES, 60.0, 8),
            self.accounts,
        )
        self.recovery = SpoolRecovery(
            self.spool, self.lanes, self.admission, self.accounting, self.accounts, ALL_LANES
        )
        await self.recovery.start()
        running = self.spool.run(), self.recovery.run()
        self.background = [self.loop.create_task(each) for each in running]
        self.drains = [self.loop.create_task(lane.run()) for lane in self.lanes]

    def _lane(self, number: int, upstream: Upstream) -> Lane:
        metrics = LaneMetrics(upstream.name, LaneAccounting(), Decisions())
        share = int(MAX_BYTES * LANE_SHARE) if self.file is not None else 0
        build = partial(self._branch, number, upstream, metrics)
        lane = RecordingLane(
            1 << number,
            metrics,
            share,
            build,
            credential_file=CredentialFile("", key_as(KEY_HEADER)),
            dialer=new_dialer("http://127.0.0.1:9"),
            one_branch=not upstream.keys,
        )
        lane.upstream = upstream
        if upstream.keys:
            self.accounts.named.append(lane.name_account)
        return lane

    def _branch(
        self, number: int, upstream: Upstream, metrics: LaneMetrics, account: int
    ) -> Branch:
        backoff = Backoff(0.5, 30.0)
        bit = 1 << number
        queue = SpanQueue(self.budget, metrics.accounting, bit, spool=self.spool, account=account)
        throttle = Throttle(backoff, 4, lambda: 0.5)
        credentials = Credentials({}, relay=False, required=False)
        sink: Sink = upstream
        if upstream.keys:
            names = {KEY_HEADER: Secret(""), ACCOUNT_HEADER: Secret(self.accounts.id_of(account))}
            credentials = Credentials(names, relay=True, required=True)
            sink = AccountSink(upstream, account, credentials)
        drain = Drain(
            sink,
            queue,
            throttle,
            RetryPolicy(backoff, 1e9, MAX_ATTEMPTS, lambda: 0.5),
            metrics,
            linger_s=0.1 if number else 0.0,
            dead_letter=upstream.note_dead,
        )
        return Branch(account, sink, credentials, queue, throttle, drain)

    def post(self, spans: Span | Sequence[Span], accepted: Callable[[int], None]) -> None:
        """Pass the events of a request on as the listener does.

        `accepted` is called when they are acknowledged, with the bits of the lanes that take them.
        Raises `QueueFull` or `RequestTooLarge` if they are refused at once.
        """
        spans = [spans] if isinstance(spans, Span) else spans
        for span in spans:
            span.accepted_at = self.loop.time()
        self._receive(sum(span.size - SPAN_OVERHEAD for span in spans))
        if self.file is None:
            accepted(self._in_loop(partial(self.admission.take, spans)))
            return
        task = self.loop.create_task(self.admission.take_durably(spans))
        self.requests.append((task, accepted))

    def _in_loop(self, function: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return function()

        return self.loop.run_until_complete(call())

    def _receive(self, size: int) -> None:
        """The body of a request arrives, as far as it concerns the budget."""
        self.budget.reading += size
        fits = self.budget.has_room_for_bodies()
        self.budget.reading -= size
        if not fits:
            raise QueueFull

    def send(
        self, body: bytes, headers: dict[bytes, bytes], done: Callable[[Response], None]
    ) -> None:
        """Send a request to `POST /v1/spans`; `done` is called with its response."""
        named = {b"content-type": b"application/json"} | headers
        request = Request("POST", "/v1/spans", "/v1/spans", named)
        route = IngestRoute(self.admission.open_spans.started)
        if self.ingest.must_wait():
            task = self.loop.create_task(self.ingest.respond(route, request, body))
            self.responses.append((task, done))
        else:
            done(self._in_loop(partial(self.ingest.respond_now, route, request, body)))

    def run_ready(self) -> None:
        """Run the loop until only time, the disk or an upstream could change anything."""
        for _ in range(20):
            self.loop.run_until_complete(asyncio.sleep(0))
        for task in [*self.drains, *self.background]:
            if task.done():
                task.result()
        taken = [each for each in self.requests if each[0].done()]
        self.requests = [each for each in self.requests if not each[0].done()]
        for request, accepted in taken:
            if not isinstance(request.exception(), Exception):
                accepted(request.result())
        answered = [each for each in self.responses if each[0].done()]
        self.responses = [each for each in self.responses if not each[0].done()]
        for response, done in answered:
            done(response.result())

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self.run_ready()

    def check(self) -> None:
        """Every event and write is accounted for; memory is bounded."""
        assert self.accounting.imbalance == 0
        for lane in self.lanes:
            assert lane.imbalance == 0
            assert isinstance(lane, RecordingLane)
            assert lane.accounting.not_taken.total() == lane.noted
        assert 0 <= self.budget.used <= 2 * self.budget.limit
        opened = self.admission.open_spans._spans.values()
        for lane in self.lanes:
            promised = sum(lane.room.promised_to(each) for each in opened)
            assert lane.room.promised == promised, "room is kept for nothing"
            queued = sum(span.size for span in in_memory(lane))
            assert lane.room.used == queued + promised
        if self.file is None:
            self._check_rooms()

    def _check_rooms(self) -> None:
        """No lane has more than its share, but for ENDs; and all together are within the budget."""
        limit, spare = self.admission.rooms.limit, int(MAX_BYTES * SPARE)
        assert limit * len(self.lanes) + spare <= MAX_BYTES
        over = [max(0, lane.room.used - limit) for lane in self.lanes]
        assert sum(over) <= spare, f"more than the spare room is used: {over}"
        spans = [each.start for each in self.admission.open_spans._spans.values()]
        for lane in self.lanes:
            spans += in_memory(lane)
        payloads = [getattr(span, name) for span in spans for name in PAYLOADS]
        used = SPAN_OVERHEAD * len({id(span) for span in spans})
        used += sum(len(each) for each in {id(payload): payload for payload in payloads}.values())
        assert used <= MAX_BYTES, "more memory is used than is allowed"

    def housekeeping(self) -> None:
        """What the app does every second."""
        self.spool.tick()
        self.run_ready()

    def lost(self) -> list[int]:
        """Lost writes by lane, as counted."""
        return [lane.metrics.accounting.lost.total() for lane in self.lanes]

    def kill(self, *, disk_call_done: bool) -> None:
        """End without any cleanup; the disk's current call has had its effect or not."""
        self.loop.killed = True
        if disk_call_done:
            self.loop.complete_calls(1)
        self.loop.calls.clear()
        if self.file is not None:
            self.file.abandon()
        self._end()

    def stop(self) -> None:
        """Stop in the app's order, without a grace period."""
        self.loop.held = False
        self.loop.complete_calls()
        self.run_ready()
        self.admission.release_held()
        for lane in self.lanes:
            lane.close()
        self.pass_time(0.01)
        self._run(self._stop())
        self.check()
        self._end()

    async def _stop(self) -> None:
        for task in [*self.drains, *self.background]:
            task.cancel()
        await asyncio.gather(*self.drains, *self.background, return_exceptions=True)
        await self.spool.close()
        for lane in self.lanes:
            left, rows = lane.abandon()
            lane.ended(len(left) + rows, [])

    def finish(self) -> None:
        """Deliver everything, now that upstreams and disk work, and stop."""
        self.loop.held = False
        self.loop.complete_calls()
        self.pass_time(20.0)  # the disk is tried again every few seconds
        for upstream in self.upstreams:
            upstream.recover()
        self.pass_time(LIVE_S)
        for upstream, lane in zip(self.upstreams, self.lanes, strict=True):
            left = in_memory(lane)
            ids = {span.id for span in left}
            assert ids <= upstream.whims.hated.keys(), "a write that would be taken is not sent"
            crowded = sum(span.size for span in left) >= min(
                branch.queue.share for branch in lane.branches.values()
            )
            assert not lane.on_disk or crowded, "a write is not even in memory"
            upstream.whims = Whims()
            for branch in lane.branches.values():
                branch.drain.probe()
        self.pass_time(2 * TTL_S)  # kept STARTs are forgotten, and their `data` has followed
        self.admission.release_held()
        for lane in self.lanes:
            lane.close()
        self._run(asyncio.wait_for(_all(self.drains), 10_000))
        assert not self.requests
        assert not self.responses
        self.check()
        for lane in self.lanes:
            assert lane.depth == 0
        self.admission.open_spans.tick(self.loop.time() + 2 * TTL_S)
        assert len(self.admission.open_spans) == 0, "a START was never forgotten"
        assert self.budget.used == 0, "memory was never released"
        self._run(self._stop())
        self._end()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(coroutine)

    def _end(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        try:
            self._run(_ended(tasks))
        finally:
            self.loop.close()


def in_memory(lane: Lane) -> list[Span]:
    """All writes of a lane that are in memory."""
    spans: list[Span] = []
    for branch in lane.branches.values():
        queue = branch.queue
        spans += [*queue._waiting.values(), *queue._in_flight.values()]
        spans += [span for deferred in queue._deferred.values() for span in deferred]
    return spans


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


@contextmanager
def process_in(directory: Path | None, *, accepting: bool = False) -> Iterator[Process]:
    """A process; `accepting`: its upstreams accept everything, or else do not respond yet."""
    process = Process([Upstream("one", 1, data_follows=True), Upstream("many", 4)], directory)
    if accepting:
        for upstream in process.upstreams:
            upstream.recover()
    try:
        yield process
    finally:
        if not process.loop.is_closed():
            process.kill(disk_call_done=False)


def request(process: Process, *spans: Span, seconds: float = 0.01) -> asyncio.Task[int]:
    """A request whose response waits for the disk, `seconds` after it was posted."""
    for span in spans:
        span.accepted_at = process.loop.time()
    task = process.loop.create_task(process.admission.take_durably(spans))
    process.pass_time(seconds)
    return task


def new_directory() -> Path:
    """A directory for a spool; in memory where the system offers that."""
    shared = Path("/dev/shm")  # noqa: S108 (each example has a directory of its own in it)
    return Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))


def remove_directory(directory: Path | None) -> None:
    """Remove what `new_directory` made."""
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)
