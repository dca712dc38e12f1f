"""One run: starts the processes, sends the spans, measures the cost, stops the processes.

Measuring starts once every process is connected and warm, and ends when the last span has reached
every upstream. Memory "after" is read `AFTER_S` later; meanwhile the next run can start, because
idle processes cost nothing.
"""

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from tests.load.driver import Result
from tests.load.loads import Plan
from tests.load.processes import BenchError, StandIns, driver, line_of, process

from .agent import WARM_UP, Work
from .forwarders import Forwarder, Route
from .proc import AFTER_S, Memory, Meter, Watched

READY_S = 120.0
POLL_S = 0.02
STALLED_S = 8.0  # longer than any peer waits to fill a batch
MAX_S = 120.0


class Figures(msgspec.Struct, kw_only=True):
    """The results of one run. CPU in ms per span; `rate` in spans/s until all had arrived."""

    spans: int
    lost: int
    rate: float
    agent_cpu_ms: float | None = None
    forwarder_cpu_ms: float | None = None
    forwarder_core: float | None = None
    agent_mib: Memory | None = None
    forwarder_mib: Memory | None = None
    blocking_ms: dict[str, float] = {}
    late_ms: dict[str, float] = {}
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class AgentRun:
    """Spans made by an agent process: `work` in the interpreter `python()`."""

    work: Work
    route: Route
    python: Callable[[], Path]
    by_environment: bool = False  # the SDK's own variable points to the sidecar


@dataclass(frozen=True, kw_only=True)
class SenderRun:
    """Spans sent as the ready requests of `plan`."""

    plan: Plan
    route: Route


@dataclass(frozen=True)
class Turn:
    """A planned run. `settled`: whether its memory is read again later."""

    name: str
    run: AgentRun | SenderRun
    settled: bool


class Kept:
    """A run whose processes stay alive until their memory has been read again."""

    def __init__(
        self, figures: Figures, meters: tuple[Meter, ...], stack: contextlib.ExitStack
    ) -> None:
        self.figures = figures
        self._meters = meters
        self._stack = stack
        self._due = time.monotonic() + AFTER_S

    def finish(self, *, settled: bool) -> None:
        """Stop the processes; if `settled`, first wait and read their memory again."""
        with self._stack:
            if settled:
                time.sleep(max(0.0, self._due - time.monotonic()))
                for meter in self._meters:
                    meter.settle()


def measure(run: AgentRun | SenderRun) -> Kept:
    """Run it; its processes stay alive until `finish`."""
    with contextlib.ExitStack() as stack:
        upstreams, forwarder = stack.enter_context(run.route.open())
        if isinstance(run, AgentRun):
            figures, meters = _agent(run, upstreams, forwarder, stack)
        else:
            figures, meters = _sender(run, upstreams, forwarder, stack)
        return Kept(figures, meters, stack.pop_all())


def _agent(
    run: AgentRun, upstreams: StandIns, forwarder: Forwarder | None, stack: contextlib.ExitStack
) -> tuple[Figures, tuple[Meter, ...]]:
    command: list[str | Path] = [
        run.python(),
        "-m",
        f"{__package__}.agent",
        json.dumps(asdict(run.work)),
    ]
    environment = _addresses(run, upstreams, forwarder)
    log = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    agent = stack.enter_context(process(command, log, **environment))
    try:
        warm = line_of(agent, READY_S)
    except BenchError:
        warm = None
    if warm is None:
        output = os.pread(log.fileno(), 65536, 0).decode(errors="replace")
        raise BenchError(f"the agent did not start:\n{output}")
    traced = run.work.tracer != "untraced"
    sinks = run.route.sinks if traced else ()
    _arrived(upstreams, sinks, WARM_UP, time.monotonic() + READY_S)
    meters = Meter(Watched(agent.pid)), Meter(forwarder.watched if forwarder else None)
    _go(agent)
    line = line_of(agent, MAX_S)
    if line is None:
        raise BenchError("the agent did not end")
    report = json.loads(line)
    wanted = WARM_UP + run.work.spans
    there, at = _arrived(upstreams, sinks, wanted, report["begun"] + MAX_S)
    for meter in meters:
        meter.stop()
    figures = Figures(
        spans=run.work.spans,
        lost=wanted - there if sinks else 0,
        rate=(there - WARM_UP) / (at - report["begun"]) if sinks else 0.0,
        agent_cpu_ms=meters[0].cpu_ms(run.work.spans),
        forwarder_cpu_ms=meters[1].cpu_ms(run.work.spans),
        agent_mib=meters[0].memory,
        forwarder_mib=meters[1].memory,
        blocking_ms=report["blocking_ms"],
        late_ms=report["late_ms"],
        note=f"{report['dropped']} dropped" if report["dropped"] else "",
    )
    return figures, meters


