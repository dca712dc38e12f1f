"""The pace of a lane whose upstream has just recovered: requests per second."""

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.drain.pace import Pace
from sidecar.drain.throttle import MIN_PACED_OUTAGE_S, Grant, Throttle
from sidecar.telemetry.outcomes import SinkState
from tests.drain.test_throttle import new_throttle

OUTAGE_S = 60.0


def used_pace(
    per_s: float = 10.0, seconds: float = 300.0, burst: int = 1, now: float = 0.0
) -> Pace:
    """The pace of a lane that has sent requests, `burst` at a time, until about `now`."""
    pace, bursts = Pace(), int(per_s * seconds / burst)
    for number in reversed(range(bursts)):
        for _ in range(burst):
            pace.sent(now - number * burst / per_s)
    return pace


def recovered(
    pace: Pace, backlog: float = 0.0, outage_s: float = OUTAGE_S, phase: float = 0.0
) -> float:
    """Recover from an outage that began at 0; the time of the recovery."""
    pace.start(outage_s, backlog, outage_s, phase)
    return outage_s


def send_all(pace: Pace, now: float, until: float) -> tuple[int, int]:
    """Send whenever it is allowed; how many requests were sent, and how often it was asked."""
    sent = asked = 0
    while now < until and pace.active:
        asked += 1
        due = pace.next_at(now)
        if due <= now:
            pace.sent(now)
            sent += 1
        now = due
    return sent, asked


# The steady rate.


@pytest.mark.parametrize("per_s", [0.1, 1.0, 10.0, 200.0])
def test_the_steady_rate_is_a_mean(per_s: float) -> None:
    """Of requests, whatever they contain."""
    assert used_pace(per_s).steady == pytest.approx(per_s, rel=0.1)


def test_older_requests_count_less() -> None:
    """After a few minutes at another rate, that rate is the steady one."""
    pace = used_pace(100.0)
    for tick in range(600):
        pace.sent(tick + 1.0)
    assert pace.steady == pytest.approx(1.0, rel=0.1)


def test_a_lane_that_works_in_bursts() -> None:
    """It is measured by its mean; what a burst has left during the outage counts half."""
    pace = used_pace(1.0, 600.0, burst=60)
    assert 0.5 <= pace.steady <= 2.0
    now = recovered(pace, backlog=1200.0)
    assert pace.rate(now) == pytest.approx(1.15 * 10.0)


def test_a_backlog_below_the_mean_changes_nothing() -> None:
    """A lane that has less to send than others by chance is no slower."""
    pace = used_pace(10.0)
    now = recovered(pace, backlog=30.0)
    assert pace.rate(now) == pytest.approx(1.15 * pace.steady)


@pytest.mark.parametrize(("backlog", "per_s"), [(0.0, 5.0), (60.0, 5.0), (1200.0, 20.0)])
@pytest.mark.parametrize("requests", [0, 1])
def test_an_unknown_steady_rate(requests: int, backlog: float, per_s: float) -> None:
    """A lane that has hardly sent anything: what arrived during the outage, and at least five."""
    pace = used_pace(1.0, float(requests))
    assert pace.steady == 0.0
    now = recovered(pace, backlog)
    assert pace.rate(now) == pytest.approx(1.15 * per_s)


@pytest.mark.parametrize(("seconds", "per_s"), [(0.08, 0.0), (10.0, 0.0), (10.2, 100.0)])
def test_a_moment_is_too_short_to_know_a_steady_rate(seconds: float, per_s: float) -> None:
    """A lane whose upstream fails right after its first requests has no steady rate yet."""
    pace = used_pace(100.0, seconds - 0.01)
    assert pace.steady == pytest.approx(per_s, rel=0.01)
    now = recovered(pace, backlog=60.0)
    assert pace.rate(now) == pytest.approx(1.15 * max(per_s, 5.0), rel=0.01)


