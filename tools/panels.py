"""The dashboard's panels, row by row: titles, expressions and how to read them.

panel.py says what each is made of. No panel draws a series per pod: graphs show sums, extremes and
shares, tables the ten worst pods. What several pods have is counted in pods: a pod that backs off
sends little, so that a share of requests would hide it.
"""

from tools.panel import (
    GREY,
    RATE,
    SEVERITIES,
    SINK_COLORS,
    SINK_LIGHT,
    SINKS,
    STATES,
    Panel,
    Query,
    counted,
    own,
    seen,
    worst_and_mean,
    worst_and_mean_pod,
)

_LOSING = ((0, "green"), (0.5, "red"))
_LATE = ((0, "green"), (0.5, "orange"))
_NEUTRAL = ((0, "blue"),)
_POD = {"sink": "Upstream", "pod": "Pod", "namespace": "Namespace"}
_PLACE = {"pod": "Pod", "namespace": "Namespace"}
_NEEDS_KUBE = "needs kube-state-metrics"
# One of as many panels in a row as there are upstreams.
_PART = 24 // len(SINKS)
# By hue, a color for each upstream. Grafana has two shades of a hue that can be told apart in thin
# lines, in both themes.
_SHADES = {
    hue: (f"dark-{hue}", f"light-{hue}", third)
    for hue, third in (
        ("red", "#95506f"), ("orange", "#955d32"), ("purple", "#7905ff"), ("yellow", "#5e7406"),
        ("blue", "#1451ff"),
    )
}  # fmt: skip

_RESTARTS = " or ".join(
    f'increase(kube_pod_{kind}container_status_restarts_total{{container="trace-sidecar"}}[$__range])'
    for kind in ("", "init_")
)
_FIRING = " or ".join(
    f"{number} * max by (alertname, sink, reason, pod) (ALERTS{{"
    f'namespace=~"$namespace|", alertname=~"TraceSidecar.+", alertstate="firing", '
    f'severity="{severity}"}})'
    for number, (severity, _) in enumerate(SEVERITIES, 1)
)
_HERE = 'namespace=~"$namespace"'
_OPTED_IN = f'kube_namespace_labels{{{_HERE}, label_trace_sidecar_injection="enabled"}}'
_WITHOUT = (
    f'(kube_pod_status_phase{{{_HERE}, phase="Running"}} == 1) and on (namespace) {_OPTED_IN} '
    f'unless on (namespace, pod) kube_pod_labels{{{_HERE}, label_trace_sidecar_inject="false"}} '
    "unless on (namespace, pod) ("
    + " or ".join(
        f'kube_pod_{kind}container_info{{{_HERE}, container="trace-sidecar"}}'
        for kind in ("", "init_")
    )
    + ")"
)
_LANE_USED = "lane_bytes{} / lane_limit_bytes{}"
_MEMORY_USED = f"{own('process_resident_memory_bytes{}')} / (memory_limit_bytes{{}} > 0)"
# Only where it fills steadily, and within a day.
_TIME_LEFT = "(lane_limit_bytes{} - lane_bytes{}) / (deriv(lane_bytes{}[5m]) > 0) < 86400"
_AT_SHUTDOWN = (
    "(last_shutdown_lost_writes{} and (time() - process_start_time_seconds{} < $__range_s))"
)
_LOST = counted("lost_writes_total", "sink")
_NOT_TAKEN = counted("not_taken_writes_total", "sink, reason")
_DEAD_LETTERED = counted("dead_lettered_writes_total", "sink, reason")
_LOST_BY_REASON = " or ".join(
    (
        f'label_replace({_LOST}, "reason", "lost", "", "")',
        f'label_replace({_AT_SHUTDOWN}, "reason", "shutdown", "", "")',
        _NOT_TAKEN,
        _DEAD_LETTERED,
    )
)


def _by_sink(*reasons: tuple[str, str]) -> dict[str, str]:
    """Return the colors of `upstream reason`: a hue for each reason, a shade for each upstream."""
    return {
        f"{sink} {name}": color
        for name, hue in reasons
        for sink, color in zip(SINKS, _SHADES[hue], strict=True)
    }


