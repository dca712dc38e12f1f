"""Real programs for the end-to-end tests: found, installed or built, else the test is skipped.

Builds and downloads are outside the checkout, in `CACHE`, and are made again when absent. With
`E2E_REQUIRED=1` in the environment (`.ci/run` sets it) a missing part fails the test.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trace-sidecar" / "e2e"
# A lock of its own: none of what it needs is in requirements-dev.lock. To renew it, run
# `uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate` on
# a file with the one line `schemathesis==VERSION`.
SCHEMATHESIS = Path(__file__).parent / "schemathesis.lock"
# A cold build of the largest part takes minutes, on a busy machine half an hour; a hanging one must
# not block the run forever.
TIMEOUT_S = 2400
_SHOWN = 2000


def missing(reason: str) -> NoReturn:
    """Skip the test with `reason`, or fail it if parts are required."""
    if os.environ.get("E2E_REQUIRED"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def run(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Return a command's output; if it fails, call `missing` with the end of its errors."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        missing(f"{command[0]}: {type(error).__name__}")
    if done.returncode:
        missing(f"{' '.join(map(str, command))}: {(done.stdout + done.stderr)[-_SHOWN:]}")
    return done.stdout


def debian(*packages: str) -> None:
    """Install missing Debian packages; needs root and apt."""

    def installed(package: str) -> bool:
        query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
        return subprocess.run(query, capture_output=True, check=False).stdout == b"installed"

    if shutil.which("apt-get") is None:
        missing("no apt-get to install " + " ".join(packages))
    absent = [package for package in packages if not installed(package)]
    if not absent:
        return
    wait = ["-o", "DPkg::Lock::Timeout=600", "-qq", "-y"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", *wait, "update", env=quiet)
    run("apt-get", *wait, "install", "--no-install-recommends", *absent, env=quiet)


def unpacked(package: str) -> Path:
    """Unpack a Debian package without installing it, so that no service starts."""

    def build(home: Path) -> None:
        if shutil.which("apt-get") is None:
            missing("no apt-get to download " + package)
        run("apt-get", "-o", "DPkg::Lock::Timeout=600", "-qq", "update")
        run("apt-get", "-qq", "download", package, cwd=home)
        (archive,) = home.glob("*.deb")
        run("dpkg-deb", "--extract", archive, home / "root")
        archive.unlink()

    return build_once(f"debian/{package}", build) / "root"


def go() -> Path:
    """Return the Go toolchain."""
    found = shutil.which("go", path=os.environ.get("PATH", "") + ":/usr/local/go/bin")
    if found is None:
        missing("no Go toolchain")
    return Path(found)


def go_tool(package: str, version: str) -> Path:
    """Return the program of a Go package (`example.com/module/cmd/name`), built once."""

    def build(home: Path) -> None:
        run(go(), "install", f"{package}@{version}", env={"GOBIN": str(home)})

    home = build_once(f"go/{package.replace('/', '_')}/{version}", build)
    return next(path for path in home.iterdir() if path.name != "done")


def go_module(module: str, version: str) -> Path:
    """Return the read-only folder with the files of a Go module, from the module proxy."""
    answer = json.loads(run(go(), "mod", "download", "-json", f"{module}@{version}"))
    return Path(answer["Dir"])


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache, filled by `build` unless an earlier run did so."""
    home = CACHE / name
    if (home / "done").exists():
        return home
    lock = CACHE / "locks" / name.replace("/", "_")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w", encoding="utf-8") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # another run may be at it
        if not (home / "done").exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
            build(home)
            (home / "done").touch()
    return home


def newer_python() -> Path:
    """Return a Python of at least 3.12, which the SDKs need."""
    candidates = [sys.executable, "python3.14", "python3.13", "python3.12", "python3"]
    candidates += [str(path) for path in sorted(_pyenv("3.1[2-9]*"), reverse=True)]
    found = _first(candidates, "sys.version_info >= (3, 12)")
    return found or missing("no Python 3.12 or newer")


def python(version: str) -> Path | None:
    """Return an interpreter of a version such as 3.12, if this machine has one."""
    candidates = [sys.executable, f"python{version}", *map(str, _pyenv(f"{version}.*"))]
    return _first(candidates, f"sys.version_info[:2] == ({version.replace('.', ', ')})")


def _pyenv(versions: str) -> Iterator[Path]:
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return (home / "versions").glob(f"{versions}/bin/python3")


def _first(candidates: Iterable[str], suitable: str) -> Path | None:
    """Return the first candidate that can make virtual environments and is suitable."""
    # Run, not just looked up: the shim of a version manager may be for a Python that is not there.
    check = f"import sys, venv, ensurepip; sys.exit(not ({suitable}))"
    for candidate in candidates:
        found = shutil.which(candidate)
        if (
            found
            and not subprocess.run(
                [found, "-c", check], capture_output=True, check=False
            ).returncode
        ):
            return Path(found)
    return None


def locked_venv(lock: Path) -> Path:
    """Return the interpreter of a virtual environment with what a lock file pins, by hash."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]

    def build(home: Path) -> None:
        run(sys.executable, "-m", "venv", home)
        pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(home / "bin/python", *pip, "--require-hashes", "-r", lock)

    return build_once(f"venv/{lock.stem}-{digest}", build) / "bin/python"


def venv(name: str, *requirements: str) -> Path:
    """Return the interpreter of a virtual environment with the newest `requirements`."""

    def build(home: Path) -> None:
        run(newer_python(), "-m", "venv", home)
        pip = ("-m", "pip", "install", "--quiet", "--upgrade")
        run(home / "bin/python", *pip, *requirements)

    return build_once(f"venv/{name}", build) / "bin/python"
