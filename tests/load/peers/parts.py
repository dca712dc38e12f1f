"""Installs or builds the peers on first use; `Absent` gives the reason if one can't be."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.e2e import parts

_SOURCE = Path(__file__).parent / "collector"


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


def collector() -> Path:
    """Build the Collector with the four components that forwarding needs."""
    return _had(lambda: parts.build_once(f"collector-{_digest()}", _build)) / "collector"


def collector_version() -> str:
    """Return the version of the Collector's components."""
    found = re.search(r"/otlpreceiver (\S+)", (_SOURCE / "go.mod").read_text())
    assert found is not None
    return found[1]


def versions(python: Path, packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages in the environment of `python`."""
    script = "import sys, importlib.metadata as m\nfor p in sys.argv[1:]: print(p, m.version(p))"
    done = subprocess.run(
        [python, "-c", script, *packages], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def _digest() -> str:
    source = b"".join(path.read_bytes() for path in sorted(_SOURCE.iterdir()))
    return hashlib.sha256(source).hexdigest()[:12]


def _build(home: Path) -> None:
    source = home / "source"
    shutil.copytree(_SOURCE, source)
    # -mod=mod: go.mod names only our direct dependencies.
    parts.run(
        parts.go(), "build", "-mod=mod", "-trimpath", "-ldflags", "-s -w", "-o", home / "collector",
        ".", cwd=source, env={"GOTOOLCHAIN": "local"},
    )  # fmt: skip


def _had(make: Callable[[], Path]) -> Path:
    # `parts` raises pytest's outcomes, which do not derive from Exception.
    try:
        return make()
    except (pytest.skip.Exception, pytest.fail.Exception) as outcome:
        reason = outcome.msg or "no reason given"
        raise Absent(reason) from None
