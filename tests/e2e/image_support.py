"""The image, built by buildah on local base images, without an image registry.

mmdebstrap makes both base images from Debian's packages. One resembles a slim Python image: a
shell, apt, Python and pip under /usr/local. The other resembles a distroless one: Python under
/usr with the libraries that it needs, no shell. Images are in their own store in `parts.CACHE`.
"""

import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import sidecar
from tests.e2e import parts

Json = dict[str, Any]
SOURCE = Path(__file__).parents[2]
SUITE = "bookworm"
PYTHON = "3.11"
BUILDER = "localhost/trace-sidecar-builder"
SLIM = "localhost/trace-sidecar-slim"
DISTROLESS = "localhost/trace-sidecar-distroless"
IMAGE = "localhost/trace-sidecar"
POLL_S = 0.1
# Set in every build that reuses layers: for buildah, other arguments alone make no new layer.
VERSIONS = {"VERSION": sidecar.__version__, "REVISION": "abc", "CREATED": "2026-01-02T03:04:05Z"}

_STORE = parts.CACHE / "podman"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Files that Debian's slim images omit, too.
_UNREAD = ("doc", "groff", "info", "lintian", "linda", "locale", "man")
# usr-is-merged replaces usrmerge, which needs perl.
_SHELL_IN = ("python3", "python3-venv", "ca-certificates", "tzdata", "usr-is-merged")
_SHELL_LESS = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "ca-certificates",
    "libstdc++6",
    "netbase",
    "tzdata",
)
# A distroless image has none of these packages' tools.
_TOOLS = ("bin", "sbin", "usr/sbin", "usr/share/perl5", "usr/share/zoneinfo/right", "var/lib/dpkg")
# Removes what slim images do not have, moves Debian's Python to the path of the official images,
# and adds pip.
_TO_USR_LOCAL = f"""
set -e
apt-get purge -qq -y --auto-remove usrmerge perl perl-modules-5.36 libperl5.36
mv /usr/bin/python3* /usr/local/bin/
mkdir -p /usr/local/lib/python{PYTHON}
cp -a /usr/lib/python{PYTHON}/. /usr/local/lib/python{PYTHON}/
rm -rf /usr/lib/python{PYTHON} /usr/lib/python3
mkdir -p /usr/local/lib/python{PYTHON}/dist-packages
cd /usr/local/lib/python{PYTHON}/dist-packages
python3 -m zipfile -e /usr/share/python-wheels/pip-*.whl .
echo 'import sys, pip; sys.exit(pip.main())' > /usr/local/bin/pip
find /usr/local -name __pycache__ -exec rm -r {{}} +
"""


