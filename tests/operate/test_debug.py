"""`sidecar debug`: one archive for an issue, with what could be had and without content."""

import asyncio
import io
import json
import os
import re
import tarfile
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from sidecar.operate import debug
from sidecar.operate.debug_report import DebugReport
from sidecar.process.log_writer import LogWriter
from sidecar.process.versions import versions
from tests.support.spans import make_event
from tests.support.world import NOWHERE, running_app

ROOT = Path(__file__).parents[2]
FILES = {
    *("README.txt", "status.json", "history.json", "metrics.txt", "configuration.json"),
    *("decisions.json", "log.txt", "versions.json"),
}
FROM_HERE = {"README.txt", "configuration.json", "versions.json"}
ENVIRON = {"AGENTEX_BASE_URL": NOWHERE, "SIDECAR_AGENTEX__API_KEY": "hidden-key"}
Capture = pytest.CaptureFixture[str]


@dataclass
class Made:
    """What one run of the command made."""

    code: int
    err: str
    files: dict[str, str] = field(default_factory=dict)

    def json(self, name: str) -> Any:  # noqa: ANN401
        """A file's content."""
        return json.loads(self.files[name])


def unpacked(archive: bytes) -> dict[str, str]:
    """The files of an archive, by name."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for entry in tar:
            body = tar.extractfile(entry)
            assert body is not None
            found[entry.name.removeprefix("trace-sidecar-debug/")] = body.read().decode()
    return found


async def make(url: str, path: Path, capsys: Capture) -> Made:
    """Run the command with the variables of a sidecar."""
    capsys.readouterr()
    code = await asyncio.to_thread(debug.run, url, str(path), None, ENVIRON)
    archive = await asyncio.to_thread(path.read_bytes)
    return Made(code, capsys.readouterr().err, unpacked(archive))


async def test_everything(tmp_path: Path, capsys: Capture) -> None:
    """The archive has all files, ids but no content, and no secret; only its owner can read it."""
    async with running_app(ENVIRON, shutdown__grace_s=0) as app:
        await app.post(make_event("s-17", kind="end", input={"prompt": "a-customers-word"}))
        path = tmp_path / "x.tar.gz"
        made = await make(app.admin_url, path, capsys)
    assert (made.code, made.err) == (debug.COMPLETE, "")
    assert set(made.files) == FILES
    assert made.json("status.json")["answers"]
    assert made.json("history.json")["series"]
    assert made.files["metrics.txt"].startswith("# HELP")
    assert made.json("configuration.json")["agentex"]["api_key"] == "***"
    assert {"id": "s-17", "what": "accepted"}.items() <= made.json("decisions.json")[-1].items()
    assert made.json("versions.json")["sidecar"] == made.json("versions.json")["command"]
    assert "missing" not in made.files["README.txt"]
    everything = str(made.files)
    assert "hidden-key" not in everything
    assert "a-customers-word" not in everything
    assert path.stat().st_mode & 0o77 == 0


async def test_the_log(capsys: Capture) -> None:
    """The report has the last lines that the process logged; null if it has not started a log."""
    reader, descriptor = os.pipe()
    writer = LogWriter(descriptor, report=str)
    writer.write("one\ntwo\n")
    async with running_app() as app:
        report = await DebugReport(app.app.operations.explainer, writer).report()
        without = await DebugReport(app.app.operations.explainer, None).report()
    assert (report["log"], without["log"]) == ("one\ntwo\n", None)
    assert writer.drain(30.0)
    os.close(reader)
    os.close(descriptor)
    capsys.readouterr()


async def test_no_sidecar(tmp_path: Path, capsys: Capture) -> None:
    """Without a sidecar, it has the versions and the configuration, and says what is missing."""
    made = await make(NOWHERE, tmp_path / "x", capsys)
    assert made.code == debug.NO_SIDECAR
    assert set(made.files) == FROM_HERE
    config = made.json("configuration.json")
    assert config["of"] == "this command's own variables and file"
    assert config["config"]["agentex"]["api_key"] == "***"
    assert made.json("versions.json")["sidecar"] is None
    for page in ("/status", "/status/history", "/metrics", "/debug"):
        why = f"{page}: {NOWHERE} does not respond (ConnectionRefusedError)\n"
        assert f"missing: {why}" in made.files["README.txt"]
        assert f"sidecar: {page} is missing" in made.err
    assert "SIGQUIT" in made.err
    assert "hidden-key" not in str(made)


@asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The URL of a port that takes connections and never answers."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, w: writers.append(w), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def test_a_sidecar_that_hangs(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits once, not for each page, and makes the archive all the same."""
    monkeypatch.setattr(debug, "TIMEOUT_S", 0.2)
    async with hanging() as url, asyncio.timeout(debug.TIMEOUT_S * 10):
        made = await make(url, tmp_path / "x", capsys)
    assert (made.code, set(made.files)) == (debug.NO_SIDECAR, FROM_HERE)
    assert made.err.count("does not respond within 0.2 s") == 4


