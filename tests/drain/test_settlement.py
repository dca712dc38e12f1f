"""What the outcome of a request leaves to be sent, and when."""

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sidecar.drain.retry_queue import Batch
from sidecar.sinks import (
    Misdirected,
    Refused,
    RouteGone,
    SinkError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from sidecar.telemetry.outcomes import SinkState
from tests.drain.test_failures import ERRORS
from tests.drain.test_scheduler import MAX_AGE_S, MAX_ATTEMPTS, MAX_BATCH, NOW, Lane
from tests.support.spans import make_span

HTTP_503, HTTP_429 = Unavailable("HTTP 503", 503), Unavailable("HTTP 429", 429, retry_after=9.0)
NOT_REACHED = Unavailable("ConnectionRefusedError", reached=False)
REFUSED, GONE = Refused("HTTP 422", 422), RouteGone("HTTP 404", 404)
OLD, YOUNG = NOW - MAX_AGE_S - 1.0, NOW - MAX_AGE_S + 1.0


def sent(lane: Lane, *ids: str, accepted_at: float = NOW) -> Batch:
    """A new batch that was just sent."""
    lane.put(*ids, accepted_at=accepted_at)
    return Batch(lane.queue.take(len(ids), 2**20))


def fail(
    lane: Lane,
    batch: Batch,
    error: SinkError = HTTP_503,
    *,
    sent_at: float | None = None,
    now: float = NOW,
) -> None:
    """The batch fails at `now`."""
    lane.failed(batch, error, now if sent_at is None else sent_at, now)


def succeed(lane: Lane, *, sent_at: float = NOW, now: float = NOW) -> None:
    """Another write gets through."""
    lane.settlement.succeeded(sent(lane, "other"), sent_at, now, 1)


def waiting(lane: Lane) -> list[tuple[str, float]]:
    """The batches that wait for a retry, and for how long."""
    return sorted(
        ("".join(s.id for s in each.spans), each.not_before - NOW) for each in lane.retries
    )


def test_a_success_settles_its_writes() -> None:
    """They are counted as forwarded; what they show about the upstream is noted."""
    lane, now = Lane(), NOW
    lane.settlement.succeeded(sent(lane, "a", "b"), NOW, NOW, 1)
    assert (lane.queue.depth, lane.queue.in_flight, len(lane.retries)) == (0, 0, 0)
    assert lane.accounting.forwarded.total() == 2
    assert lane.accounting.imbalance(lane.queue.depth) == 0
    for _ in range(100):
        now += 0.01 / lane.throttle.limit
        lane.settlement.succeeded(sent(lane, "a"), NOW, now, lane.throttle.limit)
    assert lane.throttle.limit == 8  # requests at once: twice as many get twice as much through


# When a batch is sent again.


@pytest.mark.parametrize(
    ("opens", "ends", "unkept", "forwarded"),
    [
        (0, 3, 1, {"open": 0, "complete": 2}),
        (2, 1, 1, {"open": 2, "complete": 0}),
        (2, 1, 2, {"open": 1, "complete": 0}),
    ],
)
def test_what_was_not_kept(opens: int, ends: int, unkept: int, forwarded: dict[str, int]) -> None:
    """All writes are settled; those that the upstream did not keep are lost, ENDs first."""
    lane = Lane()
    spans = [make_span(f"o{n}", complete=False) for n in range(opens)]
    spans += [make_span(f"e{n}") for n in range(ends)]
    for span in spans:
        lane.queue.put(span)
    batch = Batch(lane.queue.take(len(spans), 2**20))
    with structlog.testing.capture_logs() as lines:
        lane.settlement.succeeded(batch, NOW, NOW, 1, unkept)
    assert (lane.queue.depth, dict(lane.accounting.forwarded)) == (0, forwarded)
    assert lane.accounting.lost["partial_success"] == unkept
    assert lane.accounting.imbalance(lane.queue.depth) == 0
    (line,) = [each for each in lines if each["event"] == "writes_not_kept"]
    assert (line["log_level"], line["count"], line["of"]) == ("warning", unkept, opens + ends)


@pytest.mark.parametrize(
    ("failures", "wait_s", "stopping"),
    [(0, 0.25, False), (1, 0.5, False), (4, 4.0, False), (99, 15.0, False), (99, 1.0, True)],
)
def test_each_failure_of_a_batch_doubles_its_wait(
    failures: int, wait_s: float, stopping: bool
) -> None:
    """Up to a maximum: a second while the process is stopping. Its halves start anew."""
    lane = Lane()
    if stopping:
        lane.throttle.shorten_waits()
    whole = sent(lane, *"abc")
    whole.attempts = whole.failures = failures
    fail(lane, whole)
    assert waiting(lane) == [("a", wait_s), ("bc", wait_s)]
    fail(lane, lane.retries.pop())
    assert waiting(lane) == [("a", 0.25), ("bc", wait_s)]


@pytest.mark.parametrize(("retry_after", "wait_s"), [(0.1, 0.25), (9.0, 9.0)])
def test_a_batch_waits_as_long_as_it_was_asked_to(retry_after: float, wait_s: float) -> None:
    """Or for its back-off, if that is longer; also if others get through meanwhile."""
    lane = Lane()
    batch = sent(lane, "a", "b")
    batch.attempts = 1
    succeed(lane)
    fail(lane, batch, Unavailable("HTTP 429", 429, retry_after=retry_after))
    assert waiting(lane) == [("a", wait_s), ("b", wait_s)]
    assert lane.throttle.state is SinkState.UP


def test_a_batch_that_failed_in_an_outage_may_be_the_probe() -> None:
    """It is due when the pause is over, but waits on its own if the outage is over already."""
    lane = Lane()
    early = sent(lane, "late")
    fail(lane, sent(lane, "a"), NOT_REACHED)
    assert waiting(lane) == [("a", 0.0)]
    assert lane.throttle.paused_until > NOW
    succeed(lane)
    fail(lane, early, NOT_REACHED, sent_at=NOW - 1.0)
    assert waiting(lane) == [("a", 0.0), ("late", 0.25)]
    assert lane.throttle.state is SinkState.UP


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [(REFUSED, 0.0), (TooLarge("HTTP 413", 413), 0.0), (HTTP_503, 0.25)],
    ids=str,
)
def test_the_halves_of_a_batch_stay_apart(error: SinkError, wait_s: float) -> None:
    """After a verdict they come first; how often the whole has failed is remembered, but as one."""
    lane = Lane()
    fail(lane, sent(lane, "a", "b", "c"), error)
    halves = sorted((len(each.spans), each.is_part, each.failures) for each in lane.retries)
    assert halves == [(1, True, 0), (2, True, 0)]
    assert [each.attempts for each in lane.retries] == [1, 1]
    assert waiting(lane) == [("a", wait_s or -NOW), ("bc", wait_s or -NOW)]
    assert lane.metrics.retries == 1


