"""Plants bugs in the code between the listener and the upstreams: test_delivery.py finds each.

Without this, the laws of the state machines could be too weak, and nobody would notice.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from sidecar.credentials import Account, Accounts, Credentials
from sidecar.drain.lane import Lane
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.scheduler import Scheduler
from sidecar.queue import span_queue
from sidecar.queue.admission import Admission
from sidecar.queue.idle_spans import IdleSpans
from sidecar.queue.join import EndedSpans
from sidecar.queue.open_span import OpenSpan
from sidecar.queue.open_spans import OpenSpans
from sidecar.queue.room import Room, Rooms
from sidecar.queue.span_queue import SpanQueue
from sidecar.spans import decode
from sidecar.spans.span import Key, Span, Stored
from sidecar.spool.disk_spool import DiskSpool
from sidecar.spool.rows import Changes
from sidecar.spool.spool import Gone
from sidecar.spool.sqlite_file import SpoolFile
from sidecar.spool.writer import SpoolWriter
from tests.drain.test_delivery import DeliveryMachine, DiskMachine, KillMachine
from tests.drain.test_lane import AccountsMachine
from tests.queue.test_admission_lanes import AwayMachine
from tests.test_accounts import InterleavedRequests, KeysInTurn

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

Right = Callable[..., Any]
Plant = Callable[[pytest.MonkeyPatch], None]


def replaced(owner: object, name: str, new: object) -> Plant:
    """A bug in one function, given whole."""
    return lambda patch: patch.setattr(owner, name, new)


def wrapped(owner: Any, name: str, around: Callable[..., Any]) -> Plant:  # noqa: ANN401
    """A bug in one function; `around` gets the right one as its first argument."""
    right = getattr(owner, name)

    def wrong(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        return around(right, *arguments, **named)

    return lambda patch: patch.setattr(owner, name, wrong)


def nothing(*_: object, **__: object) -> None:
    """Do nothing."""


async def nothing_async(*_: object) -> None:
    """Do nothing, without waiting."""
    await asyncio.sleep(0)


def settle_for_all(right: Right, self: DiskSpool, stored: Stored, lane: int) -> None:
    del lane
    for each in (1, 2):
        right(self, stored, each)


def send_twice(right: Right, self: SpanQueue, span: Span) -> None:
    waiting = self._in_flight.pop(span.key, None)
    right(self, span)
    if waiting is not None:
        self._in_flight[span.key] = waiting


def lose_a_half(right: Right, self: RetryQueue, *batches: Batch) -> None:
    right(self, *batches[:1])


def forget_unwritten(right: Right, self: SpoolWriter, error: Exception) -> None:
    self._changes.added.clear()
    right(self, error)


def without_start(right: Right, self: OpenSpans, span: Span) -> None:
    known = self._spans.get(span.join_key)
    if known is not None and span.end_time is not None:
        span.input = span.input or b"{}"
    right(self, span)


def restore_nothing(_: IdleSpans, start: Span, __: Span) -> None:
    """Believe that the payloads are in memory again."""
    if start.stored is not None:
        start.stored.dropped = start.stored.dropped_bytes = 0


def without_base(right: Right, self: DiskSpool, span: Span, start: Span | None = None) -> None:
    if start is not None:
        self.replace(start)
    right(self, span)
    if start is not None and self._changes.added:
        row = self._changes.added[-1]
        self._changes.added[-1] = row._replace(shared=1, body=row.body.replace(span.input, b"null"))


def settled_removes(right: Right, self: SpoolFile, changes: Changes) -> None:
    removed = [*changes.removed, *(row for row, _ in changes.settled)]
    right(self, changes._replace(removed=removed))


def not_counted(right: Right, *arguments: object) -> Span | Gone:
    outcome: Span | Gone = right(*arguments)
    return Gone.SUPERSEDED if outcome is Gone.UNREADABLE else outcome


def keep_all(right: Right, self: SpanQueue, span: Span) -> None:
    held = self._budget.used
    right(self, span)
    self._budget.used = held


def inherited(right: Right, self: Batch) -> object:
    halves = right(self)
    for half in halves:
        half.suspicion = self.attempts
    return halves


def retries_first(right: Right, self: Scheduler, now: float) -> Batch | float | None:
    self._new_batch_first = False
    step: Batch | float | None = right(self, now)
    return step


def take_for_all(right: Right, self: Admission, spans: list[Span]) -> int:
    lanes: int = right(self, spans)
    for span in spans:
        span.lanes = span.addressed_to
    return lanes


def write_for_all(right: Right, self: Admission, span: Span, *more: object) -> None:
    span.lanes = span.addressed_to
    right(self, span, *more)


def forget_start(_: Right, self: OpenSpans, known: OpenSpan, end: Span) -> None:
    known.state = None
    self._spool.add(end)
    self._forget(end.join_key, known)


def keep_promise(right: Right, self: OpenSpans, key: Key, known: OpenSpan) -> None:
    known.promised_to = 0
    right(self, key, known)


def no_promise(right: Right, self: OpenSpans, key: Key, start: Span) -> None:
    right(self, key, start)
    self._promise(self._spans[key], 0, 0, 0)


def spare_for_each(right: Right, self: Rooms, spans: list[Span]) -> int:
    rooms = self._rooms
    lanes = 0
    for room in rooms:
        self._rooms = [room]
        lanes |= right(self, spans) & room.bit
    self._rooms = rooms
    return -1 if lanes == sum(room.bit for room in rooms) else lanes


def only_together(right: Right, self: Rooms, spans: list[Span]) -> int:
    lanes: int = right(self, spans)
    return lanes if lanes == -1 else 0


def spare_for_starts(right: Right, self: Rooms, room: Room, span: Span) -> object:
    needed = right(self, room, span)
    return needed._replace(ends=needed.ends + needed.rest, rest=0)


def unfilled(_: Right, __: Rooms, span: Span) -> int:
    return span.size


def not_counted_at_all(_: Right, self: Lane, *__: object) -> None:
    self.accounting.offered -= 1


def first_branch(_: Right, self: Lane, span: Span) -> None:
    self.branches[0].drain.put(span)


def one_key_for_all(right: Right, self: Lane, headers: object, _: object) -> None:
    right(self, headers, 0)


def of_nobody(right: Right, trace_id: str, id_: str, _: int = 0) -> object:
    return right(trace_id, id_, 0)


def withdraw_at_once(_: Right, self: Accounts, account: Account) -> None:
    if account.id not in self._accepted and account.number == max(self.ids, default=-1):
        self.ids.pop(account.number)


def forget_the_old_key(right: Right, self: Credentials, headers: object) -> bool:
    changed: bool = right(self, headers)
    if changed:
        self._accepted = None
    return changed


MACHINES: dict[str, type[RuleBasedStateMachine]] = {
    "delivery": DeliveryMachine,
    "kill": KillMachine,
    "disk": DiskMachine,
    "away": AwayMachine,
    "accounts": AccountsMachine,
    "requests": InterleavedRequests,
    "keys": KeysInTurn,
}
BUGS: dict[str, tuple[str, Plant]] = {
    "a settle is forgotten": ("kill", replaced(DiskSpool, "settled", nothing)),
    "one lane settles for both": ("kill", wrapped(DiskSpool, "settled", settle_for_all)),
    "a settled START leaves the disk before its END": (
        "kill",
        wrapped(SpoolFile, "apply", settled_removes),
    ),
    "a 202 does not wait for the disk": ("kill", replaced(SpoolWriter, "commit", nothing_async)),
    "an END is sent before it is on disk": (
        "kill",
        replaced(DiskSpool, "may_send", lambda *_: True),
    ),
    "an END's row does not name its base": ("kill", wrapped(DiskSpool, "add", without_base)),
    "a replaced START is not deleted": ("kill", replaced(DiskSpool, "replace", nothing)),
    "payloads that were dropped are not loaded again": (
        "kill",
        replaced(IdleSpans, "restore", restore_nothing),
    ),
    "a row that is put off forgets its START": ("disk", replaced(DiskSpool, "put_off", nothing)),
    "what could not be written is forgotten": (
        "disk",
        wrapped(SpoolWriter, "_degrade", forget_unwritten),
    ),
    "a START is forgotten before its open write is sent": (
        "kill",
        replaced(OpenSpan, "is_settled", property(lambda _: True)),
    ),
    "a damaged row is not counted": (
        "disk",
        wrapped(DiskSpool, "_outcome", not_counted),
    ),
    "a span is in flight twice": ("delivery", wrapped(SpanQueue, "_enqueue", send_twice)),
    "a late START is written": ("delivery", replaced(EndedSpans, "add", nothing)),
    "an END is not filled from its START": ("kill", wrapped(OpenSpans, "_end", without_start)),
    "half of a batch is lost": ("delivery", wrapped(RetryQueue, "add", lose_a_half)),
    "a write is blamed for the failures of its batch": (
        "delivery",
        wrapped(Batch, "halves", inherited),
    ),
    "a retry never gives way": ("delivery", wrapped(Scheduler, "next", retries_first)),
    "the data of a START does not follow": (
        "delivery",
        replaced(OpenSpans, "_supplement", nothing),
    ),
    "a supplement replaces the END": (
        "delivery",
        replaced(span_queue, "both_needed", lambda *_: False),
    ),
    "memory is not released": ("delivery", wrapped(SpanQueue, "_drop", keep_all)),
    "a full lane takes every write": ("delivery", wrapped(Admission, "_write", write_for_all)),
    "a full lane takes every event": ("delivery", wrapped(Admission, "take", take_for_all)),
    "an END without room has its START forgotten": (
        "delivery",
        wrapped(OpenSpans, "_stay", forget_start),
    ),
    "promised room is never free again": ("delivery", wrapped(OpenSpans, "_forget", keep_promise)),
    "nothing is promised": ("delivery", wrapped(OpenSpans, "_hold", no_promise)),
    "two lanes use the same spare room": ("delivery", wrapped(Rooms, "taking", spare_for_each)),
    "STARTs use the spare room": ("away", wrapped(Rooms, "_in_memory", spare_for_starts)),
    "an END needs no room for its START's payloads": (
        "delivery",
        wrapped(Rooms, "_filled", unfilled),
    ),
    "a write that is not taken is not counted": (
        "delivery",
        wrapped(Lane, "not_taken", not_counted_at_all),
    ),
    "a request is refused if one lane is full": ("away", wrapped(Rooms, "taking", only_together)),
    "a repeated END is joined for lanes without it": (
        "delivery",
        replaced(EndedSpans, "not_taken_by", lambda *_: 0),
    ),
    "idle STARTs stay in memory": ("away", replaced(IdleSpans, "make_room", lambda *_: True)),
    "all accounts share a branch": ("accounts", wrapped(Lane, "_put", first_branch)),
    "all accounts share a key": ("accounts", wrapped(Lane, "offer", one_key_for_all)),
    "spans of two accounts are joined": ("accounts", wrapped(decode, "span_key", of_nobody)),
    "an account is withdrawn while another request uses it": (
        "requests",
        wrapped(Accounts, "withdraw", withdraw_at_once),
    ),
    "a new key replaces one that was accepted": (
        "keys",
        wrapped(Credentials, "offer", forget_the_old_key),
    ),
}

# A few hundred examples find these: a minute altogether.
RARE = {
    "an END is sent before it is on disk",
    "what could not be written is forgotten",
    "a START is forgotten before its open write is sent",
    "half of a batch is lost",
    "a supplement replaces the END",
    "STARTs use the spare room",
    "a damaged row is not counted",
}


def run(machine: type[RuleBasedStateMachine]) -> None:
    """Run until the first failure; it is neither made smaller nor explained."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=2000,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, marks=pytest.mark.nightly) if bug in RARE else bug for bug in BUGS],
)
def test_the_bug_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state machine fails while the bug is there."""
    name, plant = BUGS[bug]
    plant(monkeypatch)
    with pytest.raises((AssertionError, BaseExceptionGroup, TimeoutError)):
        run(MACHINES[name])
