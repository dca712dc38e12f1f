"""The dashboard's panels, row by row: titles, expressions and how to read them.

Expressions omit the metrics' prefix and the dashboard's label selection: `queue_depth{}` stands
for `trace_sidecar_queue_depth{namespace=~"$namespace", pod=~"$pod"}`. No panel draws a series per
pod: graphs show sums, extremes and quantiles, tables the ten worst pods. Quantiles come from the
recording rules (helm/trace-sidecar/files/rules.yaml), which aggregate pods away: the histograms of
a thousand pods are too much to query at every refresh.
"""

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stat", "lines", "stack", "table"]

_SELECTION = 'namespace=~"$namespace", pod=~"$pod"'
_RECORDED = 'namespace=~"$namespace"'
_METRIC = re.compile(r"([a-z_0-9:]+)\{([^}]*)\}")
_OWN_NAME = ("process_", "kube_", "container_")


@dataclass(frozen=True, slots=True)
class Query:
    """An expression in the short form, and the legend of its series."""

    short: str
    legend: str = ""

    @property
    def expr(self) -> str:
        """The expression in full, as Grafana sends it."""
        return _METRIC.sub(_selected, self.short)


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is Grafana's name, `bad` the value from which the panel turns red."""

    title: str
    help: str
    kind: Kind
    unit: str
    queries: tuple[Query, ...]
    width: int = 12
    bad: float | None = None
    none: str = ""


def _selected(match: re.Match[str]) -> str:
    name, labels = match[1], match[2]
    selection = _RECORDED if ":" in name else _SELECTION
    if ":" not in name and not name.startswith(_OWN_NAME):
        name = "trace_sidecar_" + name
    return f"{name}{{{selection}{', ' if labels else ''}{labels}}}"


def _quantiles(recorded: str, by: str, legend: str) -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by ({by}le) ({recorded}{{}}))",
            f"{legend}p{quantile * 100:g}",
        )
        for quantile in (0.5, 0.95, 0.99)
    )


def _own(name: str) -> str:
    """Select the sidecar's own process metric: the agent's target may export the same name."""
    return f"({name} and queue_limit_bytes{{}})"


_RATE = "[$__rate_interval]"
_RESTARTS = " or ".join(
    f'increase(kube_pod_{kind}container_status_restarts_total{{container="trace-sidecar"}}{_RATE})'
    for kind in ("", "init_")
)

