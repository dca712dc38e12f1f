"""The folders follow a span's journey, and imports point one way: towards the leaves."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import sidecar

PACKAGE = Path(sidecar.__file__).parent
ROOT = PACKAGE.parent

# Folders, and files beside them, from the leaves up: each imports from lower rows, and its own.
LAYERS = [
    "credentials process sizes spans",
    "config",
    "config_load",
    "http logs telemetry",
    "sinks spool",
    "queue",
    "drain",
    "lanes",
    "recovery listener operate",
    "app",
    "demo",
    "cli",
    "__main__",
]
LAYER = {name: rank for rank, row in enumerate(LAYERS) for name in row.split()}
MAX_LINES = 300
MAX_ENTRIES = 12
# What is arithmetic has no clock, no loop and no I/O: values come as arguments.
PURE = [
    "spans/raw_json",
    "spans/span",
    "spans/validation",
    "spans/decode",
    "queue/open_spans",
    "queue/span_queue",
    "queue/memory_budget",
    "queue/disk_fifo",
    "telemetry/accounting",
    "telemetry/outcomes",
    "drain/retry_queue",
    "drain/evidence",
    "drain/failures",
    "drain/scheduler",
    "drain/throttle",
    "drain/pace",
    "drain/concurrency",
]
IMPURE = {"asyncio", "time", "random", "os", "socket", "aiohttp", "pathlib", "structlog"}


def files() -> dict[str, Path]:
    """Every module of the daemon by its dotted name within the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, names: dict[str, Path]) -> Iterator[str]:
    """The modules of this package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sidecar":
            package = (node.module or "").removeprefix("sidecar").removeprefix(".")
            for alias in node.names:
                inner = f"{package}.{alias.name}".removeprefix(".")
                yield inner if inner in names else package
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "sidecar" for alias in node.names)


def edges() -> set[tuple[str, str]]:
    """Which module imports which; the package's own `__init__` has only the version."""
    names = files()
    found = {(name, target) for name, path in names.items() for target in imported(path, names)}
    return {(name, target) for name, target in found if target}


def layer(name: str) -> str:
    """The folder, or the file beside the folders, that a module is in."""
    return name.split(".", maxsplit=1)[0]


def test_imports_point_towards_the_leaves() -> None:
    """A folder imports from lower rows only; a folder that has no row has no place yet."""
    between = {(layer(a), layer(b)) for a, b in edges() if layer(a) != layer(b)}
    assert {(a, b) for a, b in between if LAYER[b] >= LAYER[a]} == set()
    assert {layer(name) for name in files() if name} == set(LAYER)


def test_no_module_imports_itself_by_a_detour() -> None:
    """There is no import cycle, inside a folder either; a sorter would raise `CycleError`."""
    graph: dict[str, set[str]] = {}
    for name, target in edges():
        graph.setdefault(name, set()).add(target)
    assert list(TopologicalSorter(graph).static_order())


def test_the_tree_stays_small() -> None:
    """A newcomer sees a dozen entries at once, and no file holds two ideas."""
    inside = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len([path for path in inside if path.is_file()]) <= MAX_ENTRIES
    assert len([path for path in inside if path.is_dir()]) <= MAX_ENTRIES
    lengths = {name: len(path.read_text().splitlines()) for name, path in files().items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_only_the_outermost_know_the_app() -> None:
    """The app knows all others; nobody but the command line and the demo knows the app."""
    assert {layer(importer) for importer, target in edges() if target == "app"} == {"cli", "demo"}
    assert {importer for importer, target in edges() if target == "cli"} == {"__main__"}


def test_a_sidecar_at_work_does_not_load_the_demo() -> None:
    """The command line imports the demo only when it is asked for."""
    top = ast.parse((PACKAGE / "cli.py").read_text()).body
    modules = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert not any((module or "").startswith("sidecar.demo") for module in modules)


def test_pure_modules_stay_pure() -> None:
    """Queueing, joining and deciding are arithmetic: they can be tested without waiting."""
    for name in PURE:
        nodes = list(ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())))
        used = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        used |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {module.split(".")[0] for module in used} & IMPURE, name


def test_aiohttp_is_loaded_when_it_is_needed() -> None:
    """Plain requests and operators' questions need none of it; it is a fifth of the memory."""
    command = [sys.executable, "-m", "tests.support.loaded_modules"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    said = [line for line in done.stdout.splitlines() if line.startswith("asked")]
    assert said == ["asked 200 False", "asked 202 False", "asked 200 False", "asked 202 True"]
