"""The chart on a real API server: how its admission policies change agents' pods."""

from collections.abc import Iterator
from copy import deepcopy

import pytest

from tests.e2e.kube_support import Answer, Cluster, Json, poll
from tests.e2e.release_support import (
    CONTAINER,
    SIDECAR,
    Release,
    agent,
    agents_cluster,
    sidecars,
    stripped,
)
from tests.support.helm import OPTED_IN

URL = "http://127.0.0.1:8318"
SGP = "SGP_CLIENT_BASE_URL"
OPTED_OUT = {"trace-sidecar/inject": "false"}
NO_PROXY = "NO_PROXY"
LOOPBACK = "127.0.0.1,localhost,::1"
GRACE_S = 45
# Every value that changes a pod, with text that is awkward to quote in CEL, JSON and YAML.
EVERYTHING: Json = {
    "injection": {
        "setSgpClientBaseUrl": True,
        "minGracePeriodSeconds": GRACE_S,
        "imagePullSecrets": ["registry"],
    },
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
    "secret": {"namespaces": ["agents"], "sgpApiKey": "k"},
    "sidecar": {
        "spool": {"enabled": True, "maxBytes": "64MiB"},
        "deadLetters": {"enabled": True},
        "credentials": {"secretName": "trace-sidecar"},
        "certificates": {
            "agentex": {"ca": {"configMapName": "ca"}, "client": {"secretName": "client"}},
            "sgp": {"ca": {"secretName": "ca", "key": ".a_B-9"}},
        },
        "config": {
            "sgp": {"relay": True},
            "queue": {"start_hold_s": 0.5},
            # setSgpClientBaseUrl enables it; a chart with the library sets it itself.
            "listener": {"pass_through": True},
        },
        "env": [
            {"name": "AWKWARD", "value": "a \"b\" 'c' \\ <d> & {e} $(f) %g\n\th  i é\u2028"},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
        ],
        "probes": {"readiness": {"enabled": True}},
    },
}
PLAIN_CONTAINER = EVERYTHING | {"sidecar": EVERYTHING["sidecar"] | {"mode": "container"}}

