"""The process as `/status` reports it; docs/status.md is the contract for every key.

Reads the parts on each request, and once a second (`tick`) for rates and history. Reports plain
values: never span content, and secrets as `***`.
"""

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from pathlib import Path
from time import process_time
from typing import Any

from sidecar import __version__
from sidecar.config import Config, redacted
from sidecar.credentials import Accounts
from sidecar.drain.branch import Branch
from sidecar.drain.lane import Lane
from sidecar.operate.diagnosis import answers
from sidecar.operate.history import SAMPLE_S, History, Window, quantile
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.room import Rooms
from sidecar.spool.spool import Spool
from sidecar.telemetry.metrics import DELAY_S, UPSTREAM_S, Failure, IntakeMetrics
from sidecar.telemetry.outcomes import SinkState

TICK_S = 1.0
# Rates cover 5 s (readings are a second apart): steady enough to read, and quick to react.
_RATE_READINGS = 6
# Quantiles cover the last minute (readings are SAMPLE_S apart).
_QUANTILE_READINGS = 13
_STATES = list(SinkState)
_STATM = Path("/proc/self/statm")


@dataclass
class Status:
    """Reports one process; `now` is loop time in seconds, `ready` whether it accepts events."""

    config: Config
    admission: Admission
    metrics: IntakeMetrics
    lanes: Sequence[Lane]
    accounts: Accounts
    budget: MemoryBudget
    spool: Spool
    memory_limit: int | None
    ready: Callable[[], bool]
    lines_dropped: Callable[[], int]
    now: InitVar[float]

    def __post_init__(self, now: float) -> None:
        self._started_at = self._sampled_at = now
        self._lag_s = 0.0
        rooms = self.admission.rooms
        self._lanes = {lane.name: _Watched(lane, rooms, self.accounts) for lane in self.lanes}
        # Events accepted, seconds of CPU, refusals by reason.
        self._recent = Window(_RATE_READINGS)
        self._dropped = Window(_QUANTILE_READINGS)
        self._read_counters(now)
        first = self._sample(now)
        self._history = History(list(first))
        self._history.add(first)

    def tick(self, now: float, lag_s: float) -> None:
        """Read all counters; call once a second. `lag_s`: how late an event-loop timer fired."""
        self._lag_s = lag_s
        self._read_counters(now)
        # Half a tick of slack, because ticks are a little late.
        if now - self._sampled_at >= SAMPLE_S - TICK_S / 2:
            self._sampled_at = now
            self._history.add(self._sample(now))

    def _read_counters(self, now: float) -> None:
        rejected = self.metrics.rejected.values()
        self._recent.add(now, (self.metrics.accounting.received, process_time(), *rejected))
        for lane in self._lanes.values():
            lane.read_counters(now)

    def _sample(self, now: float) -> dict[str, float | None]:
        """Return one row of the history."""
        self._dropped.add(now, [self.lines_dropped()])
        events, cpu, *_ = self._recent.rates()
        row = {
            "events_per_s": events,
            "rss_bytes": _rss(),
            "queue_bytes": self.budget.used,
            "cpu": cpu,
        }
        for name, lane in self._lanes.items():
            row |= {f"{name}.{what}": value for what, value in lane.sample(now).items()}
        return row

    def history(self, after: int) -> dict[str, Any]:
        """Return what `/status/history` reports: the samples from `after` on, as columns."""
        return {"states": _STATES, **self._history.since(after)}

    def report(self, now: float) -> dict[str, Any]:
        """Return what `/status` reports."""
        events_per_s, cpu, *rejected = self._recent.rates()
        pod = self.config.pod
        reasons = zip(self.metrics.rejected, rejected, strict=True)
        spool = self.spool.status()._asdict() if self.spool.is_configured else None
        report: dict[str, Any] = {
            "version": __version__,
            "host": socket.gethostname(),
            "pod": {key: getattr(pod, key) or None for key in ("name", "namespace", "node")},
            "uptime_s": round(now - self._started_at, 1),
            "ready": self.ready(),
            # What a 202 promises now (docs/api.md).
            "durability": "disk" if spool and not spool["degraded"] else "memory",
            "spool": spool,
            "queue": {"bytes": self.budget.used, "limit_bytes": self.budget.limit},
            "memory": {"rss_bytes": _rss(), "limit_bytes": self.memory_limit},
            "cpu": round(cpu, 4),
            "loop_lag_s": round(self._lag_s, 4),
            "open_spans": len(self.admission.open_spans),
            "log": self._log(),
            "intake": {
                "events_per_s": round(events_per_s, 2),
                "rejected_per_s": round(sum(rejected), 2),
                "rejected_now": [reason for reason, rate in reasons if rate],
                "rejected_by_reason": dict(self.metrics.rejected),
                "requests_by_code": dict(self.metrics.requests),
            },
            "events": self.events(),
            "sinks": {name: lane.report(now) for name, lane in self._lanes.items()},
            "samples": self._history.count,
            "config": redacted(self.config),
        }
        return {"answers": answers(report), **report}

    def _log(self) -> dict[str, int]:
        dropped = self.lines_dropped()
        return {
            "lines_dropped": dropped,
            "lines_dropped_lately": int(self._dropped.growth([dropped])[0]),
        }

    def events(self) -> dict[str, int]:
        """Return the accounting of events (D15)."""
        accounting = self.metrics.accounting
        return {
            "received": accounting.received,
            "replayed": accounting.replayed,
            "joined": accounting.joined,
            "held": accounting.held,
            "written": accounting.written,
            "imbalance": accounting.imbalance,
        }


