"""The pace of a lane whose upstream has just recovered: requests per second."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.drain.pace import Pace
from sidecar.drain.throttle import MIN_BATCHES, MIN_PACED_OUTAGE_S, Grant, Throttle
from sidecar.telemetry.outcomes import SinkState
from tests.drain.test_scheduler import NOW, Lane
from tests.drain.test_settlement import GONE, fail
from tests.drain.test_settlement import sent as sent_batch
from tests.drain.test_throttle import new_throttle

OUTAGE_S = 60.0
DUE_S = 10.0 + (OUTAGE_S - 1.5) / 0.94  # after such an outage, the backlog is due so much later


def used_pace(per_s: float = 10.0, seconds: float = 300.0, burst: int = 1) -> Pace:
    """The pace of a lane whose requests have succeeded, `burst` at a time, until about 0."""
    pace, bursts = Pace(), int(per_s * seconds / burst)
    for number in reversed(range(bursts)):
        for _ in range(burst):
            pace.succeeded(-number * burst / per_s)
    return pace


def recovered(
    pace: Pace, backlog: float = 600.0, outage_s: float = OUTAGE_S, phase: float = 0.0
) -> float:
    """Recover from an outage that began at 0; the time of the recovery."""
    pace.start(outage_s, backlog, outage_s, phase)
    return outage_s


def send_all(pace: Pace, now: float, until: float) -> tuple[int, int]:
    """Send whenever it is allowed; how many requests were sent, and how often it was asked."""
    sent = asked = 0
    while now < until:
        asked += 1
        due = pace.next_at(now)
        if due <= now:
            pace.sent()
            sent += 1
        now = due
    return sent, asked


# The steady rate.


@pytest.mark.parametrize("per_s", [0.1, 1.0, 10.0, 200.0])
def test_the_steady_rate_is_a_mean(per_s: float) -> None:
    """It is a mean over requests, whatever they contain."""
    assert used_pace(per_s).steady(0.0) == pytest.approx(per_s, rel=0.1)


def test_older_requests_count_less() -> None:
    """After a few minutes at another rate, that rate is the steady one."""
    pace = used_pace(100.0)
    for tick in range(600):
        pace.succeeded(tick + 1.0)
    assert pace.steady(600.0) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("idle_s", "per_s"), [(0.0, 10.0), (60.0, 3.7), (600.0, 0.0)])
def test_a_time_without_requests_counts(idle_s: float, per_s: float) -> None:
    """A lane that was idle before the outage has a lower steady rate."""
    assert used_pace(10.0).steady(idle_s) == pytest.approx(per_s, abs=0.1)


@pytest.mark.parametrize(("requests", "per_s"), [(0, 0.0), (1, 0.1), (8, 0.8), (1000, 100.0)])
def test_a_short_time_counts_as_ten_seconds(requests: int, per_s: float) -> None:
    """A lane whose upstream fails right after its first requests has no high steady rate."""
    assert used_pace(100.0, requests / 100).steady(0.0) == pytest.approx(per_s, rel=0.1)


def test_the_outage_and_the_recovery_are_not_measured() -> None:
    """The lane's steady rate is that of its normal operation."""
    pace = used_pace(10.0)
    steady = pace.steady(0.0)
    now = recovered(pace, backlog=6000.0, outage_s=3600.0)
    for tick in range(1000):
        pace.succeeded(now + tick / 10)
    assert pace.steady(0.0) == steady
    pace.stop(now + 100.0)
    assert pace.steady(now + 100.0) == steady
    for tick in range(1, 101):
        pace.succeeded(now + 100.0 + tick / 10)
    assert pace.steady(now + 110.0) == pytest.approx(steady, rel=0.02)


# The limit.


def test_the_rate_after_an_outage() -> None:
    """It is hardly more than before for ten seconds; then it grows to nearly twice as much."""
    pace = used_pace(10.0)
    now = recovered(pace)
    extra = [pace.rate(now + tick / 4) - pace.steady(0.0) for tick in range(int(DUE_S * 4))]
    assert extra[:41] == pytest.approx([1.5] * 41)
    assert 1.5 < extra[41] < extra[42] < extra[43] < 9.4
    assert extra[44:] == pytest.approx([9.4] * (len(extra) - 44))


