"""What is imported by name is declared: a dependency of a dependency may go away."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PROJECT["project"]["dependencies"]
DEVELOPMENT = [*RUNTIME, *PROJECT["dependency-groups"]["dev"]]


def names(requirements: list[str]) -> set[str]:
    """The normalized distribution names of requirements."""
    return {re.split(r"[<>=]", each)[0].lower().replace("_", "-") for each in requirements}


def imported(folder: Path) -> set[str]:
    """The distributions whose packages the files below `folder` import."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    ours = {"sidecar", "tests", "tools", "trace_sidecar_client"}
    known = packages_distributions()
    return {
        name.lower().replace("_", "-")
        for package in found - ours - sys.stdlib_module_names
        for name in known.get(package, [package])
    }


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("sidecar", RUNTIME), ("client/trace_sidecar_client", []), ("tests/support", DEVELOPMENT)],
)
def test_every_imported_package_is_declared(folder: str, declared: list[str]) -> None:
    """The daemon has its dependencies, the client has none but the agent's own SDK."""
    optional = {"agentex", "orjson", "msgspec", "pydantic"} if "client" in folder else set()
    assert imported(ROOT / folder) - names(declared) - optional == set()
