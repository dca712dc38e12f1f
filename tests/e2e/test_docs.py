"""The commands of README.md and docs/, run as they stand, in a network where every port is free.

tests/test_docs.py checks what needs no process; test_helm_docs.py runs the recipes of deploy.md.
"""

import asyncio
import re
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e import documented_network, parts
from tests.e2e.documented_network import ADDRESSES, CREDENTIAL, KEY
from tests.support.docs import ROOT, blocks, prose, section

DEADLINE_S = 60.0
PROGRAMS = Path(sys.executable).parent
IN_A_POD = "kubectl exec POD -c trace-sidecar -- "
EXAMPLE = {
    "AGENTEX_BASE_URL": "https://agentex.internal",
    "SGP_CLIENT_BASE_URL": "https://sgp.internal",
    "SGP_API_KEY": KEY,
    "SGP_ACCOUNT_ID": "a",
    "HTTPS_PROXY": f"http://{CREDENTIAL}@proxy.internal:3128",
    "NO_PROXY": "agentex.internal",
}


class Place:
    """A network with `ADDRESSES` in which nothing listens yet. Commands run in `folder`."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []
        self._enter = ("nsenter", f"--target={pid}", "--net", "--mount", f"--wd={folder}")

    async def start(self, command: str, environ: Mapping[str, str] | None = None) -> Process:
        """Start a shell command, as a page has it."""
        process = await asyncio.create_subprocess_exec(
            *(*self._enter, "sh", "-c", f"exec env {command.replace('.venv/bin/', '')}"),
            env={"PATH": f"{PROGRAMS}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), **(environ or {})},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        self._started.append(process)
        return process

    async def close(self) -> None:
        """End what still runs, because a test failed."""
        for process in self._started:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def says(
        self, command: str, environ: Mapping[str, str] | None = None
    ) -> tuple[int | None, str, str]:
        """Run it; return its exit code, standard output and standard error."""
        process = await self.start(command, environ)
        async with asyncio.timeout(DEADLINE_S):
            out, errors = await process.communicate(b"")
        return process.returncode, out.decode(), errors.decode()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    files = {
        "hosts": "127.0.0.1 localhost\n"
        + "".join(f"{address} {name}\n" for name, address in ADDRESSES.items()),
        "nsswitch.conf": "hosts: files\n",
    }
    steps = ["ip link set lo up"]
    steps += [f"ip address add {address}/32 dev lo" for address in ADDRESSES.values()]
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        steps.append(f"mount --bind {tmp_path / name} /etc/{name}")
    own = ("unshare", "--net", "--mount", "sh", "-c")
    parts.run(*own, " && ".join(steps))
    script = " && ".join([*steps, "echo ready", "exec cat"])
    holder = await asyncio.create_subprocess_exec(*own, script, stdin=PIPE, stdout=PIPE)
    assert holder.stdin is not None
    await line_of(holder)
    made = Place(holder.pid, tmp_path)
    yield made
    await made.close()
    holder.stdin.close()
    await holder.wait()


async def line_of(process: Process) -> str:
    """The first line of standard output."""
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        return (await process.stdout.readline()).decode()


@asynccontextmanager
async def network(place: Place, days: str) -> AsyncIterator[dict[str, str]]:
    """The network of the example, and the variables of a sidecar in it."""
    module = documented_network.__name__
    process = await place.start(f"python -m {module} {place.folder} {days}")
    try:
        assert await line_of(process) == "ready\n"
        ca = str(place.folder / "ca.pem")
        yield EXAMPLE | {"SIDECAR_AGENTEX__CA_FILE": ca, "SIDECAR_SGP__CA_FILE": ca}
    finally:
        await process.communicate(b"")


def without_dates(text: str) -> list[str]:
    """The lines of a text, with no day in them."""
    return re.sub(r"\d{4}-\d\d-\d\d", "DAY", text).splitlines()


async def test_the_example_of_a_probe(place: Place) -> None:
    """`sidecar check --probe` ends with what docs/network.md shows."""
    command, shown, failing = blocks(section(ROOT / "docs/network.md", "Try it out"))
    command = command.strip().removeprefix(IN_A_POD)
    async with network(place, "-1 30") as environ:
        code, out, errors = await place.says(command, environ)
    assert (code, errors) == (0, "")
    assert without_dates(out.rpartition("\n\n")[2]) == without_dates(shown)
    async with network(place, "-40 -29") as environ:
        code, _, errors = await place.says(command, environ | {"SGP_API_KEY": "another"})
    assert (code, without_dates(errors)) == (1, without_dates(failing))


def in_text(part: str, *starts: str) -> list[str]:
    """The commands in a text that begin with these words, in order."""
    found = re.findall(r"`([^`]+)`", prose(part))
    return [next(text for text in found if text.startswith(start)) for start in starts]


async def test_the_parts_by_hand(place: Place) -> None:
    """docs/configuration.md starts stand-ins and a sidecar, to which README.md posts a span.

    Then the pages' commands flush it, and those of the runbooks find something in `/status` and
    `/metrics`.
    """
    if shutil.which("curl") is None:
        parts.missing("no curl")
    starts = (".venv/bin/python -m sidecar.demo.serve", "AGENTEX_BASE_URL", "SGP_CLIENT_BASE_URL")
    serve, run, sgp = in_text(section(ROOT / "docs/configuration.md", "By hand"), *starts)
    stand_ins = await place.start(serve)
    assert "http://127.0.0.1:17001" in await line_of(stand_ins)
    sidecar = await place.start(f"{sgp} {run}")
    assert sidecar.stderr is not None
    async with asyncio.timeout(DEADLINE_S):
        while b'"started"' not in await sidecar.stderr.readline():
            assert sidecar.returncode is None
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (post,) = re.findall(r"^curl -i .*?'$(?<=}}}')", readme, re.DOTALL | re.MULTILINE)
    code, out, _ = await place.says(post)
    assert (code, out.splitlines()[0]) == (0, "HTTP/1.1 202 Accepted")
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")]
    flushes = [
        line for page in pages for line in re.findall(r"^curl .*/v1/flush.*$", page, re.MULTILINE)
    ]
    assert len(flushes) > 1
    for flush in flushes:
        code, out, _ = await place.says(flush)
        assert (code, out.endswith('{"left":{}}')) == (0, True), flush
    variables, _, _ = run.partition(" .venv")
    for command, expected, warning in (
        ("sidecar top --once", "forwarded", ""),
        ("sidecar explain s1", "accepted", ""),
        (
            f"{sgp} {variables} sidecar check --probe",
            "sgp: credential: accepted",
            "a sidecar runs here already",
        ),
    ):
        code, out, errors = await place.says(command)
        assert (code, expected in out) == (0, True), command
        assert (len(errors.splitlines()), warning in errors) == (bool(warning), True), errors
    text = (ROOT / "docs/runbooks.md").read_text(encoding="utf-8")
    lines = [line for block in blocks(text) for line in block.splitlines()]
    queries = {line for line in lines if line.startswith("curl -s localhost:9318")}
    assert len(queries) > 20
    for command in queries:
        code, out, errors = await place.says(command)
        assert (code, bool(out) or ">" in command) == (0, True), command
    for process in (sidecar, stand_ins):
        process.terminate()
        await process.communicate(b"")
        assert process.returncode == 0
