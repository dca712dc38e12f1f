"""Installs or builds the peers on first use; `Absent` gives the reason if one can't be."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.e2e import collector_support, parts


class Absent(Exception):
    """A peer can't be installed here."""


def agentex_sdk() -> Path:
    """Return the interpreter of an environment with the newest Agentex SDK."""
    return _had(lambda: parts.venv("agentex-sdk", "agentex-sdk"))


def any_python() -> Path:
    """Return the Agentex SDK's interpreter if installed, so that agents are alike; else ours."""
    try:
        return agentex_sdk()
    except Absent:
        return Path(sys.executable)


def opentelemetry_sdk() -> Path:
    """Return the interpreter of an environment with the newest OpenTelemetry SDK and exporter."""
    exporter = "opentelemetry-exporter-otlp-proto-http"
    return _had(lambda: parts.venv("opentelemetry", "opentelemetry-sdk", exporter))


def collector(tag: str = "") -> Path:
    """Build the Collector with the three components that forwarding needs, and those of `tag`."""
    return _had(lambda: collector_support.program(tag))


def rotel() -> tuple[Path, Path]:
    """Install the newest Rotel; return its program, and the folder of the libpython it needs."""
    python = _had(lambda: parts.venv("rotel", "--pre", "rotel"))
    script = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
    libraries = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    (program,) = python.parents[1].glob("lib/python*/site-packages/rotel/rotel-agent")
    return program, Path(libraries.stdout.strip())


def collector_version() -> str:
    """Return the version of the Collector's components."""
    found = re.search(r"/otlpreceiver (\S+)", (collector_support.SOURCE / "go.mod").read_text())
    assert found is not None
    return found[1]


def versions(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages in the environment of `python`."""
    script = "import sys, importlib.metadata as m\nfor p in sys.argv[1:]: print(p, m.version(p))"
    done = subprocess.run(
        [python, "-c", script, *packages], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def _had(make: Callable[[], Path]) -> Path:
    # `parts` raises pytest's outcomes, which do not derive from Exception.
    try:
        return make()
    except (pytest.skip.Exception, pytest.fail.Exception) as outcome:
        reason = outcome.msg or "no reason given"
        raise Absent(reason) from None
