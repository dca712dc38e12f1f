"""`sidecar top`: frames from reports, and the program against a real admin port."""

import asyncio
import json
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from sidecar.operate.hints import BAD, WARN
from sidecar.operate.top_frame import _what_to_do, frame
from sidecar.operate.top_line import Line, rate, size
from sidecar.operate.top_tables import accounting
from tests.support.spans import make_event
from tests.support.world import running_app

Json = dict[str, Any]
TWO = {"AGENTEX_BASE_URL": "http://127.0.0.1:1", "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
THREE = TWO | {"SIDECAR_OTLP__ENDPOINT": "http://127.0.0.1:1"}
DEADLINE_S = 60


class Ended(NamedTuple):
    """Exit code and output of a finished program."""

    code: int | None
    out: str
    err: str


async def start(*arguments: str) -> Process:
    """Start `sidecar top` with its output in pipes."""
    command = (sys.executable, "-m", "sidecar", "top", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)


async def top(*arguments: str) -> Ended:
    """Run `sidecar top` until it ends by itself."""
    process = await start(*arguments)
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return Ended(process.returncode, out.decode(), err.decode())


PATHS = st.text(st.sampled_from("ab/.,- 'ü"), min_size=1, max_size=300)


@given(paths=st.lists(PATHS, min_size=1, max_size=2), width=st.integers(60, 80))
def test_a_command_of_any_length_can_be_copied(paths: list[str], width: int) -> None:
    """What to do may name paths longer than a line: a shell gets the command as it was."""
    command = " && ".join(f"sidecar replay {shlex.quote(path)}" for path in paths)
    finding = {"hint": f"fix the cause, then run: {command}", "runbook": None}
    lines = [line.text for line in _what_to_do(finding, width)]
    assert max(map(len, lines)) <= width
    shown = "\n".join(lines).partition("run: " if len(lines) == 1 else "run:\n")[2]
    assert shlex.split(shown.replace("\\\n", "")) == shlex.split(command)


@asynccontextmanager
async def server(body: bytes, status: int = 200) -> AsyncIterator[str]:
    """Run a server that gives every request the same response; yield its URL."""

    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, status=status)

    runner = web.ServerRunner(web.Server(handle), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def report(
    *, history: bool = False, environ: Mapping[str, str] = TWO
) -> tuple[Json, Json | None]:
    """Return the report, and optionally the history, of a sidecar with unreachable upstreams."""
    async with running_app(environ, sgp__base_url="http://127.0.0.1:1", shutdown__grace_s=0) as app:
        await app.post(make_event(kind="end"))
        async with asyncio.timeout(DEADLINE_S):
            while True:
                status = app.app.status()
                if all(sink["state"] == "down" for sink in status["sinks"].values()):
                    break
                await asyncio.sleep(0.01)
        async with app.client.get(app.admin_url + "/status/history") as response:
            past: Json = await response.json()
        return json.loads(json.dumps(status)), past if history else None


async def test_it_fits_80_columns_and_24_lines() -> None:
    """With large numbers, everything important still fits into a terminal of 80 by 24."""
    status, past = await report(history=True)
    for sink in status["sinks"].values():
        sink |= {"depth": 123_456, "oldest_write_age_s": 7500, "written": 1_234_567}
        sink |= {"forwarded_per_s": 2345.6, "forwarded": 1_111_111, "state": "unauthorized"}
    status["pod"] = {"name": "invoice-agent-7d9f8b6c5-x2v4k", "namespace": "a", "node": "node-1"}
    lines = frame(status, past)
    assert max(len(line.text) for line in lines[:24]) <= 80
    at = [n for n, line in enumerate(lines) if line.text.startswith("writes ")]
    assert at
    assert at[0] < 24
    assert len(lines) <= 35
    narrow = frame(status, past, 60)
    assert max(len(line.text) for line in narrow) <= 60
    assert narrow != lines


async def test_three_upstreams_fit() -> None:
    """Each has its rows, in 80 columns and in 60."""
    status, past = await report(history=True, environ=THREE)
    for sink in status["sinks"].values():
        sink |= {"depth": 123_456, "oldest_write_age_s": 7500, "written": 1_234_567}
        sink |= {"forwarded_per_s": 2345.6, "forwarded": 1_111_111, "state": "unauthorized"}
    for width in (80, 60):
        lines = frame(status, past, width)
        assert max(len(line.text) for line in lines) <= width
        for name in ("agentex", "sgp", "otlp"):
            rows = [line.text for line in lines if line.text.startswith(f"{name} ")]
            assert len(rows) == len(("upstream", "writes", "waiting", "oldest"))
            assert any(f"{name} [" in line.text for line in lines), "its room"


async def test_the_answers_come_first() -> None:
    """First come the three answers with their levels as words, then the upstreams' errors."""
    status, _ = await report()
    text = [line.text for line in frame(status, None)]
    assert text[2].startswith("[ok]   Are we losing anything? No")
    assert any(line.startswith("[BAD]  Why?") and "Agentex is down" in line for line in text)
    last = re.compile(r"  last error (just now|\d+ s ago): 127.0.0.1:1 refuses connections; ")
    assert sum(bool(last.match(line)) for line in text) == 2
    assert not any("max" in line for line in text), "no sparklines without history"


@pytest.mark.parametrize(
    ("pod", "line"),
    [
        (("agent-0", "agents", "node-1"), "pod         agents/agent-0 on node node-1"),
        (("agent-0", None, None), "pod         agent-0"),
        ((None, "agents", None), "pod         agents/HOST"),
        ((None, None, "node-1"), "pod         HOST on node node-1"),
        ((None, None, None), ""),
    ],
)
async def test_the_pod(pod: tuple[str | None, ...], line: str) -> None:
    """The second line has what is known of the pod; it is empty if nothing is."""
    status, _ = await report()
    status["host"] = "HOST"
    status["pod"] = dict(zip(("name", "namespace", "node"), pod, strict=True))
    assert frame(status, None)[1].text == line


async def test_sparklines_have_one_width() -> None:
    """Sparklines align, with the newest sample at the right, however short the history is."""
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


@pytest.mark.parametrize(
    ("sink", "kept", "level"),
    [
        ({}, 0, ""),
        ({"lost_age_s": 899.0}, 0, BAD),
        ({"lost_age_s": 901.0}, 0, ""),
        ({"imbalance": 1}, 0, BAD),
        ({"dead_lettered": 1, "dead_lettered_age_s": 1.0}, 0, ""),
        ({"dead_lettered": 1, "dead_lettered_age_s": 901.0}, 1, WARN),
        ({"dead_lettered": 1, "dead_lettered_age_s": 899.0}, None, WARN),
        ({"dead_lettered": 1, "dead_lettered_age_s": 901.0}, None, ""),
    ],
)
async def test_what_is_over_is_no_alarm(sink: Json, kept: int | None, level: str) -> None:
    """Losses alarm for 15 minutes, dead letters until they are replayed, if they are kept."""
    shown, _ = await report()
    shown["dead_letters"] = shown["dead_letters"] | {"kept": kept}
    shown["sinks"] = {"sgp": shown["sinks"]["sgp"] | sink}
    lines = list(accounting(shown, 80))
    assert next(line.style for line in lines if line.text.startswith("sgp")) == level


async def test_what_is_not_known() -> None:
    """Without /proc, memory is unknown, now and in the history."""
    status, past = await report(history=True)
    assert past is not None
    status["memory"]["rss_bytes"] = None
    past["series"]["rss_bytes"] = [None] * 3
    lines = [line.text for line in frame(status, past)]
    assert "  memory unknown  " in lines[0]
    assert [line for line in lines if line.startswith("memory  ")][1].endswith("  max unknown")


def test_a_line_has_no_control_characters() -> None:
    """Control characters are escaped, and long lines are cut."""
    line = Line("a\x1b[2Jb\nc", "bad", 1)
    assert line.show(80, color=False) == r"a\x1b[2Jb\nc"
    assert line.show(6, color=True) == "\x1b[1;31ma\x1b[0m" + r"\x1b["


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.2"), (9.96, "10.0"), (1500, "1,500")]
)
def test_rates_are_readable(value: float, text: str) -> None:
    """Small rates have one decimal."""
    assert rate(value) == text


