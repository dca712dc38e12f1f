"""Every metric: name, unit and labels are a contract (docs/architecture.md, Metrics).

Turns what metrics.py and books.py hold into metric families when Prometheus scrapes. Every label
set is there from the start, at 0. No label ever holds anything of a span.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spool.spool import Spool
from sidecar.telemetry.metrics import LAG_S, Histogram, IntakeMetrics, LaneMetrics
from sidecar.telemetry.outcomes import SinkState

PREFIX = "trace_sidecar_"

_LANE_HISTOGRAMS: tuple[tuple[str, str, Callable[[LaneMetrics], Histogram]], ...] = (
    ("delivery_delay_seconds", "Accept to the upstream's yes", lambda lane: lane.delay),
    ("upstream_request_duration_seconds", "One request", lambda lane: lane.request_seconds),
    ("batch_spans", "Spans in a forwarded batch", lambda lane: lane.batch_spans),
    ("batch_bytes", "Bytes in a request", lambda lane: lane.batch_bytes),
)


class SidecarCollector(Collector):
    """Turns what was recorded into metric families when Prometheus scrapes."""

    def __init__(
        self,
        intake: IntakeMetrics,
        lanes: Sequence[LaneMetrics],
        budget: MemoryBudget,
        *,
        open_spans: Callable[[], int],
        clock: Callable[[], float],
        memory_limit: int | None,
        dead_letters: DeadLetters,
        spool: Spool | None,
        last_shutdown_lost: int,
    ) -> None:
        self._last_lost = last_shutdown_lost
        self._intake = intake
        self._lanes = lanes
        self._budget = budget
        self._open_spans = open_spans
        self._clock = clock
        self._memory_limit = memory_limit
        self._dead_letters = dead_letters
        self._spool = spool
        self.lag = Histogram(LAG_S)

    def collect(self) -> Iterator[Metric]:
        """All families; every label set is there from the start, at 0."""
        yield from self._promise()
        yield from self._at_intake()
        yield from self._in_lanes()
        yield from self._on_disk()
        yield _gauge("queue_bytes", "Bytes of accepted spans in memory", self._budget.used)
        yield _gauge("queue_limit_bytes", "queue.max_bytes", self._budget.limit)
        yield _gauge("open_spans", "Spans whose END has not come", self._open_spans())
        limit = self._memory_limit or 0
        letters = self._dead_letters
        yield _counter("dead_letters_dropped", "Made room for newer ones", letters.dropped)
        yield _counter("dead_letter_errors", "Not kept: the disk failed", letters.errors)
        yield _gauge("memory_limit_bytes", "The container's memory limit, 0 for none", limit)
        yield _histogram("event_loop_lag_seconds", "Lateness of a timer", [], [([], self.lag)])
        yield _labelled(
            GaugeMetricFamily, "build_info", "Version", ["version"], [([__version__], 1)]
        )

    def _on_disk(self) -> Iterator[Metric]:
        spool = self._spool
        size, limit, rows, degraded, errors, moved = (
            (0, 0, 0, 0, 0, 0)
            if spool is None
            else (
                spool.size,
                spool.limit,
                spool.rows,
                int(spool.degraded),
                spool.errors,
                spool.moved_aside,
            )
        )
        yield _gauge("spool_bytes", "Bytes of the spool's files", size)
        yield _gauge("spool_limit_bytes", "spool.max_bytes, 0 without a spool", limit)
        used = 0.0 if spool is None else spool.used_ratio
        yield _gauge("spool_used_ratio", "Share of the spool's room that is taken", used)
        yield _gauge("spool_writes", "Writes on disk", rows)
        yield _gauge("spool_degraded", "1 while the disk can't be used", degraded)
        yield _counter("spool_errors", "Disk errors", errors)
        yield _counter("spool_moved_aside", "Unreadable files moved out of the way", moved)
        replayed = self._intake.accounting.replayed
        yield _counter("spool_replayed_events", "Left by an earlier process", replayed)

    def _promise(self) -> Iterator[Metric]:
        now, lanes = self._clock(), self._lanes
        rows = [([lane.sink], lane.imbalance) for lane in lanes]
        rows.append((["intake"], self._intake.accounting.imbalance))
        yield _gauges("accounting_imbalance", "Unaccounted for; must be 0", ["sink"], rows)
        ages = [([lane.sink], _age(lane.oldest(), now)) for lane in lanes]
        yield _gauges("oldest_write_age_seconds", "Age of the oldest write", ["sink"], ages)
        lost = _by_reason(lanes, lambda lane: lane.accounting.lost)
        yield _counters("lost_writes", "Accepted writes that are gone", ["sink", "reason"], lost)
        last = "Writes that the previous process lost when it stopped"
        yield _gauge("last_shutdown_lost", last, self._last_lost)

    def _at_intake(self) -> Iterator[Metric]:
        intake = self._intake
        kinds = [
            (["start"], intake.accounting.received_start),
            (["end"], intake.accounting.received_end),
        ]
        yield _counters("received_events", "Events taken", ["kind"], kinds)
        rejected = [([reason], count) for reason, count in intake.rejected.items()]
        yield _counters(
            "rejected_events", "Refusals: of an event, or of a whole request", ["reason"], rejected
        )
        codes = [([code], count) for code, count in intake.requests.items()]
        yield _counters("ingest_requests", "Requests by answer", ["code"], codes)
        yield _histogram(
            "ingest_duration_seconds", "First byte to answer", [], [([], intake.seconds)]
        )
        passed = [([outcome], count) for outcome, count in intake.passed.items()]
        yield _counters("passed_through_requests", "Handed on to SGP", ["outcome"], passed)
        yield _counter("joined_events", "Events gone out inside another", intake.accounting.joined)

    def _in_lanes(self) -> Iterator[Metric]:
        lanes = self._lanes
        one = ["sink"]
        yield _gauges("queue_depth", "Unsettled writes", one, _rows(lanes, lambda x: x.depth()))
        yield _gauges("in_flight", "Being sent", one, _rows(lanes, lambda x: x.in_flight()))
        yield _gauges(
            "concurrency_limit", "Requests at once", one, _rows(lanes, lambda x: x.limit())
        )
        two = ["sink", "reason"]
        yield _counters(
            "written_writes", "Writes put", one, _rows(lanes, lambda x: x.accounting.written)
        )
        forwarded = _by_reason(lanes, lambda lane: lane.accounting.forwarded)
        yield _counters("forwarded_writes", "The upstream has them", ["sink", "kind"], forwarded)
        superseded = _rows(lanes, lambda lane: lane.accounting.superseded)
        yield _counters("superseded_writes", "Overtaken by a newer write", one, superseded)
        skipped = _by_reason(lanes, lambda lane: lane.accounting.skipped)
        yield _counters("skipped_writes", "Not sent on purpose", two, skipped)
        dead = _by_reason(lanes, lambda lane: lane.accounting.dead_lettered)
        yield _counters("dead_lettered_writes", "Set aside for good", two, dead)
        requests = _by_reason(lanes, lambda lane: lane.requests)
        yield _counters("upstream_requests", "By outcome", ["sink", "outcome"], requests)
        yield _counters("retries", "Batches sent again", one, _rows(lanes, lambda x: x.retries))
        states = [
            ([lane.sink, state], int(lane.state is state)) for lane in lanes for state in SinkState
        ]
        yield _gauges("sink_state", "1 for the state it is in", ["sink", "state"], states)
        for name, text, pick in _LANE_HISTOGRAMS:
            yield _histogram(name, text, one, [([lane.sink], pick(lane)) for lane in lanes])


Row = tuple[list[str], float]


def _rows(lanes: Sequence[LaneMetrics], value: Callable[[LaneMetrics], float]) -> list[Row]:
    return [([lane.sink], value(lane)) for lane in lanes]


def _by_reason(
    lanes: Sequence[LaneMetrics], counter: Callable[[LaneMetrics], Counter[str]]
) -> list[Row]:
    return [([lane.sink, key], n) for lane in lanes for key, n in counter(lane).items()]


def _age(born: float | None, now: float) -> float:
    return 0.0 if born is None else now - born


def _labelled(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    name: str,
    text: str,
    labels: Sequence[str],
    rows: Iterable[Row],
) -> Metric:
    metric = family(PREFIX + name, text, labels=labels)
    for values, number in rows:
        metric.add_metric(values, number)
    return metric


def _gauge(name: str, text: str, value: float) -> Metric:
    return _labelled(GaugeMetricFamily, name, text, [], [([], value)])


def _counter(name: str, text: str, value: float) -> Metric:
    return _labelled(CounterMetricFamily, name, text, [], [([], value)])


def _gauges(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    return _labelled(GaugeMetricFamily, name, text, labels, rows)


def _counters(name: str, text: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    return _labelled(CounterMetricFamily, name, text, labels, rows)


def _histogram(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[list[str], Histogram]]
) -> Metric:
    metric = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for values, histogram in rows:
        metric.add_metric(values, histogram.buckets(), histogram.total)
    return metric


def new_registry(collector: Collector) -> CollectorRegistry:
    """A registry of our own: RSS and CPU come with prometheus-client's process collector."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(collector)
    return registry
