"""Which kinds of pods get the sidecar, on a real API server; none of them is made invalid."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.e2e.kube_support import Cluster, Json, poll
from tests.e2e.release_support import CONTAINER, Release, agent, agents_cluster, sidecars, stripped
from tests.support.helm import ASKS

OPTED_OUT = {"trace-sidecar/inject": "false"}
AGENTEX: list[Json] = [{"name": "AGENTEX_BASE_URL", "value": "http://agentex:5003"}]
SECRET = {"secretKeyRef": {"name": "sgp", "key": "key"}}
SGP: list[Json] = [
    {"name": "SGP_API_KEY", "valueFrom": SECRET},
    {"name": "SGP_ACCOUNT_ID", "value": "account"},
]
FROM = [{"configMapRef": {"name": "agent"}}, {"prefix": "SGP_", "secretRef": {"name": "sgp"}}]
POSTGRES = {
    "name": "postgres",
    "image": "postgres:17",
    "env": [{"name": "POSTGRES_PASSWORD", "valueFrom": SECRET}],
    "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
}
DATA = {"name": "data", "emptyDir": {}}
OS = "kubernetes.io/os"
REDIRECTED = {"name": "SGP_CLIENT_BASE_URL", "value": "http://127.0.0.1:8318"}
LEFT_ALONE = "neither the chart's values nor its own variables name an upstream"
MISSING = "should have the container trace-sidecar but does not"
NO_PLACE = "can't have the container trace-sidecar"


def with_env(env: list[Json], **fields: object) -> Json:
    """Return the agent's container with these variables."""
    return CONTAINER | {"env": env} | fields


def on(operator: str, system: str) -> Json:
    """Return an affinity to nodes with, or without, an operating system."""
    term = {"matchExpressions": [{"key": OS, "operator": operator, "values": [system]}]}
    required = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


class Kind(NamedTuple):
    """A kind of pod: whether it gets the sidecar, and the warning about it if it does not."""

    pod: Json
    injected: bool
    warning: str = ""


