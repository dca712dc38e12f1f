"""The dashboard's panels agree with the alerts, and color every series."""

import re

import pytest

from sidecar.lanes import UPSTREAMS
from tests.support.telemetry import ROOT
from tools.panel import SINKS, Panel
from tools.panels import ROWS

RULES = (ROOT / "helm/trace-sidecar/files/rules.yaml").read_text()
EXPRESSIONS = dict(re.findall(r"- alert: (\w+)\n(.*?)labels:", RULES, re.DOTALL))
PANELS = [panel for _, row in ROWS for panel in row]


def test_every_upstream_is_on_it() -> None:
    """The dashboard knows the upstreams, in their order."""
    assert tuple(each.name for each in UPSTREAMS) == SINKS


def by_title(kinds: set[str]) -> list[Panel]:
    """Return the panels of these kinds."""
    return [panel for panel in PANELS if panel.kind in kinds]


@pytest.mark.parametrize(
    "panel", [panel for panel in PANELS if panel.line is not None], ids=lambda panel: panel.title
)
def test_a_line_is_where_the_alert_fires(panel: Panel) -> None:
    """The line of a panel is the limit in the expression of its alert."""
    (alert,) = panel.alerts
    limits = re.findall(r"> ([\d.]+)", EXPRESSIONS[alert])
    assert panel.line in [float(limit) for limit in limits]


def test_a_color_changes_where_the_alert_fires() -> None:
    """A number or a cell changes its color at a limit of an alert, at the first event, or in time.

    "Full soonest" is in hours, for which there is no alert.
    """
    limits = {float(limit) for limit in re.findall(r"> ([\d.]+)", "".join(EXPRESSIONS.values()))}
    for panel in by_title({"stat", "table"}):
        if not panel.least_first:
            assert {value for value, _ in panel.steps} <= limits | {0, 0.5}, panel.title


@pytest.mark.parametrize("panel", by_title({"lines", "stack"}), ids=lambda panel: panel.title)
def test_every_series_has_its_color(panel: Panel) -> None:
    """The color of a series is fixed by what it is, not by its place among the others."""
    colors = dict(panel.colors)
    for query in panel.queries:
        colors |= query.colors()
    for query in panel.queries:
        for sink in SINKS if "{{sink}}" in query.legend else ("",):
            start = re.escape(query.legend.replace("{{sink}}", sink))
            legend = re.compile(re.sub(r"\\\{\\\{\w+\\\}\\\}", r"\\w+", start))
            assert any(legend.fullmatch(name) for name in colors), (query.legend, sink)
    assert len(set(colors.values())) == len(colors)
