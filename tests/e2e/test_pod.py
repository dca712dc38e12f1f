"""The rendered pod, run for real: the sidecar's promises hold in its container."""

from contextlib import ExitStack

import msgspec
import pytest

from tests.e2e import image_support as images
from tests.e2e.image_support import eventually
from tests.e2e.pod_support import (
    AGENT,
    IDLE,
    LIMIT_MIB,
    MIB,
    SIDECAR,
    SINKS,
    Pod,
    memory,
    running,
)
from tests.load.arrived import arrived
from tests.load.driver import Result
from tests.load.loads import Plan

BACKLOG = 50
SENT = 30
LISTENER = 8318
# As slow as the upstreams in the incident.
SLOW_MS = 150


def spans_flow(pod: Pod) -> None:
    """Wait until spans have arrived at both upstreams."""
    eventually(lambda: min(pod.completed()) >= SENT)


def backlog_grows(pod: Pod) -> None:
    """Wait until the sidecar has a backlog for both upstreams."""
    eventually(lambda: min(pod.depths()) >= BACKLOG)


def reckon(pod: Pod) -> None:
    """Assert that agent and sidecar report no loss, and that both upstreams have all spans."""
    *spans, agent = pod.log(AGENT)
    assert agent == {"flushed": True, "sent": 2 * len(spans), "dropped": {}}
    stopped = pod.log(SIDECAR)[-1]
    assert (stopped["event"], stopped["lost"]) == ("stopped", 0)
    assert {accounting["depth"] for accounting in stopped["writes"].values()} == {0}
    sent = {span["id"]: span["input"] for span in spans}
    assert len(sent) > SENT
    for port in SINKS.values():
        report = pod.get(port, "/__report")
        assert report["digests"] == sent
        assert report["complete"] == len(sent)


def test_a_killed_sidecar_comes_back_with_its_spool() -> None:
    """After SIGKILL while both upstreams hang, the container restarts and all spans arrive."""
    with running() as pod:
        spans_flow(pod)
        agent = pod.pid(AGENT)
        with pod.away():
            backlog_grows(pod)
            pod.kill(SIDECAR)
            eventually(lambda: len(pod.said(SIDECAR, "started")) == 2)
            first, second = pod.said(SIDECAR, "spool_recovered")
            assert first["writes"] == 0
            assert second["writes"] >= BACKLOG
        assert pod.pid(AGENT) == agent
        before = pod.completed()
        eventually(lambda: min(pod.completed()) > max(before) + SENT)
        pod.terminate(AGENT)
        pod.terminate(SIDECAR)
        reckon(pod)


def test_term_in_the_order_of_a_native_sidecar_loses_nothing() -> None:
    """The agent ends immediately though both upstreams hang; the sidecar delivers its spans."""
    with running() as pod:
        spans_flow(pod)
        # Exited in reverse order: the upstreams are back before the wait for the sidecar's end.
        with ExitStack() as sidecar_ends, pod.away():
            backlog_grows(pod)
            pod.terminate(AGENT)
            sidecar_ends.enter_context(pod.terminated(SIDECAR))
            eventually(lambda: pod.said(SIDECAR, "stopping"))
        (stopping,) = pod.said(SIDECAR, "stopping")
        assert stopping["depth"] >= BACKLOG
        reckon(pod)


_READ = """
import os
for name, path in os.environ.items():
    if name.endswith("_FILE") and "/certificates/" in path:
        what = open(path).readline().strip(" -\\n").split()[-1]
        print(name, what, os.getuid(), os.access(path, os.W_OK))
"""


def test_the_sidecar_reads_its_certificates() -> None:
    """The sidecar's user can read the mounted certificates and their key, and change none."""
    with running(IDLE) as pod:
        found = images.run("podman", "exec", pod.container(SIDECAR), "python3", "-c", _READ)
        assert sorted(found.splitlines()) == [
            "SIDECAR_AGENTEX__CA_FILE CERTIFICATE 65532 False",
            "SIDECAR_AGENTEX__CLIENT_CERT_FILE CERTIFICATE 65532 False",
            "SIDECAR_AGENTEX__CLIENT_KEY_FILE KEY 65532 False",
        ]


_POST = """
import json, sys, urllib.error, urllib.request
headers = {"Content-Type": "application/json"}
for method, path in (("POST", "/v1/spans"), ("PUT", "/v5/spans/batch"), ("POST", "/spans")):
    url = f"http://127.0.0.1:8318{path}"
    try:
        urllib.request.urlopen(urllib.request.Request(url, b"{}", headers, method=method))
    except urllib.error.HTTPError as error:
        (text,) = json.load(error).values()
        print(error.code, text)
"""
PROBED = [
    {"httpGet": {"port": port, "path": path}}
    for port, path in ((LISTENER, "/readyz"), (9318, "/readyz"), (9318, "/livez"))
]


@pytest.mark.parametrize(
    "variables", [{}, {"AGENTEX_BASE_URL": "agentex:5003"}], ids=["nothing", "a wrong URL"]
)
def test_without_an_upstream_it_stays_up(variables: dict[str, str]) -> None:
    """It is ready, so that the agent starts; posts get 503 with what to set; the log says it."""
    with running(IDLE, variables=variables) as pod:
        assert all(map(pod.probe, PROBED))
        posted = images.run("podman", "exec", pod.container(AGENT), "python3", "-c", _POST)
        for line in posted.splitlines():
            assert line.startswith("503 nothing was accepted: ")
            assert "AGENTEX_BASE_URL" in line or "SGP_API_KEY" in line
        assert len(posted.splitlines()) == 3
        log = pod.log(SIDECAR)
        warnings = [line["text"] for line in log if line["event"] == "config_warning"]
        assert [text.partition(":")[0] for text in warnings] == [
            *(["agentex.base_url"] if variables else []),
            "no upstream is enabled",
        ]
        assert pod.inspected(SIDECAR)["RestartCount"] == 0
        pod.terminate(SIDECAR)


def test_the_memory_limit_holds_under_the_incident_load(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With 50 KB prompts and slow upstreams it stays within 128 MiB, and all spans arrive."""
    plan = Plan(kind="incident", spans=3000, size=50_000, port=LISTENER)
    with running(IDLE, latency_ms=SLOW_MS) as pod:
        pid = pod.pid(SIDECAR)
        result = loaded(pod, plan)
        assert (result.accepted, result.rejected) == (plan.events, 0), result
        eventually(lambda: not any(pod.depths()))
        used = memory(pid)
        with capsys.disabled():
            print(f"\n{plan.spans} spans of {plan.size} bytes: {used}")  # noqa: T201 (a figure)
        assert used.limit == LIMIT_MIB * MIB
        assert used.peak_rss < used.limit
        assert used.oom_kills == 0
        assert pod.pid(SIDECAR) == pid
        for port in SINKS.values():
            assert arrived(pod.get(port, "/__report"), plan).faults() == []


def loaded(pod: Pod, plan: Plan) -> Result:
    """Send a plan's load from the agent's container."""
    command = ("python3", "-m", "tests.load.driver", msgspec.json.encode(plan).decode())
    done = images.attempt(
        "podman", "exec", "--interactive", pod.container(AGENT), *command, input="go\n"
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)