MOUNTED: Json = CONTAINER | {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
# Shapes of agents' pods: from a single container to everything that the policy has to handle.
SHAPES: dict[str, Json] = {
    "bare": {},
    "init containers": {
        "initContainers": [
            {"name": "migrate", "image": "agent:1", "command": ["migrate"]},
            {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
        ]
    },
    "volumes": {"containers": [MOUNTED], "volumes": [{"name": "scratch", "emptyDir": {}}]},
    "environment": {"containers": [CONTAINER | {"env": [{"name": "A", "value": "1"}]}]},
    "a job of two containers": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 90,
        "initContainers": [{"name": "migrate", "image": "agent:1"}],
        "containers": [
            CONTAINER,
            MOUNTED | {"name": "worker", "env": [{"name": "B", "value": "2"}]},
        ],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as running:
        yield running


@pytest.fixture(scope="module")
def release(server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return Release(server, tmp_path_factory.mktemp("release"))


def test_pods_out_of_reach(release: Release) -> None:
    """Pods out of reach are stored byte for byte as without the chart."""
    pods: list[tuple[str, Json]] = [
        *(("elsewhere", agent(**shape)) for shape in SHAPES.values()),
        *(("agents", agent(labels=OPTED_OUT, **shape)) for shape in SHAPES.values()),
        ("agents", agent(labels={}, hostNetwork=True)),
        ("agents", agent(labels={}, os={"name": "windows"})),
    ]

    def admitted() -> list[Json]:
        answers = [release.admit(pod, namespace) for namespace, pod in pods]
        assert {(answer.status, *answer.warnings) for answer in answers} == {(201,)}
        return [stripped(answer.body) for answer in answers]

    before = admitted()
    release.install(EVERYTHING)
    assert admitted() == before
    release.uninstall()
    assert admitted() == before


def written(values: Json) -> list[tuple[str, str]]:
    """Return the literal variables that `values` add to the sidecar."""
    entries = values.get("sidecar", {}).get("env", [])
    return [(entry["name"], entry["value"]) for entry in entries if "value" in entry]


def with_sidecar(spec: Json, library: Json, values: Json) -> Json:
    """Return a pod's spec with `library`'s containers and volumes and the effects of `values`."""
    spec = deepcopy(spec)
    wants = values.get("injection", {})
    if wants.get("setSgpClientBaseUrl"):
        for container in spec["containers"]:
            added = [{"name": SGP, "value": URL}, {"name": NO_PROXY, "value": LOOPBACK}]
            container["env"] = container.get("env", []) + added
    grace = max(spec["terminationGracePeriodSeconds"], wants.get("minGracePeriodSeconds", 0))
    spec["terminationGracePeriodSeconds"] = grace
    for name in wants.get("imagePullSecrets", []):
        spec.setdefault("imagePullSecrets", []).append({"name": name})
    for key in ("initContainers", "containers", "volumes"):
        added = [item for item in library.get(key, []) if item["name"].startswith(SIDECAR)]
        if added:
            spec[key] = spec.get(key, []) + added
    return spec


@pytest.mark.parametrize(
    "values", [{}, EVERYTHING, PLAIN_CONTAINER], ids=["defaults", "everything", "container"]
)
def test_injection(release: Release, values: Json) -> None:
    """Every shape of pod gets what the library chart renders, and is otherwise unchanged."""
    release.install(values)
    library = release.library_pod()["spec"]
    (container,) = sidecars({"spec": library})
    for name, value in written(values):
        assert {"name": name, "value": value} in container["env"]
    ordinary = values.get("sidecar", {}).get("mode") == "container"
    for name, shape in SHAPES.items():
        if ordinary and "restartPolicy" in shape:
            continue  # it would never complete
        answer = release.admit(agent(**shape))
        assert (answer.status, answer.warnings) == (201, []), name
        plain = release.pod(agent(**shape), "elsewhere")["spec"]
        assert answer.body["spec"] == with_sidecar(plain, library, values), name


def test_injection_happens_once(release: Release) -> None:
    """A pod that has the sidecar is not changed, wherever the sidecar is and came from."""
    release.install(EVERYTHING)
    twice = release.pod(agent())
    for pod in (twice, release.library_pod()):
        again = {"metadata": {"name": "agent"}, "spec": pod["spec"]}
        assert release.pod(again)["spec"] == release.pod(again, "elsewhere")["spec"]
    own = agent(containers=[CONTAINER, {"name": SIDECAR, "image": "own:1"}])
    assert release.pod(own)["spec"] == release.pod(own, "elsewhere")["spec"]


def mutating_policy(name: str, expression: str) -> tuple[Json, Json]:
    """Return another policy for all pods, with its binding; it is reinvoked after changes."""
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    spec = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "IfNeeded",
        "matchConstraints": {"resourceRules": [rule]},
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    }
    metadata = {"name": name}
    return {"metadata": metadata, "spec": spec}, {
        "metadata": metadata,
        "spec": {"policyName": name},
    }


@pytest.mark.parametrize("name", ["a-first", "z-last"])
def test_beside_other_policies(release: Release, server: Cluster, name: str) -> None:
    """With another policy that adds a container on every run, there is still one sidecar."""
    release.install(EVERYTHING)
    added = 'JSONPatch{op: "add", path: "/spec/containers/-", value: Object.spec.containers{'
    added += 'name: "extra" + string(object.spec.containers.size()), image: "extra:1"}}'
    api = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolic"
    policy, binding = mutating_policy(name, f"[{added}]")
    for kind, body in (("ies", policy), ("ybindings", binding)):
        assert server.create(api + kind, body).status == 201

    def both() -> Json | None:
        pod = release.pod(agent())
        return pod if len(pod["spec"]["containers"]) > 1 else None

    try:
        pod = poll("the other policy acts", both)
    finally:
        for kind in ("ybindings", "ies"):
            assert server.request("DELETE", f"{api}{kind}/{name}").status == 200
    poll("the other policy is gone", lambda: both() is None or None)
    assert len(sidecars(pod)) == 1
    (first, *_) = pod["spec"]["containers"]
    assert first["env"] == [{"name": SGP, "value": URL}, {"name": NO_PROXY, "value": LOOPBACK}]


def test_restricted_namespaces(release: Release) -> None:
    """A pod that the restricted Pod Security Standard admits is still admitted with the sidecar."""
    release.install(EVERYTHING)
    context = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert release.admit(agent(), "restricted").status == 403
    pod = agent(containers=[CONTAINER | {"securityContext": context}])
    assert len(sidecars(release.pod(pod, "restricted"))) == 1


@pytest.mark.parametrize(
    "spec",
    [
        {"volumes": [{"name": SIDECAR, "emptyDir": {}}]},
        {"volumes": [{"name": f"{SIDECAR}-certificates", "emptyDir": {}}]},
        {"resources": {"requests": {"memory": "64Mi"}}},
    ],
    ids=["volume", "other volume", "resources"],
)
def test_pods_that_would_become_invalid(release: Release, spec: Json) -> None:
    """A pod that the sidecar would make invalid is admitted without it, with a warning."""
    release.install(EVERYTHING)

    def warned() -> Answer | None:
        answer = release.admit(agent(**spec))
        return answer if answer.warnings else None

    answer = poll("the audit policy acts", warned)
    assert answer.body["spec"] == release.pod(agent(**spec), "elsewhere")["spec"]
    (warning,) = answer.warnings
    assert "should have the container trace-sidecar" in warning


def test_a_missing_sidecar_is_warned_about(release: Release, server: Cluster) -> None:
    """Without injection, creating an agent's pod gives a warning; pods out of reach get none."""
    release.install({})
    assert release.admit(agent()).warnings == []
    api = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings"
    assert server.request("DELETE", f"{api}/ts-trace-sidecar").status == 200

    def warned() -> list[str] | None:
        answer = release.admit(agent())
        return None if sidecars(answer.body) else answer.warnings

    (warning,) = poll("the policy is gone", warned)
    assert "should have the container trace-sidecar" in warning
    assert release.admit(agent(labels=OPTED_OUT)).warnings == []
    assert release.admit(agent(), "elsewhere").warnings == []
    release.install({})
    assert release.admit(agent()).warnings == []


def test_pods_that_were_there_before(release: Release, server: Cluster) -> None:
    """Opting in does not affect existing pods: they can be updated, and get no sidecar."""
    release.install(EVERYTHING)
    server.add_namespace("late")
    pods = "/api/v1/namespaces/late/pods"
    stored = server.create(pods, agent()).body
    patch = {"metadata": {"labels": OPTED_IN}}
    assert server.patch("/api/v1/namespaces/late", patch).status == 200

    def canary() -> list[Json] | None:
        return sidecars(release.pod(agent() | {"metadata": {"generateName": "a-"}}, "late")) or None

    poll("the namespace is opted in", canary)
    changed = server.patch(f"{pods}/agent", {"metadata": {"labels": {"a": "b"}}})
    assert (changed.status, changed.warnings) == (200, [])
    assert changed.body["spec"] == stored["spec"]
