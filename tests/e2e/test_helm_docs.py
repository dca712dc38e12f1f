"""The recipes of docs/deploy.md work as written, and the chart's notes warn of what would not.

test_deployment runs the steps that README.md and the notes have for injection.
"""

import json
import re
from pathlib import Path

import pytest

from sidecar.config import Config
from sidecar.config_load import load
from tests.support.helm import (
    CHART,
    LIBRARY,
    ROOT,
    Json,
    admit,
    agent_pod,
    consumer,
    documents,
    helm,
    judge,
    kustomize,
    only,
    render,
    sidecar_of,
)

TEXT = (ROOT / "docs/deploy.md").read_text()
# What each warning of the notes is about, and words of it.
WARNINGS = {
    "registry": "has no registry",
    "variables": "Each pod needs AGENTEX_BASE_URL, or SGP_API_KEY with SGP_ACCOUNT_ID",
    "upstream": "no span is forwarded",
    "agents": "nothing here makes agents use the sidecar",
    "monitoring": "no monitoring",
    "alerts": "no alerts",
    "everything": "every new pod in these namespaces gets the sidecar",
    "grace": "less than 5 s of its own",
}
PULLED = {"image": {"repository": "registry.example/trace-sidecar"}}
AGENTEX = {"config": {"agentex": {"base_url": "http://agentex.agentex.svc:5003"}}}
# Values that end in spans and alerts.
COMPLETE: Json = {
    "sidecar": PULLED | AGENTEX,
    "injection": {"setSgpClientBaseUrl": True, "agentContainers": ["agent"]},
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
}
AGENTS: Json = COMPLETE["injection"]
PRIVATE = "A private CA, a client certificate, a proxy"


def section(title: str) -> list[str]:
    """Return the fenced blocks below a heading, in order."""
    body = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```\w*\n(.*?)^```$", body, re.DOTALL | re.MULTILINE)


def test_a_chart_of_ones_own(tmp_path: Path) -> None:
    """The recipe's Deployment has the sidecar, its volume and the agent's environment."""
    dependencies, deployment, values = section("Include it in your own chart")
    chart = tmp_path / "agent"
    (chart / "templates").mkdir(parents=True)
    (chart / "charts").mkdir()
    (chart / "charts/trace-sidecar-lib").symlink_to(LIBRARY)
    head = "apiVersion: v2\nname: agent\nversion: 1.0.0\n"
    (chart / "Chart.yaml").write_text(head + dependencies)
    (chart / "templates/deployment.yaml").write_text(deployment)
    (chart / "values.yaml").write_text(values)
    found = only(render(chart=chart), "Deployment")
    assert judge("validate", objects=[found], version="1.29") == []
    pod = found["spec"]["template"]
    assert [item["name"] for item in pod["spec"]["containers"]] == ["agent"]
    settings = {entry["name"]: entry.get("value", "x") for entry in sidecar_of(pod)["env"]}
    config = load(None, settings)
    assert redirected(pod, config)
    assert config.spool.path
    assert config.shutdown.grace_s < pod["spec"]["terminationGracePeriodSeconds"]
    (volume,) = pod["spec"]["volumes"]
    (mount,) = sidecar_of(pod)["volumeMounts"]
    assert mount["name"] == volume["name"]
    beside = render(chart=chart, values={"sidecar": {"mode": "container"}})
    names = only(beside, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert [item["name"] for item in names] == ["agent", "trace-sidecar"]


def local(kustomization: str) -> str:
    """Replace the components of a kustomization by those of this checkout."""
    pattern = r"github.com/OWNER/trace-sidecar/(deploy/kustomize/\w+)\?ref=\S+"
    assert re.search(pattern, kustomization)
    return re.sub(pattern, lambda match: Path(match[1]).name, kustomization)


def test_kustomize(tmp_path: Path) -> None:
    """The recipe's component, image and patch together give a configured sidecar."""
    kustomization, patch = section("Kustomize")
    base = tmp_path / "base"
    base.mkdir()
    pod = agent_pod()["spec"]
    agent = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "agent"},
             "spec": {"template": {"spec": pod}}}  # fmt: skip
    (base / "agent.yaml").write_text(json.dumps(agent))
    (base / "component").symlink_to(ROOT / "deploy/kustomize/component")
    (base / "kustomization.yaml").write_text(local(kustomization))
    (tmp_path / "patch.yaml").write_text(patch)
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps({"resources": ["base"], "patches": [{"path": "patch.yaml"}]})
    )
    (found,) = kustomize(tmp_path)
    container = sidecar_of(found["spec"]["template"])
    assert container["image"].startswith("registry.example/trace-sidecar:")
    settings = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    config = load(None, settings)
    assert config.agentex.base_url == "http://agentex.agentex.svc:5003"
    assert redirected(found["spec"]["template"], config)


