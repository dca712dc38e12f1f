"""The injection policy, evaluated without a cluster: what it changes in pods and what it keeps."""

from pathlib import Path

import pytest

from tests.support.helm import (
    ASKS,
    RELAYED,
    Json,
    admit,
    agent_pod,
    consumer,
    only,
    render,
    sidecar_of,
)
from tests.support.helm import (
    admit_one as one,
)

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: agent}
spec:
  initContainers:
    {{- include "trace-sidecar.initContainers" .Subcharts.sidecar | nindent 4 }}
  containers:
    {{- include "trace-sidecar.containers" .Subcharts.sidecar | nindent 4 }}
  volumes:
    {{- include "trace-sidecar.volumes" .Subcharts.sidecar | nindent 4 }}
"""

FULL = {
    "config": {"sgp": {"relay": True, "linger_s": 0.25}, "agentex": {"max_concurrency": 1000000}},
    "spool": {"enabled": True},
    "credentials": {"secretName": "sgp"},
    "otlpHeaders": {"secretName": "otlp", "key": "0x1"},
    "certificates": {
        "agentex": {"ca": {"configMapName": "ca"}, "client": {"secretName": "client"}},
        "sgp": {"ca": {"secretName": "1e3", "key": "0x1"}},
    },
    "env": [
        {"name": "QUOTED", "value": 'a "quoted" \\ {path: x}, {{ no }} template, 5 < 6 & é 💡'},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ],
    "resources": {"limits": {"cpu": "2"}},
    "securityContext": {"runAsUser": None},
    "probes": {"readiness": {"enabled": True}},
}


@pytest.mark.parametrize("values", [{}, FULL], ids=["default", "full"])
@pytest.mark.parametrize("mode", ["native", "container"])
def test_one_container_definition(values: Json, mode: str, tmp_path: Path) -> None:
    """The policy injects, field for field, what the library's templates render."""
    both = {"sidecar": {**values, "mode": mode}}
    included = only(
        render(values=both, chart=consumer(tmp_path / "agent", {"pod.yaml": POD})), "Pod"
    )
    injected = one(both, agent_pod())["pod"]
    where = "initContainers" if mode == "native" else "containers"
    assert injected["spec"][where][-1] == included["spec"][where][0]
    assert injected["spec"].get("volumes") == included["spec"]["volumes"]
    assert ("restartPolicy" in sidecar_of(injected)) == (mode == "native")


