"""The client in web servers that are stopped by SIGTERM while they have a backlog of spans."""

import asyncio
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.client_support import AGENTS, Program, Wire, frameworks_python, started
from tests.e2e.sdk_support import DEADLINE_S, IDENTITY, Pod, sdk_python, until
from tests.support.docs import ROOT, blocks, section

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = ROOT / "docs/client.md"
REQUESTS = 20
# The application and the command of the page.
APP, COMMAND = blocks(section(PAGE, "uvicorn"))
OPT_IN = dict([shlex.split(COMMAND)[0].split("=")])
# Added to the application of the page, or to one without its lifespan.
ROUTES = """
@app.get("/turns/{number}")
async def turn(number: int) -> None:
    async with spans.span(f"turn {number}"):
        with spans.span(f"step {number}"):
            await asyncio.sleep(0)
"""
WITHOUT_LIFESPAN = """
import asyncio

from fastapi import FastAPI
from trace_sidecar_client import Spans

spans = Spans()
app = FastAPI()
"""
# The server of the SDK's templates, which shuts tracing processors down at the end of its lifespan.
WITH_THE_SDK = """
from agentex.lib.core.tracing.tracer import AsyncTracer
from agentex.lib.sdk.fastacp.fastacp import FastACP
from trace_sidecar_client import register

register()
app = FastACP.create(acp_type="sync")


@app.get("/turns/{number}")
async def turn(number: int) -> None:
    trace = AsyncTracer(None).trace(f"trace {number}")
    async with trace.span(f"turn {number}") as span:
        async with trace.span(f"step {number}", parent_id=span.id):
            pass
"""
SDK = IDENTITY | {
    "ACP_URL": "http://127.0.0.1",
    "AGENTEX_BASE_URL": "",  # nowhere to register
    # Otherwise a package that the SDK imports fetches price lists from the Internet.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
UVICORN = ("-m", *shlex.split(COMMAND)[1:], "--uds", "socket")
GUNICORN = ("-m", "gunicorn", "app:app", "--bind", "unix:socket")
ASGI = ("--worker-class", "uvicorn_worker.UvicornWorker")
# How a server that runs an ASGI application is started, and how it ends.
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    "uvicorn": (UVICORN, -signal.SIGTERM),
    "gunicorn": ((*GUNICORN, "--workers", "1", *ASGI), 0),
}
TWO = ("--workers", "2")
FINISHED = "Finished server process"
LOADED = "application loaded"  # from served_wsgi.py


def turns() -> dict[str, str | None]:
    """The spans of all requests."""
    spans: dict[str, str | None] = {}
    for number in range(REQUESTS):
        spans |= {f"turn {number}": None, f"step {number}": f"turn {number}"}
    return spans


