"""The dashboard: regenerated, and its variables and links. test_dashboard_drawn.py looks at it."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import parts
from tests.e2e.prometheus_support import RULES, Prometheus, address, prometheus, until
from tests.support.kill import Rig
from tests.support.telemetry import DASHBOARD, ROOT, RUNBOOKS

# The SDK whose output is committed: another version may write other defaults.
SDK = "grafana-foundation-sdk==1769699998!10.1.0"


@pytest.fixture
def prom(tmp_path: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the chart's rules, unchanged."""
    with prometheus(tmp_path, RULES.read_text()) as running:
        yield running


async def test_variables_have_values(prom: Prometheus, tmp_path: Path) -> None:
    """The dashboard's variables list the sidecars' namespaces and pods."""
    rig = Rig(tmp_path, seed=9, settings={"SIDECAR_SHUTDOWN__GRACE_S": "0"})
    listed = json.loads(DASHBOARD.read_text())["templating"]["list"]
    queries = [each["query"].replace("$namespace", ".*") for each in listed[1:]]
    async with rig.agentex, rig.sgp:
        life = await rig.start()
        with prom.scraping("agents", a=address(life)):
            found = []
            for query in queries:
                parsed = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
                assert parsed is not None
                series = await until(partial(prom.query, parsed[1]))
                found.append({each[parsed[2]] for each in series})
        life.process.terminate()
        await life.ended()
    assert found == [{"agents"}, {"a"}]


def test_the_committed_file_is_what_the_program_makes() -> None:
    """The committed dashboard is the output of `python -m tools.dashboard`; ids are stable."""
    python = parts.venv("dashboard-10.1.0", SDK)
    made = parts.run(python, "-m", "tools.dashboard", cwd=ROOT)
    assert made == DASHBOARD.read_text()


def test_it_can_be_provisioned() -> None:
    """It has a stable uid, no server id, and per panel the chosen data source and a help text."""
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "trace-sidecar"
    assert "id" not in dashboard
    assert "__inputs" not in dashboard
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_it_links_to_the_runbooks() -> None:
    """Every alert has a panel that links to its runbook, and the alerts' table links to each."""
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    links = {
        link["url"]
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for link in panel.get("links", [])
    }
    assert links == {f"{RUNBOOKS}#{alert.lower()}" for alert in alerts}
    assert f'"url": "{RUNBOOKS}#${{__value.raw}}"' in DASHBOARD.read_text()
