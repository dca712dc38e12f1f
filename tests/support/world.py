"""A running app, and an upstream that records requests."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
import orjson
from aiohttp import web

from sidecar.app import App
from sidecar.config_load import load

# No server listens there: every connection is refused immediately.
NOWHERE = "http://127.0.0.1:1"


class Request(NamedTuple):
    """A request that an upstream received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Reply(NamedTuple):
    """A response of the listener."""

    status: int
    headers: Mapping[str, str]
    body: Any


@dataclass
class Upstream:
    """An HTTP server that records every request and responds 200 once `gate` is open.

    `asked` is set when a request has arrived.
    """

    url: str
    requests: list[Request] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.BaseRequest) -> web.Response:
        body = json.loads(await request.read())  # exact, also for large numbers
        self.requests.append(Request(request.method, request.path, request.headers.copy(), body))
        self.asked.set()
        await self.gate.wait()
        return web.Response(body=b"{}", content_type="application/json")


@asynccontextmanager
async def upstream(*, stalled: bool = False) -> AsyncIterator[Upstream]:
    """A running `Upstream`; with `stalled`, responses wait until the test opens the gate."""
    fake = Upstream("")
    if not stalled:
        fake.gate.set()
    runner = web.ServerRunner(web.Server(fake.handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        fake.gate.set()
        await runner.cleanup()


@dataclass
class Running:
    """An app that runs in the test's loop."""

    app: App
    port: int
    url: str
    admin_url: str
    client: aiohttp.ClientSession
    task: asyncio.Task[bool]

    async def post(self, body: object, **headers: str) -> Reply:
        """POST bytes, or a value as JSON, to /v1/spans. The keyword `a_b` is the header `a-b`."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        named = {"content-type": "application/json"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.request("POST", "/v1/spans", data=data, headers=named)

    async def request(self, method: str, path: str, **options: Any) -> Reply:
        """Send any request to the agents' port."""
        async with self.client.request(method, self.url + path, **options) as response:
            text = await response.read()
            is_json = response.content_type == "application/json"
            return Reply(response.status, response.headers, orjson.loads(text) if is_json else text)

    async def raw(self, request: bytes, *, eof: bool = False) -> tuple[int, bytes]:
        """Send raw bytes; return the status and the body of the response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            if eof:
                writer.write_eof()
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length or 0))
        finally:
            writer.close()
            await writer.wait_closed()

    async def stop(self) -> bool:
        """Stop the app; return whether it lost nothing."""
        self.app.stop()
        return await self.task


@asynccontextmanager
async def running_app(
    environ: Mapping[str, str] | None = None, **overrides: object
) -> AsyncIterator[Running]:
    """An app on free ports, with the pod's `environ` and `section__key` overrides.

    Without `environ`, its only upstream is unreachable, and it has no grace period. At the end its
    accounting must balance.
    """
    defaults = {
        "listener__hosts": "127.0.0.1",
        "listener__port": 0,
        "admin__host": "127.0.0.1",
        "admin__port": 0,
        "queue__max_bytes": "64MiB",
        "shutdown__quiet_s": 0,
        "shutdown__grace_s": 20 if environ else 0,
    }
    keys = {f"SIDECAR_{key.upper()}": str(value) for key, value in (defaults | overrides).items()}
    environ = environ or {"AGENTEX_BASE_URL": NOWHERE}
    app = App(load(None, {**environ, **keys}), environ)
    started = asyncio.Event()
    task = asyncio.create_task(app.run(started))
    starting = asyncio.create_task(started.wait())
    await asyncio.wait([task, starting], return_when=asyncio.FIRST_COMPLETED)
    if not started.is_set():
        starting.cancel()
        task.result()
    port, admin = app.ports["listener"], app.ports["admin"]
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        url, admin_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
        try:
            yield Running(app, port, url, admin_url, client, task)
            assert_balanced(app)
        finally:
            if not task.done():
                app.stop()
            await task
            # The app freezes all objects when it starts: here also other tests' garbage.
            gc.unfreeze()
    assert_balanced(app)


def assert_balanced(app: App) -> None:
    """Check that every event and every write is accounted for (D15)."""
    assert app.accounting.imbalance == 0
    assert {lane.name: 0 for lane in app.lanes} == {lane.name: lane.imbalance for lane in app.lanes}
