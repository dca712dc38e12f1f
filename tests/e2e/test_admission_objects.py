"""The chart's objects on a real API server: what it stores, admits and runs for `helm test`."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.e2e.kube_support import Cluster, Json, poll
from tests.e2e.release_support import Release, agent, agents_cluster, sidecars, stripped
from tests.support.helm import ASKS, CHART, Done, documents, helm

TEAM = {"team": "agents"}
SCRAPED: Json = {"injection": {"scrapeAnnotations": True}}
SCRAPE = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": "9318",
    "prometheus.io/path": "/metrics",
}
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
MONITORING = "/apis/monitoring.coreos.com/v1/namespaces/tracing"
POLICY: Json = {
    "enabled": True,
    "namespaces": ["agents", "restricted"],
    "podSelector": {"matchExpressions": [{"key": "tier", "operator": "Exists"}]},
    "from": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}},
            "podSelector": {"matchLabels": {"app": "prometheus"}},
        },
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        {"ipBlock": {"cidr": "fd00::/8"}},
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(scope="module")
def release(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(server, tmp_path_factory.mktemp("release"))


def test_common_labels_are_stored(release: Release, server: Cluster) -> None:
    """Every kind of object is found by a common label, also after an upgrade that adds it."""
    values: Json = {
        "sidecar": {"credentials": {"secretName": "spans"}},
        "secret": {"namespaces": ["agents"], "sgpApiKey": "k"},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
        "networkPolicy": POLICY,
    }
    places = {
        f"{ADMISSION}/mutatingadmissionpolicies": 1,
        f"{ADMISSION}/mutatingadmissionpolicybindings": 1,
        f"{ADMISSION}/validatingadmissionpolicies": 1,
        f"{ADMISSION}/validatingadmissionpolicybindings": 1,
        "/api/v1/secrets": 1,
        "/api/v1/configmaps": 1,
        f"{MONITORING}/podmonitors": 1,
        f"{MONITORING}/prometheusrules": 1,
        "/apis/networking.k8s.io/v1/networkpolicies": 2,
    }
    release.install(values)
    for path in places:
        answer = server.request("GET", path, labelSelector="team=agents")
        assert answer.body["items"] == [], path
    release.install(values | {"commonLabels": TEAM})
    for path, number in places.items():
        answer = server.request("GET", path, labelSelector="team=agents")
        assert len(answer.body["items"]) == number, path


@pytest.mark.parametrize("api", ["v1", "v1beta1"])
def test_a_cluster_that_serves_the_policies_takes_them(release: Release, api: str) -> None:
    """A real API server with the kinds is not refused, whichever version is asked for."""
    values = {"injection": {"apiVersion": f"admissionregistration.k8s.io/{api}"}}
    options = ("--namespace", "elsewhere", "--dry-run=server", "--values", "-")
    shown = release.helm("install", "other", CHART, *options, values=values)
    assert f"apiVersion: admissionregistration.k8s.io/{api}\nkind: MutatingAdmissionPolicy" in shown


def annotated(annotations: Json | None) -> Json:
    """Return an agent's pod with annotations; None: without the field."""
    pod = agent()
    if annotations is not None:
        pod["metadata"]["annotations"] = annotations
    return pod


def test_scrape_annotations(release: Release) -> None:
    """A pod gets all three beside foreign ones, or keeps its own of prometheus.io."""
    release.install(SCRAPED)
    foreign = {"a.b/c": 'd "e"', "prometheus.iox/port": "1"}
    table: list[tuple[Json | None, Json]] = [
        (None, SCRAPE),
        ({}, SCRAPE),
        (foreign, foreign | SCRAPE),
        *(({name: "x"}, {name: "x"}) for name in (*SCRAPE, "prometheus.io/scheme")),
    ]
    for before, after in table:
        pod = release.pod(annotated(before))
        assert pod["metadata"]["annotations"] == after, before
        assert len(sidecars(pod)) == 1
    assert "annotations" not in release.pod(annotated(None), "elsewhere")["metadata"]
    generated = {"metadata": {"generateName": "a-", "labels": ASKS}, "spec": agent()["spec"]}
    assert release.pod(generated)["metadata"]["annotations"] == SCRAPE


def test_scrape_annotations_beside_every_other_change(release: Release) -> None:
    """The annotations come with whatever else the policy does to a pod."""
    release.install(
        {
            "injection": {
                "scrapeAnnotations": True,
                "setSgpClientBaseUrl": True,
                "minGracePeriodSeconds": 45,
            },
            "sidecar": {"config": {"admin": {"port": 65535}}, "mode": "container"},
        }
    )
    pod = release.pod(annotated(None))
    assert pod["metadata"]["annotations"] == SCRAPE | {"prometheus.io/port": "65535"}
    assert pod["spec"]["terminationGracePeriodSeconds"] == 45
    assert len(sidecars(pod)) == 1


