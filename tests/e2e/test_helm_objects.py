"""The chart's objects: their labels and metadata, the versions they need, and the admin port."""

import base64
import re
from copy import deepcopy
from pathlib import Path
from xml.parsers import expat

import pytest

import sidecar
from tests.support.docs import blocks, section
from tests.support.helm import (
    ASKS,
    CHART,
    LIBRARY,
    ROOT,
    Json,
    admit,
    admit_one,
    agent_pod,
    consumer,
    documents,
    helm,
    judge,
    nested,
    only,
    refusal,
    render,
    sidecar_of,
    template,
)

V1BETA1 = {"injection": {"apiVersion": "admissionregistration.k8s.io/v1beta1"}}
OFF: Json = {"injection": {"enabled": False}}
TEAM = {"team": "agents", "cost-center.example/id": "7"}
POLICY: Json = {
    "enabled": True,
    "namespaces": ["agents", "more-agents"],
    "podSelector": {"matchLabels": {"tier": "agents"}},
}
# Every kind of object.
EVERYTHING: Json = {
    "sidecar": {"credentials": {"secretName": "spans"}},
    "secret": {"namespaces": ["agents", "more-agents"], "sgpApiKey": "made-up"},
    "podMonitor": {"enabled": True, "labels": {"release": "one"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "two"}},
    "dashboards": {"enabled": True},
    "networkPolicy": POLICY,
}
# Where an object has labels of its own.
OWN = ["podMonitor", "prometheusRule", "dashboards"]


def test_common_labels_are_on_every_object() -> None:
    """Every object has them, and nothing else of it changes: no selector, and no agent's pod."""
    plain = render(values=EVERYTHING)
    labelled = render(values=EVERYTHING | {"commonLabels": TEAM})
    kinds = {item["kind"] for item in plain}
    assert len(kinds) == 10, kinds
    for item in plain:
        item["metadata"]["labels"] |= TEAM
    assert labelled == plain
    (answer,) = admit(labelled, agent_pod())
    assert answer["pod"]["metadata"]["labels"] == ASKS


def test_labels_of_one_object_take_precedence() -> None:
    """An object's own label replaces the common one of the same name, on that object only."""
    found = render(values=EVERYTHING | {"commonLabels": {"release": "all"}})
    release = {item["kind"]: item["metadata"]["labels"]["release"] for item in found}
    own = {"PodMonitor": "one", "PrometheusRule": "two"}
    assert release == dict.fromkeys(release, "all") | own


SET_BY_THE_CHART = [
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "helm.sh/chart",
    "trace-sidecar/inject",
]


def test_the_list_of_the_charts_labels_is_complete() -> None:
    """What the tests below refuse is what the objects have without any value."""
    found = [set(item["metadata"]["labels"]) for item in render()]
    assert set.union(*found) == set(SET_BY_THE_CHART)


@pytest.mark.parametrize("name", SET_BY_THE_CHART)
@pytest.mark.parametrize("path", ["commonLabels", *(f"{name}.labels" for name in OWN)])
def test_a_label_of_the_charts_own_is_refused(path: str, name: str) -> None:
    """Neither commonLabels nor an object's labels can replace what the chart sets."""
    values = deepcopy(EVERYTHING)
    section, _, key = path.partition(".")
    values[section] = values.get(section, {}) | {key: {name: "x"}} if key else {name: "x"}
    assert f"abels: the chart sets the label {name} itself" in refusal(values)


def test_the_label_of_opted_out_pods_is_refused_by_any_name() -> None:
    """With another injection.podLabel, that one can't be a common label, and the default can."""
    renamed = {"injection": {"podLabel": "spans"}}
    assert "the label spans itself" in refusal(renamed | {"commonLabels": {"spans": "true"}})
    done = template(values=renamed | {"commonLabels": {"trace-sidecar/inject": "true"}})
    assert not done.returncode, done.stderr