TRACING = with_env(AGENTEX)
KINDS = {
    "a database": Kind(agent(labels={}, containers=[POSTGRES], volumes=[DATA]), False, LEFT_ALONE),
    "an agent with Agentex": Kind(agent(labels={}, containers=[TRACING]), True),
    "an agent with SGP": Kind(agent(labels={}, containers=[with_env(SGP)]), True),
    "an agent with envFrom": Kind(
        agent(labels={}, containers=[CONTAINER | {"envFrom": FROM[:1]}]), True
    ),
    "an envFrom with another prefix": Kind(
        agent(
            labels={},
            containers=[CONTAINER | {"envFrom": [{"prefix": "APP_", "secretRef": {"name": "s"}}]}],
        ),
        False,
        LEFT_ALONE,
    ),
    # The later one wins, so one variable comes after another one of its name.
    "an agent with two sources": Kind(
        agent(labels={}, containers=[CONTAINER | {"envFrom": FROM}]), True, "hides previous"
    ),
    "an agent with neither": Kind(agent(labels={}), False, LEFT_ALONE),
    "a key without an account": Kind(
        agent(labels={}, containers=[with_env(SGP[:1])]), False, LEFT_ALONE
    ),
    "an empty variable": Kind(
        agent(labels={}, containers=[with_env([{"name": "AGENTEX_BASE_URL", "value": " "}])]),
        False,
        LEFT_ALONE,
    ),
    "a variable that refers to others": Kind(
        agent(
            labels={},
            containers=[with_env([{"name": "AGENTEX_BASE_URL", "value": "http://$(HOST)"}])],
        ),
        False,
        LEFT_ALONE,
    ),
    "an agent behind a helper": Kind(
        agent(labels={}, containers=[{"name": "logs", "image": "logs:1"}, TRACING]), True
    ),
    "opted in": Kind(agent(labels=ASKS), True),
    "opted out": Kind(agent(labels=OPTED_OUT, containers=[TRACING]), False),
    "a Job": Kind(agent(labels={}, restartPolicy="Never", containers=[TRACING]), True),
    "the host network": Kind(
        agent(labels={}, hostNetwork=True, containers=[TRACING]), False, NO_PLACE
    ),
    "a database on the host network": Kind(
        agent(labels={}, hostNetwork=True, containers=[POSTGRES], volumes=[DATA]), False
    ),
    "opted in on the host network": Kind(agent(labels=ASKS, hostNetwork=True), False, NO_PLACE),
    "init containers": Kind(
        agent(
            labels={},
            containers=[TRACING],
            initContainers=[
                {"name": "migrate", "image": "agent:1"},
                {"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"},
            ],
        ),
        True,
    ),
    "volumes of its own": Kind(
        agent(
            labels={},
            containers=[TRACING | {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            volumes=[DATA],
        ),
        True,
    ),
    "a volume of the sidecar's name": Kind(
        agent(labels={}, containers=[TRACING], volumes=[{"name": "trace-sidecar", "emptyDir": {}}]),
        False,
        MISSING,
    ),
    "resources of the whole pod": Kind(
        agent(labels={}, containers=[TRACING], resources={"requests": {"memory": "64Mi"}}),
        False,
        MISSING,
    ),
    "Windows": Kind(
        agent(labels={}, os={"name": "windows"}, containers=[TRACING]), False, NO_PLACE
    ),
    "Windows by its node": Kind(
        agent(labels={}, nodeSelector={OS: "windows"}, containers=[TRACING]), False, NO_PLACE
    ),
    "Windows by its affinity": Kind(
        agent(labels={}, affinity=on("In", "windows"), containers=[TRACING]), False, NO_PLACE
    ),
    "not on Linux": Kind(
        agent(labels={}, affinity=on("NotIn", "linux"), containers=[TRACING]), False, NO_PLACE
    ),
    "Linux by its affinity": Kind(
        agent(labels={}, affinity=on("In", "linux"), containers=[TRACING]), True
    ),
    "Windows by its containers": Kind(
        agent(
            labels={},
            containers=[
                TRACING | {"securityContext": {"windowsOptions": {"runAsUserName": "agent"}}}
            ],
        ),
        False,
        NO_PLACE,
    ),
    "Linux by its node": Kind(
        agent(labels={}, nodeSelector={OS: "linux"}, containers=[TRACING]), True
    ),
}
# The kubelet's own pods: with a Secret or a ConfigMap, the API server would reject them.
MIRROR = agent(labels={}, containers=[TRACING], nodeName="node")
MIRROR["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
KINDS["the kubelet's own"] = Kind(MIRROR, False, NO_PLACE)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as server:
        yield Release(server, tmp_path_factory.mktemp("release"))


def until_warned(release: Release, pod: Json, text: str) -> None:
    """Wait until a pod gets this warning: the audit policy changes after the other one."""

    def warned() -> bool | None:
        return any(text in warning for warning in release.admit(pod).warnings) or None

    poll(f"a warning with {text}", warned)


@pytest.fixture(scope="module")
def installed(release: Release) -> Release:
    """With a volume, so that names of volumes matter."""
    release.install(
        {"sidecar": {"spool": {"enabled": True}}, "injection": {"setSgpClientBaseUrl": True}}
    )
    until_warned(release, agent(labels={}), LEFT_ALONE)
    return release


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_pod(installed: Release, name: str) -> None:
    """It is admitted, as documented with or without the sidecar, else byte for byte as it was."""
    kind = KINDS[name]
    answer = installed.admit(kind.pod)
    assert answer.status == 201, answer
    assert bool(sidecars(answer.body)) == kind.injected
    if not kind.injected:
        plain = installed.pod(kind.pod, "elsewhere")
        assert answer.body["spec"] == plain["spec"]
    assert all(kind.warning in warning for warning in answer.warnings)
    assert bool(answer.warnings) == bool(kind.warning)
    assert kind.injected or len(answer.warnings) <= 1


@pytest.mark.parametrize("name", KINDS)
def test_another_namespace_notices_nothing(installed: Release, name: str) -> None:
    """Without the namespace's label, a pod is stored as without the chart, also one that asks."""
    pod = KINDS[name].pod
    answer = installed.admit(pod, "elsewhere")
    assert (answer.status, answer.warnings) == (201, [])
    assert not sidecars(answer.body)
    assert "SGP_CLIENT_BASE_URL" not in str(stripped(answer.body))


def own(release: Release) -> list[Json]:
    """Return the variables that the sidecar has in every pod."""
    env: list[Json] = sidecars(release.pod(agent()))[0]["env"]
    return env


def referring(name: str, kind: str, source: str, key: str) -> Json:
    """Return a variable that may be in a ConfigMap or Secret."""
    return {"name": name, "valueFrom": {kind: {"name": source, "key": key, "optional": True}}}


def test_variables_that_can_not_be_seen(installed: Release) -> None:
    """What is in an agent's envFrom reaches the sidecar by name, behind prefixes, and optional."""
    env = [{"name": "AGENT_NAME", "value": "a"}]
    container = CONTAINER | {"envFrom": FROM, "env": env}
    added = sidecars(installed.pod(agent(labels={}, containers=[container])))[0]["env"]
    added = added[len(own(installed)) :]
    of_agentex = referring("AGENTEX_BASE_URL", "configMapKeyRef", "agent", "AGENTEX_BASE_URL")
    of_sgp = [
        referring("SGP_API_KEY", "configMapKeyRef", "agent", "SGP_API_KEY"),
        # The later source wins, as among the agent's own.
        referring("SGP_API_KEY", "secretKeyRef", "sgp", "API_KEY"),
    ]
    assert of_agentex in added
    assert [item for item in added if item["name"] == "SGP_API_KEY"] == of_sgp
    assert [item for item in added if item["name"] == "AGENT_NAME"] == env
    assert not [item for item in added if "PROXY" in item["name"].upper()]


def test_an_address_of_sgp_that_can_not_be_taken(installed: Release) -> None:
    """The sidecar gets no key for an unknown SGP, and the agent's client stays as it is."""
    unknown = {"name": "SGP_CLIENT_BASE_URL", "value": "https://$(HOST)/sgp"}
    container = with_env([*AGENTEX, *SGP, unknown])
    pod = installed.pod(agent(labels={}, containers=[container]))
    assert sidecars(pod)[0]["env"] == own(installed) + AGENTEX
    assert pod["spec"]["containers"][0]["env"] == container["env"]


@pytest.mark.parametrize(
    ("container", "redirected"),
    [
        (with_env(AGENTEX), False),
        (with_env([*AGENTEX, *SGP]), True),
        (CONTAINER | {"envFrom": FROM}, True),
        (CONTAINER, False),
    ],
    ids=["Agentex only", "both", "envFrom", "neither"],
)
def test_who_is_redirected(installed: Release, container: Json, redirected: bool) -> None:
    """An SGP client is pointed at the sidecar only if the sidecar may have SGP as an upstream."""
    pod = installed.pod(agent(containers=[container]))
    (changed,) = pod["spec"]["containers"]
    assert (REDIRECTED in changed.get("env", [])) == redirected
    if not redirected:
        plain = installed.pod(agent(containers=[container]), "elsewhere")
        assert changed == plain["spec"]["containers"][0]


def sgp(url: str, key: str = "k", account: str = "a") -> list[Json]:
    """Return the variables of an SGP."""
    values = {"SGP_CLIENT_BASE_URL": url, "SGP_API_KEY": key, "SGP_ACCOUNT_ID": account}
    return [{"name": name, "value": value} for name, value in values.items()]


FIRST = with_env(sgp("https://one.example"))
OTHERS = {
    "the same": (with_env(sgp("https://one.example")), True),
    "another address": (with_env(sgp("https://two.example")), False),
    "another key": (with_env(sgp("https://one.example", key="other")), False),
    "another account": (with_env(sgp("https://one.example", account="b")), False),
    "an address that refers to others": (with_env(sgp("https://$(HOST)")), False),
    "no SGP": (CONTAINER, False),
    "an envFrom": (FIRST | {"envFrom": FROM}, False),
}


@pytest.mark.parametrize("name", OTHERS)
def test_each_container_keeps_its_sgp(installed: Release, name: str) -> None:
    """Spans of a container go to the SGP of its own variables, through the sidecar or directly."""
    other, redirected = OTHERS[name]
    other = other | {"name": "other"}
    pod = installed.pod(agent(labels={}, containers=[FIRST, other]))
    first, changed = pod["spec"]["containers"]
    assert REDIRECTED in first["env"]
    assert (REDIRECTED in changed.get("env", [])) == redirected
    if not redirected:
        plain = installed.pod(agent(labels={}, containers=[FIRST, other]), "elsewhere")
        assert changed == plain["spec"]["containers"][1]


def test_a_helper_is_no_source(release: Release) -> None:
    """With relay, the address of SGP is that of the agent, whichever container comes first."""
    release.install(
        {
            "sidecar": {"config": {"sgp": {"relay": True}}},
            "injection": {"setSgpClientBaseUrl": True},
        }
    )
    helper = {"name": "helper", "image": "h:1", "env": [{"name": "X", "value": "y"}]}
    address = sgp("https://two.example")[:2]
    pod = release.pod(agent(labels={}, containers=[helper, with_env(address)]))
    assert address[0] in sidecars(pod)[0]["env"]
    assert pod["spec"]["containers"][0]["env"] == helper["env"]
    env = pod["spec"]["containers"][1]["env"]
    assert REDIRECTED in env
    assert {"name": "NO_PROXY", "value": "127.0.0.1,localhost,::1"} in env


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_a_job_beside_an_ordinary_container(release: Release, policy: str) -> None:
    """With mode container, pods that are to complete are left alone, with a warning."""
    release.install({"sidecar": {"mode": "container"}})
    pod = agent(labels={}, restartPolicy=policy, containers=[TRACING])
    assert not sidecars(release.pod(pod))
    until_warned(release, pod, NO_PLACE)
    assert sidecars(release.pod(agent(labels={}, containers=[TRACING])))


VALUES: dict[str, tuple[Json, bool]] = {
    "Agentex": ({"config": {"agentex": {"base_url": "http://agentex:5003"}}}, True),
    "Agentex in env": ({"env": [{"name": "AGENTEX_BASE_URL", "value": "http://a"}]}, True),
    "relay": ({"config": {"sgp": {"relay": True}}}, True),
    "no relay": ({"config": {"sgp": {"relay": False}}}, False),
    "credentials": ({"credentials": {"secretName": "sgp"}}, True),
    "an account": ({"config": {"sgp": {"account_id": "a"}}}, False),
}


@pytest.mark.parametrize("name", VALUES)
def test_an_upstream_in_the_values(release: Release, name: str) -> None:
    """If the values name an upstream, every pod of the namespace that is not out of it gets it."""
    values, injected = VALUES[name]
    release.install({"sidecar": values})
    assert bool(sidecars(release.pod(agent(labels={})))) == injected
    if name == "an account":  # a key is enough now
        pod = agent(labels={}, containers=[with_env(SGP[:1])])
        assert sidecars(release.pod(pod))


def test_agents_by_name(release: Release) -> None:
    """With agentContainers, a pod without any of them has no agent, whatever the values name."""
    release.install(
        {
            "sidecar": VALUES["Agentex"][0],
            "injection": {"agentContainers": ["agent"]},
        }
    )
    assert sidecars(release.pod(agent(labels={})))
    database = agent(labels={}, containers=[POSTGRES], volumes=[DATA])
    assert not sidecars(release.pod(database))
    until_warned(release, database, LEFT_ALONE)
    assert sidecars(release.pod(agent(containers=[POSTGRES], volumes=[DATA])))


REQUIRED = (
    "object.spec.containers.all(c, {rule}) && "
    "(!has(object.spec.initContainers) || object.spec.initContainers.all(c, {rule}))"
)
RULES = (
    "has(c.resources) && has(c.resources.limits) && 'memory' in c.resources.limits",
    "has(c.resources) && has(c.resources.requests) && 'cpu' in c.resources.requests",
    "has(c.securityContext) && c.securityContext.?readOnlyRootFilesystem.orValue(false)",
    "c.image.contains(':') && !c.image.endsWith(':latest')",
)


def test_other_admission_policies(release: Release) -> None:
    """Rules that clusters often have for all containers are met by the sidecar."""
    release.install({})
    server: Cluster = release.server
    api = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"]}
    policy = {
        "metadata": {"name": "rules"},
        "spec": {
            "matchConstraints": {"resourceRules": [rule | {"resources": ["pods"]}]},
            "validations": [{"expression": REQUIRED.format(rule=each)} for each in RULES],
        },
    }
    bound = {"policyName": "rules", "validationActions": ["Deny"]}
    for kind, body in (
        ("ies", policy),
        ("ybindings", {"metadata": {"name": "rules"}, "spec": bound}),
    ):
        assert server.create(api + kind, body).status == 201
    strict = with_env(
        AGENTEX,
        resources={"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
        securityContext={"readOnlyRootFilesystem": True},
    )

    def denied() -> bool | None:
        return release.admit(agent(labels={}, containers=[TRACING])).status == 422 or None

    try:
        poll("the rules are in effect", denied)
        assert sidecars(release.pod(agent(labels={}, containers=[strict])))
    finally:
        for kind in ("ybindings", "ies"):
            assert server.request("DELETE", f"{api}{kind}/rules").status == 200