@pytest.mark.parametrize("admin", [1024, 9318, 65535])
def test_network_policies_are_stored_as_written(
    release: Release, server: Cluster, admin: int
) -> None:
    """The server takes a policy in each namespace as it is, also at the edges of the ports."""
    values = {"networkPolicy": POLICY, "sidecar": {"config": {"admin": {"port": admin}}}}
    release.install(values)
    text = release.helm("get", "manifest", "ts", "--namespace", "tracing")
    written = [item for item in documents(text) if item["kind"] == "NetworkPolicy"]
    assert [item["metadata"]["namespace"] for item in written] == POLICY["namespaces"]
    for item in written:
        path = f"/apis/networking.k8s.io/v1/namespaces/{item['metadata']['namespace']}"
        stored = server.get(f"{path}/networkpolicies/{item['metadata']['name']}")
        assert stored["spec"] == item["spec"]
    release.install({})
    assert server.get("/apis/networking.k8s.io/v1/networkpolicies")["items"] == []


FULL: Json = {
    "spool": {"enabled": True},
    "certificates": {"agentex": {"ca": {"configMapName": "ca"}}},
    "config": {"agentex": {"base_url": "https://agentex.internal"}},
    "credentials": {"secretName": "spans"},
}


@pytest.mark.parametrize("namespace", ["", "agents", "restricted"])
@pytest.mark.parametrize(
    "sidecar", [{}, FULL, {"mode": "container"}], ids=["defaults", "full", "container"]
)
def test_the_pod_of_helm_test_is_admitted(
    release: Release, server: Cluster, namespace: str, sidecar: Json
) -> None:
    """It is admitted without a warning, where agents are injected, too, and is not changed."""
    release.install({"test": {"namespace": namespace}, "sidecar": sidecar})
    (pod,) = documents(release.helm("get", "hooks", "ts", "--namespace", "tracing"))
    assert pod["metadata"]["namespace"] == (namespace or "tracing")
    answer = server.create_any(pod, "tracing", dryRun="All")
    assert (answer.status, answer.warnings) == (201, [])
    stored = stripped(answer.body)
    assert stored["metadata"]["annotations"] == pod["metadata"]["annotations"]
    names = [
        [container["name"] for container in stored["spec"][kind]]
        for kind in ("initContainers", "containers")
    ]
    assert names == [["trace-sidecar"], ["check"]]


@contextmanager
def helm_test(release: Release) -> Iterator[Future[Done]]:
    """Run `helm test` in the background; it has ended at the end."""
    options = ("--namespace", "tracing", "--timeout", "5m")
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(helm, "test", "ts", *options, "--kubeconfig", release.server.kubeconfig)


def new_pod(server: Cluster, path: str, before: str = "") -> Json:
    """Return the pod at `path` once there is one, other than that with the uid `before`."""

    def look() -> Json | None:
        answer = server.request("GET", path)
        created = answer.status == 200 and answer.body["metadata"]["uid"] != before
        return answer.body if created else None

    return poll("helm creates the pod", look)


def finish(server: Cluster, path: str, phase: str) -> None:
    """Report the end of a pod, as the kubelet would."""
    assert server.patch(f"{path}/status", {"status": {"phase": phase}}).status == 200


def test_helm_test_runs_that_pod(release: Release, server: Cluster) -> None:
    """`helm test` creates it in test.namespace, and deletes it after it has succeeded."""
    release.install({"test": {"namespace": "restricted"}})
    path = "/api/v1/namespaces/restricted/pods/ts-trace-sidecar-test"
    with helm_test(release) as ended:
        new_pod(server, path)
        finish(server, path, "Succeeded")
        done = ended.result()
    assert not done.returncode, done.stdout + done.stderr
    assert server.request("GET", path).status == 404


def test_a_failed_pod_of_helm_test_stays(release: Release, server: Cluster) -> None:
    """After a failure helm fails, and the pod stays until the next run replaces it."""
    release.install({"test": {"namespace": "agents"}})
    path = "/api/v1/namespaces/agents/pods/ts-trace-sidecar-test"
    with helm_test(release) as ended:
        first = new_pod(server, path)["metadata"]["uid"]
        finish(server, path, "Failed")
        assert ended.result().returncode
    assert server.get(path)["metadata"]["uid"] == first
    with helm_test(release) as ended:
        new_pod(server, path, first)
        finish(server, path, "Succeeded")
        done = ended.result()
    assert not done.returncode, done.stdout + done.stderr
