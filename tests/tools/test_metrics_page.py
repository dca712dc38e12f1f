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
SERIES["summary"] = ("", "_sum", "_count")


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


@pytest.mark.parametrize("path", [RULES, DASHBOARD], ids=lambda path: path.name)
def test_alerts_and_panels_need_no_recording_rules(path: Path) -> None:
    """All use the sidecars' own series, so that panels work without the chart's rules."""
    assert not re.findall(rf"- record:|\w:{PREFIX}", path.read_text())


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


@pytest.mark.parametrize("name", alerts())
def test_every_runbook_says_what_waiting_costs_and_what_to_do(name: str) -> None:
    """Each has the same parts in order, its severity, and begins with the sidecar's own report."""
    text = (ROOT / "docs/runbooks.md").read_text()
    runbook = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    parts = ["Means", "Impact", "Urgency", "Check first", "Do", "What next", "Clears by itself"]
    assert re.findall(r"^\*\*([^*]+)\*\*", runbook, re.MULTILINE) == parts
    rule = RULES.read_text().split(f"- alert: {name}\n")[1]
    severity = re.search(r"severity: (\w+)", rule)
    assert severity is not None
    assert f"\n**Urgency**: {severity[1]}: " in runbook
    first = runbook.split("\n```\n")[1].splitlines()[0]
    if name != "TraceSidecarAbsent":  # there is no sidecar to ask
        assert first == "kubectl -n NAMESPACE exec POD -c trace-sidecar -- sidecar top --once"


def test_alerts_see_what_was_counted_before_the_first_scrape() -> None:
    """An alert on any increase takes the counter itself while its process is young."""
    checked = 0
    for rule in RULES.read_text().split("- alert: ")[1:]:
        expr = rule.partition("labels:")[0]
        if "for: " in expr or f"increase({PREFIX}" not in expr:
            continue  # what goes on is seen by a later scrape
        counter, minutes = re.findall(r"increase\((\S+)\[(\d+)m\]\)", expr)[0]
        young = rf"{re.escape(counter)} > 0 and .*\(time\(\) - process_start_time_seconds < "
        assert re.search(f"{young}{60 * int(minutes)}\\)", " ".join(expr.split())), rule
        checked += 1
    assert checked > 3


def test_alerts_follow_one_style() -> None:
    """Each alert has the prefix, a severity, and a summary that is a sentence without templates."""
    rules = RULES.read_text().split("- alert: ")[1:]
    for rule in rules:
        assert rule.startswith("TraceSidecar")
        assert re.search(r"severity: (critical|warning|info)$", rule, re.MULTILINE), rule
        summary = re.search(r"summary: (.+)$", rule, re.MULTILINE)
        assert summary is not None
        assert summary[1].endswith(".")
        assert "{{" not in summary[1]