LIBRARY_WAY = "injection.enabled=false, and add the sidecar with the library chart"
BETA_WAY = "injection.apiVersion=admissionregistration.k8s.io/v1beta1"
ENABLE_WAY = "enable that API in the API server"
UPGRADE_WAY = "upgrade to Kubernetes 1.36"
WAYS = [LIBRARY_WAY, BETA_WAY, ENABLE_WAY, UPGRADE_WAY]


@pytest.mark.parametrize(
    ("version", "values", "ways"),
    [
        ("1.36.0", {}, None),
        ("v1.36.2-gke.100", {}, None),
        ("v1.36+", {}, None),
        ("1.37.1+k3s1", {}, None),
        ("2.0.0", {}, None),
        ("1.35.9", {}, {LIBRARY_WAY, BETA_WAY}),
        ("v1.35.1-eks-1234567", {}, {LIBRARY_WAY, BETA_WAY}),
        ("v1.34+", {}, {LIBRARY_WAY, BETA_WAY}),
        ("1.33.4", {}, {LIBRARY_WAY, UPGRADE_WAY}),
        ("1.29.0", {}, {LIBRARY_WAY, UPGRADE_WAY}),
        ("1.35.0", V1BETA1, None),
        ("v1.34.1-gke.7", V1BETA1, None),
        ("1.33.9", V1BETA1, {LIBRARY_WAY, ENABLE_WAY}),
        ("1.29.0", OFF, None),
        ("v1.29.3+rke2r1", OFF | {"podMonitor": {"enabled": True}}, None),
    ],
)
def test_versions_of_kubernetes(version: str, values: Json, ways: set[str] | None) -> None:
    """What the cluster would refuse is refused before, with the version and the ways out."""
    done = template("--kube-version", version, values=values)
    assert bool(done.returncode) == (ways is not None), done.stderr
    if ways is not None:
        assert f"(Kubernetes {'v' if version[0] != 'v' else ''}{version})" in done.stderr
        assert {way for way in WAYS if way in done.stderr} == ways


@pytest.mark.parametrize("version", ["1.36.0", "1.35.0"])
@pytest.mark.parametrize("api", ["v1", "v1beta1"])
@pytest.mark.parametrize("serves", [True, False])
def test_what_a_cluster_serves_decides(version: str, api: str, serves: bool) -> None:
    """With the kinds of a cluster at hand, they count and not its version."""
    full = f"admissionregistration.k8s.io/{api}"
    kinds = ["--api-versions", "v1/Pod"]
    if serves:
        kinds += ["--api-versions", f"{full}/MutatingAdmissionPolicy"]
    values = {"injection": {"apiVersion": full}}
    done = template("--kube-version", version, *kinds, values=values)
    assert bool(done.returncode) is not serves
    assert (f"no MutatingAdmissionPolicy in {full}," in done.stderr) is not serves


def test_plain_helm_template_needs_no_version() -> None:
    """Without --kube-version, helm assumes a version that the default values need."""
    done = template()
    assert not done.returncode, done.stderr


def test_a_cluster_too_old_for_the_chart_is_refused() -> None:
    """Below 1.29, where no native sidecar is, the chart refuses to be installed at all."""
    done = template("--kube-version", "1.28.9", values=OFF)
    assert "requires kubeVersion: >=1.29.0-0" in done.stderr


@pytest.mark.parametrize(
    ("version", "mode", "works"),
    [
        ("1.29.0", "native", True),
        ("v1.29+", "native", True),
        ("v1.28.15-gke.1", "native", False),
        ("v1.28.15-gke.1", "container", True),
    ],
)
def test_a_native_sidecar_needs_a_version(
    tmp_path: Path, version: str, mode: str, works: bool
) -> None:
    """The library refuses `mode: native` on older clusters, and names the other mode."""
    pod = 'a: {{ include "trace-sidecar.container" .Subcharts.sidecar | toJson }}'
    chart = consumer(tmp_path / "agent", {"pod.yaml": pod})
    done = template("--kube-version", version, values={"sidecar": {"mode": mode}}, chart=chart)
    assert bool(done.returncode) is not works, done.stderr
    if not works:
        assert f"needs Kubernetes 1.29, and this cluster has {version}" in done.stderr
        assert "set mode: container" in done.stderr


