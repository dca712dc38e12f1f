"""The kustomize components, plain and for Flux, built by the real kustomize."""

import json
from pathlib import Path

import pytest

from tests.e2e import parts
from tests.support.helm import (
    HELM,
    ROOT,
    Json,
    admit,
    agent_pod,
    documents,
    judge,
    kustomize,
    render,
    sidecar_of,
)
from tools import kustomize_files

DEPLOY = ROOT / "deploy/kustomize"
# The values of tools/kustomize_files.py.
VALUES = {"sidecar": {"credentials": {"secretName": "trace-sidecar"}}}


def workload(kind: str, name: str, **template: Json) -> Json:
    """Return a workload with an agent."""
    version = "batch/v1" if kind in {"Job", "CronJob"} else "apps/v1"
    labels = {"app": name}
    spec = {"containers": [{"name": "agent", "image": "agent:1"}], **template}
    body = {"metadata": {"labels": labels}, "spec": spec}
    selector = {} if kind == "Job" else {"selector": {"matchLabels": labels}}
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**selector, "template": body},
    }


def build(folder: Path, component: str, *objects: Json, **more: Json) -> dict[str, Json]:
    """Return the objects of a kustomization with the component, by name."""
    folder.mkdir()
    for number, item in enumerate(objects):
        (folder / f"{number}.yaml").write_text(json.dumps(item))
    (folder / "component").symlink_to(DEPLOY / component)
    kustomization = {
        "resources": [f"{number}.yaml" for number in range(len(objects))],
        "components": ["component"],
        **more,
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return {item["metadata"]["name"]: item for item in kustomize(folder)}


def injected_sidecar() -> Json:
    """Return the container that the policy injects with the same values."""
    (answer,) = admit(render(values=VALUES), agent_pod())
    return sidecar_of(answer["pod"])


def test_the_files_are_up_to_date(tmp_path: Path) -> None:
    """The files are the output of `python tools/kustomize_files.py HELM`."""
    assert kustomize_files.main([str(parts.go_tool(*HELM)), str(tmp_path)]) == 0
    for name in kustomize_files.FILES:
        assert (tmp_path / name).read_text() == (DEPLOY / name).read_text(), name


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Job"])
def test_the_same_container(kind: str, tmp_path: Path) -> None:
    """Every kind of workload gets the charts' container, and is otherwise unchanged."""
    init = {"name": "migrate", "image": "migrate:1"}
    only_for_jobs = {"restartPolicy": "Never"} if kind == "Job" else {}
    item = workload(kind, "a", initContainers=[init], **only_for_jobs)
    found = build(tmp_path / "k", "component", item)["a"]
    spec = found["spec"]["template"]["spec"]
    assert {entry["name"]: entry for entry in spec["initContainers"]} == {
        "migrate": init,
        "trace-sidecar": injected_sidecar(),
    }
    assert spec["containers"] == item["spec"]["template"]["spec"]["containers"]
    assert judge("validate", objects=[found], version="1.33") == []


def test_labels_and_images(tmp_path: Path) -> None:
    """A labeled workload is unchanged; outer kustomizations can change image and settings."""
    out = workload("Deployment", "out")
    out["metadata"]["labels"] = {"trace-sidecar/inject": "false"}
    image = {"name": "trace-sidecar", "newName": "registry.example/spans", "newTag": "7"}
    patch = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: in}
spec:
  template:
    spec:
      initContainers:
        - name: trace-sidecar
          env: [{name: SIDECAR_AGENTEX__BASE_URL, value: "http://agentex:5003"}]
"""
    overlay = tmp_path / "overlay"
    build(tmp_path / "base", "component", workload("Deployment", "in"), out)
    overlay.mkdir()
    (overlay / "patch.yaml").write_text(patch)
    (overlay / "kustomization.yaml").write_text(
        json.dumps(
            {"resources": ["../base"], "patches": [{"path": "patch.yaml"}], "images": [image]}
        )
    )
    found = {item["metadata"]["name"]: item for item in kustomize(overlay)}
    assert found["out"] == out
    (container,) = found["in"]["spec"]["template"]["spec"]["initContainers"]
    assert container["image"] == "registry.example/spans:7"
    settings = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert settings["SIDECAR_AGENTEX__BASE_URL"] == "http://agentex:5003"
    assert settings["SIDECAR_LISTENER__PORT"] == "8318"


def test_flux_adds_the_same_container_after_helm(tmp_path: Path) -> None:
    """A HelmRelease gets a post-renderer whose patch adds the container."""
    release = {
        "apiVersion": "helm.toolkit.fluxcd.io/v2",
        "kind": "HelmRelease",
        "metadata": {"name": "agent"},
        "spec": {"interval": "5m"},
    }
    found = build(tmp_path / "flux", "flux", release)["agent"]
    assert found["spec"]["interval"] == "5m"
    (renderer,) = found["spec"]["postRenderers"]
    (patch,) = renderer["kustomize"]["patches"]
    assert documents(patch["patch"])[0]["kind"] == "Deployment"
    # As Flux does: a kustomization of the chart's rendered manifests.
    (tmp_path / "rendered").mkdir()
    (tmp_path / "rendered/a.yaml").write_text(json.dumps(workload("Deployment", "a")))
    (tmp_path / "rendered/kustomization.yaml").write_text(
        json.dumps({"resources": ["a.yaml"], "patches": [patch]})
    )
    (rendered,) = kustomize(tmp_path / "rendered")
    assert rendered["spec"]["template"]["spec"]["initContainers"] == [injected_sidecar()]
