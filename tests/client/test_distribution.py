"""The client as agents get it: one small package with no dependency, apart from the daemon."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from zipfile import ZipFile

import pytest
import trace_sidecar_client

import sidecar

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client"
PACKAGE = CLIENT / "trace_sidecar_client"
SETUPTOOLS_FILES = {"PKG-INFO", "setup.cfg"}
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2])
"""


def build(kind: str, source: Path, out: Path) -> Path:
    """Build an `sdist` or a `wheel` of the project in `source` into the empty folder `out`."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist of a copy: a build in the checkout would pick up what earlier ones left there."""
    checkout = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    shutil.copytree(CLIENT, checkout / "client", symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "LICENSE", checkout)
    return build("sdist", checkout / "client", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the sdist, which is how an installer builds one."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # Python before 3.11.4 has no filters; the archive is our own.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(unpacked)  # noqa: S202 (see above)
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def modules() -> set[str]:
    """The files of the package, as paths in an archive."""
    return {f"{PACKAGE.name}/{path.name}" for path in PACKAGE.glob("*.py")} | {
        f"{PACKAGE.name}/py.typed"
    }


@pytest.mark.process
def test_the_wheel_holds_the_package_and_its_license_only(wheel: Path) -> None:
    """An agent's environment gets `trace_sidecar_client` and no other import name."""
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split("/")[0] for name in names - modules()}
        license_text = archive.read(f"{info}/licenses/LICENSE")
    metadata = {"METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE"}
    assert names == modules() | {f"{info}/{name}" for name in metadata}
    assert info == f"trace_sidecar_client-{trace_sidecar_client.__version__}.dist-info"
    assert license_text == (ROOT / "LICENSE").read_bytes()


@pytest.mark.process
def test_the_sdist_holds_what_a_build_needs_only(sdist: Path) -> None:
    """The license is a regular file in it: the link's target stays behind in the repository."""
    with tarfile.open(sdist) as archive:
        files = {
            member.name.partition("/")[2]
            for member in archive
            if member.isreg() and ".egg-info/" not in member.name
        }
    assert files == modules() | SETUPTOOLS_FILES | {"LICENSE", "README.md", "pyproject.toml"}


def metadata_of(wheel: Path) -> Message:
    """The wheel's core metadata."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        return BytesParser().parsebytes(archive.read(name))


@pytest.mark.process
def test_the_metadata_names_no_dependency(wheel: Path) -> None:
    """Installing the client installs nothing else; its readme is what an index shows."""
    metadata = metadata_of(wheel)
    assert metadata["Name"] == "trace-sidecar-client"
    assert metadata["Requires-Dist"] is None
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == (CLIENT / "README.md").read_text().strip()


@pytest.mark.process
def test_client_and_daemon_have_the_same_version(wheel: Path) -> None:
    """They are released together, so one number tells which client fits which daemon."""
    assert trace_sidecar_client.__version__ == sidecar.__version__
    assert metadata_of(wheel)["Version"] == sidecar.__version__


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names of all absolute imports in a module, wherever in it they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_the_client_imports_the_standard_library_only() -> None:
    """No import statement in it names `sidecar`, or anything else that an agent may not have."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.glob("*.py")]
    names = {name for tree in trees for name in imported(tree)}
    assert {"json", "threading"} <= names <= sys.stdlib_module_names


def test_the_client_does_not_import_the_daemon_by_name() -> None:
    """`import_module` gets past the check above; no string in the client names the daemon."""
    strings = {
        node.value.partition(".")[0]
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert {"agentex", "orjson"} <= strings
    assert "sidecar" not in strings


def test_the_daemon_has_no_client() -> None:
    """The old name `sidecar.client` is gone, without an alias that would bring it back."""
    package = Path(sidecar.__file__).parent
    assert not (package / "client.py").exists()
    assert not list(package.glob("client/**/*.py"))
    assert not hasattr(sidecar, "client")


def test_the_daemon_does_not_depend_on_the_client() -> None:
    """Each is installed without the other."""
    required = importlib.metadata.requires("trace-sidecar") or []
    assert not [line for line in required if "trace-sidecar" in line]
