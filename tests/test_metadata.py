"""What the two distributions say about themselves in their pyproject.toml."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", ROOT / "client/pyproject.toml"]
PYTHON = "Programming Language :: Python :: "


def project(path: Path) -> dict[str, Any]:
    """The `[project]` table."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return table


@pytest.mark.parametrize("path", PROJECTS, ids=["daemon", "client"])
def test_pythons(path: Path) -> None:
    """The classifiers name the Python versions that CI tests, the lowest being the required one."""
    ci = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    (tested,) = re.findall(r"python: \[(.+)\]", ci)
    versions = re.findall(r"[\d.]+", tested)
    made = project(path)
    named = [each.removeprefix(PYTHON) for each in made["classifiers"] if each.startswith(PYTHON)]
    assert [each for each in named if each != "3 :: Only"] == versions
    assert made["requires-python"] == f">={versions[0]}"


def test_both_come_from_one_repository() -> None:
    """Their links lead to one repository, and to pages that are in it."""
    daemon, client = map(project, PROJECTS)
    source = daemon["urls"]["Source"]
    assert client["urls"]["Source"] == source
    assert client["authors"] == daemon["authors"]
    for name, url in (daemon["urls"] | {"Client": client["urls"]["Documentation"]}).items():
        inside = url.removeprefix(source)
        page = re.sub(r"^/(?:blob|tree)/main/", "", inside)
        assert name in {"Source", "Issues"} or (page != inside and (ROOT / page).exists()), url
