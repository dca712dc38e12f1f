"""The process as `/status` reports it; docs/status.md is the contract for every key.

Reads the parts on each request, and once a second (`tick`) for rates and history. Reports plain
values: never span content, and secrets as `***`.
"""

import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import process_time
from typing import Any

from sidecar import __version__
from sidecar.config import Config, redacted
from sidecar.credentials import Accounts
from sidecar.drain.lane import Lane
from sidecar.operate.diagnosis import answers, late_after
from sidecar.operate.history import SAMPLE_S, Distribution, History, Window
from sidecar.operate.lane_status import QUANTILE_READINGS, RATE_READINGS, STATES, WatchedLane
from sidecar.operate.trend import Trend
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.kept_letters import KeptLetters
from sidecar.spool.spool import Spool
from sidecar.telemetry.metrics import IntakeMetrics

TICK_S = 1.0
_LAGS = 60  # of a minute
_STATM = Path("/proc/self/statm")


@dataclass
class Status:
    """Reports one process; `now` is loop time in seconds, `ready` whether it accepts events.

    `phase` returns `starting`, `running` or `stopping`, and `url` where agents post. `connections`
    returns the open ones of each port.
    """

    config: Config
    admission: Admission
    metrics: IntakeMetrics
    lanes: Sequence[Lane]
    accounts: Accounts
    budget: MemoryBudget
    spool: Spool
    letters: KeptLetters
    memory_limit: int | None
    ready: Callable[[], bool]
    phase: Callable[[], str]
    url: Callable[[], str | None]
    last_shutdown_lost: Callable[[], int]
    lines_dropped: Callable[[], int]
    connections: Callable[[], Mapping[str, int]]
    now: InitVar[float]

    def __post_init__(self, now: float) -> None:
        self._started_at = self._sampled_at = now
        self._config = redacted(self.config)
        rooms = self.admission.rooms
        self._late_s = late_after(self.config.queue.start_hold_s)
        self.watched = {
            lane.name: WatchedLane(lane, rooms, self.accounts, self._late_s) for lane in self.lanes
        }
        # Events accepted, seconds of CPU, refusals by reason.
        self._recent = Window(RATE_READINGS)
        self._dropped = Window(QUANTILE_READINGS)
        self.responses = Distribution(self.metrics.seconds, QUANTILE_READINGS)
        self._lags: deque[float] = deque([0.0], maxlen=_LAGS)
        self._memory, self._disk = Trend(), Trend()
        self._not_kept, self._not_kept_at = 0, now
        self._read_counters(now)
        first = self._sample(now)
        self._history = History(list(first))
        self._history.add(first)

    def tick(self, now: float, lag_s: float) -> None:
        """Read all counters; call once a second. `lag_s`: how late an event-loop timer fired."""
        self._lags.append(lag_s)
        self._read_counters(now)
        self._dead_letters(now)
        # Half a tick of slack, because ticks are a little late.
        if now - self._sampled_at >= SAMPLE_S - TICK_S / 2:
            self._sampled_at = now
            self._history.add(self._sample(now))

    def _read_counters(self, now: float) -> None:
        self._recent.add(now, self._counters())
        for lane in self.watched.values():
            lane.read_counters(now)

    def _counters(self) -> tuple[float, ...]:
        rejected = self.metrics.rejected.values()
        return self.metrics.accounting.received, process_time(), *rejected

    def _sample(self, now: float) -> dict[str, float | None]:
        """Return one row of the history."""
        self._dropped.add(now, [self.lines_dropped()])
        self.responses.read()
        self._memory.add(now, self.budget.used)
        self._disk.add(now, self.spool.status().used_ratio)
        events, cpu, *_ = self._recent.rates(now, self._counters())
        row = {
            "events_per_s": events,
            "rss_bytes": _rss(),
            "queue_bytes": self.budget.used,
            "cpu": cpu,
        }
        for name, lane in self.watched.items():
            row |= {f"{name}.{what}": value for what, value in lane.sample(now).items()}
        return row

    @property
    def worst_lag_s(self) -> float:
        """How late a timer of the event loop fired at most, within a minute."""
        return max(self._lags)

    def history(self, after: int) -> dict[str, Any]:
        """Return what `/status/history` reports: the samples from `after` on, as columns."""
        return {"states": STATES, **self._history.since(after)}

    def report(self, now: float) -> dict[str, Any]:
        """Return what `/status` reports."""
        events_per_s, cpu, *rejected = self._recent.rates(now, self._counters())
        pod = self.config.pod
        reasons = zip(self.metrics.rejected, rejected, strict=True)
        spool = self._spool()
        report: dict[str, Any] = {
            "version": __version__,
            "host": socket.gethostname(),
            "pod": {key: getattr(pod, key) or None for key in ("name", "namespace", "node")},
            "time": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "uptime_s": round(now - self._started_at, 1),
            "ready": self.ready(),
            "phase": self.phase(),
            # What a 202 promises now (docs/api.md).
            "durability": "disk" if spool and not spool["degraded"] else "memory",
            "spool": spool,
            "queue": {
                "bytes": self.budget.used,
                "limit_bytes": self.budget.limit,
                "full_in_s": self._memory.seconds_until(self.budget.limit),
            },
            "memory": {"rss_bytes": _rss(), "limit_bytes": self.memory_limit},
            "cpu": round(cpu, 4),
            "loop_lag_s": round(self._lags[-1], 4),
            "connections": {
                port: {"open": count, "crowded": self.metrics.displaced[port]}
                for port, count in self.connections().items()
            },
            "open_spans": len(self.admission.open_spans),
            "log": self._log(),
            "late_after_s": self._late_s,
            "lost_at_last_shutdown": self.last_shutdown_lost(),
            "intake": {
                "url": self.url(),
                "events_per_s": round(events_per_s, 2),
                "rejected_per_s": round(sum(rejected), 2),
                "rejected_now": [reason for reason, rate in reasons if rate],
                "rejected_by_reason": dict(self.metrics.rejected),
                "requests_by_code": dict(self.metrics.requests),
                "flushes_by_outcome": dict(self.metrics.flushes),
                "passed_through_by_outcome": dict(self.metrics.passed),
            },
            "events": self.events(),
            "sinks": {name: lane.report(now) for name, lane in self.watched.items()},
            "dead_letters": self._dead_letters(now),
            "samples": self._history.count,
            "config": self._config,
        }
        return {"answers": answers(report), **report}

    def _spool(self) -> dict[str, Any] | None:
        if not self.spool.is_configured:
            return None
        return {**self.spool.status()._asdict(), "full_in_s": self._disk.seconds_until(1.0)}

    def _dead_letters(self, now: float) -> dict[str, Any]:
        report = self.letters.report()
        if report["not_kept"] > self._not_kept:
            self._not_kept, self._not_kept_at = report["not_kept"], now
        age_s = round(now - self._not_kept_at, 1) if self._not_kept else None
        return {**report, "not_kept_age_s": age_s}

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


def _rss() -> int | None:
    """Resident bytes, as `process_resident_memory_bytes`; None where /proc does not exist."""
    try:
        return int(_STATM.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
