"""Generates docs/metrics.md: every metric, what it means and what to do about it.

    python -m tools.metrics_page > docs/metrics.md

Names, types, labels and buckets come from the code, as in a scrape; the texts are here.
tests/tools/test_metrics_page.py fails on a metric without an entry, an entry without a metric, and
a page that is out of date.
"""

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import Metric

from sidecar.app import App
from sidecar.config_load import load
from sidecar.operate.prometheus import PREFIX

_BOTH = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "SGP_API_KEY": "key", "SGP_ACCOUNT_ID": "id"}
# What Prometheus appends to the name of a family's series.
_SUFFIX = {"counter": "_total"}
# Labels whose values are not from a fixed list.
_FREE_LABELS = {"version"}

INTRODUCTION = """\
# Metrics

The metrics of `GET :9318/metrics`. Names, types and labels are a contract:
`tests/operate/metrics.golden` holds them, and every change to it is in the changelog.
`tools/metrics_page.py` generates this page.

- Every label set that can occur exists from the start, at 0: at most 120 series with Agentex, SGP
  and a spool, and about 35 more with OTLP. `/status` has more detail. `sink` is `agentex`, `sgp` or
  `otlp`, if enabled.
- No label and no value ever holds span content.
- There is no label for the pod, its namespace or its node: the scrape adds those of its target.
- Counters start at 0 in each process. A retry is never counted as a loss.
- prometheus-client adds `process_resident_memory_bytes` (RSS), `process_cpu_seconds_total`,
  `process_open_fds`, `process_max_fds` and `process_start_time_seconds`.

The accounting balances at any moment, so that loss can't hide:

```
events:            received + replayed = joined + held + written
writes, per sink:  written = forwarded + superseded + skipped + dead_lettered + lost + depth
```

For each alert, [runbooks.md](runbooks.md) describes what to do.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a metric means and what to do about it; `name` is without prefix and suffix."""

    name: str
    means: str
    do: str


NOTHING = "Nothing; it explains other metrics."

