"""The real helm lints, renders and packages the charts, valid by Kubernetes' schemas."""

import re
from pathlib import Path

import pytest

import sidecar
from tests.support.helm import (
    ASKS,
    CHART,
    LIBRARY,
    Json,
    admit,
    agent_pod,
    helm,
    judge,
    only,
    render,
    sidecar_of,
    template,
)

EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
# Custom resources: Kubernetes itself has no schema for them.
OTHERS = {"PodMonitor", "PrometheusRule"}
# The first versions with native sidecars, with stable native sidecars, and with the policies.
VERSIONS = ["1.29", "1.33", "1.36"]

WITH_INJECTION = [path for path in EXAMPLES if path.stem != "off-values"]

example = pytest.mark.parametrize("values", EXAMPLES, ids=lambda path: path.stem)


def test_lint_has_nothing_to_say() -> None:
    """Both charts pass `helm lint --strict` without errors and warnings."""
    done = helm("lint", "--strict", CHART, LIBRARY)
    assert not done.returncode, done.stdout
    assert set(re.findall(r"\[(\w+)\]", done.stdout)) <= {"INFO"}


@example
def test_every_example_lints_renders_and_packages(values: Path, tmp_path: Path) -> None:
    """For each file in ci/, the package renders the same as the folder."""
    assert not helm("lint", "--strict", CHART, "--values", values).returncode
    from_folder = template("--values", values)
    assert not from_folder.returncode, from_folder.stderr
    assert not helm("package", CHART, "--destination", tmp_path).returncode
    (package,) = tmp_path.iterdir()
    assert template("--values", values, chart=package).stdout == from_folder.stdout


@example
def test_kubernetes_takes_every_object(values: Path) -> None:
    """Every object is strictly valid for the newest Kubernetes and the first with its API."""
    found = [item for item in render("--values", values) if item["kind"] not in OTHERS]
    newest = judge("versions")[-1]
    for version in {"1.36", newest}:
        assert judge("validate", objects=found, version=version) == []


@pytest.mark.parametrize("values", WITH_INJECTION, ids=lambda path: path.stem)
def test_kubernetes_takes_the_pods(values: Path) -> None:
    """A pod with the sidecar is strictly valid from the first supported Kubernetes on."""
    found = render("--values", values)
    labels = ASKS | {"tier": "agents", "track": "canary", "app.kubernetes.io/name": "agentex-agent"}
    (admitted,) = admit(found, agent_pod(labels))
    assert sidecar_of(admitted["pod"])
    for version in {*VERSIONS, judge("versions")[-1]}:
        assert judge("validate", objects=[admitted["pod"]], version=version) == []


def restricted(container: Json) -> dict[str, bool]:
    """Return each requirement of the "restricted" Pod Security Standard, and whether it is met."""
    context = container["securityContext"]
    return {
        "privileged": not context.get("privileged"),
        "escalation": context.get("allowPrivilegeEscalation") is False,
        "non-root": context.get("runAsNonRoot") is True and context.get("runAsUser") != 0,
        "dropped": context.get("capabilities", {}).get("drop") == ["ALL"],
        "added": not context.get("capabilities", {}).get("add"),
        "seccomp": context.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
        "host ports": not any("hostPort" in port for port in container["ports"]),
        "proc mount": context.get("procMount", "Default") == "Default",
    }


@pytest.mark.parametrize("mode", ["native", "container"])
def test_the_container_is_safe_by_default(mode: str) -> None:
    """By default it is restricted, with a CPU request and a memory limit, and evicts no agent."""
    (admitted,) = admit(render(values={"sidecar": {"mode": mode}}), agent_pod())
    container = sidecar_of(admitted["pod"])
    assert all(restricted(container).values()), restricted(container)
    assert container["resources"]["requests"] == {"cpu": "25m", "memory": "96Mi"}
    assert container["resources"]["limits"] == {"memory": "192Mi"}
    assert "readinessProbe" not in container
    assert "lifecycle" not in container
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": 9318}
    assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": 9318}


def test_versions_agree() -> None:
    """Both charts and the image's default tag have the sidecar's version."""
    for chart in (CHART, LIBRARY):
        text = (chart / "Chart.yaml").read_text()
        assert f"\nappVersion: {sidecar.__version__}\n" in text
    (admitted,) = admit(render(), agent_pod())
    assert sidecar_of(admitted["pod"])["image"] == f"trace-sidecar:{sidecar.__version__}"


def test_notes_give_the_next_commands() -> None:
    """The notes show how to opt in, restart and check."""
    values = {"injection": {"namespaceLabel": {"name": "spans", "value": "on"}}}
    done = helm("install", "ts", CHART, "--dry-run=client", "--values", "-", values=values)
    notes = done.stdout.partition("NOTES:")[2]
    assert "kubectl label namespace AGENTS spans=on" in notes
    assert "kubectl rollout restart deployment --namespace AGENTS" in notes
    assert "WARNING" in notes, "the image has no registry"


def test_nothing_is_deployed_but_what_was_asked_for() -> None:
    """By default the chart renders two policies with their bindings; without injection, nothing.

    The pod of `helm test` is a hook.
    """
    kinds = sorted(item["kind"] for item in render("--skip-tests"))
    assert kinds == [
        "MutatingAdmissionPolicy",
        "MutatingAdmissionPolicyBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ]
    assert render(values={"injection": {"enabled": False}}) == []
    found = render("--skip-tests", values={"injection": {"audit": False}})
    assert {item["kind"] for item in found} == set(kinds[:2])
    assert only(found, "MutatingAdmissionPolicy")["spec"]["failurePolicy"] == "Ignore"