_LOSS = (
    Panel(
        "Unaccounted for",
        "Events and writes that the accounting misses. Anything but 0 is a bug in the sidecar.",
        "stat", "short", (Query("sum(abs(accounting_imbalance{}))"),), width=4, bad=1,
    ),
    Panel(
        "Lost writes",
        "Accepted writes that were lost in the time range shown.",
        "stat", "short", (Query("sum(increase(lost_writes_total{}[$__range]))"),), width=4, bad=0.5,
    ),
    Panel(
        "Lost at the last shutdown",
        "Writes that the previous runs of these sidecars lost at shutdown.",
        "stat", "short", (Query("sum(last_shutdown_lost{})"),), width=4, bad=1,
    ),
    Panel(
        "Dead letters",
        "Writes that an upstream will never accept, in the time range shown. "
        "`sidecar replay` sends them again.",
        "stat", "short", (Query("sum(increase(dead_lettered_writes_total{}[$__range]))"),),
        width=4, bad=0.5,
    ),
    Panel(
        "Sidecars", "Sidecars that Prometheus scrapes.",
        "stat", "short", (Query("count(build_info{})"),), width=4,
    ),
    Panel(
        "Restarts", "Restarts of the sidecar's container in the last hour. Needs "
        "kube-state-metrics.",
        "stat", "short", (Query(f"sum({_RESTARTS.replace('$__rate_interval', '1h')})"),),
        width=4, bad=0.5, none="no kube-state-metrics",
    ),
    Panel(
        "Not taken",
        "Writes per second that an upstream does not get because its room is full. no_room: of "
        "spans that it does not have. end_of_open: ENDs of spans that it will show as running. It "
        "should be flat at 0.",
        "lines", "wps",
        (Query(f"sum by (sink, reason) (rate(not_taken_writes_total{{}}{_RATE}))",
               "{{sink}}: {{reason}}"),), width=8,
    ),
    Panel(
        "Lost and dead-lettered",
        "Lost writes and dead letters per second, by reason. It should be flat at 0.",
        "lines", "wps",
        (
            Query(f"sum by (sink, reason) (rate(lost_writes_total{{}}{_RATE}))",
                  "{{sink}} lost: {{reason}}"),
            Query(f"sum by (sink, reason) (rate(dead_lettered_writes_total{{}}{_RATE}))",
                  "{{sink}} dead letter: {{reason}}"),
        ), width=8,
    ),
    Panel(
        "Outcomes of writes",
        "Writes put into each lane per second, and how they left it. The difference is still "
        "waiting.",
        "lines", "wps",
        (
            Query(f"sum by (sink) (rate(written_writes_total{{}}{_RATE}))", "{{sink}} put"),
            Query(f"sum by (sink) (rate(forwarded_writes_total{{}}{_RATE}))", "{{sink}} forwarded"),
            Query(f"sum by (sink) (rate(superseded_writes_total{{}}{_RATE}))",
                  "{{sink}} superseded"),
            Query(f"sum by (sink) (rate(skipped_writes_total{{}}{_RATE}))", "{{sink}} skipped"),
        ), width=8,
    ),
)  # fmt: skip

_LATE = (
    Panel(
        "Oldest write",
        "Age of the oldest accepted write that is not settled. Seconds are normal; it rises "
        "steadily while an upstream is down.",
        "lines", "s",
        (Query("max by (sink) (oldest_write_age_seconds{})", "{{sink}} worst pod"),
         Query("avg by (sink) (oldest_write_age_seconds{})", "{{sink}} mean")),
        width=8,
    ),
    Panel(
        "Delivery delay",
        "From accepting an event to the upstream's success response, for writes delivered in the "
        "whole namespace. Needs the recording rules.",
        "lines", "s",
        _quantiles("namespace_sink_le:trace_sidecar_delivery_delay_seconds_bucket:rate5m",
                   "sink, ", "{{sink}} "),
        width=8,
    ),
    Panel(
        "Furthest behind",
        "The ten pods with the oldest waiting write.",
        "table", "s",
        (Query("topk(10, max by (namespace, pod, sink) (oldest_write_age_seconds{}))"),),
        width=8,
    ),
)  # fmt: skip