GROUPS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    ("Are we losing anything?", (
        Entry("accounting_imbalance", "Writes of a lane, or events of the intake "
              '(`sink="intake"`), that are unaccounted for.',
              "Must be 0. Anything else is a bug: keep `/status` and the log, and report it."),
        Entry("lost_writes", "Accepted writes that were lost: a row on disk could not be read, or "
              "was in a file that was set aside, or an OTLP receiver said that it did not keep it. "
              "`/status` has the reasons. What is lost at shutdown is in no scrape: exit code 1 "
              "and `last_shutdown_lost_writes` report it.",
              "Check the disk. For losses at shutdown: a longer `shutdown.grace_s`, a "
              "spool or `dead_letters.path`."),
        Entry("last_shutdown_lost_writes", "Writes that the previous run of this sidecar lost at "
              "shutdown, as recorded on the volume of the spool or of the dead letters; 0 without "
              "such a volume.",
              "A longer `shutdown.grace_s`, within `terminationGracePeriodSeconds`. With a spool, "
              "find out why the rest could not be written to disk."),
        Entry("not_taken_writes", "Writes that are lost to this upstream because its room is full. "
              "The other upstreams get them. `no_room`: of a span that the upstream does not have. "
              "`end_of_open`: the END of a span whose START the lane took, so that the upstream "
              "shows the span as running, unless the agent sends the END again.",
              "Bring the upstream back; if its outages last longer than its room, give it more "
              "(`queue.max_bytes`, or a spool)."),
        Entry("dead_lettered_writes", "Writes that were set aside: an upstream will never accept "
              "them. `refused`: it refused the write. `too_large`: too large even alone. "
              "`failing`: sent alone, it failed `retry.max_attempts` times while others got "
              "through. `expired`: older than `retry.max_age_s`. `id_taken`: at Agentex, its id "
              "belongs to a span of another trace. `shutdown`: left when the process stopped; no "
              "scrape sees these.",
              "`sidecar replay FILE --dry-run` lists them. `sidecar replay FILE` sends them again "
              "once the cause is fixed."),
        Entry("dead_letters_not_kept",
              "Dead letters that can't be replayed: deleted from the file to make "
              "room for newer ones, or not written to disk.",
              "Replay and empty the file, raise `dead_letters.max_bytes`, or check "
              "the volume of `dead_letters.path`."),
    )),
    ("Is it late?", (
        Entry("oldest_write_age_seconds", "Age of the lane's oldest write that is not settled; 0 "
              "if there is none. After a restart it counts from the start of the process.",
              "Rising steadily: check `sink_state`."),
        Entry("delivery_delay_seconds", "From accepting an event to the upstream's success "
              "response, for each forwarded write.",
              "High without an outage: check `upstream_request_duration_seconds` and "
              "`concurrency_limit`."),
    )),
    ("Upstreams", (
        Entry("sink_state", "The sink's state as a number, from the best to the worst. 0, not "
              "asked: nothing was sent to it yet. 1, up. 2, throttled: the upstream "
              "asked for a pause. 3, braked: it refuses most writes. 4, down: no "
              "response, or not from its API. 5, unauthorized: it refuses the "
              "credential. `max by (sink)` is the worst pod.",
              "2 or more for minutes: follow the runbook of the state."),
        Entry("upstream_requests",
              "Requests by outcome. `ok` and `refused` are decisions about writes; "
              '`ok` includes the expected steps of an exchange, such as "exists". The '
              "others are retried: `unavailable` (429, 5xx), `unauthorized` (401, "
              "403), `misdirected` (the response is not the API's own: a redirect, "
              "404, 407, a page in HTML) and `no_response` (a time-out, or no "
              "connection).",
              "The outcome that grows shows what is wrong; `/status` splits it "
              "further."),
        Entry("upstream_request_duration_seconds",
              "Duration of one request, whatever its outcome. The quantiles are those "
              "of the last minute, exact to 10%; not a number without requests.",
              "Compare with the upstream's own figures. The difference is the "
              "network, or a shortage of CPU (`event_loop_lag_seconds`)."),
        Entry("upstream_request_bytes", "Bytes of request bodies.",
              NOTHING),
        Entry("concurrency_limit", "Requests currently allowed in flight. It follows the "
              "upstream's throughput, and is 1 while the sidecar probes.",
              "Stays at `max_concurrency` while the depth grows: raise `max_concurrency`, unless "
              "the upstream is at capacity."),
        Entry("in_flight_requests", "Requests that have no response yet.",
              NOTHING),
        Entry("repaired_writes",
              "Agentex writes that took more than one request; `/status` counts them "
              "by reason. `exists`: stored already, so completed by a PATCH. "
              "`unknown_id`: not stored, so POSTed. `unknown_task`: sent again with "
              "the `task_id` in `data`. `data_not_merged`: sent again without `data`, "
              "which can't be merged into what is stored.",
              "`exists`, `unknown_id`: nothing. `unknown_task`: correct the agent's "
              "task ids. `data_not_merged`: find out who else writes these spans; "
              "their `data` is not the END's."),
    )),
    ("Deliveries", (
        Entry("written_writes", "Writes put into the lane.", NOTHING),
        Entry("forwarded_writes", "Writes that the upstream accepted. `open`: of a START, or the "
              "payloads that follow it; `complete`: with the END.",
              "Falling while `received_events_total` does not: check `sink_state`."),
        Entry("superseded_writes", "Writes made redundant by another write of their span.",
              NOTHING),
        Entry("skipped_writes", "Writes skipped because they can't or must not be sent. "
              "`open_writes_off`: OTLP has no running spans, or `sgp.open_writes` is off. "
              "`unaddressable_id`: an id that can't appear in an Agentex URL. `route_gone`: for 10 "
              "minutes the server has had no spans API. `hidden`: all that it would add is hidden "
              "from this upstream (`hide`).",
              "`unaddressable_id`: correct the agent's span ids. `route_gone`: correct "
              "`agentex.base_url`, or unset it."),
    )),
    ("Queue and memory", (
        Entry("queue_depth", "Writes of the lane that are not settled: waiting, in flight or on "
              "disk.", "Growing: check `sink_state` and the upstream's latency."),
        Entry("queue_bytes", "Bytes of accepted spans in memory, counted once however many lanes "
              "hold them. Open spans that no lane holds count too; they leave memory when room is "
              "needed.", "Nothing; `lane_bytes` shows which upstream fills it."),
        Entry("queue_limit_bytes", "`queue.max_bytes`.", NOTHING),
        Entry("lane_bytes", "Bytes that count against the lane's limit: on disk with a spool that "
              "works, otherwise in memory. A span counts in every lane that it is for, and a START "
              "counts before it is written.",
              "Above 80% of the limit: bring the upstream back, or raise the limit."),
        Entry("lane_limit_bytes", "Each lane's share of `queue.max_bytes`, or with a spool that "
              "works, of `spool.max_bytes` less its log: 45% with two upstreams, 30% with three, "
              "90% with one. ENDs of spans that the lane already has may exceed it, into the tenth "
              "that is shared. Writes that do not fit are not taken for this upstream.", NOTHING),
        Entry("open_spans", "Spans that are remembered because their END has not arrived.",
              "Growing without bound: an agent does not post ENDs. `queue.open_span_ttl_s` bounds "
              "it, except for spans whose open write still waits for an upstream."),
        Entry("memory_limit_bytes", "The container's memory limit; 0 for none.",
              "Compare with `process_resident_memory_bytes`."),
        Entry("event_loop_lag_seconds",
              "How late a timer of the event loop fired: the worst of the last "
              "minute.",
              "Above 0.1 s: too little CPU. Raise the CPU request; check for "
              "throttling."),
    )),
    ("Spool", (
        Entry("spool_bytes", "Bytes of the spool in use; 0 without a spool. One upstream that is "
              "down fills its own share only (`lane_bytes`). The files shrink only "
              "some time after their writes are settled.",
              NOTHING),
        Entry("spool_limit_bytes", "`spool.max_bytes`; 0 without a spool.", NOTHING),
        Entry("spool_degraded", "1 while the disk can't be used: new events are in memory only.",
              "Fix the disk; the sidecar recovers by itself."),
        Entry("spool_errors", "Disk errors.", "Check the volume and `spool_degraded`."),
        Entry("spool_moved_aside", "Files that could not be read and were renamed.",
              "Keep the renamed file: its writes were not delivered."),
        Entry("spool_replayed_events", "Writes that an earlier process left on disk and this one "
              "recovered.", "Growing without a rollout: the sidecar was killed; find out why."),
    )),
    ("Intake", (
        Entry("received_events", "Events accepted from agents.",
              "Flat while agents are working: their posts do not reach the sidecar."),
        Entry("rejected_events",
              "Refusals by reason: of a single event, or of a whole request, which "
              "counts once. `invalid` (not JSON, not an event, a value that can't be "
              "delivered, another content type), `too_large`: the agent's fault. "
              "`no_room`: no upstream that the events are for has room (429). "
              "`stopping`: shutting down (503). `account`: the spans can't go out "
              "under the account that the request names or needs to name (400, 409, "
              "or 503 for a ninth). `no_upstream`: no upstream that the events are "
              "for is enabled (503).",
              "The agent's fault: the response body gives the reason, and "
              "`event_rejected` in the log the field. `no_room`: check `lane_bytes`. "
              "`no_upstream`: `sidecar check` says what to set."),
        Entry("ingest_duration_seconds",
              "From the head of an agent's request to its response. The quantile is "
              "that of the last minute; the count is that of all requests, which "
              "`/status` counts by status.",
              "Above 0.1 s: too little CPU, huge bodies, or the spool's disk is slow."),
        Entry("joined_events", "Events that went out inside another event of their span, "
              "or repeated an earlier one.", NOTHING),
    )),
    ("Beside the path", (
        Entry("log_lines_dropped", "Log lines that were not written: whoever reads standard error "
              "is too slow, hangs or is gone.",
              "Check the container's log driver, and the disk of the node."),
        Entry("stalls", "Calls that took far too long, beside the spans' path. `log`: writing log "
              "lines took longer than 1 s. `disk`: the spool or a dead letter took 3 s, or a key "
              "file or the exit report 1 s. `dns`: looking up an upstream's name took 5 s. Each "
              "counts once, as soon as it takes too long.",
              "See the runbook, [Something hangs](runbooks.md#something-hangs)."),
    )),
    ("Process", (
        Entry("build_info", "Always 1; the label is the version.", "Count it to count sidecars."),
    )),
)  # fmt: skip


