"""The dashboard, regenerated, and queried on a real Prometheus under load and faults."""

import asyncio
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiohttp
import pytest

from tests.e2e import parts
from tests.e2e.prometheus_support import RULES, Prometheus, address, exposing, prometheus, until
from tests.support.kill import Rig, SidecarRun
from tests.support.telemetry import DASHBOARD, ROOT

# The SDK whose output is committed: another version may write other defaults.
SDK = "grafana-foundation-sdk==1769699998!10.1.0"
PODS = 40
# A table has this many rows.
WORST = 10
# The $__rate_interval for one scrape per second.
INTERVAL = {"$__rate_interval": "10s", "$__range": "1m"}


@pytest.fixture
def prom(tmp_path: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the chart's rules, unchanged."""
    with prometheus(tmp_path, RULES.read_text()) as running:
        yield running


def expressions(namespace: str, pod: str) -> list[tuple[str, str]]:
    """Yield title and expression of every query, with the variables filled in."""
    filled = INTERVAL | {"$namespace": namespace, "$pod": pod}
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            expr = target["expr"]
            for variable, text in filled.items():
                expr = expr.replace(variable, text)
            found.append((panel["title"], expr))
    assert not [expr for _, expr in found if "$" in expr]
    return found


def many(text: str) -> str:
    """Copy a scrape of one sidecar as the scrapes of `PODS` others."""
    own = [line for line in text.splitlines() if not line.startswith("#")]
    lines = []
    for number in range(PODS):
        labels = f'namespace="many",pod="pod-{number}",instance="{number}"'
        for line in own:
            name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
            inner = f"{labels},{rest}" if "{" in line else f"{labels}}} {rest}"
            lines.append(f"{name}{{{inner}")
    return "\n".join(lines) + "\n"


def restarts() -> str:
    """Return kube-state-metrics' series for a native sidecar."""
    labels = 'namespace="agents",pod="a",container="trace-sidecar"'
    return f"kube_pod_init_container_status_restarts_total{{{labels}}} 0\n"


async def metrics_of(life: SidecarRun) -> str:
    """Return the text of one scrape."""
    async with aiohttp.ClientSession() as client, client.get(life.admin_url + "/metrics") as reply:
        return await reply.text()


async def empty(prom: Prometheus, namespace: str, pod: str) -> list[str]:
    """Return the panels without data."""
    return [title for title, expr in expressions(namespace, pod) if not await prom.query(expr)]


async def test_every_panel_shows_something(prom: Prometheus, tmp_path: Path) -> None:
    """Every expression has data, for one pod and for all, and 40 more pods add no series."""
    rig = Rig(tmp_path, seed=8)
    turn = 0

    def sometimes(_: object) -> int | None:
        nonlocal turn
        turn += 1
        return 503 if turn % 10 == 0 else None

    async with rig.agentex, rig.sgp, exposing(restarts) as stand_in:
        rig.agentex.rule = rig.sgp.rule = sometimes
        life = await rig.start()
        posting = asyncio.create_task(rig.agent(life.url, "agent"))

        async def nothing_is_empty() -> bool:
            return not await empty(prom, "agents", "a")

        with prom.scraping("agents", a=address(life)), prom.scraping("kube", honest=stand_in):
            await until(nothing_is_empty)
            alone = {expr: len(await prom.query(expr)) for _, expr in expressions(".*", ".*")}
            scraped = many(await metrics_of(life))
            async with exposing(lambda: scraped) as crowd:
                with prom.scraping("crowd", honest=crowd):
                    await until(lambda: crowd_is_there(prom))
                    for _, expr in expressions(".*", ".*"):
                        assert len(await prom.query(expr)) <= max(alone[expr], WORST), expr
        rig.agentex.rule = rig.sgp.rule = None
        life.process.terminate()
        assert await life.ended() == 0
        await posting


async def crowd_is_there(prom: Prometheus) -> bool:
    """Whether all pods have been scraped often enough for a rate."""
    counted = await prom.query(
        "count_over_time(trace_sidecar_build_info[10s]) > 2 and on (pod) trace_sidecar_build_info"
    )
    return len(counted) > PODS


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