def test_the_outage_and_the_recovery_are_not_measured() -> None:
    """The lane's steady rate is that of its normal operation."""
    pace = used_pace(10.0)
    steady = pace.steady
    now = recovered(pace, backlog=6000.0, outage_s=3600.0)
    send_all(pace, now, now + 100.0)
    assert pace.steady == steady
    pace.stop(now + 100.0)
    assert pace.steady == steady
    for tick in range(1, 101):
        pace.sent(now + 100.0 + tick / 10)
    assert pace.steady == pytest.approx(steady, rel=0.02)


# The limit.


def test_the_rate_after_an_outage() -> None:
    """Hardly more than before for ten seconds; then it grows to twice as much, and stays there."""
    pace = used_pace(10.0)
    now = recovered(pace)
    factors = [pace.rate(now + after) / pace.steady for after in range(191)]
    assert factors[:11] == pytest.approx([1.15] * 11)
    assert 1.15 < factors[11] < factors[12] < 2.0
    assert factors[13:190] == pytest.approx([2.0] * 177)
    assert factors[190] == inf


@pytest.mark.parametrize("outage_s", [2.5, 60.0, 3600.0, 1e6])
def test_the_limit_ends(outage_s: float) -> None:
    """After ten seconds and three times the outage, whatever is left."""
    pace = used_pace(0.1)
    now = recovered(pace, 1e6, outage_s)
    ends_at = now + 10.0 + 3 * outage_s
    pace.next_at(ends_at - 0.1)
    assert pace.active
    assert pace.next_at(ends_at) == ends_at
    assert not pace.active


def test_the_limit_ends_with_the_backlog() -> None:
    """When nothing is waiting any more, the lane sends what arrives."""
    pace = used_pace(10.0)
    now = recovered(pace)
    assert pace.active
    pace.stop(now + 1.0)
    assert not pace.active


def test_a_backlog_is_gone_after_about_the_time_of_the_outage() -> None:
    """Also if as much as before the outage goes on arriving."""
    pace = used_pace(10.0)
    now = recovered(pace, backlog=10.0 * OUTAGE_S)
    sent, _ = send_all(pace, now, now + 1.2 * OUTAGE_S)
    assert sent >= 10.0 * OUTAGE_S + 10.0 * 1.2 * OUTAGE_S - 100.0


def test_lanes_do_not_send_their_first_requests_at_the_same_time() -> None:
    """The phase spreads them evenly over the time that one request takes at this rate."""
    first = []
    for lane in range(10):
        pace = used_pace(0.5)
        now = recovered(pace, phase=lane / 10)
        first.append(pace.next_at(now) - now)
        gap_s = 1 / pace.rate(now)
    assert first == pytest.approx([(1 - lane / 10) * gap_s for lane in range(10)])