@cache
def environment() -> Mapping[str, str]:
    """Return the variables that make buildah and podman use a store and settings of their own."""
    parts.debian("buildah", "podman", "runc", "mmdebstrap", "uidmap", "catatonit")
    _STORE.mkdir(parents=True, exist_ok=True)
    runc = shutil.which("runc", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    settings = _STORE / "containers.conf"
    # The default limits can exceed those of a container that the tests run in, and there is no
    # systemd.
    settings.write_text(
        "[containers]\n"
        'default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n'
        'log_driver = "k8s-file"\n'
        "[engine]\n"
        'runtime = "runc"\n'
        'cgroup_manager = "cgroupfs"\n'
        'events_logger = "file"\n'
        "[engine.runtimes]\n"
        f'runc = ["{runc}"]\n'
    )
    store = _STORE / "storage.conf"
    store.write_text(
        f'[storage]\ndriver = "overlay"\ngraphroot = "{_STORE}/store"\nrunroot = "{_STORE}/run"\n'
    )
    return {
        "CONTAINERS_CONF": str(settings),
        "CONTAINERS_STORAGE_CONF": str(store),
        # The podman process that restarts a container does not get the file above. It refuses a
        # database that does not name its driver, and only this variable writes the name.
        "STORAGE_DRIVER": "overlay",
    }


def attempt(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run buildah or podman and return the completed process."""
    return subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment()},
        text=True,
        check=False,
        timeout=parts.TIMEOUT_S,
        **({"capture_output": True} | options),
    )


def run(*command: str | Path) -> str:
    """Return the standard output of buildah or podman; AssertionError if it fails."""
    done = attempt(*command)
    assert done.returncode == 0, (command, (done.stdout + done.stderr)[-4000:])
    return done.stdout.strip()


def _excluding() -> list[str]:
    return [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNREAD]


def _debian(home: Path) -> None:
    """Return the root file systems of both base images, as tar files."""
    include = "--include=" + ",".join(_SHELL_IN)
    parts.run("mmdebstrap", "--variant=minbase", *_excluding(), include, SUITE, home / "slim.tar")
    include = "--include=" + ",".join(_SHELL_LESS)
    root = home / "distroless"
    parts.run("mmdebstrap", "--variant=extract", include, SUITE, root)
    for tree in (*_TOOLS, *(f"usr/share/{name}" for name in _UNREAD)):
        shutil.rmtree(root / tree, ignore_errors=True)
    for program in (root / "usr/bin").iterdir():
        if program.name != f"python{PYTHON}":
            program.unlink()
    with tarfile.open(home / "distroless.tar", "w") as packed:
        packed.add(root, "/")
    shutil.rmtree(root)


def _imported(tar: Path, name: str, *, script: str = "") -> None:
    container = run("buildah", "from", "scratch")
    run("buildah", "add", container, tar, "/")
    if script:
        run("buildah", "run", "--isolation", "chroot", container, "--", "sh", "-c", script)
    run("buildah", "config", "--env", _PATH, container)
    run("buildah", "commit", "--rm", "--timestamp=0", container, name)


def _as_pip_here(base: str, name: str) -> None:
    """Return `base` with this machine's certificates and package index, for pip in a build."""
    container = run("buildah", "from", "--pull-never", base)
    authorities = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    index = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    lines = ["[global]"]
    if authorities:
        lines.append("cert = /etc/ssl/certs/ca-certificates.crt")
        run("buildah", "add", container, authorities, "/etc/ssl/certs/ca-certificates.crt")
    if index:
        lines.append(f"index-url = {index}")
    settings = _STORE / "pip.conf"
    settings.write_text("\n".join(lines) + "\n")
    run("buildah", "add", container, settings, "/etc/pip.conf")
    run("buildah", "commit", "--rm", "--timestamp=0", container, name)


def _exists(image: str) -> bool:
    return attempt("podman", "image", "exists", image).returncode == 0


@cache
def bases() -> None:
    """Make `SLIM` and `DISTROLESS`, and a builder for each."""
    environment()
    tars = parts.build_once("image-bases", _debian)
    plain = BUILDER + "-plain"
    for tar, name, script in (
        ("slim.tar", plain, ""),
        ("slim.tar", SLIM, _TO_USR_LOCAL),
        ("distroless.tar", DISTROLESS, ""),
    ):
        if not _exists(name):
            _imported(tars / tar, name, script=script)
    _as_pip_here(plain, BUILDER)
    _as_pip_here(SLIM, SLIM + "-builder")


def build(
    tag: str,
    *,
    source: Path = SOURCE,
    slim: bool = False,
    cached: bool = False,
    arguments: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Build `source` as `tag`; `cached` reuses layers of earlier builds."""
    bases()
    images = {
        "BUILD_IMAGE": SLIM + "-builder" if slim else BUILDER,
        "RUNTIME_IMAGE": SLIM if slim else DISTROLESS,
    }
    given = [
        f"--build-arg={key}={value}" for key, value in (images | dict(arguments or {})).items()
    ]
    how = ["--isolation=chroot", "--pull-never", "--timestamp=0"]
    how += ["--layers"] if cached else ["--no-cache"]
    return attempt("buildah", "bud", *how, *given, "-t", tag, source)


def built(tag: str, **options: Any) -> Json:
    """Build as `build` does, require success, and return podman's description of the image."""
    done = build(tag, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return inspected(tag)


def inspected(tag: str) -> Json:
    """Return podman's description of an image."""
    described: list[Json] = json.loads(run("podman", "image", "inspect", tag))
    return described[0]


def log(container: str) -> str:
    """Return all output of a container."""
    done = attempt("podman", "logs", container)
    return done.stdout + done.stderr


def eventually(true: Callable[[], object], deadline_s: float = 120.0) -> None:
    """Return once `true()` holds; AssertionError if it never does."""
    until = time.monotonic() + deadline_s
    while not true():
        assert time.monotonic() < until, true
        time.sleep(POLL_S)