def test_sizes_are_readable() -> None:
    """Sizes are in binary units."""
    assert [size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == [
        "5 B",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]


@pytest.mark.process
async def test_once_is_plain_text() -> None:
    """When piped, it writes ASCII without escape sequences, and exits with 0."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        done = await top("--once", "--url", app.admin_url)
    assert (done.code, done.err) == (0, "")
    assert "[ok]   Are we losing anything? No" in done.out
    assert "\x1b" not in done.out
    assert done.out.isascii()


@pytest.mark.process
async def test_json_is_the_status_report() -> None:
    """`--json` prints the whole object on one line."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        done = await top("--once", "--json", "--url", app.admin_url + "/")
        keys = app.app.status().keys()
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert json.loads(done.out).keys() == keys


@pytest.mark.process
async def test_once_reports_a_loss() -> None:
    """When something is being lost, the exit code is 1."""
    async with running_app(TWO, shutdown__grace_s=0) as app:
        status = app.app.status()
    status["answers"][0] |= {"level": "bad", "answer": "Yes"}
    async with server(json.dumps(status).encode()) as url:
        done = await top("--once", "--url", url)
    assert done.code == 1
    assert "[BAD]  Are we losing anything? Yes" in done.out


@pytest.mark.process
async def test_no_sidecar_at_the_url() -> None:
    """When nothing responds, the exit code is 3, and one line names the URL."""
    done = await top("--once", "--url", "http://127.0.0.1:1")
    assert (done.code, done.out) == (3, "")
    assert done.err == "sidecar: http://127.0.0.1:1 does not respond (ConnectionRefusedError)\n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"<html>", 200, "is not JSON"),
        (b"{}", 200, "is not a status report from this version"),
        (b"[1]", 200, "is not a status report from this version"),
        (b"", 404, "returns HTTP 404"),
    ],
)
async def test_another_server_at_the_url(body: bytes, status: int, reason: str) -> None:
    """Another server's response is an error with the reason: exit code 3, no traceback."""
    async with server(body, status) as url:
        for flags in ([], ["--json"]):
            done = await top("--once", *flags, "--url", url)
            assert (done.code, done.out) == (3, "")
            assert reason in done.err
            assert "Traceback" not in done.err


@pytest.mark.process
@pytest.mark.parametrize(
    "wrong", [["--url", "ftp://x"], ["--every", "0"], ["--every", "nan"], ["--every", "x"]]
)
async def test_bad_arguments(wrong: list[str]) -> None:
    """Bad arguments give exit code 2, as in every command."""
    assert (await top(*wrong)).code == 2


@pytest.mark.process
async def test_it_keeps_trying_an_unreachable_sidecar() -> None:
    """As a stream, it reports each failed try and continues; SIGTERM ends it with 0."""
    process = await start("--json", "--every", "0.1", "--url", "http://127.0.0.1:1")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(2):
            report = json.loads(await process.stdout.readline())
            assert "does not respond" in report["away"]
        process.terminate()
        assert await process.wait() == 0


@pytest.mark.process
async def test_a_closed_pipe() -> None:
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