def _states(sink: str) -> Panel:
    states = tuple(
        Query(f'sum(sink_state{{sink="{sink}"}} == bool {number})', name, color)
        for number, (name, color) in enumerate(STATES)
        if name != "up"
    )
    return Panel(
        f"Sidecars for which {sink} is not up",
        f"How many sidecars see {sink} in each state but up. throttled: it asked for a pause. "
        "braked: it refuses most writes. down: no response, or not from its API. unauthorized: it "
        "refuses the credential.",
        "stack", "short", states, width=_PART, soft_max=1, none=f"no sidecar has {sink} enabled",
    )  # fmt: skip


def _requests(sink: str) -> Panel:
    colors = {
        "ok": "green", "refused": "orange", "unavailable": "red", "unauthorized": "purple",
        "misdirected": "blue", "no_response": "yellow",
    }  # fmt: skip
    ok = f'upstream_requests_total{{sink="{sink}", outcome="ok"}}'
    failed = f'upstream_requests_total{{sink="{sink}", outcome!="ok"}}'
    rate = f"sum by (outcome) (rate({failed}{RATE}))"
    grew = f"sum by (outcome) (increase({failed}[$__range] @ end()))"
    return Panel(
        f"Requests to {sink}",
        "Requests per second by outcome, of those that occurred in the time shown. ok and refused "
        "are decisions about writes; the others are retried.",
        "stack", "reqps",
        # At the bottom of the stack, few failures can be seen.
        (Query(f"{rate} and {grew} > 0", "{{outcome}}"), Query(f"sum(rate({ok}{RATE}))", "ok")),
        width=_PART, colors=colors, none=f"no request to {sink} seen",
    )  # fmt: skip


