"""From a clone to spans at the upstreams, by README.md's own commands and those of the notes.

The image is built and tagged by what README.md says, the chart installed by it, and the pod of an
agent is created as its Deployment's controller would: no controller runs. podman then runs the pod
as the API server admitted it, with stand-ins for the upstreams that the agent's variables name.
newcomer_support and pod_support say what is real.
"""

import re
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import docker_shim
from tests.e2e.image_support import Json, eventually
from tests.e2e.kube_support import Cluster, cluster, poll
from tests.e2e.newcomer_support import Newcomer, Placeholders, Terminal, on_a_cluster
from tests.e2e.pod_support import (
    AGENT,
    SIDECAR,
    SINKS,
    TRACING,
    Pod,
    agent_spec,
    needs_podman,
    played,
    unique_name,
)
from tests.e2e.release_support import sidecars
from tests.support.docs import ROOT
from tests.support.helm import CHART

README = ROOT / "README.md"
REGISTRY = "registry.example"
UNCHANGED = ("python3", "-m", "tests.e2e.pod_sgp_agent")
SENT = 5
POLICY_S = 60.0
RESTARTED = "kubectl.kubernetes.io/restartedAt"
# Everything that has a name or a number of its own in the notes.
OWN_NAMES = (
    *("--set", f"sidecar.image.repository={REGISTRY}/team/sidecar", "--set-string"),
    "sidecar.image.tag=7",
    *("--set", "sidecar.config.listener.port=18318", "--set", "sidecar.config.admin.port=19318"),
    *("--set", "injection.namespaceLabel.name=spans", "--set", "injection.namespaceLabel.value=on"),
    *("--set", "injection.podLabel=traced", "--set", "sidecar.mode=container"),
    *("--set", "injection.setSgpClientBaseUrl=true", "--set", "fullnameOverride=own"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Cluster]:
    with cluster(folder) as running:
        yield running


@pytest.fixture(scope="module")
def operator(folder: Path, server: Cluster) -> Newcomer:
    made = Newcomer(folder)
    made.has_docker()
    made.has_cluster(server.kubeconfig)
    # Else an image of an earlier run could stand in for a tag that nothing makes.
    docker_shim.forget(REGISTRY)
    return made


class Agents:
    """A namespace in which agents run already, and the operator's words for it."""

    def __init__(self, server: Cluster, name: str) -> None:
        self.server = server
        self.name = name
        self.words = Placeholders(README).having(REGISTRY=REGISTRY, AGENTS=name)
        server.add_namespace(name)
        self.deploy("first", UNCHANGED)

    def deploy(self, name: str, command: Sequence[str], image: str = "agent:1") -> None:
        """Create a Deployment whose pods know nothing of the sidecar."""
        labels = {"app": name}
        pods = {"metadata": {"labels": labels}, "spec": agent_spec(command, image)}
        deployment = {
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}, "template": pods},
        }
        path = f"/apis/apps/v1/namespaces/{self.name}/deployments"
        answer = self.server.create(path, deployment)
        assert answer.status == 201, answer

    def template(self, name: str) -> Json:
        """Return the template of a Deployment's pods, as it is now."""
        path = f"/apis/apps/v1/namespaces/{self.name}/deployments/{name}"
        found: Json = self.server.get(path)["spec"]["template"]
        return found

    def pod(self, name: str, template: Json, **query: str) -> Json:
        """Create a pod from a template, and return it as the API server admitted it."""
        metadata = {key: template["metadata"].get(key, {}) for key in ("labels", "annotations")}
        body = {"metadata": metadata | {"name": name}, "spec": template["spec"]}
        answer = self.server.create(f"/api/v1/namespaces/{self.name}/pods", body, **query)
        assert answer.status == 201, answer
        return answer.body

    def is_injected(self, image: str) -> bool:
        """Whether a new pod gets the sidecar with this image, and its agent the sidecar's URL."""
        pod = self.pod(unique_name(), self.template("first"), dryRun="All")
        (agent,) = (each for each in pod["spec"]["containers"] if each["name"] == AGENT)
        variables = {entry["name"]: entry.get("value") for entry in agent["env"]}
        url = variables["SGP_CLIENT_BASE_URL"]
        return [each["image"] for each in sidecars(pod)] == [image] and "8318" in str(url)


@dataclass(frozen=True)
class Deployed:
    """An agents' namespace after an operator's commands, and the commands that look into a pod."""

    agents: Agents
    terminal: Terminal
    image: str
    looks: list[str]

    @contextmanager
    def running(self, command: Sequence[str]) -> Iterator[Pod]:
        """Run the pod of another agent, as the API server admits it."""
        name = unique_name()
        self.agents.deploy(name, command, self.image)
        admitted = self.agents.pod(name, self.agents.template(name))
        with played(admitted, name, self.image) as pod:
            yield pod

    def look(self, pod: Pod, span_id: str) -> list[str]:
        """Run the commands that look into the pod; return what each printed."""
        words = self.agents.words.having(POD=pod.name, SPAN_ID=span_id)
        return [self.terminal.run(words.filled(command)) for command in self.looks]


