"""Imports point one way: a newcomer reads from the leaves up, and a cycle is a design error."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import sidecar

PACKAGE = Path(sidecar.__file__).parent
ROOT = PACKAGE.parent

# From the leaves up: a module imports from lower rows only.
LEVELS = [
    "sidecar spans http listener queue drain telemetry operate process spool",
    (
        "credentials spans.raw_json telemetry.accounting process.memory "
        "drain.concurrency spool.sqlite_file queue.disk_fifo http.decompression http.timeouts"
    ),
    (
        "telemetry.recent telemetry.log_rate_limiter process.exit_report operate.diagnosis "
        "sizes process.addresses http.deadline http.server"
    ),
    "operate.top_frame operate.admin",
    "operate.top",
    "spans.span spans.validation config drain.throttle",
    "queue.memory_budget logs drain.retry_queue sinks spool.spool spans.decode",
    (
        "queue.open_spans queue.span_queue drain.evidence sinks.dead_letters "
        "telemetry.metrics listener.body http.dialer http.connection"
    ),
    "http.pool listener.body_reader listener.host_check",
    "sinks.http",
    "sinks.agentex sinks.sgp drain.workers operate.prometheus",
    "queue.admission lanes listener.routes listener.pass_through",
    (
        "listener.routes.ingest listener.routes.sgp listener.routes.agentex "
        "listener.routes.ready listener.head_cache listener.ingest operate.history"
    ),
    "listener.connection listener.aiohttp_server",
    "listener.listener operate.replay operate.status recovery",
    "operate.explain",
    "app",
    "demo",
    "cli",
    "__main__",
]
LEVEL = {name: level for level, row in enumerate(LEVELS) for name in row.split()}


def names() -> dict[str, Path]:
    """Every module by its name within the package; the demo's are one."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "sidecar"
        found[name] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, wherever in it."""
    modules = names()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sidecar"):
            package = (node.module or "").removeprefix("sidecar").removeprefix(".")
            for alias in node.names:
                inner = f"{package}.{alias.name}".removeprefix(".")
                yield inner if inner in modules else package or "sidecar"
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "sidecar" for alias in node.names)


def layer(name: str) -> str:
    """What stands for a module in LEVELS."""
    return "demo" if name.split(".", maxsplit=1)[0] == "demo" else name


def edges() -> set[tuple[str, str]]:
    """Who imports whom, the demo as one."""
    return {
        (layer(name), layer(target)) for name, path in names().items() for target in imported(path)
    }


def test_every_module_has_its_level() -> None:
    """A new module is placed here, so that its place is thought about."""
    assert {layer(name) for name in names()} == set(LEVEL)


def test_imports_point_towards_the_leaves() -> None:
    """No module imports one of its own level or above, so there are no cycles either."""
    wrong = {(a, b) for a, b in edges() if a != b and LEVEL[b] >= LEVEL[a]}
    assert wrong == set()


def test_only_the_outermost_know_the_app() -> None:
    """The app knows all others; nobody but the command line and the demo knows the app."""
    assert {importer for importer, target in edges() if target == "app"} == {"cli", "demo"}
    assert {importer for importer, target in edges() if target == "cli"} == {"__main__"}


def test_a_sidecar_at_work_does_not_load_the_demo() -> None:
    """The command line imports the demo only when it is asked for."""
    top = ast.parse((PACKAGE / "cli.py").read_text()).body
    modules = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert not any((module or "").startswith("sidecar.demo") for module in modules)


def test_pure_modules_stay_pure() -> None:
    """What is arithmetic has no clock, no loop and no I/O: values come as arguments."""
    banned = {"asyncio", "time", "random", "os", "socket", "aiohttp", "pathlib", "structlog"}
    for name in ("spans.raw_json", "spans.span", "queue.open_spans", "queue.span_queue",
                 "telemetry.accounting", "queue.memory_budget", "drain.retry_queue",
                 "drain.evidence", "drain.throttle", "drain.concurrency"):  # fmt: skip
        tree = ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text())
        nodes = list(ast.walk(tree))
        used = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        used |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {module.split(".")[0] for module in used} & banned, name


def test_aiohttp_is_loaded_when_it_is_needed() -> None:
    """Plain requests and operators' questions need none of it; it is a fifth of the memory."""
    command = [sys.executable, "-m", "tests.support.loaded_modules"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    said = [line for line in done.stdout.splitlines() if line.startswith("asked")]
    assert said == ["asked 200 False", "asked 202 False", "asked 200 False", "asked 202 True"]