_LOSS = (
    Panel(
        "Lost writes",
        "Accepted writes that were lost in the time shown, with those that a shutdown lost before "
        "a restart in that time.",
        "stat", "locale",
        (Query(f"sum({_LOST}) + sum({_AT_SHUTDOWN}) or sum({_LOST})"),),
        width=3, steps=_LOSING, alerts=("TraceSidecarWritesLost", "TraceSidecarLostAtShutdown"),
    ),
    Panel(
        "Not taken",
        "Writes that an upstream did not get in the time shown, because its room was full.",
        "stat", "locale", (Query(f"sum({_NOT_TAKEN})"),),
        width=3, steps=_LOSING,
        alerts=("TraceSidecarWritesNotTaken", "TraceSidecarSpansLeftRunning"),
    ),
    Panel(
        "Dead letters",
        "Writes that an upstream will never accept, in the time shown. They are kept: "
        "`sidecar replay` sends them again.",
        "stat", "locale", (Query(f"sum({_DEAD_LETTERED})"),),
        width=3, steps=_LATE, alerts=("TraceSidecarDeadLetters",),
    ),
    Panel(
        "Imbalance",
        "Events and writes that the accounting misses. Anything but 0 is a bug in the sidecar.",
        "stat", "locale", (Query("sum(abs(accounting_imbalance{}))"),),
        width=3, steps=_LOSING, alerts=("TraceSidecarImbalance",),
    ),
    Panel(
        "Sidecars", "Sidecars that Prometheus scrapes.",
        "stat", "locale", (Query("count(build_info{})"),), width=3, steps=_NEUTRAL,
        alerts=("TraceSidecarAbsent", "TraceSidecarNotScraped"),
    ),
    Panel(
        "No sidecar",
        "Running pods in opted-in namespaces that have no sidecar; the table at the end names "
        "them. One that is no agent, such as a database, counts unless it has the label "
        '`trace-sidecar/inject: "false"`. Needs kube-state-metrics with the labels of pods and '
        "namespaces.",
        "stat", "locale", (Query(f"count({_WITHOUT}) or 0 * count({_OPTED_IN})"),),
        width=3, steps=_LATE, none=_NEEDS_KUBE,
    ),
    Panel(
        "Restarts",
        "Restarts of the sidecar's container in the time shown. Needs kube-state-metrics.",
        "stat", "locale", (Query(f"sum({_RESTARTS})"),),
        width=3, steps=_LATE, none=_NEEDS_KUBE, alerts=("TraceSidecarRestarting",),
    ),
    Panel(
        "Worst delay", "The oldest accepted write of all sidecars that is not settled.",
        "stat", "s", (Query("max(oldest_write_age_seconds{})"),),
        width=3, steps=((0, "green"), (900, "orange")), alerts=("TraceSidecarDeliveryStalled",),
    ),
    Panel(
        "Firing alerts",
        "The sidecars' alerts that fire now. critical: spans are being lost. warning: they are "
        "late, or will be lost if nothing is done. Nothing is known without the chart's rules.",
        "table", "short", (Query(_FIRING),), width=15, value="Severity",
        columns={"alertname": "Alert", "sink": "Upstream", "reason": "Reason", "pod": "Pod"},
        none="no alert seen: none fires, or the rules are not installed",
    ),
    Panel(
        "Lost and not taken",
        "Writes per second. no_room: of spans that the upstream does not have. end_of_open: ENDs "
        "of spans that it will show as running. It should be flat at 0.",
        "lines", "wps",
        seen(("lost_writes_total", "sink", "{{sink}} lost"),
             ("not_taken_writes_total", "sink, reason", "{{sink}} {{reason}}")),
        width=9,
        colors=_by_sink(("lost", "purple"), ("no_room", "red"), ("end_of_open", "orange")),
        alerts=("TraceSidecarWritesNotTaken", "TraceSidecarSpansLeftRunning"),
    ),
    Panel(
        "Losing most",
        "The ten pods with the most writes lost, not taken or set aside as dead letters in the "
        "time shown.",
        "table", "locale",
        (Query(f"topk(10, sum by (namespace, pod, sink, reason) ({_LOST_BY_REASON}) > 0.5)"),),
        width=15, value="Writes", columns={"reason": "Reason", **_POD}, none="no loss seen",
    ),
    Panel(
        "Dead letters by reason",
        "Dead letters per second, of the reasons that occurred in the time shown. It should be "
        "flat at 0.",
        "lines", "wps",
        seen(("dead_lettered_writes_total", "sink, reason", "{{sink}} {{reason}}")),
        width=9,
        colors=_by_sink(("refused", "red"), ("too_large", "orange"), ("failing", "purple"),
                        ("expired", "yellow"), ("id_taken", "blue")),
        alerts=("TraceSidecarDeadLetters", "TraceSidecarDeadLettersNotKept"),
    ),
    Panel(
        "Outcomes of writes",
        "Writes put into each lane per second, and how many left it because the upstream has them "
        "or does not need them. The difference waits, or is lost.",
        "lines", "wps",
        (
            Query(f"sum by (sink) (rate(written_writes_total{{}}{RATE}))", "{{sink}} put",
                  SINK_LIGHT, dashed=True),
            Query(f"sum by (sink) (rate(forwarded_writes_total{{}}{RATE})) + sum by (sink) "
                  f"(rate(superseded_writes_total{{}}{RATE})) + sum by (sink) "
                  f"(rate(skipped_writes_total{{}}{RATE}))", "{{sink}} done", SINK_COLORS),
        ),
        width=24,
    ),
)  # fmt: skip

_LATENESS = (
    Panel(
        "Oldest write",
        "Age of the oldest accepted write that is not settled. Seconds are normal; it rises "
        "steadily while an upstream is down. The line is where the alert fires.",
        "lines", "s", worst_and_mean("oldest_write_age_seconds{}"),
        width=12, line=900, alerts=("TraceSidecarDeliveryStalled",),
    ),
    Panel(
        "Delivery delay",
        "From accepting an event to the upstream's success response: half of all writes, and 95 "
        "of 100, are delivered within this time. It is read from eight ranges of time, so it is "
        "an estimate within one of them.",
        "lines", "s",
        tuple(
            Query(f"histogram_quantile({quantile}, sum by (sink, le) "
                  f"(rate(delivery_delay_seconds_bucket{{}}{RATE})))", f"{{{{sink}}}} {name}",
                  colors, dashed=dashed)
            for quantile, name, colors, dashed in (
                (0.5, "half", SINK_LIGHT, True), (0.95, "95%", SINK_COLORS, False)
            )
        ),
        width=12,
    ),
    Panel(
        "Furthest behind", "The ten pods with the oldest waiting write.",
        "table", "s",
        (Query("topk(10, max by (namespace, pod, sink) (oldest_write_age_seconds{}) > 0)"),),
        width=12, value="Age", columns=_POD, none="no write seen waiting",
        steps=((900, "orange"),),
    ),
    Panel(
        "Full soonest",
        "The ten rooms that will be full first if they go on as in the last five minutes, within "
        "a day. A full room takes no new spans for its upstream.",
        "table", "s",
        (Query(f"bottomk(10, min by (namespace, pod, sink) ({_TIME_LEFT}))"),),
        width=12, value="Time left", columns=_POD, none="no room seen filling",
        steps=((0, "red"), (3600, "orange"), (6 * 3600, "transparent")), least_first=True,
    ),
)  # fmt: skip

