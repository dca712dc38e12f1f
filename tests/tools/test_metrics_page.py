"""docs/metrics.md, the dashboard, the alerts and the runbooks agree with the code's metrics."""

import json
import re
from pathlib import Path

import pytest

from sidecar.operate.prometheus import PREFIX
from tests.support.telemetry import DASHBOARD, ROOT
from tools import metrics_page, panels

RULES = ROOT / "helm/trace-sidecar/files/rules.yaml"
NAME = re.compile(rf"(?<![:\w]){PREFIX}\w+")
SERIES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def series() -> set[str]:
    """Return the name of every series that a sidecar exposes."""
    return {
        family.name + suffix for family in metrics_page.families() for suffix in SERIES[family.type]
    }


def alerts() -> list[str]:
    """Return the names of the alerts."""
    return re.findall(r"- alert: (\w+)", RULES.read_text())


def test_every_metric_is_documented() -> None:
    """Every metric has an entry, and every entry a metric."""
    known = [family.name.removeprefix(PREFIX) for family in metrics_page.families()]
    assert sorted(known) == sorted(metrics_page.entries())


def test_the_page_is_up_to_date() -> None:
    """docs/metrics.md is the output of `python -m tools.metrics_page`."""
    page = metrics_page.page(metrics_page.families())
    assert (ROOT / "docs/metrics.md").read_text() == page


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_rules_and_dashboard_name_metrics_that_exist(path: Path) -> None:
    """Alerts and panels use existing metrics only, so a rename can't silence them."""
    used = set(NAME.findall(path.read_text()))
    assert len(used) > 10
    assert used <= series()


def test_the_dashboard_names_rules_that_exist() -> None:
    """Every recording rule that a panel uses exists."""
    recorded = set(re.findall(r"- record: (\S+)", RULES.read_text()))
    used = set(re.findall(r"\w+:trace_sidecar\w+:\w+", DASHBOARD.read_text()))
    assert used
    assert used <= recorded


def test_the_dashboard_is_up_to_date() -> None:
    """The committed dashboard has the panels and the expressions of tools/panels.py, in order."""
    shown = [
        (panel["title"], tuple(target["expr"] for target in panel.get("targets", [])))
        for panel in json.loads(DASHBOARD.read_text())["panels"]
    ]
    meant: list[tuple[str, tuple[str, ...]]] = []
    for title, row in panels.ROWS:
        meant.append((title, ()))
        meant += [(panel.title, tuple(query.expr for query in panel.queries)) for panel in row]
    assert shown == meant


def test_every_alert_has_a_runbook() -> None:
    """Each alert links to its heading in docs/runbooks.md, and every heading has an alert."""
    anchors = re.findall(r"runbook_url: docs/runbooks\.md#(\w+)", RULES.read_text())
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    assert headings == alerts()
    assert anchors == [name.lower() for name in alerts()]


def test_alerts_follow_one_style() -> None:
    """Each alert has the prefix, a severity, and a summary that is a sentence without templates."""
    rules = RULES.read_text().split("- alert: ")[1:]
    for rule in rules:
        assert rule.startswith("TraceSidecar")
        assert re.search(r"severity: (warning|info)$", rule, re.MULTILINE), rule
        summary = re.search(r"summary: (.+)$", rule, re.MULTILINE)
        assert summary is not None
        assert summary[1].endswith(".")
        assert "{{" not in summary[1]
