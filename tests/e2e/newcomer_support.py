"""A new user's machine: a fresh clone, an empty home, and the programs that README.md asks for.

What stands in for what a test machine can't have:

- `docker` is docker_shim: the real builds, on other base images.
- A cluster is kube_support's: a real API server that runs no pods, with real helm and kubectl. What
  needs a running pod (`kubectl exec`, `kubectl port-forward`) is kubectl_shim: podman runs the pod.
- `make test`, `make check` and the like only collect the tests: .ci/run runs them on a clean
  checkout, and this test is one of them.
"""

import os
import re
import signal
import socket
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import IO, Self

from tests.e2e import docker_shim, kubectl_shim, parts
from tests.e2e.kube_support import poll
from tests.support.docs import ROOT, scripts, section
from tests.support.helm import HELM

PORTS = (8318, 9318)
# A cold installation on a busy machine.
BLOCK_S = 600.0
STOP_S = 60.0
_SHOWN = 6000
# How this machine reaches package indexes, wherever they are; and what they sent before.
_INDEX = re.compile(r"(PIP|UV|GO)[A-Z_]*|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|(?i:\w+_proxy)")
# What needs a kubelet is kubectl_shim's; the rest is kubectl's own.
_KUBECTL = """\
#!/bin/sh
case $1 in
exec | port-forward) exec {shim} "$@" ;;
*) exec {kubectl} "$@" ;;
esac
"""
# What a test puts for the placeholders of README.md, unless it has a better value.
PLACEHOLDERS = {
    "REGISTRY": "registry.example",
    "AGENTS": "agents",
    "POD": "agent-0",
    "SPAN_ID": "s1",
    "FILE": "dead-letters.jsonl",
}


def on_a_cluster(readme: Path) -> list[str]:
    """The blocks of README.md that deploy to a cluster and look into a pod there, in order."""
    sections = [section(readme, heading) for heading in ("Deploy it", "Watch it")]
    return [block for block in scripts(readme) if any(block in text for text in sections)]


class Placeholders:
    """The words in capitals that README.md has its reader replace, and what a test puts there."""

    def __init__(self, readme: Path, values: Mapping[str, str] = PLACEHOLDERS) -> None:
        rows = re.findall(
            r"^\| *`?([A-Z][A-Z_]+)`? *\|", readme.read_text(encoding="utf-8"), re.MULTILINE
        )
        self.unknown = sorted(set(rows) - set(values))
        self._values = {word: values[word] for word in rows if word in values}

    def having(self, **values: str) -> Self:
        """The same with other values for some of the words."""
        other = copy(self)
        other._values = self._values | values
        return other

    def filled(self, script: str) -> str:
        """The script with its placeholders filled; AssertionError for a word that README lacks."""
        code = re.sub(r"(^|\s)#.*", r"\1", script)
        for word in self._values:
            script = re.sub(rf"(?<![\w$]){word}(?![\w=])", self._values[word], script)
        # Variables, options of make, methods of HTTP, and what is in JSON are no placeholders.
        words = re.findall(r"(?<![\w${\"'.-])[A-Z][A-Z_]{2,}(?![\w=:\"'.-])", code)
        left = set(words) - set(self._values) - {"GET", "POST", "PUT", "PATCH"}
        assert not left, f"not in the table of placeholders in README.md: {sorted(left)}"
        return script


