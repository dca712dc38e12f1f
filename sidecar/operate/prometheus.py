"""Every metric: names, units and labels are a contract (docs/architecture.md, Metrics).

Turns the numbers in `sidecar.telemetry` into metric families at each scrape. Every label set
exists from the start, at 0. No label ever holds span content (D19).
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
    (
        "delivery_delay_seconds",
        "From accepting an event to the upstream's success response",
        lambda lane: lane.delay,
    ),
    (
        "upstream_request_duration_seconds",
        "Duration of one request to the upstream",
        lambda lane: lane.request_seconds,
    ),
    ("batch_spans", "Spans per forwarded batch", lambda lane: lane.batch_spans),
    ("batch_bytes", "Bytes per request body", lambda lane: lane.batch_bytes),
)


class SidecarCollector(Collector):
    """Turns what was recorded into metric families at each scrape."""

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
        """Yield all families; every label set exists from the start, at 0."""
        yield from self._guarantees()
        yield from self._at_intake()
        yield from self._in_lanes()
        yield from self._on_disk()
        yield _gauge("queue_bytes", "Bytes of accepted spans in memory", self._budget.used)
        yield _gauge("queue_limit_bytes", "Limit of queue_bytes", self._budget.limit)
        yield _gauge("open_spans", "Spans whose END has not arrived", self._open_spans())
        limit = self._memory_limit or 0
        letters = self._dead_letters
        dropped = "Dead letters deleted to make room for newer ones"
        yield _counter("dead_letters_dropped", dropped, letters.dropped)
        errors = "Dead letters that could not be written to disk"
        yield _counter("dead_letter_errors", errors, letters.errors)
        yield _gauge("memory_limit_bytes", "The container's memory limit, 0 for none", limit)
        lag = "How late an event-loop timer fired"
        yield _histogram("event_loop_lag_seconds", lag, [], [([], self.lag)])
        version = "Always 1; the label is the running version"
        yield _labelled(GaugeMetricFamily, "build_info", version, ["version"], [([__version__], 1)])

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
        yield _gauge("spool_bytes", "Size of the spool's files", size)
        yield _gauge("spool_limit_bytes", "Limit of spool_bytes, 0 without a spool", limit)
        used = 0.0 if spool is None else spool.used_ratio
        yield _gauge("spool_used_ratio", "Share of the spool in use, 0 to 1", used)
        yield _gauge("spool_writes", "Writes on disk", rows)
        yield _gauge("spool_degraded", "1 while the spool's disk can't be used", degraded)
        yield _counter("spool_errors", "Disk errors of the spool", errors)
        yield _counter("spool_moved_aside", "Unreadable spool files moved aside", moved)
        replayed = self._intake.accounting.replayed
        left = "Events recovered from the spool of an earlier process"
        yield _counter("spool_replayed_events", left, replayed)

    def _guarantees(self) -> Iterator[Metric]:
        now, lanes = self._clock(), self._lanes
        rows = [([lane.sink], lane.imbalance) for lane in lanes]
        rows.append((["intake"], self._intake.accounting.imbalance))
        off = "Events or writes unaccounted for; must be 0"
        yield _gauges("accounting_imbalance", off, ["sink"], rows)
        ages = [([lane.sink], _age(lane.oldest(), now)) for lane in lanes]
        oldest = "Age of the oldest write that is not settled, 0 for none"
        yield _gauges("oldest_write_age_seconds", oldest, ["sink"], ages)
        lost = _by_reason(lanes, lambda lane: lane.accounting.lost)
        yield _counters("lost_writes", "Accepted writes that were lost", ["sink", "reason"], lost)
        last = "Writes that the previous process lost at shutdown"
        yield _gauge("last_shutdown_lost", last, self._last_lost)

    def _at_intake(self) -> Iterator[Metric]:
        intake = self._intake
        kinds = [
            (["start"], intake.accounting.received_start),
            (["end"], intake.accounting.received_end),
        ]
        yield _counters("received_events", "Events accepted from agents", ["kind"], kinds)
        rejected = [([reason], count) for reason, count in intake.rejected.items()]
        refused = "Events refused; a request refused as a whole counts once"
        yield _counters("rejected_events", refused, ["reason"], rejected)
        codes = [([code], count) for code, count in intake.requests.items()]
        yield _counters("ingest_requests", "Agents' requests by response status", ["code"], codes)
        displaced = [([port], count) for port, count in intake.displaced.items()]
        text = "Connections that found all places of their port taken"
        yield _counters("crowded_connections", text, ["port"], displaced)
        duration = "From a request's head to its response"
        yield _histogram("ingest_duration_seconds", duration, [], [([], intake.seconds)])
        passed = [([outcome], count) for outcome, count in intake.passed.items()]
        yield _counters(
            "passed_through_requests", "Requests passed through to SGP", ["outcome"], passed
        )
        joined = "Events merged into another event of their span"
        yield _counter("joined_events", joined, intake.accounting.joined)

    def _in_lanes(self) -> Iterator[Metric]:
        lanes = self._lanes
        by_sink = ["sink"]
        depth = "Writes that are not settled: waiting, in flight or on disk"
        yield _gauges("queue_depth", depth, by_sink, _rows(lanes, lambda x: x.depth()))
        in_flight = "Writes being sent, or waiting to be retried"
        yield _gauges("in_flight", in_flight, by_sink, _rows(lanes, lambda x: x.in_flight()))
        limit = "Concurrent requests allowed now"
        yield _gauges("concurrency_limit", limit, by_sink, _rows(lanes, lambda x: x.limit()))
        by_sink_and_reason = ["sink", "reason"]
        written = "Writes passed to the lane"
        yield _counters(
            "written_writes", written, by_sink, _rows(lanes, lambda x: x.accounting.written)
        )
        forwarded = _by_reason(lanes, lambda lane: lane.accounting.forwarded)
        yield _counters(
            "forwarded_writes", "Writes that the upstream accepted", ["sink", "kind"], forwarded
        )
        superseded = _rows(lanes, lambda lane: lane.accounting.superseded)
        yield _counters(
            "superseded_writes", "Open writes replaced by a newer write", by_sink, superseded
        )
        skipped = _by_reason(lanes, lambda lane: lane.accounting.skipped)
        yield _counters(
            "skipped_writes", "Writes deliberately not sent", by_sink_and_reason, skipped
        )
        dead = _by_reason(lanes, lambda lane: lane.accounting.dead_lettered)
        yield _counters(
            "dead_lettered_writes",
            "Writes that the upstream will never accept",
            by_sink_and_reason,
            dead,
        )
        requests = _by_reason(lanes, lambda lane: lane.requests)
        yield _counters(
            "upstream_requests", "Requests to the upstream", ["sink", "outcome"], requests
        )
        yield _counters("retries", "Batches sent again", by_sink, _rows(lanes, lambda x: x.retries))
        states = [
            ([lane.sink, state], int(lane.state is state)) for lane in lanes for state in SinkState
        ]
        state = "1 for the sink's current state, 0 for the others"
        yield _gauges("sink_state", state, ["sink", "state"], states)
        for name, text, pick in _LANE_HISTOGRAMS:
            yield _histogram(name, text, by_sink, [([lane.sink], pick(lane)) for lane in lanes])


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
    """Return a registry with our metrics and prometheus-client's process metrics (RSS, CPU)."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    registry.register(collector)
    return registry
