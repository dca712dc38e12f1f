"""Every command block of README.md, docs/client.md and examples/, as a new user runs them.

In a fresh clone of this checkout, so that what is not committed is not there, with an empty home.
newcomer_support says what is real and what stands in for something.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import docker_shim, parts
from tests.e2e.kube_support import Cluster, cluster
from tests.e2e.newcomer_support import Newcomer, Placeholders
from tests.e2e.test_http_clients import program
from tests.support.docs import ROOT, scripts

EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
README = ROOT / "README.md"
# README first: it is what a new user reads first.
PAGES = [README, ROOT / "docs/client.md", *EXAMPLES]
LETTERS = ROOT / "tests/operate/letters_56dacfc.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def newcomer(folder: Path) -> Newcomer:
    program("curl", "curl")
    return Newcomer(folder)


@pytest.fixture(scope="module")
def placeholders(folder: Path) -> Placeholders:
    letters = shutil.copy(LETTERS, folder / "letters.jsonl")
    values = {
        "REGISTRY": "registry.example",
        "AGENTS": "agents",
        "POD": "agent-0",
        "SPAN_ID": "s1",
        "FILE": str(letters),
    }
    return Placeholders(README, values)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Cluster]:
    """A cluster in which agents run already."""
    with cluster(folder) as running:
        running.add_namespace("agents")
        labels = {"app": "agent"}
        agent = {"name": "agent", "image": "agent:1"}
        pods = {"metadata": {"labels": labels}, "spec": {"containers": [agent]}}
        deployment = {
            "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": labels}, "template": pods},
        }
        answer = running.create("/apis/apps/v1/namespaces/agents/deployments", deployment)
        assert answer.status == 201, answer
        yield running


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command(
    page: Path, newcomer: Newcomer, placeholders: Placeholders, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page that are marked `sh` succeed, in the order written."""
    blocks = scripts(page)
    assert blocks, "nothing to run"
    here = newcomer.clone / page.relative_to(ROOT)
    text = "".join(blocks)
    if "docker " in text:
        newcomer.has_docker()
        request.addfinalizer(docker_shim.clean)
    if "kubectl " in text or "helm " in text:
        newcomer.has_cluster(request.getfixturevalue("server").kubeconfig)
    if page.parent.name == "node":
        program("node", "nodejs")
    if "agentex-sdk" in text:
        newcomer.has_python(parts.newer_python())
    with newcomer.terminal(here.parent if page in EXAMPLES else newcomer.clone) as terminal:
        for block in blocks:
            terminal.run(placeholders.filled(block))


def test_the_placeholders(placeholders: Placeholders) -> None:
    """The tests know what to put for each placeholder that README.md names, and miss no other."""
    assert placeholders.unknown == []
    with pytest.raises(AssertionError, match="SOMETHING"):
        placeholders.filled("kubectl get pod SOMETHING\n")


@pytest.mark.parametrize(
    "block",
    [
        "false\ntrue\n",
        'echo "$NOT_SET"\n',
        "no-such-program\n",
        "echo 'HTTP/1.1 400 Bad Request'\n",
        "./examples/plain/agent.py --not-executable\n",
    ],
)
def test_what_fails(newcomer: Newcomer, block: str) -> None:
    """A command that fails, is not there or gets a refusal fails the test of its page."""
    with newcomer.terminal(newcomer.clone) as terminal, pytest.raises(AssertionError):
        terminal.run(block)
