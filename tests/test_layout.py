"""The folders follow a span's journey, and imports point one way: toward the leaves."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sidecar

PACKAGE = Path(sidecar.__file__).parent
ROOT = PACKAGE.parent

# Folders and top-level files, from the leaves up: each imports from earlier rows and itself only.
LAYERS = [
    "credentials process spans",
    "network config_values",
    "config_upstreams",
    "config",
    "config_load",
    "http telemetry",
    "sinks spool",
    "queue",
    "drain",
    "lanes",
    "recovery listener operate shutdown",
    "app",
    "demo",
    "cli",
    "__main__",
]
LAYER = {name: rank for rank, row in enumerate(LAYERS) for name in row.split()}
MAX_LINES = 300
MAX_ENTRIES = 12
# Pure modules have no clock, no event loop and no I/O: values come as arguments.
PURE = [
    "network/proxies",
    "spans/raw_json",
    "spans/span",
    "spans/validation",
    "spans/decode",
    "queue/join",
    "queue/open_spans",
    "queue/span_queue",
    "queue/memory_budget",
    "queue/disk_fifo",
    "spool/pages",
    "spool/room",
    "spool/rows",
    "telemetry/accounting",
    "telemetry/outcomes",
    "drain/retry_queue",
    "drain/evidence",
    "drain/failures",
    "drain/scheduler",
    "drain/settlement",
    "drain/throttle",
    "drain/pace",
    "drain/concurrency",
]
IMPURE = {"asyncio", "time", "random", "os", "socket", "aiohttp", "pathlib", "structlog"}


def files() -> dict[str, Path]:
    """Every module of the daemon, by its dotted name inside the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, names: dict[str, Path]) -> Iterator[str]:
    """The modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sidecar":
            package = (node.module or "").removeprefix("sidecar").removeprefix(".")
            for alias in node.names:
                inner = f"{package}.{alias.name}".removeprefix(".")
                yield inner if inner in names else package
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "sidecar" for alias in node.names)


def edges() -> set[tuple[str, str]]:
    """Pairs of importing and imported module, without the package itself (the version)."""
    names = files()
    found = {(name, target) for name, path in names.items() for target in imported(path, names)}
    return {(name, target) for name, target in found if target}


def layer(name: str) -> str:
    """The folder or top-level file that a module belongs to."""
    return name.split(".", maxsplit=1)[0]


def test_imports_point_towards_the_leaves() -> None:
    """Each folder imports from earlier rows only, and every folder has a row."""
    between = {(layer(a), layer(b)) for a, b in edges() if layer(a) != layer(b)}
    assert {(a, b) for a, b in between if LAYER[b] >= LAYER[a]} == set()
    assert {layer(name) for name in files() if name} == set(LAYER)


def test_no_import_cycles() -> None:
    """There is no import cycle, not even inside a folder: the sorter would raise `CycleError`."""
    graph: dict[str, set[str]] = {}
    for name, target in edges():
        graph.setdefault(name, set()).add(target)
    assert list(TopologicalSorter(graph).static_order())


def test_the_tree_stays_small() -> None:
    """The top folder has few modules and folders, and no file is longer than `MAX_LINES`."""
    inside = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len([path for path in inside if path.suffix == ".py"]) <= MAX_ENTRIES
    assert len([path for path in inside if path.is_dir()]) <= MAX_ENTRIES
    written = [*files().values(), *(PACKAGE / "operate" / "page").iterdir()]
    lengths = {path.name: len(path.read_text().splitlines()) for path in written}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_only_the_command_line_imports_the_app() -> None:
    """Only the command line imports the app, and only `__main__` the command line."""
    assert {layer(importer) for importer, target in edges() if target == "app"} == {"cli"}
    assert {importer for importer, target in edges() if target == "cli"} == {"__main__"}


def test_run_does_not_load_the_demo() -> None:
    """The command line imports the demo only for `sidecar demo`."""
    top = ast.parse((PACKAGE / "cli.py").read_text()).body
    modules = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert not any((module or "").startswith("sidecar.demo") for module in modules)


def test_pure_modules_stay_pure() -> None:
    """Pure modules import nothing that does I/O, reads a clock or waits."""
    for name in PURE:
        nodes = list(ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())))
        used = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        used |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {module.split(".")[0] for module in used} & IMPURE, name


@pytest.mark.process
def test_run_does_not_load_aiohttp() -> None:
    """No kind of request on either port loads aiohttp: one server takes them all (D31)."""
    command = [sys.executable, "-m", "tests.support.loaded_modules"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    lines = {line for line in done.stdout.splitlines() if line.startswith("request")}
    assert lines == {"request True False"}


def test_modules_named_outside_python_exist() -> None:
    """The Dockerfile, the Makefile and CI name only modules of the daemon that exist."""
    texts = [(ROOT / name).read_text() for name in ("Dockerfile", "Makefile", ".ci/run")]
    named = {name for text in texts for name in re.findall(r"\bsidecar((?:\.[a-z_]+)+)", text)}
    modules = set(files())
    assert ".cli" in named
    assert {name for name in named if name[1:] not in modules} == {".__version__"} & named
