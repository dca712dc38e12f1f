"""The image, built for real: its content, its size, and that builds are reproducible."""

import json
import re
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

import sidecar
from tests.e2e import image_support as images
from tests.e2e.image_support import IMAGE, SOURCE, VERSIONS, Json

MB = 10**6
LIMIT = {"distroless": 90 * MB, "slim": 170 * MB}
SETTINGS = ("--env=AGENTEX_BASE_URL=http://127.0.0.1:1", "--env=SIDECAR_SHUTDOWN__QUIET_S=0")
# The options of a container under the restricted Pod Security Standard.
LOCKED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none")

both = pytest.mark.parametrize("kind", ["distroless", "slim"])


@cache
def image(kind: str) -> Json:
    """Return the image on a base of this kind; built once per run, reusing earlier layers."""
    return images.built(f"{IMAGE}:{kind}", slim=kind == "slim", cached=True, arguments=VERSIONS)


def inside(kind: str, *command: str, program: str = "sidecar") -> str:
    """Return a program's output in a container that is locked down as in a pod."""
    image(kind)
    options = ("--rm", "--no-healthcheck", *LOCKED, f"--entrypoint={program}", *SETTINGS)
    return images.run("podman", "run", *options, f"{IMAGE}:{kind}", *command)


@contextmanager
def running(kind: str) -> Iterator[str]:
    """Run a container until its sidecar has logged `started`."""
    image(kind)
    name = f"trace-sidecar-{uuid.uuid4().hex[:8]}"
    images.run("podman", "run", "-d", "--name", name, *LOCKED, *SETTINGS, f"{IMAGE}:{kind}")
    try:
        images.eventually(lambda: '"started"' in images.log(name))
        yield name
    finally:
        images.attempt("podman", "rm", "--force", "--time=0", name)


@pytest.mark.nightly
def test_two_builds_have_one_digest() -> None:
    """Neither time, machine nor earlier builds influence the image."""
    first = images.built(f"{IMAGE}:first")
    second = images.built(f"{IMAGE}:second")
    assert (first["Digest"], first["Id"]) == (second["Digest"], second["Id"])


@both
def test_the_image_is_small(kind: str) -> None:
    """It has at most 90 MB on a distroless base, and 170 MB on a slim one."""
    assert image(kind)["Size"] <= LIMIT[kind]


def test_the_image_says_what_it_is() -> None:
    """It has the labels, user, ports, stop signal and exec form that operators expect."""
    found = image("distroless")
    labels = {key.rpartition(".")[2]: value for key, value in found["Labels"].items()}
    assert labels["title"] == "trace-sidecar"
    assert labels["licenses"] == "MIT"
    assert labels["version"] == sidecar.__version__
    assert (labels["revision"], labels["created"]) == ("abc", VERSIONS["CREATED"])
    config = found["Config"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] in {"SIGTERM", "15"}
    assert (config["Entrypoint"], config["Cmd"]) == (["sidecar"], ["run"])
    assert set(config["ExposedPorts"]) == {"8318/tcp", "9318/tcp"}


@both
def test_the_runtime_holds_what_it_needs_and_no_more(kind: str) -> None:
    """It runs as non-root with SQLite and bytecode, and has no pip, compiler or C++ library."""
    looks = (
        "import importlib.util, json, os, shutil, sqlite3, sys, sidecar.app;"
        "tools = [t for t in ('pip', 'pip3', 'cc', 'gcc', 'strip') if shutil.which(t)];"
        "modules = [m for m in ('pip', 'ensurepip', 'setuptools') if importlib.util.find_spec(m)];"
        "maps = open('/proc/self/maps').read();"
        "slow = [n for n, m in sys.modules.items() if getattr(m, '__cached__', None)"
        " and n.startswith('sidecar') and not os.path.exists(m.__cached__)];"
        "sqlite3.connect(':memory:').execute('select 1');"
        "print(json.dumps([os.getuid(), os.getgid(), tools, modules, 'libstdc++' in maps, slow]))"
    )
    found = json.loads(inside(kind, "-c", looks, program="python3"))
    assert found == [65532, 65532, [], [], False, []]


def test_the_distroless_image_has_no_shell() -> None:
    """The distroless image has no shell."""
    found = inside(
        "distroless",
        "-c",
        "import os; print([s for s in ('sh', 'bash', 'dash') if os.path.exists('/bin/' + s)])",
        program="python3",
    )
    assert found == "[]"


@both
def test_its_command_checks_a_configuration(kind: str) -> None:
    """`sidecar check`, as with `kubectl exec`, reports which upstreams are enabled."""
    verdict, agentex, sgp = inside(kind, "check").splitlines()[:3]
    assert verdict == "verdict: ready"
    assert agentex.startswith("agentex: on: ")
    assert sgp.startswith("sgp: off: ")


@both
def test_sigterm_ends_it_with_zero(kind: str) -> None:
    """The sidecar is the container's first process and receives SIGTERM itself."""
    with running(kind) as name:
        images.run("podman", "kill", f"--signal={signal.SIGTERM.name}", name)
        assert images.run("podman", "wait", name) == "0"
        assert '"stopped"' in images.log(name)


def test_a_wrong_hash_stops_the_build(tmp_path: Path) -> None:
    """A wheel that differs from the locked one stops the build."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("Dockerfile", ".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(SOURCE / name, source)
    shutil.copytree(SOURCE / "sidecar", source / "sidecar")
    shutil.copy(SOURCE / "requirements-dev.lock", source)
    lock = (SOURCE / "requirements.lock").read_text()
    wrong, entries = re.subn(r"(?<=sha256:)[0-9a-f]{64}", "0" * 64, lock)
    assert entries > 1
    (source / "requirements.lock").write_text(wrong)
    done = images.build(f"{IMAGE}:wrong", source=source)
    assert done.returncode
    assert "DO NOT MATCH THE HASHES" in done.stdout + done.stderr