SCRAPED = {"injection": {"scrapeAnnotations": True}}
SCRAPE = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "9318",
    "prometheus.io/path": "/metrics",
}


def annotated(annotations: Json) -> Json:
    """Return an agent's pod with annotations; None: without the field."""
    pod = agent_pod()
    if annotations is not None:
        pod["metadata"]["annotations"] = annotations
    return pod


FOREIGN = {"a.b/c": "d", "prometheus.iox/port": "1"}
ANNOTATIONS: list[tuple[Json, Json]] = [
    (None, SCRAPE),
    ({}, SCRAPE),
    (FOREIGN, FOREIGN | SCRAPE),
    ({"prometheus.io/port": "8000"}, {"prometheus.io/port": "8000"}),
    ({"prometheus.io/scrape": "false", "a": "b"}, {"prometheus.io/scrape": "false", "a": "b"}),
    ({"prometheus.io/scheme": "https"}, {"prometheus.io/scheme": "https"}),
]


@pytest.mark.parametrize(("before", "after"), ANNOTATIONS, ids=str)
def test_scrape_annotations(before: Json, after: Json) -> None:
    """A pod gets all three, or keeps its own if one of them is of prometheus.io."""
    answer = admit_one(SCRAPED, annotated(before))
    assert answer["pod"]["metadata"]["annotations"] == after
    assert sidecar_of(answer["pod"])
    assert admit_one({}, annotated(before))["pod"]["metadata"] == annotated(before)["metadata"]


def test_scrape_annotations_in_a_chart_of_ones_own(tmp_path: Path) -> None:
    """The library's template gives the same annotations, with the port of the values."""
    deployment = """
apiVersion: v1
kind: Pod
metadata:
  name: agent
  annotations:
    {{- include "trace-sidecar.podAnnotations" .Subcharts.sidecar | nindent 4 }}
"""
    chart = consumer(tmp_path / "agent", {"pod.yaml": deployment})
    assert only(render(chart=chart), "Pod")["metadata"]["annotations"] == SCRAPE
    port = {"sidecar": {"config": {"admin": {"port": 65535}}}}
    found = only(render(chart=chart, values=port), "Pod")["metadata"]["annotations"]
    assert found == SCRAPE | {"prometheus.io/port": "65535"}
    answer = admit_one(SCRAPED | port, agent_pod())
    assert answer["pod"]["metadata"]["annotations"] == found


PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}


def policies(values: Json, admin: int = 9318) -> list[Json]:
    """Return the NetworkPolicies for an admin port."""
    found = render(
        values={
            "networkPolicy": POLICY | values,
            "sidecar": {"config": {"admin": {"port": admin}}},
        }
    )
    return [item for item in found if item["kind"] == "NetworkPolicy"]


def opened(policy: Json, source: Json, protocol: str) -> set[int]:
    """Return the ports that a policy opens for `source`, which is one of its peers or nobody's."""
    ports: set[int] = set()
    for rule in policy["spec"]["ingress"]:
        if "from" in rule and source not in rule["from"]:
            continue
        for port in rule["ports"]:
            if port["protocol"] == protocol:
                ports |= set(range(port["port"], port.get("endPort", port["port"]) + 1))
    return ports


ALL_PORTS = set(range(1, 65536))


@pytest.mark.parametrize("admin", [1024, 8000, 9318, 65534, 65535])
def test_only_the_admin_port_is_closed(admin: int) -> None:
    """Peers reach every port, and everyone else every port but the sidecar's."""
    found = policies({"from": [PROMETHEUS]}, admin)
    assert [item["metadata"]["namespace"] for item in found] == POLICY["namespaces"]
    for policy in found:
        assert policy["spec"]["podSelector"] == POLICY["podSelector"]
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert opened(policy, PROMETHEUS, "TCP") == ALL_PORTS
        assert opened(policy, None, "TCP") == ALL_PORTS - {admin}
        assert opened(policy, None, "UDP") == opened(policy, None, "SCTP") == ALL_PORTS
    assert judge("validate", objects=found, version="1.29") == []


