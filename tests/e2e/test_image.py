"""The image, built for real: its content, its size, and that builds are reproducible."""

import json
import re
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

import sidecar
from tests.e2e import image_support as images
from tests.e2e.image_support import IMAGE, SOURCE, VERSIONS, Json
from tests.support.helm import documents

MB = 10**6
LIMIT = {"distroless": 90 * MB, "slim": 170 * MB}
SETTINGS = ("--env=AGENTEX_BASE_URL=http://127.0.0.1:1", "--env=SIDECAR_SHUTDOWN__QUIET_S=0")
# The options of a container under the restricted Pod Security Standard.
LOCKED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=none")

# How Dependabot finds an image: a literal one, in a line that begins with FROM.
PINNED = re.compile(r"FROM ([\w./-]+):([\w.-]+)@(sha256:[0-9a-f]{64}) AS ([\w-]+)")
WORKFLOWS = SOURCE / ".github/workflows"

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


def dockerfiles() -> list[Path]:
    """Return every Dockerfile of the repository."""
    listed = subprocess.run(
        ("git", "ls-files", "--cached", "--others", "--exclude-standard", "*Dockerfile*"),
        cwd=SOURCE,
        capture_output=True,
        text=True,
        check=True,
    )
    return [SOURCE / name for name in listed.stdout.split()]


def froms(dockerfile: Path) -> list[str]:
    """Return the lines of a Dockerfile that name an image, as the bot reads them."""
    lines = dockerfile.read_text().splitlines()
    return [line for line in lines if line.upper().startswith("FROM")]


def test_every_default_image_has_a_digest() -> None:
    """Every FROM has a tag and a digest, or an argument whose default is the stage that has."""
    found = {path: froms(path) for path in dockerfiles()}
    pinned, *ours = found.pop(SOURCE / "Dockerfile")
    match = PINNED.fullmatch(pinned)
    assert match is not None
    stage = match[4]
    assert ours == [f"FROM ${{BUILD_IMAGE:-{stage}}} AS build", f"FROM ${{RUNTIME_IMAGE:-{stage}}}"]
    assert found
    assert [line for lines in found.values() for line in lines if not PINNED.fullmatch(line)] == []


def test_the_bot_sees_every_image() -> None:
    """Dependabot reads each Dockerfile's folder, and may propose a new digest of every image."""
    (config,) = documents((SOURCE / ".github/dependabot.yml").read_text())
    (docker,) = (each for each in config["updates"] if each["package-ecosystem"] == "docker")
    folders = {"/" + path.parent.relative_to(SOURCE).as_posix() for path in dockerfiles()}
    assert {folder.removesuffix("/.") or "/" for folder in folders} == set(docker["directories"])
    # An entry without types, or with the patches, would hide new builds of a tag.
    for ignored in docker["ignore"]:
        assert set(ignored) == {"dependency-name", "update-types"}
        assert "version-update:semver-patch" not in ignored["update-types"]


def test_the_workflows_run_only_images_that_the_bot_sees() -> None:
    """A workflow names no image but takes it, by the name of its stage, from the file for that."""
    file = SOURCE / ".github/images/Dockerfile"
    stages = {}
    for line in froms(file):
        match = PINNED.fullmatch(line)
        assert match is not None, line
        stages[match[4]] = f"{match[1]}:{match[2]}@{match[3]}"
    used = set()
    for workflow in WORKFLOWS.glob("*.yml"):
        text = workflow.read_text()
        for image in stages.values():
            assert image.partition(":")[0] + ":" not in text, workflow
        assert "python:3" not in text, workflow
        for script in re.findall(r"\$\((sed .*?)\)(?=$)", text, re.MULTILINE):
            if file.name not in script:
                continue
            done = subprocess.run(
                ("sh", "-c", script), cwd=SOURCE, capture_output=True, text=True, check=True
            )
            (name,) = (each for each, image in stages.items() if image == done.stdout.strip())
            used.add(name)
    assert used == set(stages)


@pytest.mark.parametrize("arguments", [{}, {"BUILD_IMAGE": "", "RUNTIME_IMAGE": ""}], ids=str)
def test_a_build_without_arguments_asks_for_the_pinned_image(arguments: dict[str, str]) -> None:
    """The builder resolves both stages to the digest in the Dockerfile, and nothing else."""
    images.environment()
    given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
    how = ("--isolation=chroot", "--pull-never", "--no-cache")
    done = images.attempt("buildah", "bud", *how, *given, "-t", f"{IMAGE}:default", SOURCE)
    match = PINNED.search((SOURCE / "Dockerfile").read_text())
    assert match is not None
    assert done.returncode, "there is a registry"
    assert f"{match[1]}@{match[3]}: image not known" in done.stderr
