"""Measures one load: runs it, samples the sidecar meanwhile, and checks what arrived."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .arrived import Arrived, arrived
from .driver import Result
from .loads import Plan
from .processes import Driver, Sidecar, StandIns, driver, sidecar, stand_ins

POLL_S = 0.05
# Used near the end of the drain, whose duration is measured.
FINE_POLL_S = 0.005
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True, kw_only=True)
class Load:
    """A plan and what it runs against. `drains`: whether the upstreams respond at all."""

    name: str
    plan: Plan
    sinks: tuple[str, ...] = ("agentex", "sgp")
    drains: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits for every load; times in seconds."""

    latency_ms: float
    drain_s: float
    settle_s: float
    profile: str = ""
    spool: str = ""


class Outcome(msgspec.Struct, kw_only=True):
    """The results of one load. Times are in seconds unless the name has a unit."""

    load: str
    spans: int
    events: int
    total_s: float
    intake_s: float
    drain_s: float | None
    events_per_s: float
    spans_per_s: float
    cpu_s: float
    cpu_ms_per_span: float
    events_per_cpu_s: float
    latency_ms: dict[str, float]
    peak_depth: dict[str, int]
    rss_mib: dict[str, float]
    statuses: dict[str, int]
    reconnects: int
    driver_cpu_s: float
    stand_ins_cpu_s: float
    arrived: dict[str, Arrived]
    imbalance: dict[str, int]
    lanes: dict[str, Any]
    faults: list[str]


class Watch:
    """Samples of the sidecar while a load runs."""

    def __init__(self, watched: Sidecar, sinks: tuple[str, ...]) -> None:
        self._sidecar = watched
        self.depth = dict.fromkeys(sinks, 0)
        self.rss_mib = 0.0
        self.status: dict[str, Any] = {}

    def look(self) -> None:
        """Take one sample."""
        self.status = self._sidecar.status()
        for sink in self.depth:
            self.depth[sink] = max(self.depth[sink], self.status["sinks"][sink]["depth"])
        self.rss_mib = max(self.rss_mib, self._sidecar.rss_mib())

    @property
    def drained(self) -> bool:
        """Whether nothing was waiting at the last sample."""
        waiting = sum(lane["depth"] for lane in self.status["sinks"].values())
        return not waiting and not self.status["open_spans"]


def measure(load: Load, limits: Limits) -> Outcome:
    """Run `load` in processes of its own."""
    with (
        stand_ins(limits.latency_ms) as upstreams,
        sidecar(
            limits.profile, SIDECAR_SPOOL__PATH=limits.spool, **_settings(load, upstreams)
        ) as watched,
        driver(msgspec.structs.replace(load.plan, port=watched.port)) as sender,
    ):
        return _run(load, limits, watched, sender, upstreams)


def _settings(load: Load, upstreams: StandIns) -> dict[str, str]:
    urls = upstreams.urls if load.drains else dict.fromkeys(upstreams.urls, NOWHERE)
    settings = dict(load.environment)
    if "agentex" in load.sinks:
        settings["SIDECAR_AGENTEX__BASE_URL"] = urls["agentex"]
    if "sgp" in load.sinks:
        settings["SIDECAR_SGP__BASE_URL"] = urls["sgp"]
        settings["SIDECAR_SGP__API_KEY"] = "bench"
        settings["SIDECAR_SGP__ACCOUNT_ID"] = "bench"
    return settings


def _run(
    load: Load, limits: Limits, watched: Sidecar, sender: Driver, upstreams: StandIns
) -> Outcome:
    watch = Watch(watched, load.sinks)
    watch.look()
    idle_mib, cpu_before = watched.rss_mib(), watched.cpu_s()
    sender.begin()
    while (line := sender.result(POLL_S)) is None:
        watch.look()
    sent = msgspec.json.decode(line, type=Result)
    cpu_sent = watched.cpu_s()
    drained_at = _drain(watch, sent.last_202 + limits.drain_s) if load.drains else None
    cpu_after = watched.cpu_s() if load.drains else cpu_sent
    peak_mib = max(watch.rss_mib, watched.peak_rss_mib())
    time.sleep(limits.settle_s)
    watch.look()
    outcome = Outcome(
        load=load.name,
        spans=load.plan.spans,
        events=load.plan.events,
        total_s=(drained_at or sent.last_202) - sent.started,
        intake_s=sent.last_202 - sent.started,
        drain_s=None if drained_at is None else drained_at - sent.last_202,
        events_per_s=sent.accepted / (sent.last_202 - sent.started),
        spans_per_s=load.plan.spans / ((drained_at or sent.last_202) - sent.started),
        cpu_s=cpu_after - cpu_before,
        cpu_ms_per_span=1000 * (cpu_after - cpu_before) / load.plan.spans,
        events_per_cpu_s=sent.accepted / (cpu_after - cpu_before),
        latency_ms=sent.latency_ms,
        peak_depth=watch.depth,
        rss_mib={"idle": idle_mib, "peak": peak_mib, "after": watched.rss_mib()},
        statuses=sent.statuses,
        reconnects=sent.reconnects,
        driver_cpu_s=sent.cpu_s,
        stand_ins_cpu_s=upstreams.cpu_s(),
        arrived={},
        imbalance=_imbalance(watch.status),
        lanes=watch.status["sinks"],
        faults=[],
    )
    if load.drains:
        outcome.arrived = {sink: arrived(upstreams.report(sink), load.plan) for sink in load.sinks}
    outcome.faults = _faults(load, sent, outcome, watch.status)
    return outcome


def _drain(watch: Watch, deadline: float) -> float | None:
    while True:
        watch.look()
        now = time.monotonic()
        if watch.drained:
            return now
        if now > deadline:
            return None
        time.sleep(FINE_POLL_S)


def _imbalance(status: Mapping[str, Any]) -> dict[str, int]:
    lanes = {sink: lane["imbalance"] for sink, lane in status["sinks"].items()}
    return {"events": status["events"]["imbalance"], **lanes}


def _faults(load: Load, sent: Result, outcome: Outcome, status: Mapping[str, Any]) -> list[str]:
    """Describe everything that is wrong; empty if nothing is."""
    faults = [sent.gave_up] if sent.gave_up else []
    if sent.accepted != load.plan.events or sent.rejected:
        faults.append(f"{sent.accepted} of {load.plan.events} events accepted")
    # An event sent again after a broken connection is received twice.
    received = status["events"]["received"]
    if received < sent.accepted or (received > sent.accepted and not sent.reconnects):
        faults.append(f"{received} events received, {sent.accepted} accepted with 202")
    faults += [f"imbalance of {part}: {by}" for part, by in outcome.imbalance.items() if by]
    if load.drains and outcome.drain_s is None:
        faults.append("not drained in time")
    for sink, seen in outcome.arrived.items():
        faults += [f"{sink}: {fault}" for fault in seen.faults()]
    for sink, lane in status["sinks"].items():
        faults += [f"{sink}: {lane[end]} {end}" for end in ("lost", "dead_lettered") if lane[end]]
    return faults
