"""Programs that trace with the client, each before a real sidecar, and what it accepted from them.

Between a program and the sidecar is a `Wire`. It records the events of that program only, so that
many programs share one sidecar and each event can be counted.
"""

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.e2e import parts
from tests.e2e.sdk_support import DEADLINE_S, ROOT, Pod, Row, until

AGENTS = ROOT / "tests/e2e/agents"
VERSIONS = ("3.11", "3.12", "3.13")
# What a program prints if tracing has raised something, and logs if it has lost something.
COMPLAINTS = ("Traceback", "Exception ignored")
LOSS = "span events dropped"
# What the sidecar answers to requests that are to be sent again.
RETRIED = {408, 429, 503}
HOP_BY_HOP = {"host", "connection", "content-length", "transfer-encoding", "date", "server"}


def frameworks_python() -> Path:
    """Return an interpreter with the frameworks and libraries that agents use."""
    return parts.venv(
        "frameworks",
        *("attrs", "celery", "fastapi", "gevent", "gunicorn", "ipykernel", "jupyter_client"),
        *("langgraph", "numpy", "pandas", "temporalio", "trio", "uvicorn", "uvicorn-worker"),
        "uvloop",
    )


def interpreter(version: str) -> Path:
    """Return a Python of this version; without one, skip the test, also where parts are required.

    The gate must pass on a machine with a single Python.
    """
    found = parts.python(version)
    if found is None:
        pytest.skip(f"this machine has no Python {version}")
    return found