def _addresses(run: AgentRun, upstreams: StandIns, forwarder: Forwarder | None) -> dict[str, str]:
    """Return the addresses that the ways of tracing need, as environment variables."""
    urls = upstreams.urls
    found = {
        "AGENT_NAME": "bench",
        "ACP_URL": "http://127.0.0.1:9",
        # Otherwise one of the SDK's dependencies fetches price lists from the Internet first.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    if "agentex" in urls:
        found |= {"AGENTEX_BASE_URL": urls["agentex"], "SGP_CLIENT_BASE_URL": urls["sgp"]}
    taking = f"http://127.0.0.1:{forwarder.port}" if forwarder else urls.get("otlp", "")
    found |= {"SIDECAR": taking, "OTLP": taking + "/v1/traces"}
    if run.by_environment:
        found["SGP_CLIENT_BASE_URL"] = taking
    return found


def _sender(
    run: SenderRun, upstreams: StandIns, forwarder: Forwarder | None, stack: contextlib.ExitStack
) -> tuple[Figures, tuple[Meter, ...]]:
    assert forwarder is not None
    plan = msgspec.structs.replace(run.plan, port=forwarder.port)
    sender = stack.enter_context(driver(plan, f"{__package__}.sender"))
    meter = Meter(forwarder.watched)
    sender.begin()
    line = sender.result(MAX_S)
    if line is None:
        raise BenchError("the sender did not end")
    sent = msgspec.json.decode(line, type=Result)
    there, at = _arrived(upstreams, run.route.sinks, plan.spans, sent.started + MAX_S)
    meter.stop()
    refused = {status: n for status, n in sent.statuses.items() if not status.startswith("2")}
    took = at - sent.started
    figures = Figures(
        spans=plan.spans,
        lost=plan.spans - there,
        rate=there / took,
        forwarder_cpu_ms=meter.cpu_ms(plan.spans),
        # At the requested rate, which a busy machine may not have reached.
        forwarder_core=meter.cpu_s / plan.spans * (plan.rate or there / took),
        forwarder_mib=meter.memory,
        note=" ".join(filter(None, (sent.gave_up, f"answers {refused}" if refused else ""))),
    )
    return figures, (meter,)


def _arrived(
    upstreams: StandIns, sinks: tuple[str, ...], wanted: int, deadline: float
) -> tuple[int, float]:
    """Wait for `wanted` complete spans at every sink, or until no more arrive.

    Returns the number at the sink with the fewest, and the time of the last arrival.
    """
    there, at = -1, time.monotonic()
    while True:
        counts = [upstreams.report(sink, digests=False)["complete"] for sink in sinks]
        now = time.monotonic()
        if (fewest := min(counts, default=wanted)) != there:
            there, at = fewest, now
        if there >= wanted or now - at > STALLED_S or now > deadline:
            return there, at
        time.sleep(POLL_S)


def _go(agent: subprocess.Popen[bytes]) -> None:
    assert agent.stdin is not None
    agent.stdin.write(b"go\n")
    agent.stdin.flush()


def in_turns(runs: Iterable[Turn]) -> Iterator[tuple[str, Figures]]:
    """Measure the runs in sequence; yield a run's figures after the next one has ended.

    A run that fails is reported, and the others continue.
    """
    kept: tuple[Turn, Kept] | None = None
    try:
        for turn in runs:
            try:
                now = measure(turn.run)
            except BenchError as error:
                print(f"{turn.name}: failed: {error}", flush=True)
                continue
            before, kept = kept, (turn, now)
            if before is not None:
                before[1].finish(settled=before[0].settled)
                yield before[0].name, before[1].figures
    finally:
        if kept is not None:
            kept[1].finish(settled=kept[0].settled)
    if kept is not None:
        yield kept[0].name, kept[1].figures