def redirected(pod: Json, config: Config) -> bool:
    """Whether the agent's SGP client uses the sidecar for everything, and no proxy for it."""
    (agent,) = (each for each in pod["spec"]["containers"] if each["name"] == "agent")
    variables = {entry["name"]: entry["value"] for entry in agent["env"]}
    assert variables["SGP_CLIENT_BASE_URL"] == f"http://127.0.0.1:{config.listener.port}"
    assert "127.0.0.1" in variables["NO_PROXY"].split(",")
    return config.listener.pass_through


def test_flux(tmp_path: Path) -> None:
    """The component and the patch give a post-renderer with the image and the settings."""
    kustomization, patch = section("Flux")
    base = tmp_path / "base"
    base.mkdir()
    release = {"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease",
               "metadata": {"name": "agent"}, "spec": {}}  # fmt: skip
    (base / "release.yaml").write_text(json.dumps(release))
    (base / "flux").symlink_to(ROOT / "deploy/kustomize/flux")
    (base / "kustomization.yaml").write_text(local(kustomization))
    (tmp_path / "sidecar.yaml").write_text(patch)
    target = {"path": "sidecar.yaml", "target": {"kind": "HelmRelease"}}
    (tmp_path / "kustomization.yaml").write_text(
        json.dumps({"resources": ["base"], "patches": [target]})
    )
    (found,) = kustomize(tmp_path)
    (renderer,) = found["spec"]["postRenderers"]
    assert renderer["kustomize"]["images"] == [
        {"name": "trace-sidecar", "newName": "registry.example/trace-sidecar"}
    ]
    rendered = tmp_path / "rendered"
    rendered.mkdir()
    agent = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "agent"},
             "spec": {"template": {"spec": agent_pod()["spec"]}}}  # fmt: skip
    (rendered / "agent.yaml").write_text(json.dumps(agent))
    # As Flux does it.
    kustomization = renderer["kustomize"] | {"resources": ["agent.yaml"]}
    (rendered / "kustomization.yaml").write_text(json.dumps(kustomization))
    (made,) = kustomize(rendered)
    container = sidecar_of(made["spec"]["template"])
    assert container["image"].startswith("registry.example/trace-sidecar:")
    settings = {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}
    config = load(None, settings)
    assert config.agentex.base_url == "http://agentex.agentex.svc:5003"
    assert config.listener.pass_through


def network_of(pod: Json) -> Config:
    """Return the sidecar's configuration, whose certificates the pod mounts, and no others."""
    container = sidecar_of(pod)
    settings = {entry["name"]: entry.get("value", "http://u:p@proxy") for entry in container["env"]}
    config = load(None, settings)
    (mount,) = container["volumeMounts"]
    (volume,) = (item for item in pod["spec"]["volumes"] if item["name"] == mount["name"])
    mounted: set[str] = set()
    for source in volume["projected"]["sources"]:
        ((kind, reference),) = source.items()
        # All keys of a Secret of type kubernetes.io/tls that are not listed.
        items = reference.get("items", [{"path": "tls.crt"}, {"path": "tls.key"}])
        assert kind == "secret" or "items" in reference
        mounted |= {f"{mount['mountPath']}/{item['path']}" for item in items}
    assert mounted == {value for value in settings.values() if value.startswith("/")}
    assert config.agentex.base_url.startswith("https://")
    assert config.agentex.ca_file
    assert config.agentex.client_cert_file
    assert config.agentex.client_key_file
    assert config.network.proxy.startswith("http://")
    assert ".svc" in config.network.no_proxy
    return config


def test_a_private_network_by_injection() -> None:
    """The recipe's values give injected pods certificates for both upstreams and a proxy."""
    (values,) = documents(section(PRIVATE)[0])
    (answer,) = admit(render(values=values), agent_pod())
    assert judge("validate", objects=[answer["pod"]], version="1.36") == []
    assert network_of(answer["pod"]).sgp.ca_file


def test_a_private_network_in_a_chart_of_ones_own(tmp_path: Path) -> None:
    """The same values work in the recipe of a chart of one's own, also with its own exceptions."""
    (values,) = documents(section(PRIVATE)[0])
    values["sidecar"]["agent"] = {"noProxy": "$(NO_PROXY)"}
    deployment = section("Include it in your own chart")[1]
    chart = consumer(tmp_path / "agent", {"deployment.yaml": deployment})
    pod = only(render(chart=chart, values=values), "Deployment")["spec"]["template"]
    assert network_of(pod).sgp.ca_file
    (agent,) = pod["spec"]["containers"]
    exceptions = {"name": "NO_PROXY", "value": "127.0.0.1,localhost,::1,$(NO_PROXY)"}
    assert exceptions in agent["env"]


