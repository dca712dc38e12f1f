"""Without /proc, as on macOS, nothing fails, and figures that come from it are unknown."""

import asyncio
import json
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import aiohttp

from tests.e2e import parts
from tests.e2e.browser import browser
from tests.support.spans import make_event

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60
HIDE = 'mount -t tmpfs none /proc && exec "$@"'
ENVIRON = {
    "PATH": os.environ["PATH"],
    "AGENTEX_BASE_URL": "http://127.0.0.1:9",
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
    "SIDECAR_SHUTDOWN__GRACE_S": "0",
}


@cache
def without_proc() -> tuple[str, ...]:
    """Return the beginning of a command that runs the rest of it without /proc."""
    for flags in ("--mount", "--mount --map-root-user"):
        command = ("unshare", *flags.split(), "sh", "-c", HIDE, "sh")
        try:
            probe = [*command, "test", "!", "-e", "/proc/self"]
            if not subprocess.run(probe, capture_output=True, check=False).returncode:
                return command
        except FileNotFoundError:
            break
    return parts.missing("no mount namespace in which /proc can be hidden")


async def sidecar(*arguments: str, hidden: bool = True) -> Process:
    """Start a command of the sidecar."""
    before = await asyncio.to_thread(without_proc) if hidden else ()
    command = (*before, sys.executable, "-m", "sidecar", *arguments)
    return await asyncio.create_subprocess_exec(
        *command, env=ENVIRON, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )


@asynccontextmanager
async def running() -> AsyncIterator[tuple[str, str]]:
    """Run a sidecar; yield the URLs of its listener and its admin port."""
    process = await sidecar("run")
    assert process.stderr is not None
    try:
        started = json.loads(await process.stderr.readline())
        assert started["event"] == "started"
        yield started["listener"][0], f"http://127.0.0.1:{started['admin_port']}"
        process.terminate()
        _, err = await process.communicate()
        stopped = json.loads(err.splitlines()[-1])
        assert (stopped["event"], b"Traceback" in err) == ("stopped", False)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_the_demo() -> None:
    """The demo delivers everything, and says that its memory is unknown."""
    async with asyncio.timeout(DEADLINE_S):
        process = await sidecar("demo")
        out, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"sidecar's RSS unknown" in out
    assert b"nothing was lost" in out


async def test_the_admin_port_and_top() -> None:
    """Spans are taken; `/status`, `/metrics` and `top` leave out what they can't know."""
    async with asyncio.timeout(DEADLINE_S), running() as (url, admin):
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{url}/v1/spans", json=make_event(kind="end")) as response:
                assert response.status == 202
            async with client.get(f"{admin}/status") as response:
                status = await response.json()
            async with client.get(f"{admin}/metrics") as response:
                metrics = await response.text()
        top = await sidecar("top", "--once", "--url", admin)
        shown, _ = await top.communicate()
    assert status["memory"]["rss_bytes"] is None
    assert "trace_sidecar_received_events_total" in metrics
    assert "process_resident_memory_bytes" not in metrics
    assert (top.returncode, b"  memory unknown  " in shown) == (0, True)


async def test_the_page() -> None:
    """The page says that memory is unknown, and its script meets no error."""
    head = "document.querySelector('#process').textContent"
    chart = "document.querySelectorAll('#charts figure')[1].textContent"
    async with asyncio.timeout(DEADLINE_S), running() as (_, admin), browser() as page:
        await page.open(f"{admin}/")
        await page.until(f"{head}.includes(' · memory unknown · ')")
        await page.until(f"{chart}.includes('max unknown')")
        assert "RSSunknown" in await page.run(f"return {chart}")
        assert await page.complaints() == []
