"""Writes docs/metrics.md to standard output: every metric, what it means and what to do.

    python -m tools.metrics_page > docs/metrics.md

Names, types, labels and buckets come from the code, as a scrape shows them; what they mean is said
here. A metric without an entry, an entry without a metric and a stale page fail
tests/tools/test_metrics_page.py.
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
# Families with another suffix in what Prometheus stores.
_SUFFIX = {"counter": "_total"}
# Its value is a version, not one of a list.
_FREE_LABELS = {"version"}

INTRODUCTION = """\
# Metrics

What `GET :9318/metrics` shows. The names, types and labels are a contract:
`tests/operate/metrics.golden` holds them, and a change there is in the changelog.
This page is made by `tools/metrics_page.py`.

- Every label set is there from the start, at 0; `sink` is `agentex` or `sgp`, those that are on.
- No label and no value ever holds anything of a span.
- Counters begin at 0 with each process. A retry is never counted as a loss.
- Beside these there are prometheus-client's own: `process_resident_memory_bytes` (RSS),
  `process_cpu_seconds_total`, `process_open_fds`, `process_start_time_seconds`, `python_info`.

The books, at any moment (design: loss can't hide):

```
events:           received + replayed = joined + held + written
writes, a sink:   written = forwarded + superseded + skipped + dead_lettered + lost + depth
```

[runbooks.md](runbooks.md) says what to do about each alert.
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a metric means and what to do about it; the name is without prefix and suffix."""

    name: str
    means: str
    do: str


NOTHING = "Nothing; it explains others."

GROUPS: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    ("Are we losing anything?", (
        Entry("accounting_imbalance", "Writes of a lane, or events of the intake "
              "(`sink=\"intake\"`), that the books can't account for.",
              "Must be 0. Anything else is a bug: keep `/status` and the log, and report it."),
        Entry("lost_writes", "Accepted writes that are gone. `shutdown`: the grace period ended "
              "first, and there was no spool; no scrape sees that one, the exit code 1 and "
              "`last_shutdown_lost` do. `spool`: a row on disk could not be read.",
              "`shutdown`: a longer `shutdown.grace_s` or a spool. `spool`: look at the disk."),
        Entry("last_shutdown_lost", "Writes that the previous life of this sidecar lost when it "
              "stopped, as it noted on the volume of the spool or of the dead letters; 0 where "
              "there is none.",
              "A longer `shutdown.grace_s`, within `terminationGracePeriodSeconds`; look at why "
              "the disk did not take the rest."),
        Entry("dead_lettered_writes", "Writes that an upstream will never take. `refused`: it says "
              "so. `too_large`: even alone. `failing`: it fails on this one while others get "
              "through. `expired`: older than `retry.max_age_s`.",
              "`sidecar replay FILE --dry-run` lists them, `sidecar replay FILE` sends them again "
              "once the cause is gone."),
        Entry("dead_letters_dropped", "Dead letters that made room for newer ones in the file.",
              "Replay and empty the file, or raise `dead_letters.max_bytes`."),
        Entry("dead_letter_errors", "Dead letters that the disk did not take.",
              "Look at the volume of `dead_letters.path`."),
    )),
    ("Is it late?", (
        Entry("oldest_write_age_seconds", "Age of the oldest write of the lane that is not "
              "settled; 0 when nothing waits. After a restart it counts from the start.",
              "Rising like a clock: look at `sink_state`."),
        Entry("delivery_delay_seconds", "From the accept of an event to the upstream's yes, for "
              "each forwarded write.",
              "High without an outage: compare `upstream_request_duration_seconds` and "
              "`concurrency_limit`."),
    )),
    ("Upstreams", (
        Entry("sink_state", "1 for the state the upstream is in. `up`. `throttled`: it asked for a "
              "pause. `down`: it does not answer, or not as its API. `unauthorized`: it refuses "
              "the credential. `braked`: it refuses most of what is sent.",
              "Not `up` for minutes: the runbook of the state."),
        Entry("upstream_requests", "Requests by outcome. `ok`, `refused` and `too_large` are "
              "decisions about writes; `unavailable` (429, 5xx), `unauthorized` (401, 403), "
              "`misdirected` (404, 307: a wrong base URL), `timeout` and `connection` are tried "
              "again.",
              "Which outcome grows says what is wrong."),
        Entry("upstream_request_duration_seconds", "Time of one request, whatever its outcome.",
              "Compare with the upstream's own figures; what is more is the way there, or our "
              "CPU (`event_loop_lag_seconds`)."),
        Entry("concurrency_limit", "Requests that may be in flight now; it follows what the "
              "upstream gets done, and is 1 while a sidecar probes.",
              "Always at `max_concurrency` with a growing depth: raise that, or the upstream is "
              "too small."),
        Entry("in_flight", "Writes that are being sent.", NOTHING),
        Entry("retries", "Batches sent again, whole or in halves.",
              "Compare with `upstream_requests_total` by outcome."),
        Entry("batch_spans", "Writes in a forwarded batch; always 1 at Agentex.", NOTHING),
        Entry("batch_bytes", "Bytes in the body of a request.", NOTHING),
    )),
    ("Deliveries", (
        Entry("written_writes", "Writes put into the lane.", NOTHING),
        Entry("forwarded_writes", "Writes that the upstream has. `open`: of a span that still "
              "runs; `complete`: with its END.",
              "Falls while `received_events_total` does not: look at `sink_state`."),
        Entry("superseded_writes", "Open writes that a newer write of their span overtook.",
              NOTHING),
        Entry("skipped_writes", "Writes not sent on purpose. `open_writes_off`: "
              "`sgp.open_writes`. `unaddressable_id`: an id that no URL of Agentex can hold.",
              "`unaddressable_id`: correct the agent's span ids."),
    )),
    ("Queue and memory", (
        Entry("queue_depth", "Writes of the lane that are not settled: waiting, in flight, on "
              "disk.", "Growing: look at `sink_state` and at the upstream's latency."),
        Entry("queue_bytes", "Bytes of accepted spans in memory, counted once however many lanes "
              "hold them.", "Above 80 % of the limit: bring the upstream back, or give more."),
        Entry("queue_limit_bytes", "`queue.max_bytes`; what does not fit gets 429.", NOTHING),
        Entry("open_spans", "Spans whose END has not come, as far as they are remembered.",
              "Growing for ever: an agent does not post ENDs; `queue.open_span_ttl_s` bounds it."),
        Entry("memory_limit_bytes", "The container's memory limit; 0 for none.",
              "Compare with `process_resident_memory_bytes`."),
        Entry("event_loop_lag_seconds", "How late a timer comes, once a second.",
              "Above 0.1 s: the CPU is short. Raise the CPU request; look at throttling."),
    )),
    ("Spool", (
        Entry("spool_used_ratio", "Share of the spool's room that writes take; at 1 agents get "
              "429. 0 without a spool.",
              "Above 0.8: bring the upstream back, or raise `spool.max_bytes`."),
        Entry("spool_bytes", "Bytes of the spool's files, which stay large for a while when their "
              "writes are gone; 0 without a spool.", NOTHING),
        Entry("spool_limit_bytes", "`spool.max_bytes`; 0 without a spool.", NOTHING),
        Entry("spool_writes", "Writes on disk.", NOTHING),
        Entry("spool_degraded", "1 while the disk can't be used: new events are in memory only.",
              "Mend the disk; it goes back by itself."),
        Entry("spool_errors", "Disk errors.", "Look at the volume and at `spool_degraded`."),
        Entry("spool_moved_aside", "Files that could not be read and were renamed.",
              "Keep the renamed file: what is in it was not delivered."),
        Entry("spool_replayed_events", "Writes that an earlier process left on disk and this one "
              "took over.", "Growing without a rollout: the sidecar was killed; look at why."),
    )),
    ("Intake", (
        Entry("received_events", "Events taken.", "None while agents work: they do not reach us."),
        Entry("rejected_events", "Refusals by reason: an event each, or a whole request, which "
              "counts once. `malformed` (no JSON, no event), `invalid` (a value that can't be "
              "delivered), `too_large`, `unsupported` (another content type): the agent's fault. "
              "`no_room`: full (429). `stopping`: shutting down (503).",
              "The agent's fault: the answer's body says what is wrong. `no_room`: see "
              "`queue_bytes` and `spool_used_ratio`."),
        Entry("ingest_requests", "Requests of agents by status.",
              "429: full. Other 4xx: the agent has to be corrected."),
        Entry("ingest_duration_seconds", "From the first byte of a request to its answer.",
              "Above 0.1 s: the CPU is short, the bodies are huge, or the spool's disk is slow."),
        Entry("passed_through_requests", "Requests handed on to SGP "
              "(`listener.pass_through`). `answered`: SGP answered, whatever. `unreachable`, "
              "`timeout`, `broken`: it did not, or stopped inside. `aborted`: the agent went.",
              "Not `answered`: look at SGP and at the way there; these are never tried again."),
        Entry("joined_events", "Events that went out inside another event of their span, "
              "or were there already.", NOTHING),
    )),
    ("Process", (
        Entry("build_info", "1; the label says the version.", "Count it to count sidecars."),
    )),
)  # fmt: skip


def families() -> list[Metric]:
    """Every family of ours, with both upstreams on, as a scrape of a new process gives it."""

    async def collect() -> list[Metric]:
        app = App(load(None, _BOTH), _BOTH)
        return [each for each in app.registry.collect() if each.name.startswith(PREFIX)]

    return asyncio.run(collect())


def entries() -> dict[str, Entry]:
    """What this page says, by name."""
    return {entry.name: entry for _, group in GROUPS for entry in group}


def page(known: Iterable[Metric]) -> str:
    """The whole page."""
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
    """The labels with their values, and a histogram's buckets."""
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
