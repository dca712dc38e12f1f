"""`docker`, where there is neither a Docker daemon nor a registry with base images.

Builds run in buildah, on the base images of image_support. `docker compose` is podman-compose, with
containers that have no network but loopback, as in pod_support. There is nowhere to push to: a push
only looks for the image. Every other command goes to podman.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path

from tests.e2e import image_support as images
from tests.e2e import parts
from tests.support.helm import documents

PROJECT = "trace-sidecar-example"
# Only the service that holds the network has a network of its own.
_LOOPBACK = "services: {agent: {network_mode: none}}\n"


def command(module: str) -> str:
    """Return the shell's words for a module of the tests, with the caches of this process."""
    environ = {"PYTHONPATH": str(images.SOURCE)}
    environ |= {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME") if name in os.environ}
    variables = [f"{name}={value}" for name, value in environ.items()]
    return shlex.join(["env", *variables, sys.executable, "-m", module])


def install(folder: Path) -> None:
    """Put a program called `docker` into a folder."""
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec {command(__name__)} "$@"\n')
    program.chmod(0o755)


def forget(registry: str) -> None:
    """Take their names from all images of a registry, so that only a build can give them back."""
    listed = images.run("podman", "images", "--format={{.Repository}}:{{.Tag}}")
    # An image with two digests is listed twice, and podman may list a name that it no longer knows.
    for name in set(listed.splitlines()):
        if name.startswith(f"{registry}/"):
            images.attempt("podman", "untag", name)


def clean() -> None:
    """Remove what is left of the containers of compose.yaml."""
    holder = f"{PROJECT}_agent_1"
    images.attempt("podman", "rm", "--force", "--ignore", "--depend", "--time=0", holder)


def compose_python() -> Path:
    """Return an interpreter with podman-compose and the specification's JSON Schema."""
    return parts.venv("compose", "podman-compose", "check-jsonschema")


def _build(tag: str, source: Path) -> int:
    done = images.build(tag, source=source, cached=True, arguments=images.VERSIONS)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def _dependents_first(file: Path) -> list[str]:
    """The services of a compose file in the order in which Docker Compose stops them."""
    (found,) = documents(file.read_text(encoding="utf-8"))
    graph = {}
    for name, service in found["services"].items():
        kind, _, holder = service.get("network_mode", "").partition(":")
        graph[name] = {*service.get("depends_on", ()), *([holder] if kind == "service" else [])}
    return list(TopologicalSorter(graph).static_order())[::-1]


def _compose(arguments: Sequence[str]) -> int:
    if arguments[0] == "build":
        # compose.yaml builds one image, which its services share.
        return _build("localhost/trace-sidecar:latest", Path("../.."))
    if arguments == ["stop"]:
        # podman-compose stops everything at once.
        return max(_compose(["stop", name]) for name in _dependents_first(Path("compose.yaml")))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as loopback:
        loopback.write(_LOOPBACK)
        loopback.flush()
        files = ("-f", "compose.yaml", "-f", loopback.name)
        program = compose_python().with_name("podman-compose")
        options = ("--in-pod=false", f"--project-name={PROJECT}", *files)
        return images.attempt(program, *options, *arguments, capture_output=False).returncode


def main(arguments: Sequence[str]) -> int:
    """Run one command of docker; return its exit code."""
    if arguments[0] == "compose":
        return _compose(arguments[1:])
    if arguments[0] == "build":
        parser = argparse.ArgumentParser()
        parser.add_argument("-t", "--tag", required=True)
        parser.add_argument("context", type=Path)
        options = parser.parse_args(arguments[1:])
        return _build(options.tag, options.context)
    command = ["image", "inspect", arguments[1]] if arguments[0] == "push" else arguments
    return images.attempt("podman", *command, capture_output=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