_WHY = (
    Panel(
        "Worst state of each upstream",
        "The worst state in which any sidecar sees the upstream; the panels beside it count the "
        "sidecars.",
        "states", "short",
        (Query("max by (sink) (sink_state{})", "{{sink}}"),), width=12,
        alerts=("TraceSidecarUpstreamDown", "TraceSidecarUnauthorized", "TraceSidecarBrakeOn"),
    ),
    Panel(
        "Share of sidecars in trouble",
        "Share of sidecars for which the upstream is throttled or worse.",
        "lines", "percentunit",
        (Query("sum by (sink) (sink_state{} > bool 1) / count by (sink) (sink_state{})",
               "{{sink}}", SINK_COLORS),),
        width=12, soft_max=0.1,
    ),
    *map(_states, SINKS),
    *map(_requests, SINKS),
    Panel(
        "Latency",
        "Duration of a request over the last minute: half of them, and 95 of 100, take no longer. "
        "Of the pod where it is worst.",
        "lines", "s",
        tuple(
            Query("max by (sink) "
                  f'(upstream_request_duration_seconds{{quantile="{quantile}"}} >= 0)',
                  f"{{{{sink}}}} {name}", colors, dashed=dashed)
            for quantile, name, colors, dashed in (
                (0.5, "half", SINK_LIGHT, True), (0.95, "95%", SINK_COLORS, False)
            )
        ),
    ),
    Panel(
        "Concurrency", "Requests in flight and how many are allowed, summed over all pods. The "
        "limit adapts; it is 1 for a sidecar that probes.",
        "lines", "short",
        (Query("sum by (sink) (in_flight_requests{})", "{{sink}} in flight", SINK_COLORS),
         Query("sum by (sink) (concurrency_limit{})", "{{sink}} limit", SINK_LIGHT, dashed=True)),
    ),
    Panel(
        "Writes per request",
        "Mean number of writes in an accepted request. Agentex accepts one at a time.",
        "lines", "short",
        (Query(f"sum by (sink) (rate(forwarded_writes_total{{}}{RATE})) / (sum by (sink) "
               f'(rate(upstream_requests_total{{outcome="ok"}}{RATE})) > 0)', "{{sink}}",
               SINK_COLORS),),
    ),
    Panel(
        "Request size", "Mean number of bytes of a request's body.",
        "lines", "bytes",
        (Query(f"sum by (sink) (rate(upstream_request_bytes_total{{}}{RATE})) / (sum by (sink) "
               f"(rate(upstream_requests_total{{}}{RATE})) > 0)", "{{sink}}", SINK_COLORS),),
    ),
    Panel(
        "Most failures",
        "The ten pods with the most failed requests in the time shown. Those that back off fail "
        "seldom: the panels above count them.",
        "table", "locale",
        (Query("topk(10, sum by (namespace, pod, sink, outcome) "
               '(increase(upstream_requests_total{outcome!="ok"}[$__range])) > 0.5)'),),
        width=16, value="Failures", columns={"outcome": "Outcome", **_POD}, none="no failure seen",
    ),
)  # fmt: skip

