"""Every metric, and the past-tense recorders that feed them.

The hot path only adds to plain integers (books.py) and to small histograms; everything else is
read when Prometheus asks. Names, units and labels are a contract (design.md, Metrics). No label
ever holds anything of a span.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import structlog
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.books import KINDS, IntakeBooks, LaneBooks
from sidecar.budget import ByteBudget
from sidecar.sinks import SinkError
from sidecar.spans import Span
from sidecar.throttle import SinkState

PREFIX = "trace_sidecar_"
OUTCOMES = (
    "ok",
    "refused",
    "too_large",
    "unavailable",
    "unauthorized",
    "misdirected",
    "timeout",
    "connection",
)
REJECT_REASONS = ("malformed", "invalid", "too_large", "no_room", "stopping", "unsupported")
CODES = ("202", "400", "403", "404", "405", "408", "413", "415", "429", "503")

UPSTREAM_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.33, 0.5, 1, 2.5, 5, 10, 30, 60)
INGEST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
DELAY_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21600, 86400)
LAG_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SPANS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000)
BYTES = tuple(1024 * 4**power for power in range(9))

log = structlog.get_logger()


class Histogram:
    """A histogram of plain integers; `bounds` are inclusive upper bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus wants them."""
        names = [str(float(bound)) for bound in self.bounds] + ["+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class LaneMetrics:
    """What happened in one lane; `read` callbacks give what is read only when asked."""

    def __init__(self, sink: str, books: LaneBooks) -> None:
        self.sink = sink
        self.books = books
        self.state = SinkState.UP
        self.retries = 0
        self.requests: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.request_seconds = Histogram(UPSTREAM_S)
        self.batch_spans = Histogram(SPANS)
        self.batch_bytes = Histogram(BYTES)
        self.delay = Histogram(DELAY_S)
        self.depth: Callable[[], int] = lambda: 0
        self.in_flight: Callable[[], int] = lambda: 0
        self.limit: Callable[[], int] = lambda: 0
        self.oldest: Callable[[], float | None] = lambda: None
        self._log = log.bind(sink=sink)

    @property
    def imbalance(self) -> int:
        """Writes unaccounted for; 0 unless there is a bug."""
        return self.books.imbalance(self.depth())

    def skipped(self, reason: str) -> None:
        """A write never goes to this upstream, on purpose."""
        self.books.written += 1
        self.books.skipped[reason] += 1

    def superseded(self) -> None:
        """An open write was overtaken by the complete one of its span."""
        self.books.superseded += 1

    def forwarded(self, batch: Sequence[Span], now: float) -> None:
        """The upstream has `batch`; `now` is loop time in seconds."""
        self.batch_spans.observe(len(batch))
        for span in batch:
            self.books.forwarded[KINDS[span.end_time is not None]] += 1
            self.delay.observe(now - span.accepted_at)

    def dead_lettered(self, spans: Sequence[Span], reason: str, error: SinkError) -> None:
        """The upstream will never take these writes: the only place where they are set aside."""
        self.books.dead_lettered[reason] += len(spans)
        for span in spans:
            self._log.error(
                "write_dead_lettered",
                reason=reason,
                status=error.status,
                span_id=span.id,
                kind=span.kind,
            )

    def lost(self, count: int, reason: str) -> None:
        """Writes are gone that were accepted: the only place where they may go."""
        self.books.lost[reason] += count
        if count:
            self._log.error("writes_lost", count=count, reason=reason)

    def retried(self) -> None:
        """A batch goes again, whole or in halves."""
        self.retries += 1

    def answered(self, outcome: str, seconds: float, size: int) -> None:
        """One HTTP request of `size` bytes ended."""
        self.requests[outcome] += 1
        self.request_seconds.observe(seconds)
        self.batch_bytes.observe(size)

    def state_changed(self, state: SinkState, error: SinkError | None, pause_s: float) -> None:
        """The upstream is seen in `state`; logged only when it differs from before."""
        if state is self.state:
            return
        self.state = state
        if state is SinkState.UP:
            self._log.info("upstream_up")
        else:
            self._log.warning(
                f"upstream_{state}", error=str(error), next_attempt_s=round(max(pause_s, 0), 1)
            )


@dataclass(slots=True)
class IntakeMetrics:
    """What happened at the listener."""

    books: IntakeBooks
    rejected: Counter[str] = field(
        default_factory=lambda: Counter(dict.fromkeys(REJECT_REASONS, 0))
    )
    requests: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(CODES, 0)))
    seconds: Histogram = field(default_factory=lambda: Histogram(INGEST_S))

    def answered(self, status: int, seconds: float) -> None:
        """One request was answered."""
        self.requests[str(status)] += 1
        self.seconds.observe(seconds)


class SidecarCollector(Collector):
    """Turns what was recorded into metric families when Prometheus scrapes."""

    def __init__(
        self,
        intake: IntakeMetrics,
        lanes: Sequence[LaneMetrics],
        budget: ByteBudget,
        *,
        open_spans: Callable[[], int],
        clock: Callable[[], float],
        memory_limit: int | None,
    ) -> None:
        self._intake = intake
        self._lanes = lanes
        self._budget = budget
        self._open_spans = open_spans
        self._clock = clock
        self._memory_limit = memory_limit
        self.lag = Histogram(LAG_S)

    def collect(self) -> Iterator[Metric]:
        """All families; every label set is there from the start, at 0."""
        yield from self._promise()
        yield from self._at_intake()
        yield from self._in_lanes()
        yield _gauge("queue_bytes", "Bytes of accepted spans in memory", self._budget.used)
        yield _gauge("queue_limit_bytes", "queue.max_bytes", self._budget.limit)
        yield _gauge("open_spans", "Spans whose END has not come", self._open_spans())
        limit = self._memory_limit or 0
        yield _gauge("memory_limit_bytes", "The container's memory limit, 0 for none", limit)
        yield _histogram("event_loop_lag_seconds", "Lateness of a timer", [], [([], self.lag)])
        yield _labelled(
            GaugeMetricFamily, "build_info", "Version", ["version"], [([__version__], 1)]
        )

    def _promise(self) -> Iterator[Metric]:
        now, lanes = self._clock(), self._lanes
        rows = [([lane.sink], lane.imbalance) for lane in lanes]
        rows.append((["intake"], self._intake.books.imbalance))
        yield _gauges("accounting_imbalance", "Unaccounted for; must be 0", ["sink"], rows)
        ages = [([lane.sink], _age(lane.oldest(), now)) for lane in lanes]
        yield _gauges("oldest_write_age_seconds", "Age of the oldest write", ["sink"], ages)
        lost = _by_reason(lanes, lambda lane: lane.books.lost)
        yield _counters("lost_writes", "Accepted writes that are gone", ["sink", "reason"], lost)

    def _at_intake(self) -> Iterator[Metric]:
        intake = self._intake
        kinds = [(["start"], intake.books.received_start), (["end"], intake.books.received_end)]
        yield _counters("received_events", "Events taken", ["kind"], kinds)
        rejected = [([reason], count) for reason, count in intake.rejected.items()]
        yield _counters("rejected_events", "Events not taken", ["reason"], rejected)
        codes = [([code], count) for code, count in intake.requests.items()]
        yield _counters("ingest_requests", "Requests by answer", ["code"], codes)
        yield _histogram(
            "ingest_duration_seconds", "First byte to answer", [], [([], intake.seconds)]
        )
        joined = intake.books.joined
        yield _counters("joined_events", "Events gone out inside another", [], [([], joined)])

    def _in_lanes(self) -> Iterator[Metric]:
        lanes = self._lanes
        one = ["sink"]
        yield _gauges("queue_depth", "Unsettled writes", one, _rows(lanes, lambda x: x.depth()))
        yield _gauges("in_flight", "Being sent", one, _rows(lanes, lambda x: x.in_flight()))
        yield _gauges(
            "concurrency_limit", "Requests at once", one, _rows(lanes, lambda x: x.limit())
        )
        two = ["sink", "reason"]
        yield _counters("written", "Writes put", one, _rows(lanes, lambda x: x.books.written))
        forwarded = _by_reason(lanes, lambda lane: lane.books.forwarded)
        yield _counters("forwarded_writes", "The upstream has them", ["sink", "kind"], forwarded)
        superseded = _rows(lanes, lambda lane: lane.books.superseded)
        yield _counters("superseded_writes", "Overtaken by a newer write", one, superseded)
        skipped = _by_reason(lanes, lambda lane: lane.books.skipped)
        yield _counters("skipped_writes", "Not sent on purpose", two, skipped)
        dead = _by_reason(lanes, lambda lane: lane.books.dead_lettered)
        yield _counters("dead_lettered_writes", "Set aside for good", two, dead)
        requests = _by_reason(lanes, lambda lane: lane.requests)
        yield _counters("upstream_requests", "By outcome", ["sink", "outcome"], requests)
        yield _counters("retries", "Batches sent again", one, _rows(lanes, lambda x: x.retries))
        states = [
            ([lane.sink, state], int(lane.state is state)) for lane in lanes for state in SinkState
        ]
        yield _gauges("sink_state", "1 for the state it is in", ["sink", "state"], states)
        for name, text, pick in (
            ("delivery_delay_seconds", "Accept to the upstream's yes", lambda x: x.delay),
            ("upstream_request_duration_seconds", "One request", lambda x: x.request_seconds),
            ("batch_spans", "Spans in a forwarded batch", lambda x: x.batch_spans),
            ("batch_bytes", "Bytes in a request", lambda x: x.batch_bytes),
        ):
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