def test_beside_policies_of_ones_own() -> None:
    """With otherPortsOpen false it opens the admin port for the peers, and nothing else."""
    policy, _ = policies({"otherPortsOpen": False, "from": [PROMETHEUS]})
    assert opened(policy, PROMETHEUS, "TCP") == {9318}
    assert opened(policy, PROMETHEUS, "UDP") == set()
    assert opened(policy, None, "TCP") == set()


def test_without_peers_nobody_reaches_the_admin_port() -> None:
    """An empty list of peers is no rule: in a policy, an empty `from` would be everyone."""
    policy, _ = policies({})
    assert opened(policy, None, "TCP") == ALL_PORTS - {9318}
    assert all(rule.get("from") is None for rule in policy["spec"]["ingress"])
    assert policies({"otherPortsOpen": False})[0]["spec"].get("ingress") in ([], None)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"podSelector": {}}, "/networkPolicy/podSelector"),
        ({"namespaces": []}, "/networkPolicy/namespaces"),
        ({"namespaces": ["A"]}, "/networkPolicy/namespaces/0"),
        ({"from": [{}]}, "/networkPolicy/from/0"),
        ({"from": [{"ipBlock": {}}]}, "/from/0/ipBlock"),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.1"}}]}, "/ipBlock/cidr"),
        ({"from": [PROMETHEUS | {"ipBlock": {"cidr": "10.0.0.0/8"}}]}, "/networkPolicy/from/0"),
        ({"from": [{"namespace": "monitoring"}]}, "'namespace' not allowed"),
    ],
)
def test_policies_that_cannot_work_are_refused(values: Json, says: str) -> None:
    """A selector of no pods in particular, no namespace, and what is no peer."""
    assert says in refusal({"networkPolicy": POLICY | values})


def test_the_policy_in_the_docs() -> None:
    """The values in docs/deploy.md let the namespace of Prometheus in, and nobody else."""
    text = section(ROOT / "docs/deploy.md", "Restrict the admin port")
    (values,) = documents(blocks(text)[0])
    (policy,) = (item for item in render(values=values) if item["kind"] == "NetworkPolicy")
    assert opened(policy, PROMETHEUS, "TCP") == ALL_PORTS
    assert opened(policy, None, "TCP") == ALL_PORTS - {9318}


IMAGE = {"image": {"repository": "registry.example/trace-sidecar", "tag": "7"}}
CERTIFICATES = {"agentex": {"ca": {"secretName": "ca"}, "client": {"secretName": "client"}}}


def test_the_pod_of_helm_test() -> None:
    """It has the sidecar of an injected pod, whatever the mode, and a check beside it."""
    for mode in ("native", "container"):
        own = {"mode": mode, "spool": {"enabled": True}, "certificates": CERTIFICATES}
        values = {"sidecar": IMAGE | own, "injection": {"imagePullSecrets": ["r"]}}
        pod = only(render(values=values), "Pod")
        native = values | {"sidecar": IMAGE | own | {"mode": "native"}}
        injected = admit_one(native, agent_pod())["pod"]["spec"]
        spec = pod["spec"]
        assert spec["initContainers"] == injected["initContainers"]
        assert spec["volumes"] == injected["volumes"]
        assert spec["imagePullSecrets"] == injected["imagePullSecrets"]
        ((check,), (started,)) = (spec["containers"], spec["initContainers"])
        for field in ("image", "env", "resources", "securityContext", "volumeMounts"):
            assert check[field] == started[field], field
        assert spec["restartPolicy"] == "Never"
        hook = pod["metadata"]["annotations"]
        assert hook["helm.sh/hook"] == "test"
        assert "hook-succeeded" in hook["helm.sh/hook-delete-policy"]
        assert admit_one(values, pod)["pod"] == pod, "it is not injected itself"


PROBED = ["check", "--probe"]
STARTED = ["top", "--once", "--url", "http://127.0.0.1:9318"]