class Wire:
    """Relays one program's requests to a sidecar, and records the events that it accepted.

    Without a sidecar it accepts all of them itself. Clear `open` to have requests wait: the program
    then has a backlog.
    """

    def __init__(self, pod: Pod | None = None) -> None:
        self._pod = pod
        self.url = ""
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.events: list[Row] = []
        self.refused: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Wire"]:
        """Listen on a free port."""
        async with aiohttp.ClientSession() as self._session:
            runner = web.ServerRunner(web.Server(self._relay), shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0]
            self.url = f"http://{host}:{port}"
            try:
                yield self
            finally:
                self.open.set()
                await runner.cleanup()

    async def _relay(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        if self._pod is None:
            status = 200 if request.path == "/v1/flush" else 202
            answer = web.json_response({"accepted": 1, "rejected": [], "left": {}}, status=status)
        else:
            answer = await self._forward(request, body, self._pod)
        if request.path == "/v1/spans":
            if answer.status == 202 and not json.loads(answer.text or "")["rejected"]:
                self.events += map(json.loads, body.splitlines())
            elif answer.status not in RETRIED:
                self.refused.append(f"{answer.status} {answer.text}")
        return answer

    async def _forward(self, request: web.BaseRequest, body: bytes, pod: Pod) -> web.Response:
        assert pod.life is not None
        kept = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        url = pod.life.url + request.path_qs
        async with self._session.request(request.method, url, data=body, headers=kept) as answer:
            text = await answer.read()
        headers = {k: v for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP}
        return web.Response(status=answer.status, body=text, headers=headers)

    async def has(self, events: int) -> None:
        """Wait for so many events."""
        await until(lambda: len(self.events) >= events)

    def tree(self, *, interrupted: bool = False) -> dict[str, str | None]:
        """Return the name of each span's parent, by the span's name.

        Asserts that each span came with one START and one END, and in its parent's trace. If it was
        interrupted, it may lack its START: the END has every field.
        """
        assert self.refused == []
        spans: dict[str, dict[str, Row]] = {"start": {}, "end": {}}
        for event in self.events:
            span, known = event["span"], spans[event["event_type"]]
            assert span["id"] not in known, ("twice", event["event_type"], span["name"])
            known[span["id"]] = span
        started, ended = spans["start"], spans["end"]
        never_ended = [started[id_]["name"] for id_ in started.keys() - ended]
        never_started = [ended[id_]["name"] for id_ in ended.keys() - started]
        assert not never_ended, ("never ended", never_ended)
        assert interrupted or not never_started, ("never started", never_started)
        assert len({span["name"] for span in ended.values()}) == len(ended), "names are unique"
        for span in ended.values():
            parent = ended.get(span.get("parent_id") or span["id"])
            assert parent is not None, ("unknown parent", span["name"])
            assert parent["trace_id"] == span["trace_id"], span["name"]
        above = {span["name"]: span.get("parent_id") for span in ended.values()}
        return {name: id_ and ended[id_]["name"] for name, id_ in above.items()}

    async def delivered(self) -> None:
        """Wait until every span is complete in the rows of both upstreams, below its parent."""
        ended = {e["span"]["id"]: e["span"] for e in self.events if e["event_type"] == "end"}
        pod = self._pod
        assert pod is not None
        await until(lambda: set(ended) <= pod.agentex.complete & pod.sgp.complete)
        for rows in pod.arrived():
            for id_, span in ended.items():
                assert rows[id_].get("parent_id") == span.get("parent_id"), span["name"]


class Program:
    """A running program, in a session of its own, and the lines that it printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.output: list[str] = []
        self.errors: list[str] = []
        self._open_streams = 2
        self._printed = asyncio.Condition()
        streams = ((process.stdout, self.output), (process.stderr, self.errors))
        self._reading = [asyncio.create_task(self._read(*each)) for each in streams]

    async def _read(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream is not None
        async for line in stream:
            async with self._printed:
                lines.append(line.decode().rstrip("\n"))
                self._printed.notify_all()
        async with self._printed:
            self._open_streams -= 1
            self._printed.notify_all()

    async def says(self, text: str, times: int = 1) -> None:
        """Wait until so many lines with `text` were printed, to either stream."""

        def said() -> bool:
            return sum(text in line for line in self.output + self.errors) >= times

        async with asyncio.timeout(DEADLINE_S), self._printed:
            await self._printed.wait_for(lambda: said() or not self._open_streams)
        assert said(), text

    async def ended(self, *codes: int, loses: bool = False) -> list[str]:
        """Wait for it to end with one of `codes` (or 0) and no complaint; return its output.

        One that `loses` spans must say so.
        """
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
            await asyncio.gather(*self._reading)
        errors = "\n".join(self.errors)
        assert code in (codes or (0,)), (code, errors[-4000:])
        assert not [each for each in COMPLAINTS if each in errors], errors[-4000:]
        assert (LOSS in errors) == loses, errors[-4000:]
        return self.output

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def kill(self) -> None:
        """Kill it, and what it started and did not end."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        await asyncio.gather(*self._reading)


@asynccontextmanager
async def started(
    wire: Wire,
    *command: str | Path,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> AsyncIterator[Program]:
    """Start a program with this checkout's client on its path, and the wire as its sidecar."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    settings = {
        "PYTHONPATH": str(ROOT / "client"),
        "PYTHONUNBUFFERED": "1",
        "TRACE_SIDECAR_URL": wire.url,
        "SGP_API_KEY": "key",
        "SGP_ACCOUNT_ID": "account",
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**kept, **settings, **(environ or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        limit=2**24,
    )
    program = Program(process)
    try:
        yield program
    except BaseException as error:
        error.add_note("\n".join([*program.output, *program.errors])[-4000:])
        raise
    finally:
        await program.kill()


async def ran(
    pod: Pod,
    python: str | Path,
    agent: str,
    *arguments: str,
    environ: Mapping[str, str] | None = None,
) -> tuple[dict[str, str | None], list[str]]:
    """Run one of the agents in `AGENTS` to its end; return the tree of its spans and its output."""
    async with Wire(pod).running() as wire:
        command = (python, AGENTS / f"{agent}.py", *arguments)
        async with started(wire, *command, environ=environ) as program:
            output = await program.ended()
        tree = wire.tree()
        await wire.delivered()
    return tree, output