def families() -> list[Metric]:
    """Return our metric families as in a new process with both upstreams enabled."""

    async def collect() -> list[Metric]:
        app = App(load(None, _BOTH), _BOTH)
        return [each for each in app.operations.registry.collect() if each.name.startswith(PREFIX)]

    return asyncio.run(collect())


def entries() -> dict[str, Entry]:
    """Return the page's entries by name."""
    return {entry.name: entry for _, group in GROUPS for entry in group}


def page(known: Iterable[Metric]) -> str:
    """Return the whole page."""
    by_name = {each.name.removeprefix(PREFIX): each for each in known}
    parts = [INTRODUCTION]
    for title, group in GROUPS:
        parts.append(f"\n## {title}\n\n| metric | labels | what it means | what to do |\n")
        parts.append("|---|---|---|---|\n")
        parts += [_row(by_name[entry.name], entry) for entry in group if entry.name in by_name]
    return "".join(parts)


def _row(family: Metric, entry: Entry) -> str:
    name = family.name + _SUFFIX.get(family.type, "")
    return f"| `{name}`<br>{family.type} | {_labels(family)} | {entry.means} | {entry.do} |\n"


def _labels(family: Metric) -> str:
    """Return the labels with their values, and a histogram's buckets."""
    values: dict[str, list[str]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, [])
            if value not in values[label]:
                values[label].append(value)
    shown = []
    for label, found in sorted(values.items(), key=lambda item: item[0] != "sink"):
        if label == "le":
            shown.append("buckets: " + " ".join(f"{float(bound):g}" for bound in found))
        elif (label == "sink" and "intake" not in found) or label in _FREE_LABELS:
            shown.append(f"`{label}`")
        else:
            shown.append(f"`{label}`: {', '.join(found)}")
    return "<br>".join(shown)


if __name__ == "__main__":
    sys.stdout.write(page(families()))
