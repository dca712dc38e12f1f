"""Real HTTP clients post events to a real sidecar; each event arrives once at both upstreams."""

import asyncio
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.e2e import parts
from tests.e2e.sdk_support import DEADLINE_S, ROOT, pod
from tests.support.spans import make_event

Command: TypeAlias = list[str | Path]

AGENTS = ROOT / "tests/e2e/agents"
LIBRARIES = ("requests", "httpx", "urllib3", "aiohttp")
POSTS = 4
TEXT = "é" * 1000
LONG_TEXT = "é" * 2**19  # 1 MiB
CHUNKED = ("--header", "Transfer-Encoding: chunked")
# Without the second option, curl sends the body after a second even if the server says nothing.
EXPECT = ("--header", "Expect: 100-continue", "--expect100-timeout", "3600")
GZIP = ("--header", "Content-Encoding: gzip")
CURL = {
    "HTTP/1.0": ("--http1.0",),
    "HTTP/1.0 with keep-alive": ("--http1.0", "--header", "Connection: keep-alive"),
    "HTTP/1.1": ("--http1.1",),
    "offering HTTP/2": ("--http2",),
    "chunked": CHUNKED,
    "gzip": GZIP,
    "chunked gzip": (*CHUNKED, *GZIP),
    "expect": EXPECT,
    "chunked, expect": (*CHUNKED, *EXPECT),
}


def program(name: str, package: str) -> str:
    """Return a program's name; install its Debian package if there is none."""
    if shutil.which(name) is None:
        parts.debian(package)
    return name


def posting(*command: str | Path) -> Callable[[str, list[Path]], Command]:
    """Return how to run a client that takes the URL and the files."""
    return lambda url, files: [*command, url, *files]


def curl(*options: str) -> Callable[[str, list[Path]], Command]:
    """Return how to run a curl that posts the files on one connection, if `options` allow that."""
    json_type = ("--header", "Content-Type: application/json")
    shown = ("--silent", "--show-error", "--output", os.devnull, "--write-out", "%{http_code}\n")

    def command(url: str, files: list[Path]) -> Command:
        made: Command = [program("curl", "curl"), "--disable"]
        for file in files:
            # Options before --next are for one request.
            made += [*shown, *json_type, *options, "--data-binary", f"@{file}", url, "--next"]
        return made[:-1]

    return command


def statuses(command: Command) -> list[str]:
    """Run a client without settings of this machine, such as its proxies; return its output."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        command, env=kept, capture_output=True, text=True, check=False, timeout=DEADLINE_S
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout.split()


def written(folder: Path, text: str, *, zipped: bool) -> tuple[list[Path], dict[str, Any]]:
    """Write one END per file; return the files and the input of each span."""
    inputs = {f"span-{number}": {"text": f"{number}{text}"} for number in range(POSTS)}
    files = []
    for id_, input_ in inputs.items():
        event = make_event(id_, kind="end", input=input_)
        body = json.dumps(event, ensure_ascii=False).encode()
        files.append(folder / f"{id_}.json")
        files[-1].write_bytes(gzip.compress(body) if zipped else body)
    return files, inputs


async def arrive(
    folder: Path,
    command: Callable[[str, list[Path]], Command],
    *,
    text: str = TEXT,
    zipped: bool = False,
) -> None:
    """Post events with a client; assert a 202 for each, and that each arrives once, unchanged."""
    files, inputs = written(folder, text, zipped=zipped)
    async with pod(folder / "pod", sidecar=True, SIDECAR_QUEUE__MAX_BYTES="32MiB") as here:
        assert here.life is not None
        made = command(f"{here.life.url}/v1/spans", files)
        assert await asyncio.to_thread(statuses, made) == ["202"] * POSTS
        await here.delivered()
        assert here.agentex.writes == here.sgp.writes == dict.fromkeys(inputs, 1)
        for rows in here.arrived():
            assert {id_: row["input"] for id_, row in rows.items()} == inputs


@pytest.mark.parametrize("form", CURL)
async def test_curl(tmp_path: Path, form: str) -> None:
    """Each event that curl posts in some form of HTTP/1 arrives once."""
    await arrive(tmp_path, curl(*CURL[form]), zipped=GZIP[1] in CURL[form])


@pytest.mark.parametrize("form", [(), CHUNKED], ids=["length", "chunked"])
async def test_curl_with_large_bodies(tmp_path: Path, form: tuple[str, ...]) -> None:
    """Each event arrives once if curl asks to continue on its own, as it does above 1 MiB."""
    await arrive(tmp_path, curl(*EXPECT[2:], *form), text=LONG_TEXT)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_python(tmp_path: Path, library: str) -> None:
    """Each event that a Python library posts, whole or streamed, arrives once."""
    python = parts.venv("http-clients", *LIBRARIES)
    await arrive(tmp_path, posting(python, "-I", AGENTS / "http_client.py", library))


async def test_node(tmp_path: Path) -> None:
    """Each event that Node's fetch posts, whole or streamed, arrives once."""
    await arrive(tmp_path, posting(program("node", "nodejs"), AGENTS / "http_client.mjs"))


async def test_go(tmp_path: Path) -> None:
    """Each event that Go's net/http posts, whole or chunked or asking to continue, arrives once."""
    parts.run(parts.go(), "build", "-o", tmp_path / "client", AGENTS / "http_client.go")
    await arrive(tmp_path, posting(tmp_path / "client"))


@pytest.mark.nightly
async def test_java(tmp_path: Path) -> None:
    """Each event that Java's HttpClient posts while it offers HTTP/2 arrives once."""
    java = program("java", "default-jdk-headless")
    await arrive(tmp_path, posting(java, AGENTS / "PostFiles.java"))
