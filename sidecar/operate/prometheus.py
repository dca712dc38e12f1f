"""Every metric: names, units and labels are a contract (docs/architecture.md, Metrics).

Turns the numbers in `sidecar.telemetry` into metric families at each scrape. Every label set
exists from the start, at 0. No label ever holds span content (D19).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.drain.lane import Lane
from sidecar.operate.status import oldest_age
from sidecar.queue.admission import Admission
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spool.spool import Spool
from sidecar.telemetry.metrics import LAG_S, Histogram, IntakeMetrics
from sidecar.telemetry.outcomes import SinkState

PREFIX = "trace_sidecar_"

# The help of each family, then its labels.
_GAUGES = {
    "accounting_imbalance": ("Events or writes unaccounted for; must be 0", "sink"),
    "oldest_write_age_seconds": ("Age of the oldest write that is not settled, 0 for none", "sink"),
    "last_shutdown_lost": ("Writes that the previous process lost at shutdown",),
    "queue_depth": ("Writes that are not settled: waiting, in flight or on disk", "sink"),
    "in_flight": ("Writes being sent, or waiting to be retried", "sink"),
    "concurrency_limit": ("Concurrent requests allowed now", "sink"),
    "sink_state": ("1 for the sink's current state, 0 for the others", "sink", "state"),
    "spool_bytes": ("Size of the spool's files",),
    "spool_limit_bytes": ("Limit of spool_bytes, 0 without a spool",),
    "spool_used_ratio": ("Share of the spool in use, 0 to 1",),
    "spool_writes": ("Writes on disk",),
    "spool_degraded": ("1 while the spool's disk can't be used",),
    "queue_bytes": ("Bytes of accepted spans in memory",),
    "queue_limit_bytes": ("Limit of queue_bytes",),
    "lane_bytes": ("Bytes that count against the lane's limit", "sink"),
    "lane_limit_bytes": ("Limit of lane_bytes", "sink"),
    "open_spans": ("Spans whose END has not arrived",),
    "http_connections": ("Open connections of the port", "port"),
    "open_file_descriptors_limit": ("The process's limit of open descriptors, 0 for none",),
    "memory_limit_bytes": ("The container's memory limit, 0 for none",),
    "build_info": ("Always 1; the label is the running version", "version"),
}
_COUNTERS = {
    "lost_writes": ("Accepted writes that were lost", "sink", "reason"),
    "received_events": ("Events accepted from agents", "kind"),
    "rejected_events": ("Events refused; a request refused as a whole counts once", "reason"),
    "ingest_requests": ("Agents' requests by response status", "code"),
    "crowded_connections": ("Connections that found all places of their port taken", "port"),
    "flushes": ("Requests that waited for delivery", "outcome"),
    "passed_through_requests": ("Requests passed through to SGP", "outcome"),
    "joined_events": ("Events merged into another event of their span",),
    "offered_writes": ("Writes for the lane, whether it has room or not", "sink"),
    "not_taken_writes": ("Writes that the lane has no room for", "sink", "reason"),
    "written_writes": ("Writes passed to the lane", "sink"),
    "forwarded_writes": ("Writes that the upstream accepted", "sink", "kind"),
    "superseded_writes": ("Writes replaced by a newer write of their span", "sink"),
    "skipped_writes": ("Writes deliberately not sent", "sink", "reason"),
    "dead_lettered_writes": ("Writes that the upstream will never accept", "sink", "reason"),
    "upstream_requests": ("Requests to the upstream", "sink", "outcome"),
    "retries": ("Batches sent again", "sink"),
    "repaired_writes": ("Writes that needed more than one request", "sink", "reason"),
    "spool_errors": ("Disk errors of the spool",),
    "spool_moved_aside": ("Unreadable spool files moved aside",),
    "spool_replayed_events": ("Events recovered from the spool of an earlier process",),
    "dead_letters_dropped": ("Dead letters deleted to make room for newer ones",),
    "dead_letter_errors": ("Dead letters that could not be written to disk",),
    "log_lines_dropped": ("Log lines that were not written, because nobody reads them",),
    "stalls": ("Calls beside the path that took far too long", "what"),
}
_HISTOGRAMS = {
    "ingest_duration_seconds": ("From a request's head to its response",),
    "delivery_delay_seconds": (
        "From accepting an event to the upstream's success response",
        "sink",
    ),
    "upstream_request_duration_seconds": ("Duration of one request to the upstream", "sink"),
    "batch_spans": ("Spans per forwarded batch", "sink"),
    "batch_bytes": ("Bytes per request body", "sink"),
    "event_loop_lag_seconds": ("How late an event-loop timer fired",),
}
_KINDS: tuple[tuple[Any, Mapping[str, Sequence[str]]], ...] = (
    (GaugeMetricFamily, _GAUGES),
    (CounterMetricFamily, _COUNTERS),
    (HistogramMetricFamily, _HISTOGRAMS),
)

# A number or a histogram; with labels, one for each value of the first label, and so on.
Value = float | Histogram | Mapping[str, "Value"]


@dataclass(eq=False)
class SidecarCollector(Collector):
    """Turns what was recorded into metric families at each scrape; `clock` is loop time.

    `stalls` returns counts by what stalled, `connections` those of each port.
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
    connections: Callable[[], Mapping[str, int]]
    descriptors_limit: int
    lag: Histogram = field(init=False, default_factory=lambda: Histogram(LAG_S))

    def collect(self) -> Iterator[Metric]:
        """Yield all families; every label set exists from the start, at 0."""
        for name, value in self._values().items():
            kind, (text, *labels) = next((kind, of[name]) for kind, of in _KINDS if name in of)
            family = kind(PREFIX + name, text, labels=labels)
            for at, leaf in _leaves(value, ()):
                if isinstance(leaf, Histogram):
                    family.add_metric(at, leaf.buckets(), leaf.total)
                else:
                    family.add_metric(at, leaf)
            yield family

    def _values(self) -> dict[str, Value]:
        intake, accounting, now = self.intake, self.intake.accounting, self.clock()
        spool, rooms = self.spool.status(), self.admission.rooms

        def by_sink(read: Callable[[Lane], Value]) -> dict[str, Value]:
            return {lane.name: read(lane) for lane in self.lanes}

        return {
            "accounting_imbalance": by_sink(lambda lane: lane.imbalance)
            | {"intake": accounting.imbalance},
            "oldest_write_age_seconds": by_sink(lambda lane: oldest_age(lane, now)),
            "lost_writes": by_sink(lambda lane: lane.metrics.accounting.lost),
            "last_shutdown_lost": self.last_shutdown_lost(),
            "received_events": {"start": accounting.received_start, "end": accounting.received_end},
            "rejected_events": intake.rejected,
            "ingest_requests": intake.requests,
            "crowded_connections": intake.displaced,
            "ingest_duration_seconds": intake.seconds,
            "flushes": intake.flushes,
            "passed_through_requests": intake.passed,
            "joined_events": accounting.joined,
            "queue_depth": by_sink(lambda lane: lane.depth),
            "in_flight": by_sink(lambda lane: lane.in_flight),
            "concurrency_limit": by_sink(lambda lane: lane.concurrency_limit),
            "offered_writes": by_sink(lambda lane: lane.metrics.accounting.offered),
            "not_taken_writes": by_sink(lambda lane: lane.metrics.accounting.not_taken),
            "written_writes": by_sink(lambda lane: lane.metrics.accounting.written),
            "forwarded_writes": by_sink(lambda lane: lane.metrics.accounting.forwarded),
            "superseded_writes": by_sink(lambda lane: lane.metrics.accounting.superseded),
            "skipped_writes": by_sink(lambda lane: lane.metrics.accounting.skipped),
            "dead_lettered_writes": by_sink(lambda lane: lane.metrics.accounting.dead_lettered),
            "upstream_requests": by_sink(lambda lane: lane.metrics.requests),
            "retries": by_sink(lambda lane: lane.metrics.retries),
            "repaired_writes": by_sink(lambda lane: lane.metrics.repaired),
            "sink_state": by_sink(lambda lane: {state: lane.state is state for state in SinkState}),
            "delivery_delay_seconds": by_sink(lambda lane: lane.metrics.delay),
            "upstream_request_duration_seconds": by_sink(lambda lane: lane.metrics.request_seconds),
            "batch_spans": by_sink(lambda lane: lane.metrics.batch_spans),
            "batch_bytes": by_sink(lambda lane: lane.metrics.batch_bytes),
            "spool_bytes": spool.bytes,
            "spool_limit_bytes": spool.limit_bytes,
            "spool_used_ratio": spool.used_ratio,
            "spool_writes": spool.writes,
            "spool_degraded": spool.degraded,
            "spool_errors": spool.errors,
            "spool_moved_aside": spool.moved_aside,
            "spool_replayed_events": accounting.replayed,
            "queue_bytes": self.budget.used,
            "queue_limit_bytes": self.budget.limit,
            "lane_bytes": by_sink(lambda lane: rooms.used(lane.room)),
            "lane_limit_bytes": by_sink(lambda _: rooms.limit_now),
            "open_spans": len(self.admission.open_spans),
            "dead_letters_dropped": self.dead_letters.dropped,
            "dead_letter_errors": self.dead_letters.errors,
            "log_lines_dropped": self.lines_dropped(),
            "stalls": self.stalls(),
            "http_connections": self.connections(),
            "open_file_descriptors_limit": self.descriptors_limit,
            "memory_limit_bytes": self.memory_limit or 0,
            "event_loop_lag_seconds": self.lag,
            "build_info": {__version__: 1},
        }


def _leaves(value: Value, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Value]]:
    """Yield each number or histogram in `value` with the values of its labels."""
    if isinstance(value, Mapping):
        for label, inner in value.items():
            yield from _leaves(inner, (*at, label))
    else:
        yield at, value


def new_registry(collector: Collector) -> CollectorRegistry:
    """Return a registry with our metrics and prometheus-client's process metrics (RSS, CPU)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(collector)
    return registry
