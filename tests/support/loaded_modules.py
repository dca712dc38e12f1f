"""Runs a sidecar in its own process for `test_layout`, to see what each request loads.

Prints one line per request: the status of the response, and whether aiohttp is loaded.
"""

import asyncio
import sys

import orjson

from sidecar.app import App
from sidecar.config_load import load

TIME = "2026-01-02T03:04:05Z"
SPAN = {"id": "s", "trace_id": "t", "name": "turn", "start_time": TIME, "end_time": TIME}
BODY = orjson.dumps({"event_type": "end", "span": SPAN})
HEAD = b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PLAIN = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
READY = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
ENVIRONMENT = {
    "AGENTEX_BASE_URL": "http://127.0.0.1:1",
    "SIDECAR_LISTENER__HOSTS": "127.0.0.1",
    "SIDECAR_LISTENER__PORT": "0",
    "SIDECAR_ADMIN__HOST": "127.0.0.1",
    "SIDECAR_ADMIN__PORT": "0",
    "SIDECAR_SHUTDOWN__QUIET_S": "0",
    "SIDECAR_SHUTDOWN__GRACE_S": "0",
}
DEADLINE_S = 30.0


async def request(port: int, data: bytes) -> None:
    """Send one request, and print its status and whether aiohttp is loaded."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    status = (await reader.readline()).split()[1].decode()
    print("status", status, "aiohttp" in sys.modules)  # noqa: T201 (for the test)
    writer.close()


async def main() -> None:
    """Run the app, send the requests, stop it."""
    app, started = App(load(None, ENVIRONMENT), ENVIRONMENT), asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(app.run(started))
        await started.wait()
        await request(app.ports["listener"], READY)
        await request(app.ports["listener"], PLAIN)
        await request(app.ports["admin"], METRICS)
        await request(app.ports["listener"], CHUNKED)
        app.stop()


if __name__ == "__main__":
    asyncio.run(main())
