"""A log line shows what others wrote, and does nothing to a terminal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = r"""
import structlog
from sidecar.telemetry import logs
from sidecar.config import LogConfig

evil = "\x1b[31m\r\n\x7f\x9b\u202e\ud800"
logs.configure(LogConfig(format="FORMAT"))
log = structlog.get_logger()
log.warning("happened", error=evil, each=[evil], nested={evil: evil})
try:
    raise ValueError(evil)
except ValueError:
    log.exception("failed")
"""


def logged(kind: str) -> str:
    """What a process with this log format writes to standard error."""
    command = [sys.executable, "-c", PROGRAM.replace("FORMAT", kind)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=True, cwd=root)
    return done.stderr.decode()


@pytest.mark.process
def test_the_console_format() -> None:
    """Texts, lists and mappings are escaped; a traceback has its lines, escaped one by one."""
    text = logged("console")
    assert text.replace("\n", "").isprintable()
    first, *traceback = text.splitlines()
    assert first.count(r"\x1b[31m\r\n\x7f\x9b\u202e\ud800") == 4
    assert traceback[-2:] == [r"ValueError: \x1b[31m\r", r"\x7f\x9b\u202e\ud800"]


@pytest.mark.process
def test_the_json_format() -> None:
    """Each line is JSON in printable ASCII, with the texts as they were."""
    text = logged("json")
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
    first, second = map(json.loads, text.splitlines())
    assert first["error"] == "\x1b[31m\r\n\x7f\x9b\u202e\ud800"
    assert second["exception"].endswith("\x7f\x9b\u202e\ud800")
