"""docs/logs.md lists exactly the events that the code can log, and all output takes one way."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sidecar
from sidecar import cli
from sidecar.config import Config, redacted
from sidecar.process.log_hints import HINTS
from sidecar.telemetry.outcomes import SinkState
from tests.support.docs import anchors
from tests.support.run_process import run_process
from tests.support.world import upstream

PACKAGE = Path(sidecar.__file__).parent
PAGE = PACKAGE.parent / "docs" / "logs.md"
# The only modules that may use the standard streams: those of commands that end by themselves, and
# the one that replaces the streams.
COMMANDS = {"cli", "operate/check", "operate/top", "process/terminal", "telemetry/logs"}
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
    return {f"upstream_{state}" for state in SinkState if state.value not in ("up", "not_asked")}


def test_the_page_lists_every_event() -> None:
    """The page lists every event with its level."""
    page = set(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE.read_text(), re.MULTILINE))
    assert page == logged()


def test_every_warning_has_a_hint() -> None:
    """Each warning and error says what to do, in one table that has nothing else."""
    assert {event for event, level in logged() if level not in {"debug", "info"}} == set(HINTS)


@pytest.mark.parametrize("event", HINTS)
def test_a_hint_names_what_there_is(event: str) -> None:
    """Its page has the heading, the configuration has its settings, and its command is one."""
    text, page = HINTS[event]
    path, _, anchor = page.partition("#")
    assert anchor in anchors(PACKAGE.parent / path)
    settings = redacted(Config())
    for section, key in re.findall(r"([a-z_]+|\{sink\})\.([a-z_]+)\b", text):
        for name in ("agentex", "sgp") if section == "{sink}" else (section,):
            assert key in settings[name]
    for command in re.findall(r"(?:: |`)sidecar ([a-z]+(?: --[a-z]+)?(?: FILE)?)(?=$|[,`])", text):
        cli._parser().parse_args(command.split())


@pytest.mark.process
@pytest.mark.parametrize("format_", ["json", "console"])
def test_a_hint_is_in_the_line(format_: str) -> None:
    """In both formats a warning ends with what to do, about its own upstream; an info has none."""
    program = f"""
import structlog
from sidecar.telemetry import logs
from sidecar.config import LogConfig

logs.configure(LogConfig(format="{format_}"))
log = structlog.get_logger()
log.warning("upstream_braked", sink="sgp", error="HTTP 400")
log.warning("config_warning", text="A sentence.")
log.info("upstream_up", sink="sgp")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, check=True
    )
    braked, configured, up = done.stderr.decode().splitlines()
    assert "check the URL in section sgp; write_dead_lettered in the log says" in braked
    assert "(docs/runbooks.md#tracesidecarbrakeon)" in braked
    assert "A sentence." in configured
    assert "sidecar check (docs/configuration.md#where-settings-come-from)" in configured
    assert "hint" not in up


def test_only_commands_use_the_standard_streams() -> None:
    """Everything else logs: a direct write could hang with whoever reads the log (D27)."""
    users = set()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            used = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
            imported = isinstance(node, ast.ImportFrom) and node.module in {"sys", "logging"}
            stream = re.fullmatch(r"sys\.(__)?std(out|err)(__)?|print|traceback\.print_\w+", used)
            if stream or imported or used == "os.write":
                users.add(name)
    writes_a_descriptor = {"process/log_writer", "sinks/dead_letters"}
    assert {
        name for name in users if not name.startswith("demo/")
    } == COMMANDS | writes_a_descriptor


SCRIPT = """
import asyncio, atexit, logging, sys, threading, warnings
from sidecar.telemetry import logs
from sidecar.config import LogConfig, PodConfig

writer = logs.start(LogConfig(format=sys.argv[1], level=sys.argv[2]), PodConfig())
atexit.register(writer.drain, 60.0)
library = logging.getLogger("a.library")
library.warning("watch %s", "out")
library.info("too much")
library.warning("%d spans", "no")
library.log(35, "100% odd")
warnings.warn("old", stacklevel=1)
try:
    1 / 0
except ZeroDivisionError:
    library.exception("two\\nlines")

async def main():
    asyncio.get_running_loop().call_exception_handler({"message": "in a callback"})

asyncio.run(main())
print("printed")
thread = threading.Thread(target=lambda: 1 / 0, name="some-thread")
thread.start()
thread.join()

class Finalized:
    def __del__(self):
        raise ValueError("unraisable")

Finalized()
raise RuntimeError("the end")
"""


def output(*arguments: str) -> list[str]:
    """The lines of a process that does everything that prints, and ends with an exception."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.splitlines()


@pytest.mark.process
def test_libraries_log_as_we_do() -> None:
    """Records, warnings and asyncio's errors are lines like ours, with the name of their logger."""
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in output("json", "info") if line.startswith("{")
    ]
    said = [(line["level"], line["logger"], line["event"]) for line in lines]
    assert said[:2] == [("warning", "a.library", "watch out"), ("warning", "a.library", "100% odd")]
    assert said[2][:2] == ("warning", "py.warnings")
    assert "UserWarning: old" in said[2][2]
    assert said[3:] == [("error", "a.library", "two\nlines"), ("error", "asyncio", "in a callback")]
    assert lines[3]["exception"].endswith("ZeroDivisionError: division by zero")
    assert all(line["timestamp"] for line in lines)


@pytest.mark.process
@pytest.mark.parametrize(
    "known",
    [{"pod": "agent-0", "namespace": "agents", "node": "node-1"}, {"node": "node-1"}, {}],
    ids=["all", "node", "nothing"],
)
async def test_the_first_and_the_last_line_say_where_it_ran(
    known: dict[str, str], tmp_path: Path
) -> None:
    """`started` and `stopped` have what is known of the pod, and no other line has any of it."""
    settings = {f"pod__{key.replace('pod', 'name')}": name for key, name in known.items()}
    path = tmp_path / "log"
    async with upstream() as agentex:
        with path.open("w") as log:
            process = run_process(agentex, stderr=log.fileno(), **settings)
            async with process as sidecar:
                assert await sidecar.stop() == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("pod", "namespace", "node")
    found = {line["event"]: {key: line[key] for key in keys if key in line} for line in lines}
    assert (found["started"], found["stopped"]) == (known, known)
    assert {event for event, names in found.items() if names} <= {"started", "stopped"}
    assert len(found) > 2


@pytest.mark.process
@pytest.mark.parametrize(("format_", "level"), [("json", "error"), ("console", "info")])
def test_everything_printed_comes_out(format_: str, level: str) -> None:
    """What is printed, and the tracebacks of threads, finalizers and the end of the process."""
    lines = output(format_, level)
    assert any("watch out" in line for line in lines) is (level == "info")
    assert "printed" in lines
    assert ("TypeError: %d format: a real number is required, not str" in lines) is (
        level == "info"
    )
    assert "Exception in thread some-thread:" in lines
    assert "ValueError: unraisable" in lines
    assert lines[-1] == "RuntimeError: the end"
    assert lines[-3] == "Traceback (most recent call last):"
