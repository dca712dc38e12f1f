"""An HTTP server in front of a real Collector: it forwards requests, or answers as a test says."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Reply:
    """An answer. `forwarded`: the Collector gets the request nevertheless."""

    status: int
    body: bytes = b""
    forwarded: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """A request to the Collector. `ids`: those of its spans, as the agent sent them."""

    headers: dict[str, str]
    size: int
    ids: list[str]


@dataclass
class Front:
    """It keeps what was requested. `rule`: the answer to a request, None to forward it.

    `silent`: of how many requests that were forwarded it never sends the answer.
    """

    target: str
    url: str = ""
    silent: int = 0
    rule: Callable[[Request], Reply | None] = lambda _: None
    requests: list[Request] = field(default_factory=list)

    async def handle(self, incoming: web.BaseRequest) -> web.Response:
        body = await incoming.read()
        headers = {name.lower(): value for name, value in incoming.headers.items()}
        request = Request(headers, len(body), _ids(headers, body))
        self.requests.append(request)
        reply = self.rule(request)
        if reply is None or reply.forwarded:
            theirs = await self._forwarded(incoming, body)
            reply = reply or theirs
        if self.silent:
            self.silent -= 1
            await asyncio.get_running_loop().create_future()
        return web.Response(
            status=reply.status,
            body=reply.body,
            headers={"Content-Type": PROTOBUF, **reply.headers},
        )

    async def _forwarded(self, incoming: web.BaseRequest, body: bytes) -> Reply:
        kept = {"Content-Type", "Content-Encoding"}
        headers = {name: incoming.headers[name] for name in kept if name in incoming.headers}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.target + incoming.path, data=body, headers=headers) as response,
        ):
            return Reply(response.status, await response.read())


def _ids(headers: dict[str, str], body: bytes) -> list[str]:
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    message = ExportTraceServiceRequest.FromString(body)
    return [
        attribute.value.string_value
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
        for attribute in span.attributes
        if attribute.key == "agentex.span_id"
    ]


def rejecting(spans: int) -> bytes:
    """Return the body of a success that does not keep so many spans."""
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = spans
    response.partial_success.error_message = "no"
    return response.SerializeToString()


@asynccontextmanager
async def front(target: str) -> AsyncIterator[Front]:
    """A running `Front` of the Collector at `target`."""
    running = Front(target)
    server = web.Server(running.handle, access_log=None, auto_decompress=False)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        running.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield running
    finally:
        await runner.cleanup()