_WHY = (
    Panel(
        "Upstream state",
        "How many sidecars see the upstream in each state. throttled: it asked for a pause. "
        "down: no response, or not from its API. unauthorized: it refuses the credential. braked: "
        "it refuses most writes.",
        "stack", "short",
        (Query("sum by (sink, state) (sink_state{})", "{{sink}} {{state}}"),), width=8,
    ),
    Panel(
        "Requests",
        "Requests to each upstream by outcome. refused and too_large are decisions about writes; "
        "the other failures are retried.",
        "stack", "reqps",
        (Query(f"sum by (sink, outcome) (rate(upstream_requests_total{{}}{_RATE})) > 0",
               "{{sink}} {{outcome}}"),), width=8,
    ),
    Panel(
        "Errors", "Share of requests whose outcome is not ok.",
        "lines", "percentunit",
        (Query(f'sum by (sink) (rate(upstream_requests_total{{outcome!="ok"}}{_RATE})) / '
               f"(sum by (sink) (rate(upstream_requests_total{{}}{_RATE})) > 0)", "{{sink}}"),),
        width=8,
    ),
    Panel(
        "Latency", "Duration of one request, in the whole namespace. Needs the recording rules.",
        "lines", "s",
        _quantiles(
            "namespace_sink_le:trace_sidecar_upstream_request_duration_seconds_bucket:rate5m",
            "sink, ", "{{sink}} "), width=8,
    ),
    Panel(
        "Concurrency", "Writes in flight and the limit of concurrent requests, summed over all "
        "pods. The limit adapts; it is 1 for a sidecar that probes.",
        "lines", "short",
        (Query("sum by (sink) (in_flight{})", "{{sink}} writes in flight"),
         Query("sum by (sink) (concurrency_limit{})", "{{sink}} limit")), width=8,
    ),
    Panel(
        "Batches", "Average number of writes per forwarded batch. Agentex accepts one at a time.",
        "lines", "short",
        (Query(f"sum by (sink) (rate(batch_spans_sum{{}}{_RATE})) / "
               f"(sum by (sink) (rate(batch_spans_count{{}}{_RATE})) > 0)", "{{sink}}"),), width=8,
    ),
    Panel(
        "Request size", "Average number of bytes per request body.",
        "lines", "bytes",
        (Query(f"sum by (sink) (rate(batch_bytes_sum{{}}{_RATE})) / "
               f"(sum by (sink) (rate(batch_bytes_count{{}}{_RATE})) > 0)", "{{sink}}"),), width=8,
    ),
    Panel(
        "Retries", "Batches sent again. A retry is never a loss.",
        "lines", "ops",
        (Query(f"sum by (sink) (rate(retries_total{{}}{_RATE}))", "{{sink}}"),), width=8,
    ),
    Panel(
        "Most failures", "The ten pods with the most failed requests per second.",
        "table", "reqps",
        (Query("topk(10, sum by (namespace, pod, sink, outcome) "
               f'(rate(upstream_requests_total{{outcome!="ok"}}{_RATE})))'),), width=8,
    ),
)  # fmt: skip

_RESOURCES = (
    Panel(
        "Queue depth", "Writes that are not settled: waiting, in flight or on disk.",
        "lines", "short",
        (Query("sum by (sink) (queue_depth{})", "{{sink}} all pods"),
         Query("max by (sink) (queue_depth{})", "{{sink}} worst pod"),
         Query("sum(open_spans{})", "open spans")), width=8,
    ),
    Panel(
        "Lane share", "Share of the room for each upstream that is in use: of the spool, or "
        "without one of queue.max_bytes. At 100% the upstream gets no new spans; ENDs of spans "
        "that it has can take a little more.",
        "lines", "percentunit",
        (Query("max by (sink) (lane_bytes{} / lane_limit_bytes{})", "{{sink}} worst pod"),
         Query("avg by (sink) (lane_bytes{} / lane_limit_bytes{})", "{{sink}} mean")), width=8,
    ),
    Panel(
        "Fullest lanes", "The ten fullest rooms: pods and upstreams.",
        "table", "percentunit",
        (Query("topk(10, max by (namespace, pod, sink) (lane_bytes{} / lane_limit_bytes{}))"),),
        width=8, bad=0.8,
    ),
    Panel(
        "Lane bytes", "Bytes that count against the limit of each lane.",
        "lines", "bytes",
        (Query("max by (sink) (lane_bytes{})", "{{sink}} worst pod"),
         Query("min by (sink) (lane_limit_bytes{})", "{{sink}} lowest limit")), width=8,
    ),
    Panel(
        "Queue bytes", "Bytes of accepted spans in memory, counted once for all upstreams. Open "
        "spans are included, and leave memory when room is needed.",
        "lines", "bytes",
        (Query("max(queue_bytes{})", "worst pod"),
         Query("avg(queue_bytes{})", "mean"),
         Query("min(queue_limit_bytes{})", "lowest limit")), width=8,
    ),
    Panel(
        "Memory (RSS)", "Resident memory, and the container's limit (0: none).",
        "lines", "bytes",
        (Query(f"max({_own('process_resident_memory_bytes{}')})", "worst pod"),
         Query(f"avg({_own('process_resident_memory_bytes{}')})", "mean"),
         Query("min(memory_limit_bytes{})", "lowest limit")), width=8,
    ),
    Panel(
        "CPU", "CPU cores used. A sidecar can use at most one.",
        "lines", "short",
        (Query(f"max({_own(f'rate(process_cpu_seconds_total{{}}{_RATE})')})", "worst pod"),
         Query(f"sum({_own(f'rate(process_cpu_seconds_total{{}}{_RATE})')})", "all pods")), width=8,
    ),
    Panel(
        "Event loop lag", "How late a timer of the event loop fires, in the whole namespace. High "
        "when there is too little CPU. Needs the recording rules.",
        "lines", "s",
        _quantiles("namespace_le:trace_sidecar_event_loop_lag_seconds_bucket:rate5m", "", ""),
        width=8,
    ),
    Panel(
        "Spool", "Share of the spool in use by all upstreams. Each has its own share of it.",
        "lines", "percentunit",
        (Query("max(spool_used_ratio{})", "worst pod"),
         Query("avg(spool_used_ratio{})", "mean")), width=8,
    ),
    Panel(
        "Disk problems", "Sidecars whose spool is degraded, and disk errors per second.",
        "lines", "short",
        (Query("sum(spool_degraded{})", "degraded sidecars"),
         Query(f"sum(rate(spool_errors_total{{}}{_RATE}))", "errors/s"),
         Query(f"sum(rate(dead_letter_errors_total{{}}{_RATE}))", "dead letters not written/s")),
        width=8,
    ),
    Panel(
        "Largest by memory", "The ten pods with the largest RSS.",
        "table", "bytes",
        (Query(f"topk(10, max by (namespace, pod) ({_own('process_resident_memory_bytes{}')}))"),),
        width=8,
    ),
)  # fmt: skip

