"""One lane as `/status` reports it, with its recent rates, quantiles and trends."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sidecar.credentials import Accounts
from sidecar.drain.branch import Branch
from sidecar.drain.lane import Lane
from sidecar.operate.causes import BACKLOG_S
from sidecar.operate.history import Distribution, Window
from sidecar.operate.trend import Trend
from sidecar.operate.words import duration
from sidecar.queue.room import Rooms
from sidecar.telemetry.metrics import Failure
from sidecar.telemetry.outcomes import SinkState

# Rates cover 5 s (readings are a second apart): steady enough to read, and quick to react.
RATE_READINGS = 6
# Quantiles cover the last minute (readings are SAMPLE_S apart).
QUANTILE_READINGS = 13
STATES = list(SinkState)
# How long a lane that was late is said to have been: what the history shows.
LATE_KEPT_S = 900.0


class WatchedLane:
    """A lane with its recent rates and quantiles. A write is late from `late_s` on."""

    def __init__(self, lane: Lane, rooms: Rooms, accounts: Accounts, late_s: float) -> None:
        self._lane = lane
        self._late_s = late_s
        self._rooms = rooms
        self._accounts = accounts
        # Writes forwarded, writes not taken, requests made, requests failed.
        self._recent = Window(RATE_READINGS)
        self.requests = Distribution(lane.metrics.request_seconds, QUANTILE_READINGS)
        self._delays = Distribution(lane.metrics.delay, QUANTILE_READINGS)
        self._worst = 0  # index into STATES: the worst since the last sample
        self._room, self._depth = Trend(), Trend()
        self._past = _Past(lane, late_s)
        # Whether what the lane holds comes from an outage, or from an earlier process.
        self._behind = False

    def read_counters(self, now: float) -> None:
        self._recent.add(now, self._counters())
        self._past.look(now)
        age = oldest_age(self._lane, now)
        if age >= self._late_s:
            self._past.saw("late", now)
        if any(_is_held(branch) for branch in self._lane.branches.values()):
            self._behind = True
        elif age < BACKLOG_S:
            self._behind = bool(self._lane.on_disk)
        # A state that came and went between two samples must show in the second one.
        self._worst = max(self._worst, STATES.index(self._lane.state))

    def _counters(self) -> tuple[int, int, int, int]:
        metrics = self._lane.metrics
        requests = metrics.requests.total()
        failed = requests - metrics.requests["ok"]
        accounting = metrics.accounting
        return accounting.forwarded.total(), accounting.not_taken.total(), requests, failed

    def sample(self, now: float) -> dict[str, float | None]:
        """Return the lane's part of one row of the history."""
        lane, worst = self._lane, self._worst
        self._worst = STATES.index(lane.state)
        self.requests.read()
        self._delays.read()
        self._room.add(now, self._rooms.used(lane.room))
        self._depth.add(now, lane.depth)
        return {
            "depth": lane.depth,
            "forwarded_per_s": self._recent.rates(now, self._counters())[0],
            "request_s": self.requests.quantile_of_interval(0.5),
            "age_s": oldest_age(lane, now),
            "state": worst,
        }

    def report(self, now: float) -> dict[str, Any]:
        lane, accounting = self._lane, self._lane.metrics.accounting
        forwarded, not_taken, requests, failed = self._recent.rates(now, self._counters())
        branches = lane.branches.values()
        age = oldest_age(lane, now)
        past = self._past.ages(now)
        request_p50, request_p95 = self.requests.quantiles(0.5, 0.95)
        delay_p50, delay_p95 = self._delays.quantiles(0.5, 0.95)
        overridden = {"overridden_accounts": list(self._accounts.overridden)}
        return {
            "state": lane.state,
            "label": _label(lane.state, known=lane.has_credential, asked=self._was_asked()),
            "next_attempt_s": _pause(lane.worst, now),
            "next_attempt": _attempt(lane.worst, now),
            "error": _held(lane, lane.worst),
            "last_error": _error(lane.metrics.failure, now),
            "in_flight": lane.in_flight,
            "requests_in_flight": lane.sending,
            "retrying": sum(each.drain.retrying for each in branches),
            "on_disk": lane.on_disk,
            "concurrency_limit": lane.concurrency_limit,
            "oldest_write_age_s": round(age, 3),
            "catching_up": self._behind and not _is_held(lane.worst),
            "late_until": None if age >= self._late_s else _late_until(past["late"]),
            "caught_up_in_s": self._depth.seconds_until(0.0) if age >= self._late_s else None,
            "has_credential": lane.has_credential,
            "accounts": [self._account(each, now) for each in branches],
            **(overridden if lane.has_accounts else {}),
            "lane_bytes": self._rooms.used(lane.room),
            "lane_limit_bytes": self._rooms.limit_now,
            "full_in_s": self._room.seconds_until(self._rooms.limit_now),
            "not_taken_per_s": round(not_taken, 2),
            "forwarded_per_s": round(forwarded, 2),
            "requests_per_s": round(requests, 2),
            "failed_requests_per_s": round(failed, 2),
            "request_p50_s": _rounded(request_p50),
            "request_p95_s": _rounded(request_p95),
            "delay_p50_s": _rounded(delay_p50),
            "delay_p95_s": _rounded(delay_p95),
            "retries": lane.metrics.retries,
            **lane.totals(),
            "answer_age_s": _rounded(past["answered"]),
            "not_taken_age_s": _rounded(past["not_taken"]),
            "dead_lettered_age_s": _rounded(past["dead_lettered"]),
            "lost_age_s": _rounded(past["lost"]),
            "not_taken_by_reason": dict(accounting.not_taken),
            "forwarded_by_kind": dict(accounting.forwarded),
            "skipped_by_reason": dict(accounting.skipped),
            "dead_lettered_by_reason": dict(accounting.dead_lettered),
            "lost_by_reason": dict(accounting.lost),
            "repaired_by_reason": dict(lane.metrics.repaired),
            "requests_by_outcome": dict(lane.metrics.requests),
        }

    def _account(self, branch: Branch, now: float) -> dict[str, Any]:
        id_ = self._accounts.id_of(branch.account) if self._lane.has_accounts else ""
        has_credential = branch.credentials.headers() is not None
        asked = bool(branch.drain.sending or branch.drain.retrying)
        asked = asked or (len(self._lane.branches) == 1 and self._was_asked())
        return {
            "id": id_ or None,
            "state": branch.throttle.state,
            "label": _label(branch.throttle.state, known=has_credential, asked=asked),
            "depth": branch.queue.depth,
            "has_credential": has_credential,
            "next_attempt_s": _pause(branch, now),
            "next_attempt": _attempt(branch, now),
            "error": _held(self._lane, branch),
        }

    def _was_asked(self) -> bool:
        """Whether a request was made, answered or not."""
        return bool(self._lane.sending or self._lane.metrics.requests.total())


