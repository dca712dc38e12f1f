"""Compares required with measured figures: one line each, PASS or FAIL. Asserts nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from .plan import ARRAYS, POSTS, STEADY
from .summary import Spread, Summary, idle_mib, peak_mib

SDK = f"{STEADY}: agentex-sdk"
PLAIN = f"{STEADY}: plain POSTs, sidecar"
CLIENT = f"{STEADY}: our client, sidecar"
PROCESSOR = f"{STEADY}: agentex-sdk, our processor, sidecar"
BOTH = f"{POSTS}: sidecar, both upstreams"
TWO = f"{POSTS}: Collector, two upstreams"
SGP = f"{POSTS}: sidecar, SGP only"
OTLP = f"{POSTS}: sidecar, OTLP only"
ONE = f"{POSTS}: Collector, one upstream"
SMALL = f"{ARRAYS}: sidecar, STARTs and ENDs"
TENTH = 0.1
CORE, MIB = 0.6, 100.0
OTLP_MIB = 10.0


@dataclass(frozen=True)
class Bar:
    """A comparison of `value` with `limit`, both in `unit`."""

    what: str
    value: Spread
    limit: float
    against: str
    unit: str

    @property
    def line(self) -> str:
        """Return a line of text."""
        verdict = "PASS" if self.value.median <= self.limit else "FAIL"
        return (
            f"{verdict} {self.what}: {self.value.text(3)} {self.unit},"
            f" at most {self.limit:.3f} ({self.against})"
        )


def bars(summary: Summary) -> Iterator[Bar]:
    """Return the bars for which both sides were measured."""
    yield from _beside_the_sdk(summary)
    yield from _beside_the_collector(summary)
    yield from _of_the_otlp_lane(summary)
    core = summary.spread(SMALL, lambda run: run.forwarder_core)
    peak = summary.spread(SMALL, peak_mib)
    if core and peak:
        load = "10,000 spans/s of 1 KB in arrays of 100 events, SGP only"
        yield Bar(f"{load}, CPU", core, CORE, "60 % of a core", "cores")
        yield Bar(f"{load}, peak RSS", peak, MIB, "100 MB", "MiB")


def _beside_the_sdk(summary: Summary) -> Iterator[Bar]:
    sdk = summary.agent_cpu_ms(SDK)
    blocked = summary.blocking_ms(SDK, "p99")
    if sdk is None or blocked is None:
        return
    tenth = f"a tenth of the SDK's {sdk.median:.2f}"
    # Posts at a steady rate by the cheap sender, and by each kind of agent.
    for key in (BOTH, PLAIN, CLIENT, PROCESSOR):
        if cpu := summary.forwarder_cpu_ms(key):
            what = f"sidecar CPU for a 50 KB span, both upstreams ({key})"
            yield Bar(what, cpu, TENTH * sdk.median, tenth, "ms")
    for key in (PLAIN, CLIENT, PROCESSOR):
        if cpu := summary.agent_cpu_ms(key):
            what = f"the agent's own CPU for a 50 KB span ({key})"
            yield Bar(what, cpu, TENTH * sdk.median, tenth, "ms")
        if p99 := summary.blocking_ms(key, "p99"):
            what = f"blocking of the agent's loop by a span, p99 ({key})"
            yield Bar(what, p99, blocked.median, "the SDK's", "ms")


def _beside_the_collector(summary: Summary) -> Iterator[Bar]:
    pairs = ((BOTH, TWO), (BOTH, ONE), (SGP, ONE), (OTLP, ONE))
    for ours, theirs in pairs:
        for what, figure, unit in (
            ("CPU for a 50 KB span", summary.forwarder_cpu_ms, "ms"),
            ("peak RSS", lambda key: summary.spread(key, peak_mib), "MiB"),
        ):
            value, limit = figure(ours), figure(theirs)
            if value and limit:
                names = f"{ours}; {theirs}"
                yield Bar(f"{what} ({names})", value, limit.median, "the Collector's", unit)


def _of_the_otlp_lane(summary: Summary) -> Iterator[Bar]:
    """Its packages are loaded only where it is on: that is its cost beside any other lane."""
    on, off = (summary.spread(key, idle_mib) for key in (OTLP, SGP))
    if on and off:
        limit = off.median + OTLP_MIB
        against = f"{OTLP_MIB:.0f} MiB more than with SGP"
        yield Bar(f"idle RSS ({OTLP})", on, limit, against, "MiB")
