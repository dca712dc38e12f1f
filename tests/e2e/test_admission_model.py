"""The injection on a real API server against a model of it, for pods of any shape."""

import re
from collections.abc import Iterator
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.kube_support import Json
from tests.e2e.release_support import SIDECAR, Release, agent, agents_cluster, sidecars

SGP = "SGP_CLIENT_BASE_URL"
URL = "http://127.0.0.1:8318"
AGENTS = ["worker", "agent"]
GRACE_S = 60
PULL = ["registry", "mirror"]
OWN = {"name": "AGENT_NAME", "value": "fixed"}
CREDENTIALS = {"SGP_API_KEY", "SGP_ACCOUNT_ID"}
TAKEN = {"AGENTEX_BASE_URL", SGP, "AGENT_ID", *CREDENTIALS}
NO_PROXY = ("NO_PROXY", "no_proxy")
PROXIES = {"HTTPS_PROXY", *NO_PROXY}
LOOPBACK = ["127.0.0.1", "localhost", "::1"]
VOLUMES = (SIDECAR, f"{SIDECAR}-certificates")
VALUES: Json = {
    "injection": {
        "agentContainers": AGENTS,
        "copyEnv": [*sorted(TAKEN | PROXIES), OWN["name"]],
        "setSgpClientBaseUrl": True,
        "minGracePeriodSeconds": GRACE_S,
        "imagePullSecrets": PULL,
    },
    "sidecar": {
        "spool": {"enabled": True},
        "certificates": {"sgp": {"ca": {"secretName": "ca"}, "client": {"secretName": "ca"}}},
        "env": [OWN],
    },
}

names = st.sampled_from([*sorted(TAKEN), OWN["name"], "OTHER"])
names |= st.sampled_from([*sorted(PROXIES)])
texts = st.sampled_from(["", "x", "https://sgp.example", "$(OTHER)", "a$(B)c", URL, f"{URL}/v5"])
texts |= st.sampled_from(
    [f"{URL}0", "http://[::1]:8318", " HTTPS://a@localhost:8318?b", "é\"'\\\n{}"]
)
texts |= st.sampled_from(["*", "a,*", " ,", ",".join(LOOPBACK), " localhost ,b", "127.0.0.10"])
texts |= st.sampled_from(["proxy:1", "HTTP://u:p@proxy:1", "socks5h://proxy:1", "$$(A),::1 "])
secrets = st.fixed_dictionaries({"name": st.just("s"), "key": st.sampled_from(["k", "l"])})
fields: st.SearchStrategy[Json] = st.just({"fieldRef": {"fieldPath": "metadata.name"}})
sources = fields | secrets.map(lambda secret: {"secretKeyRef": secret})
variables: st.SearchStrategy[Json] = st.fixed_dictionaries({"name": names, "value": texts})
variables |= st.fixed_dictionaries({"name": names, "valueFrom": sources})


FROM: list[Json] = [
    {"secretRef": {"name": "s"}},
    {"configMapRef": {"name": "c"}},
    {"configMapRef": {"name": "sgp"}, "prefix": "SGP_"},
    {"secretRef": {"name": "agent"}, "prefix": "AGENT"},
    {"secretRef": {"name": "id"}, "prefix": "AGENT_ID"},
]


def containers(*choices: str, least: int) -> st.SearchStrategy[list[Json]]:
    """Generate lists of containers with distinct names from `choices`, some with variables."""
    one = st.fixed_dictionaries(
        {"name": st.sampled_from(choices), "image": st.just("image:1")},
        optional={
            "env": st.lists(variables, max_size=6),
            "envFrom": st.lists(st.sampled_from(FROM), max_size=3),
        },
    )
    return st.lists(one, min_size=least, max_size=3, unique_by=lambda item: str(item["name"]))