# When writes are given up.


@pytest.mark.parametrize(
    ("error", "expire"),
    [
        (HTTP_503, True),
        (HTTP_429, True),
        (NOT_REACHED, True),
        (Unauthorized("HTTP 401", 401), False),  # an operator can end that
        (Misdirected("HTTP 302", 302), False),
        (GONE, False),
        (REFUSED, False),
    ],
    ids=str,
)
def test_which_failures_make_old_writes_expire(error: SinkError, expire: bool) -> None:
    """Those that pass by themselves; the young writes of the batch are sent again."""
    lane = Lane()
    lane.put("o", accepted_at=OLD)
    lane.put("y", accepted_at=YOUNG)
    fail(lane, Batch(lane.queue.take(2, 2**20)), error)
    assert lane.given_up == (["o"] if expire else [])
    assert lane.accounting.dead_lettered["expired"] == len(lane.given_up)
    left = {id_ for ids, _ in waiting(lane) for id_ in ids}
    assert left == ({"y"} if expire else {"o", "y"})
    assert all(batch.spans for batch in lane.retries)
    assert lane.accounting.imbalance(lane.queue.depth) == 0


@pytest.mark.parametrize("writes", [1, 3])
@pytest.mark.parametrize(
    ("error", "state"),
    [(HTTP_503, SinkState.DOWN), (NOT_REACHED, SinkState.DOWN), (HTTP_429, SinkState.THROTTLED)],
    ids=str,
)
def test_a_batch_that_expires_holds_the_lane(
    error: SinkError, state: SinkState, writes: int
) -> None:
    """An outage may outlast thousands of writes: each of them must not cost a request at once."""
    lane = Lane()
    for id_ in "xy":
        fail(lane, sent(lane, id_))
    retries = lane.metrics.retries
    fail(lane, sent(lane, *"abc"[:writes], accepted_at=OLD), error)
    assert lane.given_up == [*"abc"[:writes]]
    assert lane.throttle.state is lane.metrics.states[0] is state
    assert lane.throttle.paused_until > NOW
    assert (len(lane.retries), lane.metrics.retries) == (2, retries)


def test_what_expires_is_given_up_once() -> None:
    """Also if it has failed too often, too."""
    lane = Lane()
    batch = sent(lane, "a", accepted_at=OLD)
    batch.attempts, batch.suspicion = 1, MAX_ATTEMPTS - 1
    succeed(lane)
    fail(lane, batch)
    assert lane.given_up == ["a"]
    assert lane.accounting.dead_lettered == {**lane.accounting.dead_lettered, "expired": 1}
    assert lane.accounting.dead_lettered.total() == 1