@asynccontextmanager
async def something(body: bytes, status: int) -> AsyncIterator[str]:
    """The URL of a server that gives the same answer to everything."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, status=status)

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (b"<html>", 200, "what responds is not this version of the sidecar"),
        (b"[1]", 200, "what responds is not this version of the sidecar"),
        (b"[" * 100_000, 200, "what responds is not this version of the sidecar"),
        (b"{}", 503, "HTTP 503"),
        (b" " * (debug._MAX_BYTES + 1), 200, "it is larger than 4,194,304 bytes"),
    ],
)
async def test_another_server(
    body: bytes, status: int, why: str, tmp_path: Path, capsys: Capture
) -> None:
    """Nothing of what another server says is in the archive."""
    async with something(body, status) as url:
        made = await make(url, tmp_path / "x", capsys)
    assert (made.code, set(made.files)) == (debug.NO_SIDECAR, FROM_HERE)
    assert made.err.count(why) == 4


async def test_a_configuration_that_is_wrong(tmp_path: Path, capsys: Capture) -> None:
    """The archive has the mistakes."""
    path = tmp_path / "x"
    environ = {"SIDECAR_LISTENER__PORT": "many"}
    await asyncio.to_thread(debug.run, NOWHERE, str(path), None, environ)
    files = unpacked(path.read_bytes())
    assert "SIDECAR_LISTENER__PORT" in files.get("configuration.json", files["README.txt"])
    capsys.readouterr()


async def test_a_path_that_can_not_be_written(tmp_path: Path, capsys: Capture) -> None:
    """It says so, and how else to have the archive."""
    output = str(tmp_path / "none" / "x")
    code = await asyncio.to_thread(debug.run, NOWHERE, output, None, ENVIRON)
    assert code == debug.INCOMPLETE
    assert f"{output}: No such file or directory: name a file with --output" in (
        capsys.readouterr().err
    )


async def test_standard_output(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """With `-`, standard output has the archive and nothing else."""
    await asyncio.to_thread(debug.run, NOWHERE, "-", None, ENVIRON)
    assert set(unpacked(capsysbinary.readouterr().out)) == FROM_HERE


def test_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Without `--output`, it is a new file in this directory, which the last line names."""
    monkeypatch.chdir(tmp_path)
    debug.run(NOWHERE, "", None, ENVIRON)
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"trace-sidecar-debug-\d{8}T\d{6}Z\.tar\.gz", path.name)
    assert capsys.readouterr().out.startswith(f"{path.name}: ")


def test_versions() -> None:
    """They have every library that the sidecar needs, with the version that is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[<>=]", each)[0] for each in project["dependencies"]}
    found = versions()
    libraries = found["libraries"]
    assert isinstance(libraries, dict)
    assert set(libraries) == needed
    assert all(libraries.values())
    assert found["sidecar"] == (project.get("version") or found["sidecar"])
