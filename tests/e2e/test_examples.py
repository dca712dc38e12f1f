"""The agents in examples/, run by the commands of their READMEs, before a real sidecar.

test_newcomer.py runs the same commands as a new user has them, with all that they install.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.e2e import docker_shim, parts
from tests.e2e import image_support as images
from tests.e2e.kube_support import free_port
from tests.e2e.sdk_support import DEADLINE_S, ROOT, Pod, Row, pod, sdk_python, until
from tests.e2e.test_client_install import site_packages
from tests.e2e.test_http_clients import program
from tests.support.docs import scripts

# How many turns the commands of each make.
TURNS = {"plain": 1, "python-client": 2, "node": 1, "go": 1}
each = pytest.mark.parametrize("example", TURNS)
ANSWER = {"answer": "It was delivered."}
OUTPUTS = {
    "turn": ANSWER,
    "search": {"parcels": [{"number": 7, "status": "delivered"}]},
    "model": {"role": "assistant", "content": "It was delivered."},
}
PROBLEM = "the mail server gives no answer"


def with_packages(folder: Path, python: Path, *others: Path) -> None:
    """Make the environment that the README has a user make, from what is here already."""
    parts.run(python, "-m", "venv", folder / ".venv")
    here = "\n".join(map(str, (*others, ROOT / "client"))) + "\n"
    (site_packages(folder / ".venv/bin/python") / "here.pth").write_text(here, encoding="utf-8")


class Example:
    """A copy of an example, whose commands can be run as they stand."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = shutil.copytree(ROOT / "examples" / name, folder / name)
        programs = [Path(sys.executable)]
        if name == "python-client":
            with_packages(self.folder, Path(sys.executable))
        elif name == "agentex-sdk":
            with_packages(self.folder, sdk_python(), site_packages(sdk_python()))
        elif name == "node":
            programs.append(Path(program("node", "nodejs")))
        elif name == "go":
            programs.append(parts.go())
            parts.run(parts.go(), "vet", ".", cwd=self.folder)
        found = [str(path.parent) for path in programs]
        self._path = os.pathsep.join([*found, os.environ["PATH"]])
        # Without those that start a sidecar, which the test does, or make an environment.
        self.commands = [
            script
            for script in scripts(self.folder / "README.md")
            if not script.endswith(" &\n") and "-m venv" not in script
        ]

    @asynccontextmanager
    async def started(self, command: str, url: str) -> AsyncIterator[Process]:
        """Start a command for the sidecar at this URL."""
        environ = {
            "PATH": self._path,
            "HOME": os.environ["HOME"],
            "PYTHONUNBUFFERED": "1",
            "TRACE_SIDECAR_URL": url,
            # Otherwise a package that the SDK imports fetches price lists from the Internet.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        process = await asyncio.create_subprocess_exec(
            *("sh", "-euc", command), cwd=self.folder, env=environ, stdout=PIPE, stderr=PIPE
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def run(self, url: str) -> str:
        """Run all commands; return their standard errors."""
        complaints = ""
        for command in self.commands:
            async with self.started(command, url) as process, asyncio.timeout(DEADLINE_S):
                out, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()[-4000:]
            assert ANSWER["answer"] in out.decode()
            complaints += errors.decode()
        return complaints


def complete(rows: Collection[Row], turns: int, *, sgp: bool) -> None:
    """Assert that so many turns arrived: complete, nested, with what went in and came out."""
    assert len(rows) == 4 * turns
    for row in rows:
        assert row["end_timestamp" if sgp else "end_time"], row
        assert row["input"]
        assert (row["output"] or None) == OUTPUTS.get(row["name"]), row
    tops = [row for row in rows if not row.get("parent_id")]
    assert len(tops) == turns
    for top in tops:
        below = [row for row in rows if row.get("parent_id") == top["id"]]
        assert sorted([top["name"], *(row["name"] for row in below)]) == sorted(
            [*OUTPUTS, "notify"]
        )
        assert {row["trace_id"] for row in below} == {top["trace_id"]}
        (failed,) = (row for row in below if row["name"] == "notify")
        (model,) = (row for row in below if row["name"] == "model")
        assert top["input"]["question"] in model["input"]["messages"][0]["content"]
        held = failed["metadata" if sgp else "data"]
        assert held["__error__"]["message"] == PROBLEM
        if sgp:
            assert failed["status"] == "ERROR"


async def arrived(here: Pod, turns: int) -> None:
    """Assert that so many turns reached both upstreams."""
    await here.delivered()
    for rows, sgp in zip(here.arrived(), (False, True), strict=True):
        complete(rows.values(), turns, sgp=sgp)


@each
async def test_what_arrives(example: str, tmp_path: Path) -> None:
    """Every span reaches both upstreams, complete and nested; the failing one with its error."""
    agent = Example(example, tmp_path)
    async with pod(tmp_path / "pod", sidecar=True) as here:
        assert here.life is not None
        assert await agent.run(here.life.url) == ""
        await arrived(here, TURNS[example])


class Trouble:
    """A port that answers 429, then 503, then nothing, and keeps the bodies and when they came."""

    def __init__(self) -> None:
        self.came: list[tuple[float, bytes]] = []
        self.port = free_port()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = web.Server(self._answer)
        runner = web.ServerRunner(server)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.came.append((asyncio.get_running_loop().time(), await request.read()))
        answers = [(429, {"Retry-After": "1"}), (503, {})]
        if len(self.came) <= len(answers):
            status, headers = answers[len(self.came) - 1]
            return web.Response(status=status, headers=headers)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


@each
async def test_a_sidecar_that_starts_late(example: str, tmp_path: Path) -> None:
    """Refusals, a broken connection and a port where nothing listens yet cost no span.

    `Retry-After` is honoured.
    """
    agent, trouble = Example(example, tmp_path), Trouble()
    async with pod(tmp_path / "pod", sidecar=False) as here:
        async with trouble.listening():
            running = asyncio.create_task(agent.run(f"http://127.0.0.1:{trouble.port}"))
            await until(lambda: len(trouble.came) > 2 or running.done())
        here.life = await here.rig.start(SIDECAR_LISTENER__PORT=str(trouble.port))
        await running
        (first, body), (second, again), *_ = trouble.came
        # While the client flushes, it tries again sooner.
        assert second - first >= (0.0 if example == "python-client" else 1.0)
        assert again == body
        await arrived(here, TURNS[example])


@pytest.mark.nightly
async def test_without_a_sidecar(tmp_path: Path) -> None:
    """The agent answers at once, tries for a while, and ends with success."""
    url = f"http://127.0.0.1:{free_port()}"

    async def alone(name: str) -> None:
        agent = Example(name, tmp_path)
        async with agent.started(agent.commands[-1], url) as process:
            assert process.stdout is not None
            async with asyncio.timeout(DEADLINE_S):
                assert ANSWER["answer"] in (await process.stdout.readline()).decode()
                assert process.returncode is None
                await process.communicate()
            assert process.returncode == 0

    await asyncio.gather(*map(alone, TURNS))


async def test_an_agent_that_is_stopped(tmp_path: Path) -> None:
    """SIGTERM ends what is open and sends what is waiting."""
    agent = Example("plain", tmp_path)
    async with pod(tmp_path / "pod", sidecar=True) as here:
        assert here.life is not None
        command = f"exec {agent.commands[-1].strip()} --forever"
        async with agent.started(command, here.life.url) as process:
            await until(lambda: len(here.sgp.complete) >= 8)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                out, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")
        await arrived(here, len(out.splitlines()))


async def test_the_sdk(tmp_path: Path) -> None:
    """The unchanged agent's spans reach SGP; with `register()`, they reach both upstreams."""
    agent = Example("agentex-sdk", tmp_path)
    unchanged, registered = agent.commands
    async with pod(tmp_path / "pod", sidecar=True) as here:
        assert here.life is not None
        for command, at_agentex in ((unchanged, 0), (registered, 1)):
            agent.commands = [command]
            await agent.run(here.life.url)
            await here.delivered()
            assert len(here.agentex.spans) == 4 * at_agentex
        complete(here.sgp.spans.values(), 2, sgp=True)
        complete(here.agentex.spans.values(), 1, sgp=False)


COMPOSE = ROOT / "examples/compose"


def test_the_compose_file_follows_the_specification() -> None:
    """compose.yaml is valid by the JSON Schema of the Compose specification."""
    checks = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = subprocess.run(
        [docker_shim.compose_python(), *checks, COMPOSE / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def container(service: str) -> str:
    """Podman's name of the container of a service."""
    return f"{docker_shim.PROJECT}_{service}_1"


def ended(service: str) -> tuple[int, str]:
    """The exit code of a service's container, and when it ended."""
    (found,) = json.loads(images.run("podman", "inspect", container(service)))
    return found["State"]["ExitCode"], found["State"]["FinishedAt"]


def test_compose(tmp_path: Path) -> None:
    """The containers start; the agent's spans arrive; they stop in order, and nothing is lost."""
    if os.geteuid():
        parts.missing("running containers needs root")
    docker_shim.install(tmp_path)
    environ = {"HOME": os.environ["HOME"], "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def said(command: str) -> str:
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=COMPOSE,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout

    start, stop, remove = scripts(COMPOSE / "README.md")
    try:
        assert "forwarded" in said(start)
        # Podman runs health checks by systemd timers, which are not everywhere.
        check = ("podman", "healthcheck", "run", container("trace-sidecar"))
        images.eventually(lambda: not images.attempt(*check).returncode)
        images.eventually(lambda: ANSWER["answer"] in images.log(container("agent-code")))
        (line,) = (line for line in said(stop).splitlines() if '"stopped"' in line)
        ends = {name: ended(name) for name in ("agent-code", "trace-sidecar", "upstreams")}
        said(remove)
    finally:
        docker_shim.clean()
    stopped = json.loads(line[line.index("{") : line.rindex("}") + 1])
    assert (stopped["lost"], stopped["events"]["imbalance"]) == (0, 0)
    for lane in stopped["writes"].values():
        assert lane["forwarded"] >= 4
    assert [code for code, _ in ends.values()] == [0, 0, 0]
    assert sorted(ends, key=lambda name: ends[name][1]) == list(ends)