class _Watched:
    """A lane with its recent rates and quantiles."""

    def __init__(self, lane: Lane, rooms: Rooms, accounts: Accounts) -> None:
        self._lane = lane
        self._rooms = rooms
        self._accounts = accounts
        # Writes forwarded, writes not taken, requests made, requests failed.
        self._recent = Window(_RATE_READINGS)
        self._requests = Window(_QUANTILE_READINGS)
        self._delays = Window(_QUANTILE_READINGS)
        self._requests_of_sample = Window(2)
        self._worst = 0  # index into _STATES: the worst since the last sample

    def read_counters(self, now: float) -> None:
        metrics = self._lane.metrics
        requests = metrics.requests.total()
        failed = requests - metrics.requests["ok"]
        accounting = metrics.accounting
        writes = accounting.forwarded.total(), accounting.not_taken.total()
        self._recent.add(now, (*writes, requests, failed))
        # A state that came and went between two samples must show in the second one.
        self._worst = max(self._worst, _STATES.index(self._lane.state))

    def sample(self, now: float) -> dict[str, float | None]:
        """Return the lane's part of one row of the history."""
        lane, worst = self._lane, self._worst
        self._worst = _STATES.index(lane.state)
        self._requests.add(now, lane.metrics.request_seconds.counts)
        self._requests_of_sample.add(now, lane.metrics.request_seconds.counts)
        self._delays.add(now, lane.metrics.delay.counts)
        return {
            "depth": lane.depth,
            "forwarded_per_s": self._recent.rates()[0],
            "request_s": quantile(UPSTREAM_S, self._requests_of_sample.growth(), 0.5),
            "age_s": oldest_age(lane, now),
            "state": worst,
        }

    def report(self, now: float) -> dict[str, Any]:
        lane, accounting = self._lane, self._lane.metrics.accounting
        forwarded, not_taken, requests, failed = self._recent.rates()
        durations = self._requests.growth(lane.metrics.request_seconds.counts)
        delays = self._delays.growth(lane.metrics.delay.counts)
        overridden = {"overridden_accounts": list(self._accounts.overridden)}
        return {
            "state": lane.state,
            "next_attempt_s": _pause(lane.worst, now),
            "last_error": _error(lane.metrics.failure, now),
            "in_flight": lane.in_flight,
            "on_disk": lane.on_disk,
            "concurrency_limit": lane.concurrency_limit,
            "oldest_write_age_s": round(oldest_age(lane, now), 3),
            "has_credential": lane.has_credential,
            "accounts": [self._account(branch, now) for branch in lane.branches.values()],
            **(overridden if lane.has_accounts else {}),
            "lane_bytes": self._rooms.used(lane.room),
            "lane_limit_bytes": self._rooms.limit_now,
            "not_taken_per_s": round(not_taken, 2),
            "forwarded_per_s": round(forwarded, 2),
            "requests_per_s": round(requests, 2),
            "failed_requests_per_s": round(failed, 2),
            "request_p50_s": _rounded(quantile(UPSTREAM_S, durations, 0.5)),
            "request_p95_s": _rounded(quantile(UPSTREAM_S, durations, 0.95)),
            "delay_p50_s": _rounded(quantile(DELAY_S, delays, 0.5)),
            "delay_p95_s": _rounded(quantile(DELAY_S, delays, 0.95)),
            "retries": lane.metrics.retries,
            **lane.totals(),
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
        return {
            "id": id_ or None,
            "state": branch.throttle.state,
            "depth": branch.queue.depth,
            "has_credential": branch.credentials.headers() is not None,
            "next_attempt_s": _pause(branch, now),
        }


def oldest_age(lane: Lane, now: float) -> float:
    """Return the age of the oldest write of `lane` that is not settled, 0 for none."""
    oldest = lane.oldest()
    return 0.0 if oldest is None else now - oldest


def _pause(branch: Branch, now: float) -> float:
    """Seconds until the next attempt."""
    return round(max(0.0, branch.throttle.paused_until - now), 3)


def _error(failure: Failure | None, now: float) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"kind": failure.kind, "text": failure.text, "age_s": round(now - failure.at, 1)}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _rss() -> int | None:
    """Resident bytes, as `process_resident_memory_bytes`; None where /proc does not exist."""
    try:
        return int(_STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