pulls = st.sampled_from([{"name": name} for name in ("mirror", "own")])
specs = st.fixed_dictionaries(
    {"containers": containers("agent", "worker", "proxy", least=1)},
    optional={
        "initContainers": containers("migrate", "init-proxy", least=0),
        "imagePullSecrets": st.lists(pulls, max_size=2, unique_by=str),
        "volumes": st.lists(st.just({"name": "scratch", "emptyDir": {}}), max_size=1),
        "terminationGracePeriodSeconds": st.integers(0, 2 * GRACE_S),
        "restartPolicy": st.sampled_from(["Always", "OnFailure", "Never"]),
    },
)


def sgp_elsewhere(container: Json) -> bool:
    """Whether its SGP has an address that can't be copied."""
    env = container.get("env", [])
    return any(entry["name"] == SGP and "$(" in entry.get("value", "") for entry in env)


def gives(container: Json, name: str) -> bool:
    """Whether its variables give the sidecar a value for a name."""
    found = [entry for entry in container.get("env", []) if entry["name"] == name]
    return any(
        taken(entry, TAKEN) and ("valueFrom" in entry or entry.get("value", "").strip())
        for entry in found
    )


def names_sgp(container: Json) -> bool:
    """Whether its variables name SGP as an upstream."""
    return not sgp_elsewhere(container) and all(gives(container, name) for name in CREDENTIALS)


def names_upstream(container: Json) -> bool:
    """Whether its variables name an upstream."""
    return gives(container, "AGENTEX_BASE_URL") or names_sgp(container)


def source_of(agents: list[Json]) -> Json:
    """Return the container from which the sidecar gets variables."""
    first = [each for each in agents if names_upstream(each)]
    then = [each for each in agents if has_unseen(each)]
    last = [each for each in agents if gives(each, SGP)]
    return [*first, *then, *last, *agents][0]


def has_unseen(container: Json) -> bool:
    """Whether an upstream may be in its `envFrom`."""
    prefixes = [each.get("prefix", "") for each in container.get("envFrom", [])]
    names = {"AGENTEX_BASE_URL", *CREDENTIALS}
    return any(n.startswith(prefix) and n != prefix for prefix in prefixes for n in names)


def of_sgp(container: Json) -> tuple[list[Json], list[Json]]:
    """Return what decides to which SGP it sends its spans."""
    env = container.get("env", [])
    names = {SGP, *CREDENTIALS}
    return [entry for entry in env if entry["name"] in names], container.get("envFrom", [])


def copied(source: Json) -> list[Json]:
    """Return the variables that the sidecar gets from a container."""
    env = source.get("env", [])
    together = not any(unusable(entry) for entry in env if entry["name"] in PROXIES)
    withheld = {SGP, *CREDENTIALS} if sgp_elsewhere(source) else set()
    names = (TAKEN | PROXIES if together else TAKEN) - withheld
    return [
        *unseen(source, TAKEN - withheld - {entry["name"] for entry in env}),
        *(entry for entry in env if taken(entry, names)),
    ]


def unseen(source: Json, names: set[str]) -> list[Json]:
    """Return references to what may be in the container's `envFrom`."""
    found = []
    for name in VALUES["injection"]["copyEnv"]:
        for each in source.get("envFrom", []):
            key = name.removeprefix(each.get("prefix", ""))
            if name in names and name.startswith(each.get("prefix", "")) and key:
                kind = "secretKeyRef" if "secretRef" in each else "configMapKeyRef"
                of = each.get("secretRef") or each["configMapRef"]
                reference = {"name": of["name"], "key": key, "optional": True}
                found.append({"name": name, "valueFrom": {kind: reference}})
    return found


def unusable(entry: Json) -> bool:
    """Whether this variable of a proxy keeps all of them from being copied."""
    value = entry.get("value", "")
    other = re.match(r"(?!\s*http://).*://", value, re.IGNORECASE)
    return "$(" in value or bool(entry["name"] not in NO_PROXY and other)


