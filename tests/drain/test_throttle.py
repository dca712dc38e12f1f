"""Pauses and back-off, and what a lane may send."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.drain.throttle import (
    MAX_PAUSE_S,
    MAX_PAUSE_SHARE,
    MAX_WAIT_WHILE_STOPPING_S,
    Backoff,
    Grant,
    Throttle,
)
from sidecar.sinks import IdTaken, SinkError
from sidecar.telemetry.outcomes import SinkState
from tests.drain.test_scheduler import NOW, Lane
from tests.drain.test_settlement import GONE, HTTP_429, REFUSED, fail, sent, waiting

INITIAL_S, MAX_S = 0.5, 30.0
PROBE = Grant(1, is_probe=True)
HELD = [state for state in SinkState if state not in (SinkState.NOT_ASKED, SinkState.UP)]
each_jitter = pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])


def new_throttle(jitter: float = 0.5) -> Throttle:
    """A throttle with default settings."""
    return Throttle(Backoff(INITIAL_S, MAX_S), 8, lambda: jitter)


def hold(throttle: Throttle, now: float, seconds: float = 0.0) -> float:
    """A request that was sent at `now` fails at once; how long the lane pauses."""
    throttle.hold(now, now, SinkState.DOWN, seconds)
    return throttle.paused_until - now


# Back-off and pauses.


@pytest.mark.parametrize(("attempt", "max_s"), [(1, 0.5), (2, 1.0), (7, 30.0), (10**6, 30.0)])
def test_backoff_doubles_up_to_a_maximum_with_full_jitter(attempt: int, max_s: float) -> None:
    """The delay lies between 0 and the exponential bound."""
    backoff = Backoff(INITIAL_S, MAX_S)
    assert backoff.delay(attempt, 0.0) == 0.0
    assert backoff.delay(attempt, 0.999) == pytest.approx(max_s * 0.999)


@pytest.mark.parametrize("state", HELD)
def test_a_hold_pauses_the_lane_until_a_response(state: SinkState) -> None:
    """Then the lane has the state that it was held in, and one request may be in flight."""
    throttle = new_throttle()
    limit = throttle.limit
    throttle.hold(10.0, 10.0, state)
    assert (throttle.state, throttle.probing, throttle.limit) == (state, True, 1)
    assert throttle.paused_until == 10.25
    for tick in range(2000):  # what gets through now does not count, even if it is more and more
        throttle.sample(10.0 + (tick / 100) ** 0.5, 1, 8, 0.1)
    throttle.responded(11.0, 0.0)
    assert (throttle.state, throttle.probing) == (SinkState.UP, False)
    assert 1 < throttle.limit < limit
    assert throttle.paused_until == 0.0


def test_a_later_hold_changes_the_state() -> None:
    """The upstream is back, but does not accept the credential."""
    throttle = new_throttle()
    hold(throttle, 1.0)
    throttle.hold(5.0, 5.0, SinkState.UNAUTHORIZED)
    assert throttle.state is SinkState.UNAUTHORIZED


@each_jitter
@pytest.mark.parametrize("seconds", [0.2, 2.0, 200.0])
def test_a_requested_pause_is_honored(seconds: float, jitter: float) -> None:
    """It is never shorter than requested, and at most a tenth longer."""
    pause_s = hold(new_throttle(jitter), 10.0, seconds)
    assert pause_s == pytest.approx(seconds * (1 + jitter / 10))


@each_jitter
@pytest.mark.parametrize("seconds", [290.0, 300.0, 7200.0, 1e300])
def test_no_pause_is_longer_than_five_minutes(seconds: float, jitter: float) -> None:
    """Whatever was requested."""
    pause_s = hold(new_throttle(jitter), 10.0, seconds)
    assert min(seconds, MAX_PAUSE_S) <= pause_s <= MAX_PAUSE_S


def test_a_requested_pause_does_not_lengthen_later_ones() -> None:
    """Only failures without a request to wait make the back-off grow."""
    throttle = new_throttle()
    for now in (10.0, 20.0, 30.0):
        assert hold(throttle, now, 5.0) == 5.25
    assert hold(throttle, 40.0) == 0.25


def test_a_probe_may_be_sent_as_the_pause_begins() -> None:
    """If chance makes the pause that short, the next failure counts."""
    throttle = new_throttle(jitter=0.0)
    assert [hold(throttle, 10.0), hold(throttle, 10.0, 60.0)] == [0.0, 60.0]
    throttle.hold(10.0, 10.0, SinkState.UNAUTHORIZED)
    assert throttle.state is SinkState.UNAUTHORIZED


def test_a_short_pause_never_ends_a_longer_one() -> None:
    """A request sent as the pause began may fail with a shorter delay."""
    throttle = new_throttle()
    throttle.hold(10.0, 10.0, SinkState.THROTTLED, 100.0)
    for seconds in (0.0, 1.0):
        throttle.hold(10.0, 10.0, SinkState.DOWN, seconds)
        assert throttle.paused_until == 115.0


def test_requests_sent_before_the_pause_change_nothing() -> None:
    """Ten requests that fail together cause one pause, and lower the limit once."""
    throttle = new_throttle()
    throttle.hold(5.0, 4.0, SinkState.DOWN)
    until = throttle.paused_until
    for _ in range(10):
        throttle.hold(5.1, 4.9, SinkState.UNAUTHORIZED)
    assert (throttle.state, throttle.paused_until) == (SinkState.DOWN, until)
    throttle.responded(5.2, 0.0)
    once = throttle.limit
    for seconds in (0.0, 60.0):  # more of them fail, after the recovery
        throttle.hold(5.3, 4.9, SinkState.DOWN, seconds)
        assert (throttle.state, throttle.limit) == (SinkState.UP, once)
        assert not throttle.probing
        assert throttle.paused_until == 0.0


@pytest.mark.parametrize(("seconds", "until"), [(1.0, 26.0), (20.0, 32.0), (1e6, 311.0)])
def test_a_request_sent_before_the_pause_can_only_make_it_longer(
    seconds: float, until: float
) -> None:
    """If its response asks for a pause, that counts from now on, like one that began with it."""
    throttle = new_throttle()
    throttle.hold(5.0, 4.0, SinkState.UNAUTHORIZED, 20.0)
    limit = throttle.limit
    throttle.hold(11.0, 4.9, SinkState.THROTTLED, seconds)
    assert (throttle.state, throttle.limit) == (SinkState.THROTTLED, limit)
    assert throttle.paused_until == until
    assert not throttle.is_lifted_by(4.9)


@pytest.mark.parametrize(
    ("sent_at", "asked"), [(0.0, False), (9.0, False), (9.1, True), (10.0, True), (11.0, True)]
)
def test_what_lifts_a_hold(sent_at: float, asked: bool) -> None:
    """Any response, but a pause that was asked for: to a request sent after the one that failed."""
    for state in HELD:
        throttle = new_throttle()
        assert not throttle.is_lifted_by(sent_at)
        throttle.hold(10.0, 9.0, state, 60.0)
        throttle.hold(10.5, 9.5, state, 60.0)  # sent before the pause: it does not begin another
        assert throttle.is_lifted_by(sent_at) is (asked or state is not SinkState.THROTTLED)
        throttle.responded(11.0, 0.0)
        assert not throttle.is_lifted_by(sent_at)


def test_each_pause_that_was_asked_for_starts_anew() -> None:
    """What was sent before the probe that failed does not lift the next pause."""
    throttle = new_throttle()
    throttle.hold(10.0, 9.0, SinkState.THROTTLED, 5.0)
    assert throttle.is_lifted_by(9.5)
    throttle.hold(20.0, 19.0, SinkState.THROTTLED, 5.0)
    assert not throttle.is_lifted_by(9.5)
    throttle.hold(30.0, 29.0, SinkState.DOWN)
    assert throttle.is_lifted_by(9.5)


def test_pauses_grow_with_the_outage() -> None:
    """Each is a share of the outage so far at most, so that a recovery is noticed soon."""
    throttle, now, pauses = new_throttle(jitter=0.999), 100.0, []
    for _ in range(40):
        pause_s = hold(throttle, now)
        assert pause_s <= max(INITIAL_S, MAX_PAUSE_SHARE * (now - 100.0)) + 1e-9
        pauses.append(pause_s)
        now += pause_s
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(MAX_S * 0.999)
    throttle.responded(now, 0.0)
    assert hold(throttle, now + 100.0) <= INITIAL_S


def test_failures_in_quick_succession_do_not_outgrow_the_outage() -> None:
    """If a new credential makes the lane probe early, its failure costs no long pause."""
    throttle = new_throttle(jitter=0.999)
    for tick in range(20):
        now = 10.0 + tick / 10
        throttle.paused_until = 0.0
        assert hold(throttle, now) <= max(INITIAL_S, tick / 10) + 1e-9


@given(
    steps=st.lists(
        st.tuples(st.floats(0.0, 100.0), st.sampled_from([0.0, 0.0, 1.0, 60.0, 1e4]), st.booleans())
    ),
    jitter=st.floats(0.0, 1.0, exclude_max=True),
)
def test_a_pause_is_always_bounded(steps: list[tuple[float, float, bool]], jitter: float) -> None:
    """Whatever happens, the lane probes within five minutes, or within the longest back-off."""
    throttle, now = new_throttle(jitter), 0.0
    for passed, seconds, responds in steps:
        now += passed
        earlier = max(throttle.paused_until, now)
        if responds and throttle.probing:
            throttle.responded(now, 1.0)
            assert throttle.paused_until == 0.0
        else:
            hold(throttle, now, seconds)
            assert throttle.probing
            bound = MAX_PAUSE_S if seconds else MAX_S
            assert throttle.paused_until <= max(earlier, now + bound)


def test_a_process_that_stops_does_not_wait_long() -> None:
    """After `shorten_waits`, no back-off is longer than a second."""
    throttle = new_throttle(jitter=0.99)
    throttle.shorten_waits()
    for now in range(20):
        assert hold(throttle, now * 40.0) <= MAX_WAIT_WHILE_STOPPING_S


# Grants.


def test_a_healthy_upstream_gets_as_many_requests_as_the_limit_allows() -> None:
    """Each may be as large as it likes; one more has to wait for another to end."""
    throttle = new_throttle()
    for sending in range(throttle.limit):
        assert throttle.grant(1.0, sending, paced=True) == Grant()
    assert throttle.grant(1.0, throttle.limit, paced=True) is None


@pytest.mark.parametrize("paced", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_during_a_pause_nothing_is_sent_and_then_a_probe(paced: bool, seconds: float) -> None:
    """The probe is a single write in a single request, also while the process is stopping."""
    throttle = new_throttle()
    hold(throttle, 10.0, seconds)
    until = throttle.paused_until
    assert throttle.grant(10.1, 0, paced=paced) == until
    assert throttle.grant(until, 0, paced=paced) == PROBE
    assert throttle.grant(until, 1, paced=paced) is None
    throttle.resume()
    assert throttle.grant(10.1, 0, paced=paced) == PROBE


@pytest.mark.parametrize(("held_s", "anew"), [(1.0, False), (5.0, True)])
def test_what_interrupts_a_recovery(held_s: float, anew: bool) -> None:
    """A short hold does not begin it anew: it goes on as fast as it was by then."""
    throttle = new_throttle()
    hold(throttle, 10.0)
    throttle.responded(20.0, 100.0)
    at = 30.0  # the calm seconds at the beginning are over
    hold(throttle, at)
    throttle.responded(at + held_s, 100.0)
    granted = 0
    for tick in range(100):  # the next second
        while throttle.grant(at + held_s + tick / 100, 0, paced=True) == Grant():
            throttle.pace.sent()
            granted += 1
    assert (granted < 8) is anew


# When the upstream is up again.


@pytest.mark.parametrize("error", [None, REFUSED, IdTaken("taken", 400)], ids=str)
def test_a_response_ends_an_outage(error: SinkError | None) -> None:
    """What waits for a retry may be sent now, except for what is suspected."""
    lane = Lane()
    lane.hold()
    lane.retry("a", not_before=NOW - 1.0)
    lane.retry("b", not_before=NOW + 30.0).suspicion = 1
    lane.retry("c", not_before=NOW + 40.0).suspicion = 1
    lane.retry("d", not_before=NOW + 60.0)
    lane.retry("e", not_before=NOW + 70.0).suspicion = 1
    batch = sent(lane, "x")
    if error is None:
        lane.settlement.succeeded(batch, NOW, NOW, 1)
    else:
        fail(lane, batch, error)
    assert lane.given_up == ([] if error is None else ["x"])
    assert (lane.throttle.state, lane.woken) == (SinkState.UP, [SinkState.UP])
    assert waiting(lane) == [("a", -1.0), ("b", 30.0), ("c", 40.0), ("d", 0.0), ("e", 70.0)]
    assert [lane.retries.pop().spans[0].id for _ in range(5)] == [*"adbce"]


@pytest.mark.parametrize(("sent_at", "lifts"), [(NOW - 2.0, False), (NOW - 1.0, True)])
def test_a_pause_that_was_asked_for_outlasts_earlier_requests(sent_at: float, lifts: bool) -> None:
    """The upstream has decided later than it took those."""
    lane = Lane()
    fail(lane, sent(lane, "a"), HTTP_429, sent_at=NOW - 2.0, now=NOW - 0.5)
    lane.settlement.succeeded(sent(lane, "b"), sent_at, NOW, 1)
    assert lane.throttle.probing is not lifts
    assert len(lane.woken) == lifts
    assert lane.queue.depth == 1


def test_late_failures_do_not_note_a_missing_route() -> None:
    """They were sent before a pause that has ended: what gets through now shows the route."""
    lane = Lane()
    early = [sent(lane, id_) for id_ in "abcd"]
    for batch in early[:2]:
        fail(lane, batch, GONE, sent_at=NOW - 3.0, now=NOW - 2.0)
    lane.settlement.succeeded(sent(lane, "x"), NOW - 1.5, NOW - 1.0, 1)
    for batch in early[2:]:
        fail(lane, batch, GONE, sent_at=NOW - 3.0)
    assert lane.throttle.state is SinkState.UP
    assert lane.settlement.route_gone_since is None