_ROOM = (
    Panel(
        "Room in use",
        "Share of the room for each upstream that is in use: of the spool, or without one of "
        "queue.max_bytes. When it is full, the upstream gets no new spans; ENDs of spans that it "
        "has can take a little more. The line is where the alert fires.",
        "lines", "percentunit", worst_and_mean(_LANE_USED),
        line=0.8, alerts=("TraceSidecarLaneNearlyFull",),
    ),
    Panel(
        "Waiting writes", "Writes that are not settled: waiting, in flight or on disk.",
        "lines", "short",
        (Query("sum by (sink) (queue_depth{})", "{{sink}} all pods", SINK_COLORS),
         Query("max by (sink) (queue_depth{})", "{{sink}} worst pod", SINK_LIGHT, dashed=True),
         Query("sum(open_spans{})", "open spans", "yellow", dashed=True)),
    ),
    Panel(
        "Spool in use", "Share of the spool in use by all upstreams; nothing without spools.",
        "lines", "percentunit",
        worst_and_mean_pod("spool_bytes{} / (spool_limit_bytes{} > 0)"),
        soft_max=0.1, none="no spool seen",
    ),
    Panel(
        "Fullest rooms", "The ten fullest rooms: pods and upstreams.",
        "table", "percentunit",
        (Query(f"topk(10, max by (namespace, pod, sink) ({_LANE_USED}) > 0.001)"),),
        width=12, value="In use", columns=_POD, steps=((0.8, "orange"),),
        none="no room seen in use",
    ),
    Panel(
        "Memory of spans in use",
        "Share of queue.max_bytes that accepted spans take in memory, counted once for all "
        "upstreams. Open spans are included, and leave memory when room is needed.",
        "lines", "percentunit", worst_and_mean_pod("queue_bytes{} / queue_limit_bytes{}"),
        width=12, soft_max=0.1,
    ),
)  # fmt: skip

_RESOURCES = (
    Panel(
        "Memory of the limit", "Resident memory as a share of the container's limit; the kernel "
        "kills the container at 100%. The line is where the alert fires.",
        "lines", "percentunit", worst_and_mean_pod(_MEMORY_USED),
        line=0.9, alerts=("TraceSidecarMemoryNearLimit",), none="no limit seen",
    ),
    Panel(
        "Memory", "Resident memory, and the lowest limit of a container that has one.",
        "lines", "bytes",
        (*worst_and_mean_pod(own("process_resident_memory_bytes{}")),
         Query("min(memory_limit_bytes{} > 0)", "lowest limit", "red", dashed=True)),
    ),
    Panel(
        "CPU", "CPU used. A sidecar can use at most one core.",
        "lines", "suffix: cores",
        (*worst_and_mean_pod(own(f"rate(process_cpu_seconds_total{{}}{RATE})")),
         Query(f"sum({own(f'rate(process_cpu_seconds_total{{}}{RATE})')})", "all pods", "purple")),
    ),
    Panel(
        "Event loop lag", "How late a timer of the event loop fired, at worst in the last minute. "
        "High when there is too little CPU.",
        "lines", "s", worst_and_mean_pod("event_loop_lag_seconds{}"), soft_max=0.1,
    ),
    Panel(
        "Sidecars without their disk",
        "Sidecars whose spool can't be used: what they accept now is in memory only.",
        "lines", "short", (Query("sum(spool_degraded{})", "degraded", "red"),), soft_max=1,
        alerts=("TraceSidecarSpoolDegraded",),
    ),
    Panel(
        "Beside the path",
        "Per second: errors of the spool's disk, dead letters that are not kept, dropped log "
        "lines, and calls that took far too long. It should be flat at 0.",
        "lines", "cps",
        tuple(
            Query(f"sum(rate({name}{{}}{RATE}))", legend, color)
            for name, legend, color in (
                ("spool_errors_total", "disk errors", "red"),
                ("dead_letters_not_kept_total", "dead letters not kept", "purple"),
                ("log_lines_dropped_total", "log lines dropped", "yellow"),
                ("stalls_total", "stalls", "blue"),
            )
        ),
        soft_max=0.1, alerts=("TraceSidecarDeadLettersNotKept",),
    ),
    Panel(
        "Largest by memory", "The ten pods with the largest resident memory.",
        "table", "bytes",
        (Query(f"topk(10, max by (namespace, pod) ({own('process_resident_memory_bytes{}')}))"),),
        width=12, value="Memory", columns=_PLACE,
    ),
    Panel(
        "Open files", "Open file descriptors: connections, the spool's files and the log.",
        "lines", "short", worst_and_mean_pod(own("process_open_fds{}")), width=12,
    ),
)  # fmt: skip

