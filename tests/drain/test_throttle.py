"""Pauses, back-off and pace."""

import pytest

from sidecar.drain.pace import Pace
from sidecar.drain.throttle import MAX_WAIT_WHILE_STOPPING_S, Backoff, Grant, Throttle
from sidecar.sinks.http import retry_after_seconds
from sidecar.telemetry.outcomes import SinkState


def new_throttle(jitter: float = 0.5) -> Throttle:
    """A throttle with default settings."""
    return Throttle(Backoff(0.5, 30.0), 8, lambda: jitter)


def fail(throttle: Throttle, now: float, retry_after: float = 0.0, *, first: bool = True) -> None:
    """A request that was sent at `now` fails."""
    throttle.failed(now, now, retry_after=retry_after, first=first, outage=False)


@pytest.mark.parametrize(("attempt", "max_s"), [(1, 0.5), (2, 1.0), (7, 30.0), (10**6, 30.0)])
def test_backoff_doubles_up_to_a_maximum_with_full_jitter(attempt: int, max_s: float) -> None:
    """The delay lies between 0 and the exponential bound."""
    backoff = Backoff(0.5, 30.0)
    assert backoff.delay(attempt, 0.0) == 0.0
    assert backoff.delay(attempt, 0.999) == pytest.approx(max_s * 0.999)


def test_three_consecutive_failures_are_an_outage() -> None:
    """The lane pauses, then probes with one request; a response ends the outage."""
    throttle = new_throttle()
    for now in (1.0, 2.0):
        fail(throttle, now)
        assert throttle.state is SinkState.UP
    fail(throttle, 3.0)
    assert (throttle.state, throttle.limit) == (SinkState.DOWN, 1)
    assert throttle.paused_until == 3.0 + 0.25
    throttle.responded(4.0)
    assert throttle.state is SinkState.UP
    assert throttle.paused_until == 0.0


def test_one_bad_write_is_not_an_outage() -> None:
    """A write that keeps failing does not pause its lane."""
    throttle = new_throttle()
    fail(throttle, 1.0)
    for now in range(2, 50):
        fail(throttle, float(now), first=False)
    assert throttle.state is SinkState.UP


def test_failures_sent_before_the_pause_do_not_lengthen_it() -> None:
    """Ten requests that fail together cause one pause."""
    throttle = new_throttle()
    throttle.failed(5.0, 4.0, retry_after=0.0, first=True, outage=True)
    until = throttle.paused_until
    for _ in range(10):
        throttle.failed(5.1, 4.0, retry_after=0.0, first=True, outage=True)
    assert throttle.paused_until == until


@pytest.mark.parametrize("seconds", [0.2, 2.0, 7200.0])
def test_retry_after_is_honored_whatever_its_length(seconds: float) -> None:
    """The pause is never shorter than requested, and at most a tenth longer."""
    throttle = new_throttle()
    fail(throttle, 10.0, retry_after=seconds)
    assert throttle.state is SinkState.THROTTLED
    assert 10.0 + seconds <= throttle.paused_until <= 10.0 + seconds * 1.1


def test_a_process_that_stops_does_not_wait_long() -> None:
    """After `shorten_waits`, no back-off is longer than a second."""
    throttle = new_throttle(jitter=0.99)
    throttle.shorten_waits()
    for now in range(20):
        throttle.failed(now * 40.0, now * 40.0, retry_after=0.0, first=True, outage=True)
    assert throttle.paused_until <= 19 * 40.0 + MAX_WAIT_WHILE_STOPPING_S


def test_a_healthy_upstream_gets_as_many_requests_as_the_limit_allows() -> None:
    """Each may be as large as it likes; one more has to wait for another to end."""
    throttle = new_throttle()
    for sending in range(throttle.limit):
        assert throttle.grant(1.0, sending, paced=True) == Grant()
    assert throttle.grant(1.0, throttle.limit, paced=True) is None