class Newcomer:
    """A user with a clone, an empty home and a shell."""

    def __init__(self, folder: Path) -> None:
        self.clone = folder / "clone"
        self._bin = folder / "bin"
        self._bin.mkdir()
        home = folder / "home"
        home.mkdir()
        kept = {name: value for name, value in os.environ.items() if _INDEX.fullmatch(name)}
        # Only what is faster with it: what packages hold is the same.
        caches = {
            "PIP_CACHE_DIR": str(parts.CACHE / "pip"),
            "GOCACHE": str(parts.CACHE / "go-build"),
        }
        path = f"{self._bin}:{parts.go().parent}:{os.environ['PATH']}"
        self.environ = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", **kept, **caches}
        parts.run("git", "clone", "--quiet", ROOT, self.clone, env=self.environ)

    def adds(self, name: str, script: str) -> None:
        """Put a program on the user's PATH."""
        program = self._bin / name
        program.write_text(script, encoding="utf-8")
        program.chmod(0o755)

    def has_docker(self) -> None:
        """Give the user `docker`."""
        docker_shim.install(self._bin)

    def has_python(self, python: Path) -> None:
        """Give the user another `python3`."""
        self.adds("python3", f'#!/bin/sh\nexec {python} "$@"\n')

    def has_cluster(self, kubeconfig: Path) -> None:
        """Give the user kubectl, helm and a cluster."""
        self.environ["KUBECONFIG"] = str(kubeconfig)
        kubectl = parts.unpacked("kubernetes-client") / "usr/bin/kubectl"
        shim = docker_shim.command(kubectl_shim.__name__)
        self.adds("kubectl", _KUBECTL.format(shim=shim, kubectl=kubectl))
        self.adds("helm", f'#!/bin/sh\nexec {parts.go_tool(*HELM)} "$@"\n')

    @contextmanager
    def terminal(self, folder: Path) -> Iterator["Terminal"]:
        """A terminal in a folder of the clone; what it left running ends with it."""
        wait_for_ports()
        terminal = Terminal(folder, self.environ)
        try:
            yield terminal
        finally:
            terminal.close()


class Terminal:
    """Runs the blocks of one page, each by a shell of its own."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._left: list[tuple[int, IO[bytes]]] = []

    def run(self, script: str) -> str:
        """Run a block, and return what it printed; AssertionError unless it succeeds.

        What the block starts in the background goes on, and is waited for if it is a sidecar.
        """
        script = re.sub(r"\bmake (test\S*|check|nightly)", "make test ARGS=--collect-only", script)
        out = tempfile.TemporaryFile()  # noqa: SIM115 (it outlives the block; see `close`)
        # In the order written, as in a terminal, where both streams are one.
        shell = subprocess.Popen(
            ("sh", "-euc", script),
            cwd=self._folder,
            env=dict(self._environ),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        self._left.append((shell.pid, out))

        def said() -> str:
            # By its number, because the shell's children share the position in the file.
            return os.pread(out.fileno(), 2**24, 0).decode(errors="replace")

        try:
            shell.wait(BLOCK_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"no end after {BLOCK_S} s: {script}\n{said()[-_SHOWN:]}"
            ) from None
        assert shell.returncode == 0, f"{script}\n{said()[-_SHOWN:]}"
        if re.search(r" &$", script, re.MULTILINE) and re.search(r"\bdemo\b|sidecar run", script):
            try:
                poll("a sidecar accepts spans", _ready, BLOCK_S)
            except AssertionError as late:
                raise AssertionError(f"{late}\n{script}\n{said()[-_SHOWN:]}") from None
        refused = re.search(r"^HTTP/1.1 [45].*", said(), re.MULTILINE)
        assert refused is None, f"{script}\n{said()[-_SHOWN:]}"
        return said()

    def close(self) -> None:
        """End what the blocks started in the background."""
        # Each once: later, another process group may have the number.
        left, self._left = self._left, []
        for pid, out in left:
            signalled(pid, signal.SIGTERM)
            out.close()
        try:
            wait_for_ports()
        finally:
            for pid, _ in left:
                signalled(pid, signal.SIGKILL)


def signalled(group: int, number: signal.Signals) -> None:
    """Send a signal to what is left of a process group."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def _ready() -> bool | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORTS[0]}/readyz", timeout=5) as reply:
            return reply.status == 200 or None
    except OSError:
        return None


def _free() -> bool | None:
    for port in PORTS:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return None
    return True


def wait_for_ports() -> None:
    """Wait until the sidecar's own ports are free, which the pages take for granted."""
    poll(f"nothing listens on {PORTS}", _free, STOP_S)