def test_a_private_network_by_kustomize(tmp_path: Path) -> None:
    """The recipe's patch gives the component's sidecar certificates and a proxy."""
    (tmp_path / "base").mkdir()
    agent = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "agent"},
             "spec": {"template": {"spec": agent_pod()["spec"]}}}  # fmt: skip
    (tmp_path / "base/agent.yaml").write_text(json.dumps(agent))
    (tmp_path / "base/component").symlink_to(ROOT / "deploy/kustomize/component")
    for folder, content in (
        ("base", {"resources": ["agent.yaml"], "components": ["component"]}),
        ("", {"resources": ["base"], "patches": [{"path": "patch.yaml"}]}),
    ):
        (tmp_path / folder / "kustomization.yaml").write_text(json.dumps(content))
    (tmp_path / "patch.yaml").write_text(section(PRIVATE)[1])
    (found,) = kustomize(tmp_path)
    config = network_of(found["spec"]["template"])
    assert config.listener.port == load(None, {}).listener.port
    assert config.network.proxy == "http://proxy.internal:3128"


def test_environments_yaml_points_at_the_sidecar() -> None:
    """The Agentex recipe has the sidecar's default address."""
    (block,) = section("Agentex deployments")
    (environments,) = documents(block)
    overrides = environments["environments"]["production"]["helm_overrides"]
    listener = load(None, {}).listener
    assert overrides["env"] == [
        {"name": "SGP_CLIENT_BASE_URL", "value": f"http://127.0.0.1:{listener.port}"}
    ]


def warned(values: Json) -> set[str]:
    """What the notes warn about."""
    done = helm("install", "ts", CHART, "--dry-run=client", "--values", "-", values=values)
    assert not done.returncode, done.stderr
    notes = " ".join(done.stdout.partition("NOTES:")[2].split())
    found = {name for name, words in WARNINGS.items() if words in notes}
    assert notes.count("WARNING:") == len(found), notes
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"registry", "variables", "agents", "monitoring"}),
        (COMPLETE, set()),
        (COMPLETE | {"sidecar": AGENTEX}, {"registry"}),
        (COMPLETE | {"sidecar": PULLED}, {"variables"}),
        (COMPLETE | {"injection": {}}, {"agents", "everything"}),
        (COMPLETE | {"injection": {"setSgpClientBaseUrl": True}}, {"everything"}),
        (COMPLETE | {"injection": AGENTS | {"minGracePeriodSeconds": 29}}, {"grace"}),
        (COMPLETE | {"injection": AGENTS | {"minGracePeriodSeconds": 30}}, set()),
        (COMPLETE | {"podMonitor": {}}, {"monitoring"}),
        (COMPLETE | {"prometheusRule": {}}, {"alerts"}),
        ({"injection": {"enabled": False}}, {"registry", "monitoring"}),
        (
            COMPLETE
            | {"sidecar": PULLED, "injection": {"setSgpClientBaseUrl": True, "copyEnv": []}},
            {"upstream"},
        ),
    ],
)
def test_the_notes_warn(values: Json, expected: set[str]) -> None:
    """They warn about each thing that would end in no spans or in no alert, and no other."""
    assert warned(values) == expected


@pytest.mark.parametrize(
    ("repository", "is_complete"),
    [
        ("trace-sidecar", False),
        ("team/trace-sidecar", False),
        ("localhost/trace-sidecar", True),
        ("registry:5000/trace-sidecar", True),
        ("registry.example/team/trace-sidecar", True),
    ],
)
def test_a_repository_without_a_registry(repository: str, *, is_complete: bool) -> None:
    """The notes read a repository as container runtimes do."""
    values = COMPLETE | {"sidecar": AGENTEX | {"image": {"repository": repository}}}
    assert warned(values) == (set() if is_complete else {"registry"})


@pytest.mark.parametrize(
    ("sidecar", "is_enough"),
    [
        ({"config": {"agentex": {"base_url": ""}}}, False),
        ({"config": {"sgp": {"base_url": "https://sgp.internal"}}}, False),
        ({"config": {"sgp": {"relay": False}}}, False),
        ({"config": {"sgp": {"relay": True}}}, True),
        ({"config": {"otlp": {"endpoint": ""}}}, False),
        ({"otlpHeaders": {"secretName": "s"}}, False),
        ({"config": {"otlp": {"endpoint": "https://collector"}}}, True),
        ({"credentials": {"secretName": "sgp"}}, True),
        ({"env": [{"name": "AGENTEX_BASE_URL", "value": "http://agentex"}]}, True),
    ],
)
def test_an_upstream_in_the_values(sidecar: Json, *, is_enough: bool) -> None:
    """The notes warn unless the values enable an upstream in every pod."""
    assert warned(COMPLETE | {"sidecar": PULLED | sidecar}) == (
        set() if is_enough else {"variables"}
    )
