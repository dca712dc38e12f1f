"""Runs a sidecar in its own process for `test_layout`, to see what each request loads.

Prints one line per request: whether its status is right, and whether aiohttp is loaded.
"""

import asyncio
import gzip
import sys

import orjson

from sidecar.app import App
from sidecar.config_load import load

TIME = "2026-01-02T03:04:05Z"
SPAN = {"id": "s", "trace_id": "t", "name": "turn", "start_time": TIME, "end_time": TIME}
BODY = orjson.dumps({"event_type": "end", "span": SPAN})
HEAD = b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SENT = b"Content-Length: %d\r\n\r\n%b"
PLAIN = HEAD + SENT % (len(BODY), BODY)
PATCH = orjson.dumps({"trace_id": "t", "name": "n", "start_time": TIME, "end_time": TIME})
# Each kind of request to the agents' port, and its status.
REQUESTS = {
    b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n": 200,
    PLAIN: 202,
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY): 202,
    HEAD + b"Content-Encoding: gzip\r\n" + SENT % (len(GZIP := gzip.compress(BODY)), GZIP): 202,
    HEAD + b"Expect: 100-continue\r\n" + SENT % (len(BODY), BODY): 100,
    PLAIN.replace(b"POST /v1/spans", b"PATCH /spans/s").replace(
        SENT % (len(BODY), BODY), SENT % (len(PATCH), PATCH)
    ): 200,
    PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"): 202,
    PLAIN.replace(b"/v1/spans", b"/nowhere"): 404,
    b"garbage\r\n\r\n": 400,
}
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


async def request(port: int, data: bytes, expected: int) -> None:
    """Send a request; print whether its status is `expected` and whether aiohttp is loaded."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    status = int((await reader.readline()).split()[1])
    print("request", status == expected, "aiohttp" in sys.modules)  # noqa: T201 (for the test)
    writer.close()


async def main() -> None:
    """Run the app, send the requests, stop it."""
    app, started = App(load(None, ENVIRONMENT), ENVIRONMENT), asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(app.run(started))
        await started.wait()
        for data, status in REQUESTS.items():
            await request(app.ports["listener"], data, status)
        await request(app.ports["admin"], METRICS, 200)
        app.stop()


if __name__ == "__main__":
    asyncio.run(main())