@pytest.mark.parametrize(("per_s", "at_once"), [(1.0, 1), (1000.0, 115)])
def test_what_was_not_used_is_not_saved(per_s: float, at_once: int) -> None:
    """After a break, no more may be sent at once than in a tenth of a second, or one request."""
    pace = used_pace(per_s, 100.0)
    now = recovered(pace) + 9.0
    sent = 0
    while pace.next_at(now) <= now:
        pace.sent(now)
        sent += 1
    assert sent == pytest.approx(at_once, abs=1 + at_once // 50)


@given(
    started_at=st.floats(0.0, 1e9),
    per_s=st.floats(0.05, 2000.0),
    outage_s=st.floats(2.0, 1e5),
    phase=st.floats(0.0, 1.0, exclude_max=True),
)
def test_pace_never_causes_a_busy_loop(
    started_at: float, per_s: float, outage_s: float, phase: float
) -> None:
    """Who waits as long as it says sends at the exact rate, and asks a few times per request."""
    pace = Pace()
    pace.start(started_at, per_s * outage_s, outage_s, phase)
    seconds = min(10.0, 1000 / per_s)
    sent, asked = send_all(pace, started_at, started_at + seconds)
    rate = pace.rate(started_at)
    assert sent == pytest.approx(seconds * rate + phase, abs=2 + rate / 500)
    assert asked <= 3 * sent + 3


# When a lane is paced.


def recovered_throttle(outage_s: float = 60.0, jitter: float = 0.5) -> tuple[Throttle, float]:
    """A throttle whose upstream was down for so long, and the time of its recovery."""
    throttle = new_throttle(jitter)
    throttle.hold(100.0, 100.0, SinkState.DOWN)
    throttle.responded(100.0 + outage_s, 0.0)
    return throttle, 100.0 + outage_s


def is_paced(throttle: Throttle, now: float) -> bool:
    """Whether ten more requests may not be sent at once."""
    for _ in range(10):
        if not isinstance(throttle.grant(now, 0, paced=True), Grant):
            return True
        throttle.sent(now)
    return False


def test_requests_are_paced_after_an_outage() -> None:
    """Each may have any size; the next one is granted at the time that the throttle names."""
    throttle, now = recovered_throttle()
    sent, end = 0, now + 8.0
    while now < end:
        grant = throttle.grant(now, 0, paced=True)
        if isinstance(grant, Grant):
            assert grant == Grant()
            throttle.sent(now)
            sent += 1
        else:
            assert grant is not None
            assert grant > now
            now = grant
    assert sent == pytest.approx(8 * 1.15 * 5.0, abs=2)


def test_the_pace_follows_the_backlog() -> None:
    """Of a lane without a known rate: what arrived during the outage."""
    throttle = new_throttle(jitter=0.0)
    throttle.hold(100.0, 100.0, SinkState.DOWN)
    throttle.responded(160.0, 1200.0)
    assert throttle.grant(160.0, 0, paced=True) == pytest.approx(160.0 + 1 / (1.15 * 20.0))


@pytest.mark.parametrize("probes", [0, 1000])
def test_probes_are_not_measured(probes: int) -> None:
    """What is sent during an outage says nothing about the lane's rate."""
    throttle = new_throttle(jitter=0.0)
    for tick in range(1000):
        throttle.sent(tick / 10)
    throttle.hold(100.0, 100.0, SinkState.DOWN)
    for _ in range(probes):
        throttle.sent(110.0)
    throttle.responded(160.0, 0.0)
    due = throttle.grant(160.0, 0, paced=True)
    assert isinstance(due, float)
    assert 1 / (due - 160.0) == pytest.approx(1.15 * 10.0, rel=0.1)


@pytest.mark.parametrize(
    ("then", "paced"),
    [
        (lambda _throttle, _now: None, True),
        (lambda throttle, now: throttle.caught_up(now), False),
        (lambda throttle, now: throttle.grant(now + 200.0, 0, paced=True), False),
    ],
    ids=["at first", "nothing waits any more", "after ten seconds and three outages"],
)
def test_how_long_a_lane_is_paced(then: Callable[[Throttle, float], object], paced: bool) -> None:
    """Until its backlog is gone, and for a limited time."""
    throttle, now = recovered_throttle()
    then(throttle, now)
    assert is_paced(throttle, now + 0.01) is paced


def test_a_process_that_stops_is_not_paced() -> None:
    """Its grace period is short."""
    throttle, now = recovered_throttle(jitter=0.0)
    assert throttle.grant(now, 0, paced=False) == Grant()
    assert throttle.grant(now, 0, paced=True) != Grant()


@pytest.mark.parametrize(("outage_s", "paced"), [(0.0, False), (2.0, False), (2.1, True)])
def test_a_short_outage_leaves_nothing_to_pace(outage_s: float, paced: bool) -> None:
    """After up to two seconds, the lane goes on as before."""
    assert MIN_PACED_OUTAGE_S == 2.0
    throttle, now = recovered_throttle(outage_s)
    assert is_paced(throttle, now) is paced
