"""`sidecar top`: frames from reports, and what the program does with a real admin port."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from sidecar.operate.top_frame import Line, frame, rate, size
from tests.support.world import make_event, running_app

Json = dict[str, Any]
TWO = {"AGENTEX_BASE_URL": "http://127.0.0.1:1", "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
DEADLINE_S = 60


class Ended(NamedTuple):
    """How a program ended."""

    code: int | None
    out: str
    err: str


async def start(*arguments: str) -> Process:
    """`sidecar top` with its output in pipes."""
    command = (sys.executable, "-m", "sidecar", "top", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


async def top(*arguments: str) -> Ended:
    """`sidecar top` until it ends by itself."""
    process = await start(*arguments)
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return Ended(process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def server(body: bytes, status: int = 200) -> AsyncIterator[str]:
    """Something else that answers every request at the URL."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, status=status)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def report(*, history: bool = False) -> tuple[Json, Json | None]:
    """What a real sidecar says whose upstreams are away."""
    async with running_app(TWO, sgp__base_url="http://127.0.0.1:1", shutdown__grace_s=0) as app:
        await app.post(make_event(kind="end"))
        async with asyncio.timeout(DEADLINE_S):
            while True:
                status = app.app.status()
                if all(sink["last_error"] for sink in status["sinks"].values()):
                    break
                await asyncio.sleep(0.01)
        async with app.client.get(app.admin_url + "/status/history") as response:
            past: Json = await response.json()
        return json.loads(json.dumps(status)), past if history else None


async def test_it_fits_80_columns_and_24_lines() -> None:
    """Whatever the numbers: nothing that matters is cut off."""
    status, past = await report(history=True)
    for sink in status["sinks"].values():
        sink |= {"depth": 123_456, "oldest_write_age_s": 7500, "written": 1_234_567}
        sink |= {"forwarded_per_s": 2345.6, "forwarded": 1_111_111, "state": "unauthorized"}
    lines = frame(status, past)
    assert max(len(line.text) for line in lines[:24]) <= 80
    at = [n for n, line in enumerate(lines) if line.text.startswith("events ")]
    assert at
    assert at[0] < 24
    assert len(lines) <= 32


async def test_it_answers_first() -> None:
    """The three answers with their levels in words, then each upstream with its error."""
    status, _ = await report()
    text = [line.text for line in frame(status, None)]
    assert text[2].startswith("[ok]   Are we losing anything? No")
    assert any(line.startswith("[BAD]  Why?") and "Agentex is down" in line for line in text)
    assert sum(line.startswith("  ConnectionRefusedError (unavailable) ") for line in text) == 2
    assert not any("max" in line for line in text), "no sparklines without history"


async def test_sparklines_have_one_width() -> None:
    """The newest sample is at the right, whatever is known of the past."""
    status, past = await report(history=True)
    assert past is not None
    past["series"]["events_per_s"] = [None, 0.0, 5.0, 10.0]
    past["series"]["rss_bytes"] = [1.0] * 180
    lines = [line.text for line in frame(status, past)]
    events = next(line for line in lines if line.endswith("max 10"))
    memory = next(line for line in lines if line.startswith("memory  ") and "max" in line)
    assert events.index("max") == memory.index("max")
    assert events.split("  max")[0].endswith(" █")
    assert memory.count("█") == 45


def test_a_line_obeys_nobody() -> None:
    """What a terminal would take for a command is shown as a question mark; long lines are cut."""
    line = Line("a\x1b[2Jb\nc", "bad", 1)
    assert line.show(80, color=False) == "a?[2Jb?c"
    assert line.show(4, color=True) == "\x1b[1;31ma\x1b[0m?[2"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.2"), (9.96, "10.0"), (1500, "1,500")]
)
def test_rates_are_for_people(value: float, text: str) -> None:
    """One decimal where it says something."""
    assert rate(value) == text


def test_sizes_are_for_people() -> None:
    """Binary units."""
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == [
        "5 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]


async def test_once_is_plain_text() -> None:
    """Into a pipe: no escape sequence, exit code 0."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        done = await top("--once", "--url", app.admin_url)
    assert (done.code, done.err) == (0, "")
    assert "[ok]   Are we losing anything? No" in done.out
    assert "\x1b" not in done.out
    assert done.out.isascii()


async def test_json_is_what_status_says() -> None:
    """For scripts: the whole object, in one line."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        done = await top("--once", "--json", "--url", app.admin_url + "/")
        keys = app.app.status().keys()
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert json.loads(done.out).keys() == keys


async def test_once_says_that_something_is_lost() -> None:
    """Exit code 1, and the reason in the text."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        status = app.app.status()
    status["answers"][0] |= {"level": "bad", "answer": "Yes"}
    async with server(json.dumps(status).encode()) as url:
        done = await top("--once", "--url", url)
    assert done.code == 1
    assert "[BAD]  Are we losing anything? Yes" in done.out


async def test_nobody_there() -> None:
    """Exit code 3, and one line that says which URL does not answer."""
    done = await top("--once", "--url", "http://127.0.0.1:1")
    assert (done.code, done.out) == (3, "")
    assert done.err == ("sidecar: http://127.0.0.1:1 does not answer (ConnectionRefusedError)\n")


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"<html>", 200, "is not JSON"),
        (b"{}", 200, "is not that of a sidecar"),
        (b"[1]", 200, "is not that of a sidecar"),
        (b"", 404, "answers HTTP 404"),
    ],
)
async def test_something_else_there(body: bytes, status: int, said: str) -> None:
    """Another server's answer is named for what it is: exit code 3, no traceback."""
    async with server(body, status) as url:
        for flags in ([], ["--json"]):
            done = await top("--once", *flags, "--url", url)
            assert (done.code, done.out) == (3, "")
            assert said in done.err
            assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "wrong", [["--url", "ftp://x"], ["--every", "0"], ["--every", "nan"], ["--every", "x"]]
)
async def test_arguments_that_can_not_be_used(wrong: list[str]) -> None:
    """Exit code 2, as everywhere."""
    assert (await top(*wrong)).code == 2


async def test_it_waits_for_a_sidecar_that_is_away() -> None:
    """As a stream it goes on: away, then the sidecar; SIGTERM ends it with 0."""
    process = await start("--json", "--every", "0.1", "--url", "http://127.0.0.1:1")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            said = json.loads(await process.stdout.readline())
            assert "does not answer" in said["away"]
        process.terminate()
        assert await process.wait() == 0


async def test_a_reader_that_has_seen_enough() -> None:
    """`sidecar top | head -1` ends quietly."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        reads, writes = os.pipe()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "sidecar", "top", "--every", "0.1", "--url", app.admin_url,
            stdout=writes, stderr=PIPE,
        )  # fmt: skip
        os.close(writes)
        await asyncio.to_thread(os.read, reads, 10)
        os.close(reads)
        async with asyncio.timeout(DEADLINE_S):
            _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")