def taken(entry: Json, names: set[str]) -> bool:
    """Whether this variable, if it is one of `names`, is copied."""
    value = entry.get("value", "")
    itself = re.match(
        r"\s*https?://(.*@)?(127\.0\.0\.1|localhost|\[::1\]):8318(\D|$)", value, re.IGNORECASE
    )
    return entry["name"] in names and "$(" not in value and not itself


def exempt(container: Json) -> None:
    """Keep the container's posts for the sidecar from its proxy."""
    env = container["env"]
    for name in NO_PROXY:
        names = [entry["name"] for entry in env]
        if name not in names:
            if name == "NO_PROXY":
                new = "no_proxy" not in names
            else:
                new = "envFrom" in container and {"name": "NO_PROXY", "value": "*"} not in env
            if not new:
                continue
            unseen = "$(NO_PROXY),$(no_proxy)" if "envFrom" in container else ""
            env.append({"name": name, "value": unseen})
        at = max(number for number, entry in enumerate(env) if entry["name"] == name)
        if "valueFrom" in env[at]:
            kept = f"TRACE_SIDECAR_KEPT_{name}"
            env[at : at + 1] = [env[at] | {"name": kept}, {"name": name, "value": f"$({kept})"}]
            at += 1
        value = env[at].get("value", "")
        if value != "*":
            hosts = [host.strip() for host in value.split(",")]
            missing = [host for host in LOOPBACK if host not in hosts]
            before = [value] if value.strip() else []
            env[at] = {"name": name, "value": ",".join(before + missing)}


def injected(spec: Json, sidecar: Json, volumes: list[Json]) -> Json:
    """Return a pod's spec after injection, according to the model."""
    spec, sidecar = deepcopy(spec), deepcopy(sidecar)
    agents = [container for container in spec["containers"] if container["name"] in AGENTS]
    redirected = []
    if agents:
        source = source_of(agents)
        sidecar["env"] += copied(source)
        if names_sgp(source) or has_unseen(source):
            redirected = [
                each
                for each in agents
                if of_sgp(each) == of_sgp(source) and not sgp_elsewhere(each)
            ]
    for container in redirected:
        env = container.setdefault("env", [])
        found = [number for number, entry in enumerate(env) if entry["name"] == SGP]
        at = found[-1] if found else len(env)
        env[at : at + 1] = [{"name": SGP, "value": URL}]
    for container in agents:  # also those that somebody pointed at it before
        if {"name": SGP, "value": URL} in container.get("env", []):
            exempt(container)
    spec["initContainers"] = [*spec.get("initContainers", []), sidecar]
    has = [entry["name"] for entry in spec.get("imagePullSecrets", [])]
    pulls = [*has, *(name for name in PULL if name not in has)]
    spec["imagePullSecrets"] = [{"name": name} for name in pulls]
    spec["volumes"] = [*spec.get("volumes", []), *volumes]
    spec["terminationGracePeriodSeconds"] = max(spec["terminationGracePeriodSeconds"], GRACE_S)
    return spec


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as server:
        release = Release(server, tmp_path_factory.mktemp("release"))
        release.install(VALUES)
        yield release


@settings(max_examples=200)
@given(spec=specs, asks=st.booleans())
def test_any_pod(release: Release, spec: Json, asks: bool) -> None:
    """Every pod that is admitted without the chart is admitted with it, and changed as modeled."""
    agents = [container for container in spec["containers"] if container["name"] in AGENTS]
    wanted = asks or any(names_upstream(each) or has_unseen(each) for each in agents)
    library = release.pod(agent())["spec"]
    volumes = [item for item in library["volumes"] if item["name"] in VOLUMES]
    assert len(volumes) == len(VOLUMES)
    (sidecar,) = sidecars({"spec": library})
    pod = agent(**spec) if asks else agent(labels={}, **spec)
    plain = release.pod(pod, "elsewhere")["spec"]
    expected = injected(plain, sidecar, volumes) if wanted else plain
    assert release.pod(pod)["spec"] == expected
