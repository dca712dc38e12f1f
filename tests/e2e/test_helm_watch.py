"""The chart's other objects: monitoring and Secrets."""

import json
from pathlib import Path

import pytest

from tests.support.helm import (
    CHART,
    DASHBOARD,
    Json,
    admit,
    agent_pod,
    chart_with_files,
    judge,
    only,
    render,
    sidecar_of,
)
from tests.support.telemetry import RUNBOOKS

OFF = {"injection": {"enabled": False}}


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the chart with two alerts and a dashboard of the test."""
    return chart_with_files(tmp_path_factory.mktemp("chart"))


def rules(chart: Path, **values: Json) -> list[Json]:
    """Return the groups of the PrometheusRule."""
    found = render(values={**OFF, "prometheusRule": {"enabled": True, **values}}, chart=chart)
    groups: list[Json] = only(found, "PrometheusRule")["spec"]["groups"]
    return groups


def alerts(groups: list[Json]) -> dict[str, Json]:
    """Return the alerts of these groups by name."""
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_rules_are_passed_on_as_they_are(chart: Path) -> None:
    """Recording rules, Prometheus' templates, labels and the runbook's heading are unchanged."""
    groups = rules(chart)
    assert [group["name"] for group in groups] == ["first", "second"]
    assert groups[0]["rules"][0] == {"record": "a:b", "expr": "vector(1)"}
    late = alerts(groups)["Late"]
    assert late["annotations"]["summary"] == "{{ $value }} is late."
    assert late["annotations"]["runbook_url"] == f"{RUNBOOKS}#late"
    assert late["labels"] == {"severity": "warning"}


def test_alerts_link_to_where_the_team_reads(chart: Path) -> None:
    """The value runbookUrl replaces the address only; every alert gets alertLabels."""
    found = alerts(rules(chart, runbookUrl="https://wiki.example/r", alertLabels={"team": "a"}))
    links = [alert["annotations"]["runbook_url"] for alert in found.values()]
    assert links == ["https://wiki.example/r#late", "https://wiki.example/r#lost"]
    assert found["Late"]["labels"] == {"severity": "warning", "team": "a"}
    assert found["Lost"]["labels"] == {"team": "a"}


def test_alerts_can_be_left_out(chart: Path) -> None:
    """Alerts are omitted by name, and so is a group that becomes empty."""
    groups = rules(chart, disabled=["Lost"])
    assert [group["name"] for group in groups] == ["first"]
    assert set(alerts(groups)) == {"Late"}


def test_dashboards_are_never_rendered(chart: Path) -> None:
    """Text that looks like a template in a dashboard is Grafana's, and unchanged."""
    found = render(values={**OFF, "dashboards": {"enabled": True}}, chart=chart)
    board = only(found, "ConfigMap")
    assert board["data"] == {"one.json": DASHBOARD}
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert board["metadata"]["namespace"] == "obs"


def test_the_dashboard_links_to_where_the_team_reads() -> None:
    """The value runbookUrl replaces the address in the dashboard, as in the alerts."""
    rule = {"runbookUrl": "https://wiki.example/r"}
    found = render(values={**OFF, "dashboards": {"enabled": True}, "prometheusRule": rule})
    text = only(found, "ConfigMap")["data"]["trace-sidecar.json"]
    assert RUNBOOKS not in text
    assert '"https://wiki.example/r#tracesidecarwriteslost"' in text
    assert json.loads(text)["uid"] == "trace-sidecar"


def test_the_shipped_files_arrive() -> None:
    """The chart renders its own dashboards and rules, and they are small enough."""
    found = render(
        values={**OFF, "dashboards": {"enabled": True}, "prometheusRule": {"enabled": True}}
    )
    board = only(found, "ConfigMap")
    files = {path.name: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert files
    assert {name: json.loads(text) for name, text in board["data"].items()} == {
        name: json.loads(text) for name, text in files.items()
    }
    assert len(json.dumps(board)) < 2**20, "the limit of a ConfigMap"
    assert f'"{RUNBOOKS}#' in board["data"]["trace-sidecar.json"]
    source = (CHART / "files/rules.yaml").read_text()
    names = alerts(only(found, "PrometheusRule")["spec"]["groups"])
    assert names
    assert source.count("- alert:") == len(names)
    assert judge("validate", objects=[board], version="1.29") == []


@pytest.mark.parametrize("mode", ["native", "container"])
def test_the_pod_monitor_finds_the_sidecars_port(mode: str) -> None:
    """The PodMonitor selects targets by the name of a port of the container."""
    found = render(values={"podMonitor": {"enabled": True}, "sidecar": {"mode": mode}})
    spec = only(found, "PodMonitor")["spec"]
    (endpoint,) = spec["podMetricsEndpoints"]
    (answer,) = admit(found, agent_pod())
    (port,) = sidecar_of(answer["pod"])["ports"]
    assert endpoint["port"] == port["name"]
    assert endpoint["path"] == "/metrics"
    assert (spec["selector"], spec["namespaceSelector"]) == ({}, {"any": True})


def test_secrets_come_where_the_agents_are() -> None:
    """Each namespace gets a Secret with the container's keys; empty ones are omitted."""
    values = {
        "sidecar": {"credentials": {"secretName": "spans", "keys": {"sgpApiKey": "key"}}},
        "secret": {"namespaces": ["one", "two"], "sgpApiKey": 'made "up"', "sgpAccountId": "7"},
    }
    found = render(values=values)
    secrets = [item for item in found if item["kind"] == "Secret"]
    assert [item["metadata"]["namespace"] for item in secrets] == ["one", "two"]
    assert {item["metadata"]["name"] for item in secrets} == {"spans"}
    assert secrets[0]["stringData"] == {"key": 'made "up"', "SGP_ACCOUNT_ID": "7"}
    (answer,) = admit(found, agent_pod())
    references = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]
        for entry in sidecar_of(answer["pod"])["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert references == {
        "SGP_API_KEY": {"name": "spans", "key": "key", "optional": True},
        "SGP_ACCOUNT_ID": {"name": "spans", "key": "SGP_ACCOUNT_ID", "optional": True},
        "SIDECAR_AGENTEX__API_KEY": {"name": "spans", "key": "AGENTEX_API_KEY", "optional": True},
    }
