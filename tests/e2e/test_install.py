"""The chart on a real API server: install, upgrade, rollback, removal; and kustomize."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kube_support import Cluster, Json, poll
from tests.e2e.release_support import SIDECAR, Release, agent, agents_cluster, sidecars
from tests.support.helm import CHART, OPTED_IN, ROOT, kustomize, render

COMPONENT = ROOT / "deploy/kustomize/component"
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as running:
        # Namespaces that the examples use.
        running.add_namespace("monitoring")
        running.add_namespace("more-agents")
        # The namespace of `render`, where the pod of `helm test` is.
        running.add_namespace("obs")
        yield running


@pytest.fixture
def release(server: Cluster, tmp_path: Path) -> Release:
    return Release(server, tmp_path)


def objections(server: Cluster, found: list[Json]) -> list[str]:
    """Return the server's objections to objects: refusals, unknown fields, warnings."""
    answers = [server.create_any(item, "tracing", dryRun="All") for item in found]
    refused = [str(answer.body) for answer in answers if answer.status != 201]
    return refused + [warning for answer in answers for warning in answer.warnings]


def test_what_the_server_says_against_objects(server: Cluster) -> None:
    """The check below finds unknown fields, wrong values and CEL that does not compile."""
    found = {item["kind"]: item for item in render(values={"podMonitor": {"enabled": True}})}
    found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["intervall"] = "1s"
    found["MutatingAdmissionPolicyBinding"]["spec"]["policyName"] = ""
    found["ValidatingAdmissionPolicy"]["spec"]["validations"][0]["expression"] = "object.spec +"
    assert objections(server, [found.pop("ValidatingAdmissionPolicyBinding")]) == []
    refused = " ".join(objections(server, list(found.values())))
    for text in ("spec.podMetricsEndpoints[0].intervall", "spec.policyName", "compilation failed"):
        assert text in refused


@pytest.mark.parametrize("values", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_installed(server: Cluster, release: Release, values: Path) -> None:
    """The server accepts every object strictly, without warnings; helm installs and removes it."""
    assert objections(server, render("--values", values)) == []
    release.helm("install", "ci", CHART, "--namespace", "tracing", "--values", values)
    release.helm("uninstall", "ci", "--namespace", "tracing")


def test_the_api_of_older_clusters(server: Cluster) -> None:
    """With `injection.apiVersion`, the policy is v1beta1, and works the same."""
    found = render(values={"injection": {"apiVersion": "admissionregistration.k8s.io/v1beta1"}})
    mutating = [item for item in found if item["kind"].startswith("Mutating")]
    assert {item["apiVersion"] for item in mutating} == {"admissionregistration.k8s.io/v1beta1"}
    assert objections(server, found) == []


def test_upgrade_and_rollback(release: Release) -> None:
    """New pods get the newest revision's sidecar, and after a rollback the old one's."""
    release.install({})
    before = release.tag()
    pod = release.pod(agent())["spec"]
    release.install({"injection": {"minGracePeriodSeconds": 90}})
    assert release.pod(agent())["spec"]["terminationGracePeriodSeconds"] == 90
    release.helm("rollback", "ts", "1", "--namespace", "tracing")
    poll("the first revision is back", lambda: release.tag() == before or None)
    assert release.pod(agent())["spec"] == pod
    release.uninstall()


def test_two_releases(release: Release, server: Cluster) -> None:
    """Each release has its own namespaces; a pod selected by both gets one sidecar."""
    ours = {"tracing/other": "on"}
    server.add_namespace("others", ours)
    server.add_namespace("both", OPTED_IN | ours)
    release.install({})
    image = {"repository": "other"}
    label = {"name": "tracing/other", "value": "on"}
    values = {"injection": {"namespaceLabel": label}, "sidecar": {"image": image}}
    options = ("--namespace", "elsewhere", "--values", "-")
    release.helm("install", "second", CHART, *options, values=values)

    def injected(namespace: str) -> list[str]:
        containers = sidecars(release.pod(agent(), namespace))
        return [container["image"].partition(":")[0] for container in containers]

    assert poll("the second acts", lambda: injected("others") or None) == ["other"]
    assert injected("agents") == ["trace-sidecar"]
    assert len(injected("both")) == 1
    release.helm("uninstall", "second", "--namespace", "elsewhere")
    release.uninstall()


def test_workloads(release: Release, tmp_path: Path) -> None:
    """The policies do not change workloads; kustomize adds the same sidecar to them."""
    release.install({"sidecar": {"credentials": {"secretName": SIDECAR}}})
    (expected,) = sidecars(release.pod(agent()))
    template = {"metadata": {"labels": {"a": "b"}}, "spec": agent()["spec"]}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    never = {**template, "spec": template["spec"] | {"restartPolicy": "Never"}}
    plain: list[Json] = [
        {"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": spec | {"serviceName": "a"}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": spec},
        {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": never}},
    ]
    resources = [item | {"metadata": {"name": item["kind"].lower()}} for item in plain]
    for number, item in enumerate(resources):
        (tmp_path / f"{number}.json").write_text(json.dumps(item))
    kustomization = {
        "resources": [f"{number}.json" for number in range(len(resources))],
        "components": [os.path.relpath(COMPONENT, tmp_path)],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(kustomization))
    for item, patched in zip(resources, kustomize(tmp_path), strict=True):
        stored = release.server.create_any(item, "agents", dryRun="All")
        assert (stored.status, stored.warnings) == (201, [])
        assert not sidecars(stored.body["spec"]["template"])
        answer = release.server.create_any(patched, "agents", dryRun="All")
        assert (answer.status, answer.warnings) == (201, [])
        (container,) = sidecars(answer.body["spec"]["template"])
        assert container | {"image": expected["image"]} == expected
    release.uninstall()