def suspected(lane: Lane, id_: str, suspicion: int) -> Batch:
    """A write that has failed while others got through, and others get through again."""
    batch = sent(lane, id_)
    batch.attempts = batch.failures = 5
    batch.suspicion = suspicion
    succeed(lane)
    return batch


def test_a_suspected_write_does_not_hold_the_lane() -> None:
    """Others get through; it is given up when it has failed often enough."""
    lane = Lane()
    batch = suspected(lane, "a", 0)
    for failures in range(1, MAX_ATTEMPTS + 1):
        fail(lane, batch, HTTP_429 if failures == 2 else HTTP_503)
        assert batch.suspicion == failures
        assert lane.throttle.state is SinkState.UP
        assert lane.given_up == (["a"] if failures == MAX_ATTEMPTS else [])
        succeed(lane)
    assert lane.accounting.dead_lettered["failing"] == 1


@pytest.mark.parametrize("error", [HTTP_503, HTTP_429, GONE], ids=str)
def test_a_suspected_probe_pauses_the_lane(error: SinkError) -> None:
    """As any other does: many suspected writes must not be probes one right after another."""
    lane = Lane()
    batches = [suspected(lane, id_, 1) for id_ in "abc"]
    fail(lane, sent(lane, "x"), NOT_REACHED, now=NOW - 60.0)
    for number, batch in enumerate(batches):
        fail(lane, batch, error, now=NOW + number)
        assert lane.throttle.paused_until > NOW + number
        lane.throttle.resume()
    last = suspected(lane, "d", MAX_ATTEMPTS - 1)
    lane.hold()
    fail(lane, last, error)
    assert lane.given_up == ["d"]


def test_an_open_breaker_keeps_what_is_refused() -> None:
    """Most writes are refused: the lane is held, and a success ends that."""
    lane = Lane()
    for number in range(12):
        fail(lane, sent(lane, f"s{number}"), REFUSED)
    assert len(lane.given_up) == 10
    assert (lane.metrics.states[0], len(lane.retries)) == (SinkState.BRAKED, 2)
    succeed(lane)
    assert (lane.metrics.states[0], len(lane.retries)) == (SinkState.UP, 2)


# An upstream without the route.


def test_since_when_the_route_has_been_gone() -> None:
    """From the hold on, until the upstream says anything else; said once, until it responds.

    And at most once a minute.
    """
    lane, tick = Lane(), 0.0

    def gone() -> float | None:
        nonlocal tick
        tick += 1.0
        fail(lane, sent(lane, f"g{tick}"), GONE, now=NOW + tick)
        return lane.settlement.route_gone_since

    with structlog.testing.capture_logs() as lines:
        assert [gone(), gone(), gone()] == [None, NOW + 2.0, NOW + 2.0]
        for error in (HTTP_503, NOT_REACHED, Misdirected("HTTP 302", 302), HTTP_429):
            fail(lane, sent(lane, f"s{error}"), error, now=NOW + tick)
            assert lane.settlement.route_gone_since is None
            assert gone() == NOW + tick
        assert len([line for line in lines if line["event"] == "upstream_route_gone"]) == 1
        succeed(lane, now=NOW + tick)
        assert lane.settlement.route_gone_since is None
        tick += 60.0
        assert [gone(), gone()] == [None, NOW + tick]
        fail(lane, sent(lane, "r"), REFUSED, now=NOW + tick)
        assert lane.settlement.route_gone_since is None
        tick += 60.0
        assert [gone(), gone()] == [None, NOW + tick]
    assert len([line for line in lines if line["event"] == "upstream_route_gone"]) == 3


@given(
    error=st.sampled_from(ERRORS),
    writes=st.integers(1, MAX_BATCH),
    before=st.lists(st.sampled_from([*ERRORS, None]), max_size=12),
    held=st.booleans(),
    sent_at=st.sampled_from([NOW - 70.0, NOW - 1.0]),
)
def test_no_failure_loses_a_write(
    error: SinkError, writes: int, before: list[SinkError | None], held: bool, sent_at: float
) -> None:
    """All writes of the batch wait for a retry, unless the only one is given up for its content."""
    lane, ids = Lane(), [f"s{number}" for number in range(writes)]
    for each in before:
        if each is None:
            lane.evidence.succeeded(Batch([make_span()]))
        else:
            lane.evidence.failed(Batch([make_span()]), each)
    if held:
        lane.hold()
    fail(lane, sent(lane, *ids), error, sent_at=sent_at)
    left = [span.id for batch in lane.retries for span in batch.spans]
    assert sorted(left + lane.given_up) == ids
    assert lane.queue.depth == len(left)
    assert lane.given_up == [] or (writes == 1 and error.about_content)