def test_it_goes_behind_what_is_there() -> None:
    """A pod's own init containers and volumes are unchanged and come first."""
    pod = agent_pod(
        initContainers=[{"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"}],
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    spec = one({"sidecar": {"spool": {"enabled": True}}}, pod)["pod"]["spec"]
    assert [item["name"] for item in spec["initContainers"]] == ["mesh", "trace-sidecar"]
    assert spec["initContainers"][0] == pod["spec"]["initContainers"][0]
    assert [item["name"] for item in spec["volumes"]] == ["data", "trace-sidecar"]
    assert spec["containers"] == pod["spec"]["containers"]


@pytest.mark.parametrize("mode", ["native", "container"])
def test_injecting_twice_is_injecting_once(mode: str) -> None:
    """The policy does not change a pod a second time."""
    values = {
        "sidecar": {"mode": mode, "spool": {"enabled": True}, **RELAYED},
        "injection": {"setSgpClientBaseUrl": True, "minGracePeriodSeconds": 60},
    }
    env = [{"name": "AGENT_NAME", "value": "a"}]
    pod = agent_pod(containers=[{"name": "agent", "image": "agent:1", "env": env}])
    once = one(values, pod)["pod"]
    assert one(values, once) == {"pod": once, "warnings": []}


@pytest.mark.parametrize(
    ("pod", "namespace"),
    [
        (agent_pod(), {}),
        (agent_pod(), {"trace-sidecar/injection": "disabled"}),
        (agent_pod({"trace-sidecar/inject": "false"}), None),
        (agent_pod({}, hostNetwork=True), None),
        (agent_pod({}, os={"name": "windows"}), None),
    ],
    ids=["no label", "other label", "opted out", "host network", "windows"],
)
def test_other_pods_are_left_alone(pod: Json, namespace: Json) -> None:
    """Pods that did not opt in, opted out or can't have the sidecar are unchanged, unwarned."""
    assert one({}, pod, namespace) == {"pod": pod, "warnings": []}


def test_the_selector_narrows() -> None:
    """With a pod selector, only matching pods are injected, except those that opted out."""
    values = {"injection": {"podSelector": {"matchLabels": {"app": "agent"}}}}
    pods = [
        agent_pod({"app": "agent", **ASKS}),
        agent_pod({"app": "other", **ASKS}),
        agent_pod({"app": "agent", "trace-sidecar/inject": "false"}),
    ]
    answers = admit(render(values=values), *pods)
    assert ["initContainers" in answer["pod"]["spec"] for answer in answers] == [True, False, False]


@pytest.mark.parametrize(
    "name", ["trace-sidecar", "trace-sidecar-certificates", "trace-sidecar-headers"]
)
def test_a_pod_that_can_not_take_it_is_let_through_with_a_warning(name: str) -> None:
    """A pod with a volume of the same name is admitted without the sidecar, with a warning."""
    pod = agent_pod(volumes=[{"name": name, "emptyDir": {}}])
    answer = one({"sidecar": FULL}, pod)
    assert answer["pod"] == pod
    (warning,) = answer["warnings"]
    assert "trace-sidecar" in warning


def test_a_missing_sidecar_is_warned_about() -> None:
    """If the mutating policy had no effect, the validating one warns."""
    found = [item for item in render() if not item["kind"].startswith("MutatingAdmissionPolicy")]
    (answer,) = admit(found, agent_pod())
    assert len(answer["warnings"]) == 1
    binding = only(found, "ValidatingAdmissionPolicyBinding")
    assert binding["spec"]["validationActions"] == ["Warn", "Audit"]


def test_secrets_to_pull_the_image_with_are_added() -> None:
    """Pull secrets are added after the pod's own, without duplicates, also if it has none."""
    values = {"injection": {"imagePullSecrets": ["mine", "registry"]}}
    pods = [agent_pod(imagePullSecrets=[{"name": "own"}, {"name": "mine"}]), agent_pod()]
    before, bare = (answer["pod"]["spec"] for answer in admit(render(values=values), *pods))
    names = [secret["name"] for secret in before["imagePullSecrets"]]
    assert names == ["own", "mine", "registry"]
    assert bare["imagePullSecrets"] == [{"name": "mine"}, {"name": "registry"}]
    assert "imagePullSecrets" not in one({}, agent_pod())["pod"]["spec"]


@pytest.mark.parametrize(("before", "after"), [(30, 60), (60, 60), (300, 300), (None, 60)])
def test_the_grace_period_is_raised_never_lowered(before: int | None, after: int) -> None:
    """A pod gets at least the configured grace period, and never less than its own."""
    pod = agent_pod(terminationGracePeriodSeconds=before)
    if before is None:
        del pod["spec"]["terminationGracePeriodSeconds"]
    spec = one({"injection": {"minGracePeriodSeconds": 60}}, pod)["pod"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == after
    if before is not None:
        assert one({}, pod)["pod"]["spec"]["terminationGracePeriodSeconds"] == before


def test_older_clusters_get_the_beta_api() -> None:
    """The mutating objects get the beta version; the validating ones are stable there."""
    version = "admissionregistration.k8s.io/v1beta1"
    found = render(values={"injection": {"apiVersion": version}})
    of = {item["kind"]: item["apiVersion"] for item in found}
    assert of["MutatingAdmissionPolicy"] == of["MutatingAdmissionPolicyBinding"] == version
    assert of["ValidatingAdmissionPolicy"] == "admissionregistration.k8s.io/v1"


def test_charts_of_ones_own_can_take_the_parts(tmp_path: Path) -> None:
    """The library also renders the agent's environment and the bare container on their own."""
    includes = [
        f'{{{{ include "trace-sidecar.{name}" .Subcharts.sidecar }}}}\n'
        for name in ("environment", "container")
    ]
    listing = "apiVersion: v1\nkind: List\nmetadata: {name: x}\nitems:\n" + "".join(includes)
    chart = consumer(tmp_path / "agent", {"list.yaml": listing})
    values = {"config": {"listener": {"port": 4000}}, "agent": {"noProxy": ".svc,$(X)"}}
    (found,) = render(values={"sidecar": values}, chart=chart)
    *environment, container = found["items"]
    assert environment == [
        {"name": "SGP_CLIENT_BASE_URL", "value": "http://127.0.0.1:4000"},
        {"name": "NO_PROXY", "value": "127.0.0.1,localhost,::1,.svc,$(X)"},
        {"name": "TRACE_SIDECAR_URL", "value": "http://127.0.0.1:4000"},
    ]
    assert container["name"] == "trace-sidecar"