class Server:
    """A server that runs an application, and the wire of its spans."""

    def __init__(self, program: Program, wire: Wire, folder: Path) -> None:
        self.program = program
        self.wire = wire
        self._socket = folder / "socket"

    async def serve(self, workers: int, ready: str = "Application startup complete") -> None:
        """Once its workers are ready, have it serve requests, some of them before a backlog."""
        await self.program.says(ready, workers)
        await self.program.says("unix")  # where it listens
        await self._get(range(REQUESTS // 2))
        # What comes now waits in the agent: a batch that is on its way holds up the next.
        await until(lambda: bool(self.wire.waiting) or self.wire.open.is_set())
        await self._get(range(REQUESTS // 2, REQUESTS))

    async def _get(self, numbers: range) -> None:
        connector = aiohttp.UnixConnector(str(self._socket), force_close=True)
        timeout = aiohttp.ClientTimeout(DEADLINE_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def get(number: int) -> int:
                async with session.get(f"http://localhost/turns/{number}") as reply:
                    return reply.status

            assert {200} == set(await asyncio.gather(*map(get, numbers)))

    async def stop_with_backlog(
        self,
        last_words: str,
        workers: int,
        *codes: int,
        number: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Stop it while the sidecar takes nothing, until all workers have said `last_words`."""
        self.program.signal(number)
        await self.program.says(last_words, workers)
        self.wire.open.set()
        await self.program.ended(*codes)


@asynccontextmanager
async def server(
    here: Pod, folder: Path, app: str, *command: str | Path, **environ: str
) -> AsyncIterator[Server]:
    """Start a server that runs `app`, before a sidecar that takes nothing until it stops."""
    (folder / "app.py").write_text(app, encoding="utf-8")
    async with Wire(here).running() as wire:
        wire.open.clear()
        environ |= {"HOME": str(folder)}  # where gunicorn has a socket of its own
        async with started(wire, *command, folder=folder, environ=environ) as program:
            yield Server(program, wire, folder)
        await wire.delivered()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_lifespan_of_the_page(kind: str, shared_pod: Pod, tmp_path: Path) -> None:
    """The flush of docs/client.md sends what waits at SIGTERM, and the lifespan's own spans."""
    command, code = KINDS[kind]
    app = APP + ROUTES
    async with server(shared_pod, tmp_path, app, frameworks_python(), *command) as asgi:
        await asgi.serve(1)
        await asgi.stop_with_backlog("Waiting for application shutdown", 1, code)
        assert asgi.wire.tree() == turns() | {"startup": None, "shutdown": None}


async def test_ctrl_c(shared_pod: Pod, tmp_path: Path) -> None:
    """Ctrl-C ends uvicorn as it ends any program: the flush at exit needs no line or variable."""
    app = WITHOUT_LIFESPAN + ROUTES
    async with server(shared_pod, tmp_path, app, frameworks_python(), *UVICORN) as uvicorn:
        await uvicorn.serve(1)
        await uvicorn.stop_with_backlog(FINISHED, 1, 0, 130, number=signal.SIGINT)
        assert uvicorn.wire.tree() == turns()


async def test_idle(shared_pod: Pod, tmp_path: Path) -> None:
    """A uvicorn without either, idle at its SIGTERM, has nothing to lose and ends as ever."""
    app = WITHOUT_LIFESPAN + ROUTES
    async with server(shared_pod, tmp_path, app, frameworks_python(), *UVICORN) as uvicorn:
        uvicorn.wire.open.set()
        await uvicorn.serve(1)
        await uvicorn.wire.has(2 * len(turns()))
        await uvicorn.stop_with_backlog(FINISHED, 1, -signal.SIGTERM)
        assert uvicorn.wire.tree() == turns()


async def test_the_server_of_the_sdk(shared_pod: Pod, tmp_path: Path) -> None:
    """With `register()`, the SDK's own shutdown sends what waits at SIGTERM: no line is needed."""
    python = sdk_python()
    async with server(shared_pod, tmp_path, WITH_THE_SDK, python, *UVICORN, **SDK) as uvicorn:
        await uvicorn.serve(1)
        await uvicorn.stop_with_backlog("Waiting for application shutdown", 1, -signal.SIGTERM)
        assert uvicorn.wire.tree() == turns()


@pytest.mark.parametrize(("workers", "loop"), [(1, "asyncio"), (1, "uvloop"), (2, "asyncio")])
async def test_uvicorn_with_the_variable(
    workers: int, loop: str, shared_pod: Pod, tmp_path: Path
) -> None:
    """With TRACE_SIDECAR_FLUSH_ON_SIGTERM, an agent without a flush of its own loses no span."""
    command = (*UVICORN, "--workers", str(workers), "--loop", loop)
    app = WITHOUT_LIFESPAN + ROUTES
    async with server(
        shared_pod, tmp_path, app, frameworks_python(), *command, **OPT_IN
    ) as uvicorn:
        await uvicorn.serve(workers)
        code = 0 if workers > 1 else -signal.SIGTERM  # the supervisor ends by itself
        await uvicorn.stop_with_backlog(FINISHED, workers, code)
        assert uvicorn.wire.tree() == turns()


@pytest.mark.parametrize("workers", ["sync", "gthread", "gevent"])
async def test_gunicorn(workers: str, shared_pod: Pod, tmp_path: Path) -> None:
    """Workers of gunicorn send at their exit what waits at SIGTERM, without a line for it."""
    app = (AGENTS / "served_wsgi.py").read_text(encoding="utf-8")
    command = (*GUNICORN, *TWO, "--worker-class", workers)
    async with server(shared_pod, tmp_path, app, frameworks_python(), *command) as gunicorn:
        await gunicorn.serve(2, LOADED)
        await gunicorn.stop_with_backlog("Worker exiting", 2)
        assert gunicorn.wire.tree() == turns()


async def test_gunicorn_that_reloads(shared_pod: Pod, tmp_path: Path) -> None:
    """Workers that a reload replaces send what waits, too."""
    app = (AGENTS / "served_wsgi.py").read_text(encoding="utf-8")
    command = (frameworks_python(), *GUNICORN, *TWO)
    async with server(shared_pod, tmp_path, app, *command) as gunicorn:
        await gunicorn.serve(2, LOADED)
        gunicorn.program.signal(signal.SIGHUP)
        await gunicorn.program.says("Worker exiting", 2)
        gunicorn.wire.open.set()
        await gunicorn.program.says(LOADED, 4)
        await gunicorn.stop_with_backlog("Worker exiting", 4)
        assert gunicorn.wire.tree() == turns()


async def test_gunicorn_with_max_requests(shared_pod: Pod, tmp_path: Path) -> None:
    """Workers that are replaced after a few requests send all their spans, also preloaded ones."""
    app = (AGENTS / "served_wsgi.py").read_text(encoding="utf-8")
    few = ("--max-requests", "3", "--preload")
    async with server(
        shared_pod, tmp_path, app, frameworks_python(), *GUNICORN, *TWO, *few
    ) as gunicorn:
        gunicorn.wire.open.set()
        await gunicorn.serve(1, LOADED)
        await gunicorn.stop_with_backlog("Shutting down: Master", 1)
        assert gunicorn.wire.tree() == turns()


async def test_gunicorn_with_the_workers_of_uvicorn(shared_pod: Pod, tmp_path: Path) -> None:
    """In uvicorn's workers the variable does the same, under a gunicorn that ends as ever."""
    command = (frameworks_python(), *GUNICORN, *TWO, *ASGI)
    app = WITHOUT_LIFESPAN + ROUTES
    async with server(shared_pod, tmp_path, app, *command, **OPT_IN) as gunicorn:
        await gunicorn.serve(2)
        await gunicorn.stop_with_backlog(FINISHED, 2)
        assert gunicorn.wire.tree() == turns()