@pytest.mark.parametrize(
    ("backlog", "base"), [(0.0, 10.0), (60.0, 10.0), (600.0, 10.0), (3000.0, 25.0)]
)
def test_a_share_of_the_backlog_is_added_to_the_steady_rate(backlog: float, base: float) -> None:
    """Half of the backlog's rate replaces the steady rate if it is more."""
    pace = used_pace(10.0)
    now = recovered(pace, backlog)
    assert pace.rate(now) == pytest.approx(base + 0.15 * backlog / OUTAGE_S, rel=0.02)
    assert pace.rate(now + 20.0) == pytest.approx(base + 0.94 * backlog / OUTAGE_S, rel=0.02)


def test_a_lane_that_works_in_bursts() -> None:
    """It is measured by its mean; what a burst has left during the outage counts half."""
    pace = used_pace(1.0, 600.0, burst=60)
    assert 0.5 <= pace.steady(0.0) <= 2.0
    now = recovered(pace, backlog=1200.0)
    assert pace.rate(now) == pytest.approx((0.5 + 0.15) * 20.0)


@pytest.mark.parametrize("backlog", [60.0, 1200.0])
def test_an_unknown_steady_rate(backlog: float) -> None:
    """The rate of a lane that has sent nothing before is that of what arrived in the outage."""
    pace = Pace()
    now = recovered(pace, backlog)
    assert pace.rate(now) == pytest.approx(1.15 * backlog / OUTAGE_S)


@pytest.mark.parametrize("backlog", [0.0, 1.0, 600.0])
@pytest.mark.parametrize("outage_s", [2.5, 60.0, 3600.0])
def test_some_requests_are_always_allowed(outage_s: float, backlog: float) -> None:
    """At least `min_requests` in as much time as the outage took, and one in five seconds."""
    pace = Pace(min_requests=5.0)
    now = recovered(pace, backlog, outage_s)
    assert pace.rate(now) == pytest.approx(max(0.2, 5.0 / outage_s, 1.15 * backlog / outage_s))
    sent, _ = send_all(pace, now, now + 1.001 * outage_s)
    assert sent >= 4  # and the probe


@pytest.mark.parametrize("outage_s", [2.5, 60.0, 3600.0])
def test_the_rate_doubles_once_the_backlog_is_due(outage_s: float) -> None:
    """It doubles with every tenth of the outage, but not more than once per second."""
    pace = used_pace(0.1)
    now = recovered(pace, 1e4, outage_s)
    due_at = now + 10.0 + (outage_s - 1.5) / 0.94
    rate = pace.rate(due_at)
    assert pace.rate(due_at - 0.01) == pytest.approx(rate)
    for doublings in (1, 2, 10):
        late = due_at + doublings * max(1.0, outage_s / 10)
        assert pace.rate(late) == pytest.approx(rate * 2**doublings)
    assert pace.rate(due_at + 1e9 * outage_s) > 1e9 * rate
    assert pace.active


def test_a_backlog_is_gone_after_about_the_time_of_the_outage() -> None:
    """It is gone in time even if as much as before the outage goes on arriving."""
    pace = used_pace(10.0)
    now = recovered(pace, backlog=10.0 * OUTAGE_S)
    sent, _ = send_all(pace, now, now + DUE_S)
    assert sent == pytest.approx(10.0 * OUTAGE_S + 10.0 * DUE_S, rel=0.05)


def test_the_probe_counts_as_a_request() -> None:
    """The next request waits for its turn, and lanes spread theirs evenly by their phase."""
    first = []
    for lane in range(10):
        pace = used_pace(0.5)
        now = recovered(pace, backlog=30.0, phase=lane / 10)
        first.append(pace.next_at(now) - now)
        gap_s = 1 / pace.rate(now)
    assert first == pytest.approx([(2 - lane / 10) * gap_s for lane in range(10)])


@pytest.mark.parametrize(("per_s", "at_once"), [(1.0, 1), (1000.0, 115)])
def test_what_was_not_used_is_not_saved(per_s: float, at_once: int) -> None:
    """After a break, no more may be sent at once than in a tenth of a second, or one request."""
    pace = used_pace(per_s, 100.0)
    now = recovered(pace, per_s * OUTAGE_S) + 9.0
    sent = 0
    while pace.next_at(now) <= now:
        pace.sent()
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
    assert sent == pytest.approx(max(0.0, seconds * rate + phase - 1), abs=2 + rate / 500)
    assert asked <= 3 * sent + 3


