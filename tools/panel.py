"""What a panel of the dashboard is made of: expressions, colors, thresholds and columns.

Expressions omit the metrics' prefix and the dashboard's label selection: `queue_depth{}` stands
for `trace_sidecar_queue_depth{namespace=~"$namespace", pod=~"$pod"}`. One that selects its
namespace itself is left as it is: pods without a sidecar are not among the values of `$pod`.

Colors mean the same in every panel. Green, yellow and red are for states and for what came of
something; grey says that nothing is known, which is no health. The upstreams are blue, purple and
orange. Names are Grafana's own, which it makes darker in the light theme. No two colors of a panel
are alike: tests/e2e/test_dashboard_drawn.py measures them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["stat", "lines", "stack", "states", "table"]

SINKS = ("agentex", "sgp", "otlp")
GREY = "#8e8e8e"
SINK_COLORS = dict(zip(SINKS, ("blue", "purple", "orange"), strict=True))
SINK_LIGHT = {sink: f"super-light-{color}" for sink, color in SINK_COLORS.items()}
# By the number that `sink_state` exports, in the order of severity.
STATES = (
    ("not asked yet", GREY),
    ("up", "green"),
    ("throttled", "yellow"),
    ("braked", "orange"),
    ("down", "red"),
    ("unauthorized", "purple"),
)
# By the number that the table of alerts gives them.
SEVERITIES = (("info", "blue"), ("warning", "orange"), ("critical", "red"))

_SELECTION = 'namespace=~"$namespace", pod=~"$pod"'
_METRIC = re.compile(r"([a-z_]+)\{([^}]*)\}")
_OWN_NAME = ("process_", "kube_")


@dataclass(frozen=True, slots=True)
class Query:
    """An expression in the short form, the legend of its series, and their color.

    `color` is for every series, or by upstream for a legend with `{{sink}}`. `dashed`: a limit or a
    mean, which is not an area.
    """

    short: str
    legend: str = ""
    color: str | Mapping[str, str] = ""
    dashed: bool = False

    @property
    def expr(self) -> str:
        """The expression in full, as Grafana sends it."""
        return _METRIC.sub(_selected, self.short)

    def colors(self) -> dict[str, str]:
        """Return the colors by the text of the legend."""
        if not isinstance(self.color, str):
            return {self.legend.replace("{{sink}}", sink): c for sink, c in self.color.items()}
        return {self.legend: self.color} if self.color else {}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    `unit` is Grafana's name. `steps` are the values from which a color holds; before the first one,
    a stat is grey and a table's cell is not colored. `line` is where an alert fires, `alerts` are
    those that the panel explains. `colors` are those of legends that a label makes. `columns` are a
    table's, by label, in order; the value is first, below `value`, largest on top unless
    `least_first`. `none` is what an empty panel says.
    """

    title: str
    help: str
    kind: Kind
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    steps: tuple[tuple[float, str], ...] = ()
    line: float | None = None
    alerts: tuple[str, ...] = ()
    colors: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    none: str = ""
    soft_max: float | None = None
    least_first: bool = False


def _selected(match: re.Match[str]) -> str:
    name, labels = match[1], match[2]
    if "namespace=~" in labels:
        return match[0]
    if not name.startswith(_OWN_NAME):
        name = "trace_sidecar_" + name
    return f"{name}{{{_SELECTION}{', ' if labels else ''}{labels}}}"


def worst_and_mean(expr: str) -> tuple[Query, ...]:
    """Return the worst pod and the mean of all pods, by upstream."""
    return (
        Query(f"max by (sink) ({expr})", "{{sink}} worst pod", SINK_COLORS),
        Query(f"avg by (sink) ({expr})", "{{sink}} mean", SINK_LIGHT, dashed=True),
    )


def worst_and_mean_pod(expr: str) -> tuple[Query, ...]:
    """Return the worst pod and the mean of all pods."""
    return (
        Query(f"max({expr})", "worst pod", "blue"),
        Query(f"avg({expr})", "mean", "super-light-blue", dashed=True),
    )


def own(name: str) -> str:
    """Select the sidecar's own process metric: the agent's target may export the same name."""
    return f"({name} and queue_limit_bytes{{}})"


def seen(*counters: tuple[str, str, str]) -> tuple[Query, ...]:
    """Return the rates of counters: of all, and of each label set that grew in the time shown.

    A counter is its name, the labels to tell apart, and the legend. Without the sum there would be
    no series while all is well, and nobody could tell that from no data. The others would fill the
    legend with zeros.
    """
    total = " + ".join(f"sum(rate({name}{{}}{RATE}))" for name, _, _ in counters)
    grew = (
        Query(
            f"sum by ({by}) (rate({name}{{}}{RATE})) and "
            f"sum by ({by}) (increase({name}{{}}[$__range] @ end())) > 0",
            legend,
        )
        for name, by, legend in counters
    )
    return (Query(total, "all", GREY, dashed=True), *grew)


def counted(counter: str, labels: str) -> str:
    """Return how much a counter with these labels grew in the time shown, by series.

    `increase` misses what a process counts before its first scrape. A process that started in that
    time has counted at least its value.
    """
    value = f"{counter}{{}}"
    young = "(time() - process_start_time_seconds{} < $__range_s)"
    own_value = f"({value} and ignoring ({labels}) {young})"
    grown = f"increase({value}[$__range])"
    return f"({grown} > {own_value} or {own_value} or {grown})"


RATE = "[$__rate_interval]"
