"""Every metric: names, units and labels are a contract (docs/architecture.md, Metrics).

Turns the numbers in `sidecar.telemetry` into metric families at each scrape. Every label set that
can occur exists from the start, at 0. No label ever holds span content (D19).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.drain.lane import Lane
from sidecar.operate.history import Summary
from sidecar.operate.lane_status import oldest_age
from sidecar.operate.status import Status
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import SPECIFIC_REASONS, LaneAccounting
from sidecar.telemetry.histogram import Histogram
from sidecar.telemetry.metrics import IntakeMetrics
from sidecar.telemetry.outcomes import SinkState

PREFIX = "trace_sidecar_"

# The help of each family, then its labels.
_GAUGES = {
    "accounting_imbalance": ("Events or writes unaccounted for; must be 0", "sink"),
    "oldest_write_age_seconds": ("Age of the oldest write that is not settled, 0 for none", "sink"),
    "last_shutdown_lost_writes": ("Writes that the previous process lost at shutdown",),
    "queue_depth": ("Writes that are not settled: waiting, in flight or on disk", "sink"),
    "in_flight_requests": ("Requests to the upstream that have no response yet", "sink"),
    "concurrency_limit": ("Concurrent requests allowed now", "sink"),
    "sink_state": (
        "0 not asked yet, 1 up, 2 throttled, 3 braked, 4 down, 5 unauthorized",
        "sink",
    ),
    "spool_bytes": ("Bytes of the spool in use",),
    "spool_limit_bytes": ("Limit of spool_bytes, 0 without a spool",),
    "spool_degraded": ("1 while the spool's disk can't be used",),
    "queue_bytes": ("Bytes of accepted spans in memory",),
    "queue_limit_bytes": ("Limit of queue_bytes",),
    "lane_bytes": ("Bytes that count against the lane's limit", "sink"),
    "lane_limit_bytes": ("Limit of lane_bytes", "sink"),
    "open_spans": ("Spans whose END has not arrived",),
    "memory_limit_bytes": ("The container's memory limit, 0 for none",),
    "event_loop_lag_seconds": ("How late an event-loop timer fired: the worst of a minute",),
    "build_info": ("Always 1; the label is the running version", "version"),
}
_COUNTERS = {
    "lost_writes": ("Accepted writes that were lost", "sink"),
    "received_events": ("Events accepted from agents", "kind"),
    "rejected_events": ("Events refused; a request refused as a whole counts once", "reason"),
    "joined_events": ("Events merged into another event of their span",),
    "not_taken_writes": ("Writes that the lane has no room for", "sink", "reason"),
    "written_writes": ("Writes passed to the lane", "sink"),
    "forwarded_writes": ("Writes that the upstream accepted", "sink", "kind"),
    "superseded_writes": ("Writes replaced by a newer write of their span", "sink"),
    "skipped_writes": ("Writes deliberately not sent", "sink", "reason"),
    "dead_lettered_writes": ("Writes that the upstream will never accept", "sink", "reason"),
    "upstream_requests": ("Requests to the upstream", "sink", "outcome"),
    "upstream_request_bytes": ("Bytes of request bodies sent to the upstream", "sink"),
    "repaired_writes": ("Writes that needed more than one request", "sink"),
    "spool_errors": ("Disk errors of the spool",),
    "spool_moved_aside": ("Unreadable spool files moved aside",),
    "spool_replayed_events": ("Events recovered from the spool of an earlier process",),
    "dead_letters_not_kept": ("Dead letters deleted for newer ones, or not written to disk",),
    "log_lines_dropped": ("Log lines that were not written, because nobody reads them",),
    "stalls": ("Calls beside the path that took far too long", "what"),
}
_HISTOGRAMS = {
    "delivery_delay_seconds": (
        "From accepting an event to the upstream's success response",
        "sink",
    ),
}
_SUMMARIES = {
    "upstream_request_duration_seconds": (
        "Duration of one request to the upstream; quantiles of the last minute",
        "sink",
    ),
    "ingest_duration_seconds": (
        "From a request's head to its response; quantiles of the last minute",
    ),
}
_KINDS: tuple[tuple[Any, Mapping[str, Sequence[str]]], ...] = (
    (GaugeMetricFamily, _GAUGES),
    (CounterMetricFamily, _COUNTERS),
    (HistogramMetricFamily, _HISTOGRAMS),
    (SummaryMetricFamily, _SUMMARIES),
)

_STATES = list(SinkState)
# What operators tell apart on a dashboard; `/status` and the log have all reasons and outcomes.
_REASONS = {"malformed": "invalid", "unsupported": "invalid"}
_OUTCOMES = {"too_large": "refused", "timeout": "no_response", "connection": "no_response"}
# What is counted while the process ends is never scraped.
_AT_SHUTDOWN = "shutdown"
_PROCESS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds",
    "process_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
}

# A number, a histogram or a summary; with labels, one for each value of the first label, and so on.
Value = float | Histogram | Summary | Mapping[str, "Value"]


@dataclass(eq=False)
class SidecarCollector(Collector):
    """Turns what was recorded into metric families at each scrape; `clock` is loop time.

    `stalls` returns counts by what stalled.
    """

    intake: IntakeMetrics
    lanes: Sequence[Lane]
    admission: Admission
    budget: MemoryBudget
    clock: Callable[[], float]
    memory_limit: int | None
    dead_letters: DeadLetters
    spool: Spool
    last_shutdown_lost: Callable[[], int]
    lines_dropped: Callable[[], int]
    stalls: Callable[[], Mapping[str, int]]
    status: Status

    def collect(self) -> Iterator[Metric]:
        """Yield all families; every label set that can occur exists from the start, at 0."""
        for name, value in self._values().items():
            kind, (text, *labels) = next((kind, of[name]) for kind, of in _KINDS if name in of)
            family = kind(PREFIX + name, text, labels=labels)
            for at, leaf in _leaves(value, ()):
                if isinstance(leaf, Histogram):
                    family.add_metric(at, leaf.buckets(), leaf.total)
                elif isinstance(leaf, Summary):
                    family.add_metric(at, leaf.values, leaf.total)
                    for share, seconds in leaf.quantiles.items():
                        shown = dict(zip(labels, at, strict=True)) | {"quantile": str(share)}
                        number = nan if seconds is None else seconds
                        family.add_sample(family.name, shown, number)
                else:
                    family.add_metric(at, leaf)
            yield family

    def _values(self) -> dict[str, Value]:
        intake, accounting, now = self.intake, self.intake.accounting, self.clock()
        spool, rooms, letters = self.spool.status(), self.admission.rooms, self.dead_letters
        limit = spool.limit_bytes

        def by_sink(read: Callable[[Lane], Value]) -> dict[str, Value]:
            return {lane.name: read(lane) for lane in self.lanes}

        def counted(read: Callable[[LaneAccounting], Counter[str]]) -> dict[str, Value]:
            return {
                lane.name: {
                    reason: count
                    for reason, count in read(lane.metrics.accounting).items()
                    if reason not in SPECIFIC_REASONS - lane.sink.reasons and reason != _AT_SHUTDOWN
                }
                for lane in self.lanes
            }

        return {
            "accounting_imbalance": by_sink(lambda lane: lane.imbalance)
            | {"intake": accounting.imbalance},
            "oldest_write_age_seconds": by_sink(lambda lane: oldest_age(lane, now)),
            "lost_writes": by_sink(lambda lane: lane.metrics.accounting.lost.total()),
            "last_shutdown_lost_writes": self.last_shutdown_lost(),
            "received_events": {"start": accounting.received_start, "end": accounting.received_end},
            "rejected_events": _merged(intake.rejected, _REASONS),
            "ingest_duration_seconds": self.status.responses.summary(0.95),
            "joined_events": accounting.joined,
            "queue_depth": by_sink(lambda lane: lane.depth),
            "in_flight_requests": by_sink(lambda lane: lane.sending),
            "concurrency_limit": by_sink(lambda lane: lane.concurrency_limit),
            "not_taken_writes": counted(lambda accounting: accounting.not_taken),
            "written_writes": by_sink(lambda lane: lane.metrics.accounting.written),
            "forwarded_writes": counted(lambda accounting: accounting.forwarded),
            "superseded_writes": by_sink(lambda lane: lane.metrics.accounting.superseded),
            "skipped_writes": counted(lambda accounting: accounting.skipped),
            "dead_lettered_writes": counted(lambda accounting: accounting.dead_lettered),
            "upstream_requests": by_sink(lambda lane: _merged(lane.metrics.requests, _OUTCOMES)),
            "upstream_request_bytes": by_sink(lambda lane: lane.metrics.request_bytes),
            "repaired_writes": {
                lane.name: lane.metrics.repaired.total() for lane in self.lanes if lane.sink.repairs
            },
            "sink_state": by_sink(lambda lane: _STATES.index(lane.state)),
            "delivery_delay_seconds": by_sink(lambda lane: lane.metrics.delay),
            "upstream_request_duration_seconds": {
                name: lane.requests.summary(0.5, 0.95) for name, lane in self.status.watched.items()
            },
            "spool_bytes": spool.used_ratio * limit,
            "spool_limit_bytes": limit,
            "spool_degraded": spool.degraded,
            "spool_errors": spool.errors,
            "spool_moved_aside": spool.moved_aside,
            "spool_replayed_events": accounting.replayed,
            "queue_bytes": self.budget.used,
            "queue_limit_bytes": self.budget.limit,
            "lane_bytes": by_sink(lambda lane: rooms.used(lane.room)),
            "lane_limit_bytes": by_sink(lambda _: rooms.limit_now),
            "open_spans": len(self.admission.open_spans),
            "dead_letters_not_kept": letters.dropped + letters.errors,
            "log_lines_dropped": self.lines_dropped(),
            "stalls": self.stalls(),
            "memory_limit_bytes": self.memory_limit or 0,
            "event_loop_lag_seconds": self.status.worst_lag_s,
            "build_info": {__version__: 1},
        }


def _merged(counts: Mapping[str, int], names: Mapping[str, str]) -> dict[str, Value]:
    """The counts, with those of one new name added up."""
    merged: Counter[str] = Counter()
    for name, count in counts.items():
        merged[names.get(name, name)] += count
    return dict(merged)


def _leaves(value: Value, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Value]]:
    """Yield each number or histogram in `value` with the values of its labels."""
    if isinstance(value, Mapping):
        for label, inner in value.items():
            yield from _leaves(inner, (*at, label))
    else:
        yield at, value


class _Process(ProcessCollector):
    """The metrics of `_PROCESS` only."""

    def collect(self) -> Iterator[Metric]:
        """Yield them, as prometheus-client names them."""
        return (each for each in super().collect() if each.name in _PROCESS)


def new_registry(collector: Collector) -> CollectorRegistry:
    """Return a registry with our metrics, and those of the process (RSS, CPU)."""
    registry = CollectorRegistry()
    _Process(registry=registry)
    registry.register(collector)
    return registry
