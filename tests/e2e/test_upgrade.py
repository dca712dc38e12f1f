"""docs/upgrade.md's commands on a real API server: upgrade, go back, remove."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.kube_support import Cluster, Json, poll
from tests.e2e.release_support import agent, agents_cluster, sidecars
from tests.support.docs import ROOT, blocks, prose
from tests.support.helm import CHART, helm

TEXT = (ROOT / "docs/upgrade.md").read_text(encoding="utf-8")
PODS = "/api/v1/namespaces/agents/pods"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with agents_cluster(tmp_path_factory.mktemp("kube")) as running:
        running.add_namespace("trace-sidecar")
        yield running


def command(*words: str) -> list[str]:
    """The only command of the page, in a block or in its text, that begins with these words."""
    lines = [line.strip() for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
    (found,) = {line for line in lines if line.startswith(" ".join(words))}
    return shlex.split(found)


def run(server: Cluster, words: list[str], **files: Path) -> None:
    """Run a helm command of the page in the test's cluster; `files` stand for its files."""
    named = {"helm/trace-sidecar": CHART, "values.yaml": files.get("values", Path())}
    done = helm(*(named.get(word, word) for word in words[1:]), "--kubeconfig", server.kubeconfig)
    assert done.returncode == 0, done.stderr


def image(pod: Json) -> str:
    """The image of a pod's sidecar."""
    (container,) = sidecars(pod)
    return str(container["image"])


def created(server: Cluster, name: str, **options: str) -> Json:
    """A new pod of an agent."""
    pod = agent()
    pod["metadata"]["name"] = name
    answer = server.create(PODS, pod, **options)
    assert answer.status == 201, answer
    return answer.body


def test_the_commands(server: Cluster, tmp_path: Path) -> None:
    """Only new pods get the new sidecar; a pod that runs keeps its own, and takes a new image."""
    values = tmp_path / "values.yaml"

    def now(tag: str) -> bool | None:
        pod = created(server, "probe", dryRun="All")
        return (bool(sidecars(pod)) and image(pod).endswith(f":{tag}")) or None

    values.write_text("sidecar: {image: {tag: first}}\n", encoding="utf-8")
    upgrade = command("helm", "upgrade", "trace-sidecar")
    install = [upgrade[0], "install", *upgrade[2:]]
    run(server, install, values=values)
    poll("the first version is injected", lambda: now("first"))
    running = created(server, "running")
    values.write_text("sidecar: {image: {tag: second}}\n", encoding="utf-8")
    run(server, upgrade, values=values)
    poll("the second version is injected", lambda: now("second"))
    assert server.get(f"{PODS}/running")["spec"] == running["spec"]
    run(server, command("helm", "rollback"))
    poll("the first version is injected again", lambda: now("first"))
    set_image(server, running)
    run(server, command("helm", "uninstall"))
    gone = lambda: not sidecars(created(server, "probe", dryRun="All")) or None  # noqa: E731
    poll("the policy is gone", gone)
    assert image(server.get(f"{PODS}/running")).endswith(":other")


def set_image(server: Cluster, pod: Json) -> None:
    """Do what the page's `kubectl set image` does, which the server allows for native sidecars."""
    name, _, _ = command("kubectl", "set", "image")[-1].partition("=")
    containers = [
        each | ({"image": "trace-sidecar:other"} if each["name"] == name else {})
        for each in pod["spec"]["initContainers"]
    ]
    change = {"spec": {"initContainers": containers}}
    answer = server.patch(f"{PODS}/{pod['metadata']['name']}", change)
    assert answer.status == 200, answer


def test_the_values_that_would_be_kept(server: Cluster, tmp_path: Path) -> None:
    """A value that the chart does not know is refused, as the page says."""
    values = tmp_path / "values.yaml"
    values.write_text("injection: {gone: 1}\n", encoding="utf-8")
    words = command("helm", "upgrade", "trace-sidecar")
    with pytest.raises(AssertionError, match="gone"):
        run(server, [*words, "--install"], values=values)
    assert prose(TEXT).count("does not know any more is an error") == 1
    assert blocks(TEXT)
