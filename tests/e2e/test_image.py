"""The image, built for real: what is in it, how large it is, and that it is the same each time."""

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
# What a container gets from a pod of the restricted Pod Security Standard.
LOCKED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none")

both = pytest.mark.parametrize("kind", ["distroless", "slim"])


@cache
def image(kind: str) -> Json:
    """The image on a base of this kind; built once a run, with the layers of earlier ones."""
    return images.built(f"{IMAGE}:{kind}", slim=kind == "slim", cached=True, arguments=VERSIONS)


def inside(kind: str, *command: str, program: str = "sidecar") -> str:
    """What a program prints in a container, locked down as in a pod."""
    image(kind)
    options = ("--rm", "--no-healthcheck", *LOCKED, f"--entrypoint={program}", *SETTINGS)
    return images.run("podman", "run", *options, f"{IMAGE}:{kind}", *command)


@contextmanager
def running(kind: str) -> Iterator[str]:
    """A container with a sidecar that has said it started."""
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
    """Nothing of the time, the machine or an earlier build gets into the image."""
    first = images.built(f"{IMAGE}:first")
    second = images.built(f"{IMAGE}:second")
    assert (first["Digest"], first["Id"]) == (second["Digest"], second["Id"])


@both
def test_the_image_is_small(kind: str) -> None:
    """At most 90 MB where the base is distroless, 170 MB where it is slim."""
    assert image(kind)["Size"] <= LIMIT[kind]


def test_the_image_says_what_it_is() -> None:
    """Labels, user, ports, stop signal and exec form, as operators and Kubernetes read them."""
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
    """Not root, no pip, no compiler, no C++, SQLite for the spool, bytecode for all."""
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
    """Whoever gets into it finds no shell."""
    found = inside(
        "distroless",
        "-c",
        "import os; print([s for s in ('sh', 'bash', 'dash') if os.path.exists('/bin/' + s)])",
        program="python3",
    )
    assert found == "[]"


@both
def test_its_command_checks_a_configuration(kind: str) -> None:
    """`sidecar check`, as in `kubectl exec`, says which upstreams are on."""
    assert inside(kind, "check").splitlines()[-2:] == ["agentex: on", "sgp: off"]


@both
def test_sigterm_ends_it_with_zero(kind: str) -> None:
    """The sidecar is the container's first process and hears SIGTERM itself."""
    with running(kind) as name:
        images.run("podman", "kill", f"--signal={signal.SIGTERM.name}", name)
        assert images.run("podman", "wait", name) == "0"
        assert '"stopped"' in images.log(name)


def test_a_wrong_hash_stops_the_build(tmp_path: Path) -> None:
    """A wheel other than the one that was locked does not get into an image."""
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