@pytest.mark.parametrize("paced", [True, False])
def test_during_a_pause_nothing_is_sent_and_then_a_probe(paced: bool) -> None:
    """The probe is a single write in a single request, also while the process is stopping."""
    throttle = new_throttle()
    throttle.hold(10.0, 10.0, SinkState.UNAUTHORIZED)
    until = throttle.paused_until
    assert until > 10.0
    assert throttle.grant(10.1, 0, paced=paced) == until
    assert throttle.grant(until, 0, paced=paced) == Grant(1, is_probe=True)
    assert throttle.grant(until, 1, paced=paced) is None
    throttle.resume()
    assert throttle.grant(10.1, 0, paced=paced) == Grant(1, is_probe=True)


def recovered(seconds: float) -> tuple[Throttle, float]:
    """A throttle whose upstream was down for so long, and the time of its recovery."""
    throttle = new_throttle()
    throttle.hold(0.0, 0.0, SinkState.DOWN)
    assert throttle.responded(seconds)
    return throttle, seconds


def test_a_backlog_is_paced_after_an_outage() -> None:
    """What is not granted is granted at the time that the throttle names, and no more than due."""
    throttle, now = recovered(60.0)
    sent = 0
    for _ in range(1000):
        if now >= 65.0:
            break
        grant = throttle.grant(now, 0, paced=True)
        assert grant is not None
        if isinstance(grant, Grant):
            assert not grant.is_probe
            throttle.sent(now, grant.max_writes)
            sent += grant.max_writes
        else:
            assert grant > now
            now = grant
    assert now >= 65.0
    assert sent == pytest.approx(5 * Pace.DEFAULT_RATE, rel=0.05)


def test_the_pace_ends_when_nothing_is_waiting() -> None:
    """The backlog is gone; from then on the lane sends what arrives."""
    throttle, now = recovered(60.0)
    assert throttle.grant(now, 0, paced=True) != Grant()
    throttle.caught_up()
    assert throttle.grant(now, 0, paced=True) == Grant()


def test_a_process_that_stops_is_not_paced() -> None:
    """Its grace period is short."""
    throttle, now = recovered(60.0)
    assert throttle.grant(now, 0, paced=False) == Grant()


def test_a_short_outage_leaves_nothing_to_pace() -> None:
    """After up to two seconds, the lane goes on as before."""
    throttle, now = recovered(2.0)
    assert throttle.grant(now, 0, paced=True) == Grant()


def test_pace_after_an_outage() -> None:
    """The rate is 1.2 times the steady rate for ten seconds, then grows until `stop`."""
    pace = Pace()
    for tick in range(200):
        pace.sent(tick / 10, 10)  # 100 writes per second
    assert pace.steady == pytest.approx(100, rel=0.1)
    pace.start(100.0)
    assert pace.rate(109.0) == pytest.approx(1.2 * pace.steady)
    assert pace.rate(120.0) > 5 * pace.steady
    pace.stop()
    assert not pace.active


def test_pace_never_causes_a_busy_loop() -> None:
    """Waiting until `next_at` yields the exact rate, in no more steps than writes."""
    pace = Pace()
    pace.start(0.0)
    now, sent, steps = 0.0, 0, 0
    while now < 10.0:
        steps += 1
        allowed = pace.allowance(now)
        if allowed:
            pace.sent(now, allowed)
            sent += allowed
        now = pace.next_at(now)
    assert sent == pytest.approx(Pace.DEFAULT_RATE * 10, rel=0.02)
    assert steps <= sent + 10


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2"}, 2.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "9" * 400}, 0.0),
        ({"retry-after-ms": "inf"}, 0.0),
        ({"retry-after-ms": "1e300"}, 86_400.0),
        ({"Retry-After": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_retry_after_is_parsed_and_bounded(headers: dict[str, str], seconds: float) -> None:
    """Seconds, milliseconds or a date; at most a day, and 0 if it is invalid or past."""
    assert retry_after_seconds(headers) == seconds
