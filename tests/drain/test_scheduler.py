"""What a lane sends next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.drain.evidence import Evidence
from sidecar.drain.failures import RetryPolicy
from sidecar.drain.retry_queue import Batch, RetryQueue
from sidecar.drain.scheduler import Scheduler
from sidecar.drain.settlement import Settlement
from sidecar.drain.throttle import Backoff, Throttle
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.span_queue import SpanQueue
from sidecar.sinks import SinkError
from sidecar.spans.span import total_size
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import LaneAccounting
from sidecar.telemetry.decisions import Decisions
from sidecar.telemetry.metrics import LaneMetrics
from sidecar.telemetry.outcomes import SinkState
from tests.support.spans import make_span

NOW, LINGER_S, MAX_BATCH, MAX_AGE_S, MAX_ATTEMPTS = 100.0, 0.5, 4, 1000.0, 3
SIZE = make_span().size  # bytes of each write


class Lane:
    """A lane without a sink: the test decides how each request ends."""

    def __init__(
        self, *, max_batch: int = MAX_BATCH, max_bytes: int = 2**20, jitter: float = 0.5
    ) -> None:
        self.accounting = LaneAccounting()
        self.queue = SpanQueue(MemoryBudget(2**30), self.accounting, 1, spool=Spool())
        self.retries = RetryQueue()
        backoff = Backoff(0.5, 30.0)
        self.throttle = Throttle(backoff, 8, lambda: jitter)
        self.evidence = Evidence(max_bytes)
        self.metrics = LaneMetrics("test", self.accounting, Decisions())
        parts, limit = (self.queue, self.retries, self.throttle), self.evidence.size_limit
        self.scheduler = Scheduler(
            *parts, limit, self.metrics, max_batch=max_batch, linger_s=LINGER_S
        )
        self.given_up: list[str] = []
        self.woken: list[str] = []  # the state of the upstream each time
        self.settlement = Settlement(
            *parts,
            self.evidence,
            RetryPolicy(backoff, MAX_AGE_S, MAX_ATTEMPTS, lambda: jitter),
            self.metrics,
            wake=lambda: self.woken.append(self.throttle.state),
            backlog=lambda: self.scheduler.backlog,
        )

    def put(self, *ids: str, complete: bool = True, accepted_at: float = 0.0) -> None:
        """Queue writes."""
        for id_ in ids:
            self.queue.put(make_span(id_, complete=complete, accepted_at=accepted_at))

    def retry(
        self, *ids: str, complete: bool = True, part: bool = False, not_before: float = NOW
    ) -> Batch:
        """A batch of writes that has failed, or a `part` of one, and is to be sent again."""
        self.put(*ids, complete=complete)
        spans = self.queue.take(len(ids), 2**20)
        batch = Batch(spans, attempts=1, failures=1, is_part=part, not_before=not_before)
        self.retries.add(batch)
        return batch

    def next(self, now: float = NOW) -> list[str]:
        """The ids of the writes to send now."""
        step = self.scheduler.next(now)
        self.scheduler.sending = 0
        return [span.id for span in step.spans] if isinstance(step, Batch) else []

    def failed(self, batch: Batch, error: SinkError, sent_at: float, now: float) -> None:
        """A batch fails, and what is given up for it is settled."""
        for spans, reason in self.settlement.failed(batch, error, sent_at, now):
            self.given_up += [span.id for span in spans]
            self.settlement.give_up(spans, reason, error.status, now)

    def hold(self) -> None:
        """The upstream is down, and a probe may be sent now."""
        self.throttle.hold(NOW - 60.0, NOW - 60.0, SinkState.DOWN)


def sent_by(lane: Lane) -> list[list[str]]:
    """Everything that the lane sends now."""
    return [*iter(lane.next, [])]


@pytest.mark.parametrize(
    ("batches", "sent"), [("a b c d e", "abcd e"), ("ab cd ef", "abcd ef"), ("abc de", "abc de")]
)
def test_retries_are_merged_into_full_batches(batches: str, sent: str) -> None:
    """What was not split because it failed goes together, oldest first."""
    lane = Lane()
    for ids in batches.split():
        lane.retry(*ids)
    assert sent_by(lane) == [[*ids] for ids in sent.split()]


@pytest.mark.parametrize(
    ("writes", "sent"), [(1, "a b c d"), (2, "ab cd"), (3, "abc d"), (9, "abcd")]
)
def test_retries_are_merged_up_to_the_size_limit(writes: int, sent: str) -> None:
    """The limit on bytes, and not how they failed, decides how many go together."""
    lane = Lane(max_bytes=writes * SIZE + SIZE // 2)
    lane.retry("a", "b")
    lane.retry("c", "d")
    assert sent_by(lane) == [[*ids] for ids in sent.split()]


@pytest.mark.parametrize(("part", "suspicion"), [(True, 0), (True, 1), (False, 1)])
def test_what_may_be_bad_is_never_merged(part: bool, suspicion: int) -> None:
    """A part of a batch that was split, or a suspected write: others would fail with it."""
    lane = Lane()
    for id_ in "ab":
        lane.retry(id_, part=part).suspicion = suspicion
    lane.retry("c")
    lane.retry("d", part=part).suspicion = suspicion
    lane.retry("e")
    sent = sent_by(lane)
    assert [[id_] in sent for id_ in "abd"] == [True] * 3


def test_a_merged_batch_has_failed_as_often_as_any_of_its_parts() -> None:
    """Its back-off and its evidence go on from the part that failed most."""
    lane = Lane()
    lane.retry("a").failures = 7
    second = lane.retry("b")
    second.attempts = second.successes_seen = 9
    step = lane.scheduler.next(NOW)
    assert isinstance(step, Batch)
    assert (step.attempts, step.failures, step.successes_seen) == (9, 7, 9)


def test_retries_that_are_not_due_wait() -> None:
    """They are not merged with those that are; the lane looks again when they are due."""
    lane = Lane()
    lane.retry("a", not_before=NOW + 3.0)
    lane.retry("b")
    assert lane.next() == ["b"]
    assert lane.scheduler.next(NOW) == NOW + 3.0


def test_a_probe_is_one_write() -> None:
    """One at a time, of a retry or of new writes, by turns; the rest of a retry is merged later."""
    lane = Lane()
    lane.hold()
    lane.retry("a", "b", "c")
    lane.retry("d")
    lane.put("x", "y")
    assert [lane.next() for _ in range(4)] == [["a"], ["x"], ["b"], ["y"]]
    lane.scheduler.sending = 1
    assert lane.scheduler.next(NOW) is None
    lane.scheduler.sending = 0
    lane.throttle.responded(NOW - 60.0, 0.0)
    assert lane.next() == ["c", "d"]


def test_retries_and_new_writes_take_turns() -> None:
    """A write that fails for ever does not stop the others."""
    lane = Lane(max_batch=1)
    bad = lane.retry("bad")
    lane.put("a", "b", "c")
    sent = []
    for _ in range(6):
        sent += lane.next()
        if not lane.retries:
            lane.retries.add(bad)
    assert sent == ["bad", "a", "bad", "b", "bad", "c"]


def test_a_retry_does_not_wait_for_new_writes_that_linger() -> None:
    """If it is their turn but their batch is not full, the retry goes first."""
    lane = Lane()
    lane.retry("a", part=True)
    lane.retry("b", part=True)
    lane.retry("c", not_before=NOW + 0.1)
    lane.put("x", accepted_at=NOW)
    assert [lane.next(), lane.next()] == [["a"], ["b"]]
    assert lane.scheduler.next(NOW) == NOW + 0.1
    assert lane.next(NOW + 0.1) == ["c"]
    assert lane.scheduler.next(NOW + 0.1) == NOW + LINGER_S
    assert lane.next(NOW + LINGER_S) == ["x"]


def test_requests_in_flight_are_counted() -> None:
    """No more than the throttle allows; the next one waits for one of them to end."""
    lane = Lane(max_batch=1)
    lane.put(*"abcdefghijkl")
    sent = [lane.scheduler.next(NOW) for _ in range(lane.throttle.limit)]
    assert all(isinstance(each, Batch) for each in sent)
    assert lane.scheduler.sending == lane.throttle.limit
    assert lane.scheduler.next(NOW) is None


@pytest.mark.parametrize(
    ("writes", "max_bytes", "closing"),
    [(MAX_BATCH, 2**20, False), (2, 2 * SIZE, False), (1, 1, False), (1, 2**20, True)],
)
def test_a_full_batch_does_not_linger(writes: int, max_bytes: int, closing: bool) -> None:
    """By count or by bytes; nor does anything if no more writes will come."""
    lane = Lane(max_bytes=max_bytes)
    lane.scheduler.closing = closing
    lane.put(*"abcdefg"[:writes], accepted_at=NOW)
    assert len(lane.next()) == writes


def test_superseded_open_writes_are_not_sent_again() -> None:
    """They are dropped, also from a merged batch, or a whole one; the complete ones go next."""
    lane = Lane()
    lane.retry("a", "b", complete=False)
    lane.retry("c", "d", complete=False)
    lane.retry("e", complete=False, part=True)
    lane.put("a", "d", "e")
    assert sent_by(lane) == [["b", "c"], ["d", "a"], ["e"]]
    assert lane.accounting.superseded == 3
    assert lane.accounting.imbalance(lane.queue.depth) == 0


@given(
    batches=st.lists(
        st.tuples(st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 2)), max_size=8
    ),
    new=st.integers(0, 8),
    max_bytes=st.integers(1, 8 * SIZE),
    probing=st.booleans(),
)
def test_every_write_is_sent_once(
    batches: list[tuple[int, bool, bool, int]], new: int, max_bytes: int, probing: bool
) -> None:
    """Whatever waits, in batches that fit, unless a later write supersedes it."""
    lane, expected = Lane(max_bytes=max_bytes), list[str]()
    if probing:
        lane.hold()
    for number, (writes, complete, part, ended) in enumerate(batches):
        ids = [f"r{number}.{each}" for each in range(writes)]
        lane.retry(*ids, complete=complete, part=part)
        expected += ids
        lane.put(*ids[:ended])
        if complete:
            expected += ids[:ended]
    ids = [f"new{number}" for number in range(new)]
    lane.put(*ids)
    found, limit = list[str](), 1 if probing else MAX_BATCH
    for _ in range(100):
        step = lane.scheduler.next(NOW)
        lane.scheduler.sending = 0
        for span in step.spans if isinstance(step, Batch) else []:
            lane.queue.settle(span)
            found.append(span.id)
        if isinstance(step, Batch):
            assert len(step.spans) == 1 or total_size(step.spans) <= max_bytes
            assert len(step.spans) <= limit
    assert sorted(found) == sorted(expected + ids)


@pytest.mark.parametrize(
    ("max_batch", "max_bytes", "waiting", "retries", "requests"),
    [
        (1, 1, 7, 0, 7.0),
        (4, 2**20, 10, 0, 2.5),
        (4, 2**20, 8, 4, 3.0),
        (4, 2**20, 0, 4, 1.0),
        (4, 2 * SIZE, 10, 0, 5.0),
        (4, SIZE // 2, 10, 0, 10.0),
        (4, 1, 0, 0, 0.0),
    ],
)
def test_the_backlog_is_estimated_in_requests(
    max_batch: int, max_bytes: int, waiting: int, retries: int, requests: float
) -> None:
    """By count or by bytes, whichever makes batches smaller; what failed counts, too."""
    lane = Lane(max_batch=max_batch, max_bytes=max_bytes)
    lane.retry(*[f"r{number}" for number in range(retries)])
    lane.put(*[f"w{number}" for number in range(waiting)])
    assert lane.scheduler.backlog == pytest.approx(requests)


@pytest.mark.parametrize("on_disk", [0, 5])
def test_the_pace_ends_with_the_backlog(on_disk: int) -> None:
    """When nothing is waiting any more: neither in memory, nor on disk until it is loaded."""
    lane = Lane(max_batch=1, jitter=0.0)
    lane.hold()
    lane.throttle.responded(NOW, 0.0)
    lane.queue.recover(range(on_disk))
    assert lane.next() == []
    lane.put("a", "b", "c")
    assert len(sent_by(lane)) == (0 if on_disk else 3)


@pytest.mark.parametrize(("not_before", "paced"), [(NOW, True), (NOW + 5.0, False)])
def test_a_write_that_keeps_failing_is_no_backlog(not_before: float, paced: bool) -> None:
    """The pace ends while a retry waits for its time, but not while one may be sent."""
    lane = Lane(max_batch=1, jitter=0.0)
    lane.hold()
    lane.throttle.responded(NOW, 0.0)
    lane.retry("bad", not_before=not_before)
    lane.next()
    lane.put("a", "b", "c")
    assert (len(sent_by(lane)) < 3) is paced


def test_the_pace_after_an_outage_follows_the_backlog() -> None:
    """What the response that ends the outage has settled is not part of it."""
    lane = Lane(max_batch=1, jitter=0.0)
    lane.hold()
    lane.put(*[f"w{number}" for number in range(1201)])
    lane.settlement.succeeded(Batch(lane.queue.take(1, 1)), NOW, NOW, 1)
    due = lane.scheduler.next(NOW)
    assert isinstance(due, float)
    assert 2 / (due - NOW) == pytest.approx(1.15 * 1200 / 60.0, rel=1e-5)  # after the probe
    assert [lane.next(due), lane.next(due)] == [["w1"], []]
    lane.scheduler.closing = True
    assert lane.next(due) == ["w2"]
