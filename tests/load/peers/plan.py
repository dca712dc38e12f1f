"""The runs: the same loads for every peer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.load.loads import Plan

from . import parts
from .agent import Work
from .forwarders import Route
from .payload import LARGE, SMALL
from .runs import AgentRun, SenderRun

BOTH = ("agentex", "sgp")
DIRECT = Route("none", BOTH)
SIDECAR = Route("sidecar", BOTH)
SIDECAR_SGP = Route("sidecar", ("sgp",))
OTLP = Route("none", ("otlp",))
SIDECAR_OTLP = Route("sidecar", ("otlp",))
SIDECAR_GZIP = Route("sidecar", ("otlp",), compression="gzip")
COLLECTOR = Route("collector", ("otlp",))
COLLECTOR_GZIP = Route("collector", ("otlp",), compression="gzip")
COLLECTOR_TWO = Route("collector", ("otlp", "second"))


@dataclass(frozen=True)
class Scale:
    """The size of each load: spans/s and seconds; number of spans in floods, 0 for none."""

    steady_rate: float
    steady_s: float
    posts_rate: float
    small_rate: float
    small_s: float
    flood: int
    small_flood: int


FULL = Scale(100, 4, 150, 10_000, 4, 400, 40_000)
QUICK = Scale(100, 2, 150, 10_000, 2, 0, 0)


@dataclass(frozen=True)
class Subject:
    """One row of the tables. `peer`: one of `PEERS`, or the control."""

    peer: str
    load: str
    name: str
    run: AgentRun | SenderRun

    def prepare(self) -> None:
        """Install and build what it needs; raises parts.Absent if that fails."""
        if isinstance(self.run, AgentRun):
            self.run.python()
        if self.run.route.forwarder == "collector":
            parts.collector()

    @property
    def key(self) -> str:
        """A unique key."""
        return f"{self.load}: {self.name}"


CONTROL = "control"
PEERS = ("sidecar", "agentex-sdk", "opentelemetry-sdk", "collector")
# How an agent traces, in words; its tracer, route and interpreter.
_Way = tuple[str, str, str, Route, Callable[[], Path], bool]
WAYS: tuple[_Way, ...] = (
    (CONTROL, "no tracing", "untraced", DIRECT, parts.any_python, False),
    ("agentex-sdk", "agentex-sdk", "agentex-sdk", DIRECT, parts.agentex_sdk, False),
    ("sidecar", "plain POSTs, sidecar", "plain-posts", SIDECAR, parts.any_python, False),
    ("sidecar", "our client, sidecar", "our-client", SIDECAR, parts.any_python, False),
    ("sidecar", "agentex-sdk, our processor, sidecar", "our-processor", SIDECAR,
     parts.agentex_sdk, False),
    ("sidecar", "agentex-sdk unchanged, SGP by sidecar", "agentex-sdk", SIDECAR,
     parts.agentex_sdk, True),
    ("opentelemetry-sdk", "OpenTelemetry SDK", "opentelemetry-sdk", OTLP,
     parts.opentelemetry_sdk, False),
    ("collector", "OpenTelemetry SDK, Collector", "opentelemetry-sdk", COLLECTOR,
     parts.opentelemetry_sdk, False),
)  # fmt: skip
UNFLOODED = ("untraced", "plain-posts", "our-processor")
STEADY, POSTS, ARRAYS = "agents", "50 KB posts", "1 KB arrays"
FLOOD, POSTS_FLOOD, ARRAYS_FLOOD = (f"{load}, flood" for load in (STEADY, POSTS, ARRAYS))
# Ready requests: the peer, in words; its kind of request and route.
_Posts = tuple[str, str, str, Route]
LARGE_POSTS: tuple[_Posts, ...] = (
    ("sidecar", "sidecar, both upstreams", "pairs", SIDECAR),
    ("collector", "Collector, two upstreams", "single", COLLECTOR_TWO),
    ("sidecar", "sidecar, SGP only", "pairs", SIDECAR_SGP),
    ("sidecar", "sidecar, OTLP only", "pairs", SIDECAR_OTLP),
    ("collector", "Collector, one upstream", "single", COLLECTOR),
    ("sidecar", "sidecar, OTLP only, gzip", "pairs", SIDECAR_GZIP),
    ("collector", "Collector, one upstream, gzip", "single", COLLECTOR_GZIP),
)
SMALL_POSTS: tuple[_Posts, ...] = (
    ("sidecar", "sidecar, STARTs and ENDs", "arrays", SIDECAR_SGP),
    ("sidecar", "sidecar, ENDs only", "ends", SIDECAR_SGP),
    ("collector", "Collector", "batches", COLLECTOR),
)


def subjects(scale: Scale) -> Iterator[Subject]:
    """Return everything to measure, once each."""
    for rate, load in ((scale.steady_rate, STEADY), (0.0, FLOOD)):
        for peer, name, tracer, route, python, by_environment in WAYS:
            spans = round(rate * scale.steady_s) if rate else scale.flood
            if not spans or (not rate and (by_environment or tracer in UNFLOODED)):
                continue
            work = Work(tracer=tracer, spans=spans, rate=rate, size=LARGE)
            run = AgentRun(work=work, route=route, python=python, by_environment=by_environment)
            yield Subject(peer, load, name, run)
    for load, posts, size, rate, spans in (
        (POSTS, LARGE_POSTS, LARGE, scale.posts_rate, round(scale.posts_rate * scale.steady_s)),
        (POSTS_FLOOD, LARGE_POSTS, LARGE, 0.0, 4 * scale.flood),
        (ARRAYS, SMALL_POSTS, SMALL, scale.small_rate, round(scale.small_rate * scale.small_s)),
        (ARRAYS_FLOOD, SMALL_POSTS, SMALL, 0.0, scale.small_flood),
    ):
        for peer, name, kind, route in posts if spans else ():
            plan = Plan(kind=kind, spans=spans, size=size, rate=rate, connections=8)
            yield Subject(peer, load, name, SenderRun(plan=plan, route=route))