def oldest_age(lane: Lane, now: float) -> float:
    """Return the age of the oldest write of `lane` that is not settled, 0 for none."""
    oldest = lane.oldest()
    return 0.0 if oldest is None else now - oldest


class _Past:
    """When something that is counted last happened, to a second."""

    def __init__(self, lane: Lane, late_s: float) -> None:
        self._lane = lane
        self._late_s = late_s
        self._counts = self._now()
        self._seen: dict[str, float] = {}  # loop times

    def _now(self) -> dict[str, int]:
        metrics = self._lane.metrics
        accounting, delay = self._lane.accounting, metrics.delay
        # Of deliveries that took this long. Their bucket's lower bound counts.
        return {
            "late": delay.above(self._late_s),
            "answered": metrics.requests.total(),
            "not_taken": accounting.not_taken.total(),
            "dead_lettered": accounting.dead_lettered.total(),
            "lost": accounting.lost.total(),
        }

    def look(self, now: float) -> None:
        """Compare the counters with those of a second ago."""
        counts = self._now()
        for what, count in counts.items():
            if count > self._counts[what]:
                self.saw(what, now)
        self._counts = counts

    def saw(self, what: str, now: float) -> None:
        """It happened just now."""
        self._seen[what] = now

    def ages(self, now: float) -> dict[str, float | None]:
        """Seconds since each last happened; None if it never has."""
        self.look(now)
        return {
            what: now - self._seen[what] if what in self._seen else None for what in self._counts
        }


def _late_until(age_s: float | None) -> str | None:
    if age_s is None or age_s > LATE_KEPT_S:
        return None
    until = datetime.now(UTC) - timedelta(seconds=age_s)
    return until.isoformat(timespec="seconds").replace("+00:00", "Z")


def _pause(branch: Branch, now: float) -> float:
    """Seconds until the next attempt."""
    return round(max(0.0, branch.throttle.paused_until - now), 3)


def _label(state: SinkState, *, known: bool, asked: bool) -> str:
    """A state in words; `known`: the credential is. `asked`: a request was made."""
    if not known:
        return "no credential"
    if state is SinkState.NOT_ASKED:
        return "no answer yet" if asked else "not asked yet"
    return state


def _is_held(branch: Branch) -> bool:
    return branch.throttle.state not in {SinkState.NOT_ASKED, SinkState.UP}


def _attempt(branch: Branch, now: float) -> str | None:
    """When the upstream is tried again; None if it is not held."""
    if not _is_held(branch):
        return None
    if branch.drain.sending:
        return "an attempt is under way"
    wait_s = _pause(branch, now)
    if not branch.queue.depth:
        least = f", in {duration(wait_s)} at the earliest" if wait_s else ""
        return f"next attempt with the next span{least}"
    return f"next attempt in {duration(wait_s)}" if wait_s else "next attempt now"


def _held(lane: Lane, branch: Branch) -> str | None:
    """Why the upstream is held, in our words; None if it is not."""
    return lane.metrics.held.get(branch.account) or None if _is_held(branch) else None


def _error(failure: Failure | None, now: float) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"kind": failure.kind, "text": failure.text, "age_s": round(now - failure.at, 1)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
