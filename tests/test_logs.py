"""docs/logs.md lists exactly the events that the code can log."""

import ast
import re
from pathlib import Path

import sidecar
from sidecar.telemetry.outcomes import SinkState

PACKAGE = Path(sidecar.__file__).parent
PAGE = PACKAGE.parent / "docs" / "logs.md"
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def logged() -> set[tuple[str, str]]:
    """Every event and its level, from the calls on `log` and `_log`."""
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        if "demo" in path.parts or "client" in path.parts:
            continue  # the client logs through the agent's own logging
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr in LEVELS and owner.rpartition(".")[2] in {"log", "_log"}:
                    found |= {(name, node.func.attr) for name in names(node.args[0])}
    return found


def names(argument: ast.expr) -> set[str]:
    """The event names that an argument can have."""
    if isinstance(argument, ast.Constant):
        return {str(argument.value)}
    assert ast.unparse(argument) == "f'upstream_{state}'"
    return {f"upstream_{state}" for state in SinkState if state is not SinkState.UP}


def test_the_page_lists_every_event() -> None:
    """The page lists every event with its level."""
    page = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE))
    assert page == logged()