_INTAKE = (
    Panel(
        "Events", "Events accepted per second. joined: sent inside another event of their span.",
        "lines", "eps",
        (Query(f'sum(rate(received_events_total{{kind="start"}}{RATE}))', "start", "blue"),
         Query(f'sum(rate(received_events_total{{kind="end"}}{RATE}))', "end", "purple"),
         Query(f"sum(rate(joined_events_total{{}}{RATE}))", "joined", "yellow", dashed=True),
         Query(f"sum(rate(spool_replayed_events_total{{}}{RATE}))", "from the spool", GREY,
               dashed=True)),
    ),
    Panel(
        "Refusals",
        "Refused events per second, of the reasons that occurred in the time shown; a request "
        "refused as a whole counts once. no_room and stopping mean try again later, and nothing "
        "of the request was accepted. The others need a fix in the agent.",
        "lines", "eps", seen(("rejected_events_total", "reason", "{{reason}}")),
        colors={"invalid": "orange", "too_large": "yellow", "unsupported": "blue",
                "account": "purple", "no_room": "red", "stopping": "super-light-blue",
                "no_upstream": "super-light-purple"},
        alerts=("TraceSidecarIntakeRefusing", "TraceSidecarEventsRejected"),
    ),
    Panel(
        "Response time",
        "How long agents wait for a response, over the last minute: 95 of 100 requests take no "
        "longer. mean: of all pods' requests.",
        "lines", "s",
        (Query('max(ingest_duration_seconds{quantile="0.95"} >= 0)', "95%, worst pod", "blue"),
         Query(f"sum(rate(ingest_duration_seconds_sum{{}}{RATE})) / "
               f"(sum(rate(ingest_duration_seconds_count{{}}{RATE})) > 0)", "mean",
               "super-light-blue", dashed=True)),
    ),
    Panel(
        "Busiest", "The ten pods that accepted the most events per second in the time shown.",
        "table", "eps",
        (Query("topk(10, sum by (namespace, pod) (rate(received_events_total{}[$__range])) > 0)"),),
        width=12, value="Events", columns=_PLACE, none="no event seen",
    ),
    Panel(
        "Most refusals", "The ten pods that refused the most events in the time shown.",
        "table", "locale",
        (Query("topk(10, sum by (namespace, pod, reason) "
               "(increase(rejected_events_total{}[$__range])) > 0.5)"),),
        width=12, value="Refusals", columns={"reason": "Reason", **_PLACE}, none="no refusal seen",
    ),
)  # fmt: skip

_FLEET = (
    Panel(
        "Versions", "Sidecars by version.",
        "table", "locale", (Query("count by (version) (build_info{})"),),
        width=6, value="Sidecars", columns={"version": "Version"},
    ),
    Panel(
        "Pods that have it",
        "Share of running pods in opted-in namespaces that have a sidecar, of those that are not "
        "excluded by label. Needs kube-state-metrics.",
        "lines", "percentunit",
        (Query(f"count(build_info{{}}) / (count(build_info{{}}) + (count({_WITHOUT}) or 0 * "
               f"count({_OPTED_IN})))", "with a sidecar", "blue"),),
        width=6, none=_NEEDS_KUBE,
    ),
    Panel(
        "Pods without a sidecar",
        "Running pods in opted-in namespaces without a sidecar. Where they should have one: "
        "restart them, then look for the reason in the audit log.",
        "table", "locale", (Query(f"max by (namespace, pod) ({_WITHOUT})"),),
        width=12, columns=_PLACE, none="none seen: there is none, or no kube-state-metrics",
    ),
)  # fmt: skip

ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Are we losing anything?", _LOSS),
    ("Is it late?", _LATENESS),
    ("Why?", _WHY),
    ("Is there room?", _ROOM),
    ("Resources", _RESOURCES),
    ("Intake", _INTAKE),
    ("Fleet", _FLEET),
)