def deployed(agents: Agents, terminal: Terminal, commands: Sequence[str]) -> Deployed:
    """Run the commands in order, up to those that need a running pod."""
    first = next(n for n, each in enumerate(commands) if re.search(r"\bPOD\b|get pods", each))
    done = [agents.words.filled(command) for command in commands[:first]]
    for command in done:
        terminal.run(command)
    (image,) = re.findall(r"docker build -t (\S+)", "\n".join(done))
    needs_podman(image)
    assert RESTARTED in agents.template("first")["metadata"].get("annotations", {}), "no restart"
    # The API server takes up a new policy after a moment.
    poll("the policy is in effect", lambda: agents.is_injected(image) or None, POLICY_S)
    return Deployed(agents, terminal, image, list(commands[first:]))


def spans(pod: Pod) -> set[str]:
    """Return the ids of the spans that the agent says it has ended."""
    return {line["id"] for line in pod.log(AGENT) if "id" in line}


def spans_at(pod: Pod, sink: str) -> set[str]:
    """Return the ids of the spans that an upstream has."""
    return set(pod.get(SINKS[sink], "/__report")["digests"])


def flows(pod: Pod, sinks: Sequence[str]) -> None:
    """Wait until spans arrive, in pods whose agent has not had to start again."""
    eventually(lambda: all(len(spans_at(pod, sink)) >= SENT for sink in sinks))
    assert pod.inspected(AGENT)["RestartCount"] == 0, pod.log(AGENT)


def ends_with_all(pod: Pod, sinks: Sequence[str]) -> None:
    """Stop the agent, and assert that each of its spans is at these upstreams, and at no other."""
    pod.terminate(AGENT)
    sent = spans(pod)
    # A START can arrive before its END.
    eventually(lambda: all(spans_at(pod, sink) == sent for sink in sinks))
    pod.terminate(SIDECAR)
    stopped = pod.log(SIDECAR)[-1]
    assert (stopped["event"], stopped["lost"]) == ("stopped", 0)
    assert {sink for sink in SINKS if spans_at(pod, sink)} == set(sinks)


def gone(agents: Agents) -> None:
    """Wait until new pods get no sidecar any more."""
    template = agents.template("first")
    poll(
        "the policy is gone",
        lambda: not sidecars(agents.pod(unique_name(), template, dryRun="All")) or None,
        POLICY_S,
    )


def test_the_steps_of_the_readme(operator: Newcomer, server: Cluster) -> None:
    """README.md's commands end with all spans at the upstreams, and then show them."""
    agents = Agents(server, "agents")
    commands = [line for block in on_a_cluster(README) for line in block.strip().splitlines()]
    with operator.terminal(operator.clone) as terminal:
        done = deployed(agents, terminal, commands)
        # One that is not changed, and one with the client.
        for agent, sinks in ((UNCHANGED, ["sgp"]), (TRACING, ["agentex", "sgp"])):
            with done.running(agent) as pod:
                flows(pod, sinks)
                top, explained, _ = done.look(pod, min(spans_at(pod, sinks[0])))
                assert all(forwarded(top, sink) >= SENT for sink in sinks), top
                assert "forwarded" in explained
                poll("the page is forwarded", page, POLICY_S)
                # The port that is forwarded is also the next pod's.
                terminal.close()
                ends_with_all(pod, sinks)
        terminal.run("helm uninstall trace-sidecar --namespace trace-sidecar")
        gone(agents)


def page() -> bool | None:
    """Whether the status page is where README.md has it."""
    (url,) = re.findall(r"<(http://127.0.0.1:9318/)>", README.read_text(encoding="utf-8"))[-1:]
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310 (README's own)
            return b"<title>" in reply.read() or None
    except OSError:
        return None


def forwarded(top: str, sink: str) -> int:
    """Return how many writes `sidecar top` says an upstream got."""
    table = top.partition("\nwrites ")[2]
    (count,) = re.findall(rf"^{sink} +[\d,]+ +([\d,]+) ", table, re.MULTILINE)
    return int(count.replace(",", ""))


def notes_of(said: str) -> list[str]:
    """The commands in the notes that helm printed."""
    return re.findall(
        r"^  ((?:docker|helm|kubectl) .+)$", said.partition("NOTES:")[2], re.MULTILINE
    )


@pytest.mark.parametrize(
    "options", [pytest.param((), id="nothing is set"), pytest.param(OWN_NAMES, id="own names")]
)
def test_the_steps_of_the_notes(
    operator: Newcomer, server: Cluster, options: Sequence[str], request: pytest.FixtureRequest
) -> None:
    """After `helm install`, the commands that it prints end with spans, and then remove it."""
    name = "spans-" + re.sub(r"\W", "-", request.node.callspec.id)
    agents = Agents(server, name)
    agents.words = agents.words.having(CHART=str(operator.clone / CHART.relative_to(ROOT)))
    with operator.terminal(operator.clone) as terminal:
        install = ["helm", "install", name, "CHART", "--namespace", name, *options]
        said = terminal.run(agents.words.filled(" ".join(install)))
        *commands, uninstall = notes_of(said)
        done = deployed(agents, terminal, commands)
        with done.running(UNCHANGED) as pod:
            flows(pod, ["sgp"])
            listed, top = done.look(pod, "")
            assert re.search(rf"^{pod.name} +{done.image}$", listed, re.MULTILINE), listed
            assert forwarded(top, "sgp") >= SENT
            ends_with_all(pod, ["sgp"])
        terminal.run(uninstall)
        gone(agents)