@pytest.mark.parametrize(
    ("of_sidecar", "arguments"),
    [
        ({}, STARTED),
        ({"config": {"agentex": {"base_url": "http://agentex"}}}, PROBED),
        ({"config": {"sgp": {"relay": True}}}, PROBED),
        ({"config": {"otlp": {"endpoint": "https://collector"}}}, PROBED),
        ({"credentials": {"secretName": "s"}}, PROBED),
        ({"env": [{"name": "AGENTEX_BASE_URL", "value": "http://agentex"}]}, PROBED),
        # Not enough for an upstream.
        ({"config": {"agentex": {"base_url": ""}}}, STARTED),
        ({"config": {"sgp": {"account_id": "7"}}}, STARTED),
        ({"env": [{"name": "HTTPS_PROXY", "value": "http://proxy:1"}]}, STARTED),
    ],
)
def test_helm_test_probes_the_upstreams_of_the_values(
    of_sidecar: Json, arguments: list[str]
) -> None:
    """Upstreams that the values enable are tried out, unless test.probe is false."""
    for probe in (True, False):
        found = render(values={"sidecar": of_sidecar, "test": {"probe": probe}})
        (check,) = only(found, "Pod")["spec"]["containers"]
        assert check["args"] == (arguments if probe else STARTED)


def test_helm_test_asks_the_port_of_the_values() -> None:
    """Another admin port is the one that it looks at."""
    found = render(values=nested("sidecar.config.admin.port", 19318))
    (check,) = only(found, "Pod")["spec"]["containers"]
    assert check["args"][-1] == "http://127.0.0.1:19318"


def test_helm_test_is_where_the_values_say() -> None:
    """Its namespace is test.namespace, else the release's; a long name is cut before -test."""
    assert only(render(), "Pod")["metadata"]["namespace"] == "obs"
    values = {"test": {"namespace": "agents"}, "fullnameOverride": "a" * 63}
    metadata = only(render(values=values), "Pod")["metadata"]
    assert (metadata["namespace"], metadata["name"]) == ("agents", "a" * 58 + "-test")


def chart_of(folder: Path) -> Json:
    """Return a chart's metadata."""
    (found,) = documents((folder / "Chart.yaml").read_text())
    return found


both = pytest.mark.parametrize("folder", [CHART, LIBRARY], ids=lambda path: path.name)


@both
def test_lint_has_no_message(folder: Path) -> None:
    """`helm lint --strict` prints nothing about a chart, not even a recommendation."""
    done = helm("lint", "--strict", folder)
    assert not done.returncode, done.stdout
    assert re.findall(r"\[\w+\].*", done.stdout) == []


@both
def test_the_charts_say_whose_they_are(folder: Path) -> None:
    """Home, sources, maintainers, license and links are those of the Python package."""
    chart = chart_of(folder)
    project = (ROOT / "pyproject.toml").read_text()
    (repository,) = re.findall(r'^Source = "(.+)"$', project, re.MULTILINE)
    assert (chart["home"], chart["sources"]) == (repository, [repository])
    (maintainer,) = chart["maintainers"]
    assert f'authors = [{{ name = "{maintainer["name"]}" }}]' in project
    notes = chart["annotations"]
    assert f'license = "{notes["artifacthub.io/license"]}"' in project
    (links,) = documents(notes["artifacthub.io/links"])
    for link in [links] if isinstance(links, dict) else links:
        assert f'{link["name"]} = "{link["url"]}"' in project
    assert chart["appVersion"] == sidecar.__version__


@both
def test_the_icon_is_a_picture_in_the_chart(folder: Path) -> None:
    """The icon is an SVG image without references, so no host has to serve it."""
    kind, _, encoded = chart_of(folder)["icon"].partition(";base64,")
    assert kind == "data:image/svg+xml"
    picture = base64.b64decode(encoded, validate=True)
    tags: list[tuple[str, dict[str, str]]] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: tags.append((name, attributes))
    parser.Parse(picture, True)
    assert tags[0][0] == "svg"
    values = [value for _, attributes in tags for value in attributes.values()]
    assert [value for value in values if "//" in value] == ["http://www.w3.org/2000/svg"]
