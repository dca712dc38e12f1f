"""What `make` installs in a fresh clone: for the demo what ships, for the rest also the tools."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import parts

ROOT = Path(__file__).parents[2]
DEADLINE_S = 300
# Neither the virtual environment nor the `make` of this run must show through.
KEPT = {
    name: text
    for name, text in os.environ.items()
    if name not in {"VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
}


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """The files that git has, without a `.venv`, as they are now."""
    if shutil.which("make") is None:
        parts.missing("no make")
    for name in parts.run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, file, follow_symlinks=False)
    yield tmp_path
    shutil.rmtree(tmp_path / ".venv", ignore_errors=True)


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make` with an empty home."""
    home = clone / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        ["make", *arguments],
        cwd=clone,
        env={**KEPT, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def installed(clone: Path, command: str) -> bool:
    """Whether the clone's environment has a command."""
    return (clone / ".venv/bin" / command).exists()


@pytest.mark.nightly  # test_newcomer.py runs the demo and the tests in a fresh clone, too
def test_what_is_installed(clone: Path) -> None:
    """`make demo` installs what ships and shows each package; other targets add the tools.

    A changed lock removes what an older one had.
    """
    done = make(clone, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    locked = (clone / "requirements.lock").read_text(encoding="utf-8")
    shipped = [f"  {line.split()[0]}" for line in locked.splitlines() if line[:1].isalpha()]
    assert set(shipped) < set(lines[: lines.index("Installing the sidecar and its client:")])
    assert any(line.startswith("watch:        .venv/bin/sidecar top") for line in lines)
    assert lines[-1] == "the accounting balances; nothing was lost"
    assert not installed(clone, "pytest")
    marker = clone / ".venv/marker"
    marker.touch()
    done = make(clone, "fmt")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Installing the tools for development:" in done.stdout
    assert installed(clone, "pytest")
    assert marker.exists()
    os.utime(clone / "requirements-dev.lock")
    assert make(clone, ".venv/.runtime").returncode == 0
    assert not marker.exists()
    assert not installed(clone, "pytest")


def test_a_package_that_is_not_what_the_lock_says(clone: Path) -> None:
    """`make` fails with pip's reason, and the next run tries again."""
    lock = clone / "requirements.lock"
    text = lock.read_text(encoding="utf-8")
    name = text.split(maxsplit=1)[0]
    lock.write_text(f"{name} --hash=sha256:{64 * '0'}\n", encoding="utf-8")
    for _ in range(2):
        done = make(clone, "demo")
        assert done.returncode == 2
        assert "HASH" in done.stderr
        assert name in done.stderr
        assert f"  {name}\n" in done.stdout