_INTAKE = (
    Panel(
        "Events", "Events accepted per second. joined: sent inside another event of their span.",
        "lines", "eps",
        (Query(f"sum by (kind) (rate(received_events_total{{}}{_RATE}))", "{{kind}}"),
         Query(f"sum(rate(joined_events_total{{}}{_RATE}))", "joined"),
         Query(f"sum(rate(spool_replayed_events_total{{}}{_RATE}))", "from the spool")), width=8,
    ),
    Panel(
        "Requests by status", "Agents' requests. 429 and 503 mean try again later: nothing in "
        "the request was accepted. Other 4xx: the agent needs a fix.",
        "stack", "reqps",
        (Query(f"sum by (code) (rate(ingest_requests_total{{}}{_RATE})) > 0", "{{code}}"),),
        width=8,
    ),
    Panel(
        "Refusals", "Refused events by reason; a request refused as a whole counts once.",
        "lines", "ops",
        (Query(f"sum by (reason) (rate(rejected_events_total{{}}{_RATE}))", "{{reason}}"),),
        width=8,
    ),
    Panel(
        "Response time", "How long agents wait for a response, in the whole namespace. Needs the "
        "recording rules.",
        "lines", "s",
        _quantiles("namespace_le:trace_sidecar_ingest_duration_seconds_bucket:rate5m", "", ""),
        width=8,
    ),
    Panel(
        "Passed through to SGP", "Other requests of the agents' SGP clients, with "
        "listener.pass_through. Every outcome except answered is a failure; failures are never "
        "retried.",
        "lines", "reqps",
        (Query(f"sum by (outcome) (rate(passed_through_requests_total{{}}{_RATE}))",
               "{{outcome}}"),), width=8,
    ),
    Panel(
        "Busiest", "The ten pods that accept the most events per second.",
        "table", "eps",
        (Query(f"topk(10, sum by (namespace, pod) (rate(received_events_total{{}}{_RATE})))"),),
        width=8,
    ),
)  # fmt: skip

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Are we losing anything?", _LOSS),
    ("Is it late?", _LATE),
    ("Why?", _WHY),
    ("Resources", _RESOURCES),
    ("Intake", _INTAKE),
)