# When a lane is paced.


def recovered_throttle(backlog: float = 0.0, outage_s: float = OUTAGE_S) -> Throttle:
    """A throttle whose upstream has recovered at 160 from an outage."""
    throttle = new_throttle(jitter=0.0)
    throttle.hold(160.0 - outage_s, 160.0 - outage_s, SinkState.DOWN)
    throttle.responded(160.0, backlog)
    return throttle


def gap_s(throttle: Throttle, now: float) -> float:
    """Seconds per request, right after the probe; 0 if the lane is not paced."""
    due = throttle.grant(now, 0, paced=True)
    return (due - now) / 2 if isinstance(due, float) else 0.0


def test_requests_are_paced_after_an_outage() -> None:
    """Each may have any size; the next one is granted at the time that the throttle names."""
    throttle, sent, now = recovered_throttle(300.0), 0, 160.0
    while now < 168.0:
        grant = throttle.grant(now, 0, paced=True)
        if isinstance(grant, Grant):
            assert grant == Grant()
            throttle.pace.sent()
            sent += 1
        else:
            assert grant is not None
            assert grant > now
            now = grant
    assert sent == pytest.approx(8 * 1.15 * 5.0, abs=2)


@pytest.mark.parametrize(("backlog", "requests"), [(0.0, 12.0), (1200.0, 1.15 * 1200.0)])
def test_the_pace_follows_the_backlog(backlog: float, requests: float) -> None:
    """A lane without a steady rate sends what arrived during the outage, and a few batches."""
    assert gap_s(recovered_throttle(backlog), 160.0) == pytest.approx(60.0 / requests)


@pytest.mark.parametrize("failing", [0, 1000])
def test_what_fails_is_not_measured(failing: int) -> None:
    """Retries before and probes during an outage say nothing about the lane's rate."""
    throttle = new_throttle(jitter=0.0)
    for tick in range(1000):
        throttle.pace.sent()
        throttle.sample(tick / 10, 1, 1, 0.1)
    for _ in range(failing):
        throttle.pace.sent()
    throttle.hold(100.0, 100.0, SinkState.DOWN)
    for _ in range(failing):
        throttle.pace.sent()
        throttle.sample(110.0, 1, 1, 0.1)
    throttle.responded(160.0, 0.0)
    assert 1 / gap_s(throttle, 160.0) == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize(("caught_up", "outage_s"), [(False, 70.0), (True, 9.0)])
def test_flapping_is_one_outage(caught_up: bool, outage_s: float) -> None:
    """An upstream that fails again before the backlog is gone has not really been up."""
    throttle = recovered_throttle(600.0)
    if caught_up:
        throttle.pace.stop(160.5)
    throttle.hold(161.0, 161.0, SinkState.DOWN)
    throttle.responded(170.0, 1400.0)
    assert gap_s(throttle, 170.0) == pytest.approx(outage_s / (1.15 * 1400.0))


def test_an_outage_begins_with_the_first_failure() -> None:
    """It is counted from when that request was sent, even if only a later one pauses the lane."""
    lane = Lane(jitter=0.0)
    for id_, sent_at in (("a", NOW - 9.0), ("b", NOW - 5.0)):
        assert not lane.throttle.probing
        fail(lane, sent_batch(lane, id_), GONE, sent_at=sent_at, now=sent_at + 1.0)
    assert lane.throttle.probing
    lane.throttle.responded(NOW, 0.0)
    assert gap_s(lane.throttle, NOW) == pytest.approx(9.0 / MIN_BATCHES)


def test_how_long_a_lane_is_paced() -> None:
    """It is paced until its backlog is gone, unless the process stops: its grace is short."""
    throttle = recovered_throttle()
    assert gap_s(throttle, 160.0) > 0.0
    assert throttle.grant(160.0, 0, paced=False) == Grant()
    throttle.pace.stop(160.0)
    assert gap_s(throttle, 160.0) == 0.0


@pytest.mark.parametrize(("outage_s", "paced"), [(0.0, False), (2.0, False), (2.1, True)])
def test_a_short_outage_leaves_nothing_to_pace(outage_s: float, paced: bool) -> None:
    """After up to two seconds, the lane goes on as before."""
    assert MIN_PACED_OUTAGE_S == 2.0
    assert (gap_s(recovered_throttle(outage_s=outage_s), 160.0) > 0.0) is paced
