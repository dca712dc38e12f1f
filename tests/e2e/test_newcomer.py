"""Every command block of README.md, docs/client.md and examples/, as a new user runs them.

In a fresh clone of this checkout, so that what is not committed is not there, with an empty home.
newcomer_support says what is real and what stands in for something. What README.md has for a
cluster is test_deployment's.
"""

from pathlib import Path

import pytest

from tests.e2e import docker_shim, parts
from tests.e2e.newcomer_support import Newcomer, Placeholders, on_a_cluster
from tests.e2e.test_http_clients import program
from tests.support.docs import ROOT, scripts

EXAMPLES = sorted((ROOT / "examples").glob("*/README.md"))
README = ROOT / "README.md"
# README first: it is what a new user reads first.
PAGES = [README, ROOT / "docs/client.md", *EXAMPLES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def newcomer(folder: Path) -> Newcomer:
    program("curl", "curl")
    return Newcomer(folder)


@pytest.fixture(scope="module")
def placeholders() -> Placeholders:
    return Placeholders(README)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command(
    page: Path, newcomer: Newcomer, placeholders: Placeholders, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page that are marked `sh` succeed, in the order written."""
    elsewhere = on_a_cluster(README)
    blocks = [block for block in scripts(page) if page != README or block not in elsewhere]
    assert blocks, "nothing to run"
    here = newcomer.clone / page.relative_to(ROOT)
    text = "".join(blocks)
    if "docker " in text:
        newcomer.has_docker()
        request.addfinalizer(docker_shim.clean)
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
