"""Environment variables that sidecar and agents get from each other, on a real API server."""

from collections.abc import Iterator

import pytest

from tests.e2e.kube_support import Json
from tests.e2e.release_support import CONTAINER, Release, agent, agents_cluster, sidecars

URL = "http://127.0.0.1:8318"
SGP = "SGP_CLIENT_BASE_URL"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as server:
        yield Release(server, tmp_path_factory.mktemp("release"))


def reference(name: str, key: str) -> Json:
    """Return a variable from a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": "agent", "key": key}}}


def test_variables_that_the_sidecar_takes_over(release: Release) -> None:
    """Literals and references of the first container are copied in order, without duplicates."""
    release.install({})
    own = sidecars(release.pod(agent()))[0]["env"]
    taken = [
        {"name": "AGENTEX_BASE_URL", "value": "http://agentex:5003"},
        reference("SGP_API_KEY", "sgp"),
        {"name": SGP, "value": "https://sgp.example"},
        {"name": "AGENT_NAME"},
    ]
    ignored = [{"name": "OPENAI_API_KEY", "value": "x"}, reference("DATABASE_URL", "db")]
    # The variables that it refers to are not copied.
    ignored.append({"name": "AGENT_VERSION", "value": "$(IMAGE_TAG)"})
    first = CONTAINER | {"env": [taken[0], ignored[0], taken[1], *ignored[1:], *taken[2:]]}
    second = CONTAINER | {"name": "worker", "env": [{"name": "AGENT_ID", "value": "no"}]}
    init = {"name": "migrate", "image": "agent:1", "env": [{"name": "A", "value": "1"}]}
    pod = release.pod(agent(containers=[first, second], initContainers=[init]))
    assert sidecars(pod)[0]["env"] == own + taken
    assert [c["env"] for c in pod["spec"]["containers"]] == [first["env"], second["env"]]
    assert pod["spec"]["initContainers"][0]["env"] == init["env"]


@pytest.mark.parametrize("mode", ["native", "container"])
def test_the_pods_own_fields(release: Release, mode: str) -> None:
    """The names of pod, namespace and node are references; what an agent says is not taken."""
    release.install({"sidecar": {"mode": mode}, "injection": {"copyEnv": ["SIDECAR_POD__NODE"]}})
    env = [{"name": "SIDECAR_POD__NODE", "value": "mine"}]
    pod = release.pod(agent(containers=[CONTAINER | {"env": env}]))
    (sidecar,) = sidecars(pod)
    own = [entry for entry in sidecar["env"] if entry["name"].startswith("SIDECAR_POD__")]
    found = [entry for entry in own if "valueFrom" in entry]
    assert found == [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in (
            ("SIDECAR_POD__NAME", "metadata.name"),
            ("SIDECAR_POD__NAMESPACE", "metadata.namespace"),
            ("SIDECAR_POD__NODE", "spec.nodeName"),
        )
    ]


@pytest.mark.parametrize(
    "address", [URL, f"{URL}/", "http://localhost:8318", "http://[::1]:8318/x"]
)
def test_the_way_to_itself_is_not_taken_over(release: Release, address: str) -> None:
    """A URL of the sidecar itself is not copied to the sidecar."""
    release.install({})
    env = [{"name": SGP, "value": address}, {"name": "AGENT_ID", "value": "a"}]
    pod = release.pod(agent(containers=[CONTAINER | {"env": env}]))
    assert [e for e in sidecars(pod)[0]["env"] if not e["name"].startswith("SIDECAR_")] == env[1:]


def test_the_address_in_the_agents(release: Release) -> None:
    """It replaces the old URL, which the sidecar gets; other containers keep theirs."""
    wants = {"setSgpClientBaseUrl": True, "agentContainers": ["worker", "agent"]}
    release.install({"injection": wants, "sidecar": {"config": {"sgp": {"relay": True}}}})
    old, new = reference(SGP, "url"), {"name": SGP, "value": URL}
    direct = {"name": "NO_PROXY", "value": "127.0.0.1,localhost,::1"}
    around = ({"name": "A", "value": "1"}, {"name": "B", "value": f"$({SGP})"})
    containers = [
        {"name": "proxy", "image": "proxy:1", "env": [old]},
        CONTAINER | {"env": [around[0], old, around[1]]},
        CONTAINER | {"name": "worker", "env": [old]},
    ]
    pod = release.pod(agent(containers=containers))
    proxy, first, worker = (container["env"] for container in pod["spec"]["containers"])
    assert (proxy, first, worker) == (
        [old],
        [around[0], new, around[1], direct],
        [new, direct],
    )
    assert sidecars(pod)[0]["env"][-1] == old
    others = agent(containers=[{"name": "proxy", "image": "proxy:1"}])
    assert "env" not in release.pod(others)["spec"]["containers"][0]


def test_another_port(release: Release) -> None:
    """With another port of the listener, agents with the client are told where to post."""
    release.install({"sidecar": {"config": {"listener": {"port": 18318}}}})
    told = {"name": "TRACE_SIDECAR_URL", "value": "http://127.0.0.1:18318"}
    own = [{"name": "TRACE_SIDECAR_URL", "value": "http://localhost:18318"}]
    other = [{"name": "A", "value": "1"}]
    containers = [
        CONTAINER,
        CONTAINER | {"name": "told", "env": own},
        CONTAINER | {"name": "other", "env": other},
    ]
    pod = release.pod(agent(containers=containers))
    assert [c["env"] for c in pod["spec"]["containers"]] == [[told], own, [*other, told]]
    release.install({})
    pod = release.pod(agent(containers=containers))
    assert [c.get("env") for c in pod["spec"]["containers"]] == [None, own, other]
