"""Uses aiohttp to serve the requests that are not plain (head_cache.py).

These have a compressed or chunked body, another path, or malformed HTTP. Their responses are the
same as those of plain requests (connection.py) and come from the same `Ingest`. The listener loads
this module on the first such request.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from math import inf
from time import perf_counter

from aiohttp import web

from sidecar.listener.body_reader import BodyReader
from sidecar.listener.host_check import HostCheck
from sidecar.listener.ingest import Ingest
from sidecar.listener.pass_through import PREFIXES, PassThrough
from sidecar.listener.refusals import Limits, Refusal, media_type, stopping
from sidecar.listener.routes import Request, Response, Route, retry_after
from sidecar.listener.routes.agentex import PREFIX
from sidecar.spans.decode import MalformedBody
from sidecar.telemetry.metrics import IntakeMetrics

# aiohttp logs input that it can't parse, which may be span content (D19).
_silent = logging.getLogger("sidecar.listener.http")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_SPANS_ONLY = (
    "the sidecar only accepts spans; set listener.pass_through = true to forward this to SGP"
)


class AiohttpServer:
    """Serves connections that have received a request that is not plain.

    `routes` are those of plain requests, by path; `on_bug` is called with an unexpected exception.
    """

    def __init__(
        self,
        ingest: Ingest,
        routes: Mapping[str, Route],
        host_check: HostCheck,
        limits: Limits,
        metrics: IntakeMetrics,
        pass_through: PassThrough | None,
        on_bug: Callable[[Exception], None],
    ) -> None:
        self._ingest = ingest
        self._own, self._sgp = routes["/v1/spans"], routes["/v5/spans/batch"]
        self._agentex = routes["/spans"]
        self._host_check = host_check
        self._bodies = BodyReader(limits)
        self._metrics = metrics
        self._pass_through = pass_through
        self._on_bug = on_bug
        self._loop = asyncio.get_running_loop()
        # No router, no middleware, bodies not decompressed by aiohttp (DECISIONS.md 2).
        self._server = web.Server(
            self._handle,
            access_log=None,
            auto_decompress=False,
            logger=_silent,
            # An agent that closes its connection must not leave its request running at SGP.
            handler_cancellation=pass_through is not None,
        )
        # Loop time at which the last request on each connection began.
        self._request_at: dict[web.RequestHandler, float] = {}

    def connect(self) -> asyncio.Protocol:
        """Return the protocol that takes over a connection."""
        return self._server()

    def sweep(self, now: float, idle_s: float) -> None:
        """Close connections on which no request has begun for `idle_s`.

        aiohttp does so only after a first request, so a partial head would keep a connection open
        forever.
        """
        self._request_at = {
            each: self._request_at.get(each, now) for each in self._server.connections
        }
        for handler, request_at in self._request_at.items():
            if now - request_at > idle_s:
                handler.force_close()

    def close_idle(self) -> None:
        """Close connections without a request in progress."""
        self._server.pre_shutdown()

    async def close(self, timeout_s: float) -> None:
        """Close every connection; requests in progress have `timeout_s` to finish."""
        self._server.pre_shutdown()
        await self._server.shutdown(timeout_s)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        started = perf_counter()
        self._request_at[request.protocol] = self._loop.time()
        response: web.StreamResponse
        try:
            self._host_check.refuse_browsers(request.headers)
            if self._pass_through is not None and _is_passed_through(request.path):
                return await self._forward(request, self._pass_through)
            response = await self._route(request)
        except Refusal as refusal:
            response = _to_aiohttp(self._ingest.refuse(self._own, refusal))
        except Exception as bug:
            self._on_bug(bug)
            raise
        self._metrics.responded(response.status, perf_counter() - started)
        return response

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.path, request.method
        if path == "/v1/spans":
            allowed = method == "POST"
            return await self._spans(request, self._own) if allowed else _allow_only("POST")
        if path == "/v5/spans/batch":
            allowed = method in {"PUT", "POST"}
            return await self._spans(request, self._sgp) if allowed else _allow_only("PUT, POST")
        if path == "/spans" and method == "POST":
            return await self._spans(request, self._agentex)
        if path.startswith(PREFIX) and method == "PATCH":
            return await self._spans(request, self._agentex)
        if path == "/readyz":
            if method not in {"GET", "HEAD"}:
                return _allow_only("GET")
            if self._ingest.stopping:
                raise stopping()
            return web.Response(text="ready\n")
        text = f"no such path for {method}; agents POST their events to /v1/spans on this port"
        if path.startswith(PREFIXES):
            text = _SPANS_ONLY
        raise Refusal(HTTPStatus.NOT_FOUND, text, "not_ours")

    async def _forward(
        self, request: web.BaseRequest, pass_through: PassThrough
    ) -> web.StreamResponse:
        # A model can take minutes to respond: such a connection is not idle.
        self._request_at[request.protocol] = inf
        try:
            if self._ingest.stopping:
                raise stopping()
            return await pass_through.forward(request)
        except Refusal as refusal:
            return _to_aiohttp(Response(refusal.status, self._sgp.refusal_body(refusal)))
        finally:
            self._request_at[request.protocol] = self._loop.time()

    async def _spans(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        headers = request.headers
        head = Request(request.method, request.rel_url.raw_path, headers, media_type(headers))
        try:
            route.check(head)
            if self._ingest.stopping:
                raise stopping()
            # Once read, the body is no longer budgeted, so no name here may keep it alive.
            response = self._ingest.respond(route, head, await self._bodies.read(request))
        except Refusal as refusal:
            return _to_aiohttp(self._ingest.refuse(route, refusal))
        except MalformedBody as error:
            return _to_aiohttp(self._ingest.malformed(route, head, error))
        return _to_aiohttp(await response)


def _is_passed_through(path: str) -> bool:
    return path.startswith(PREFIXES) and path != "/v5/spans/batch"


def _to_aiohttp(response: Response) -> web.Response:
    converted = web.Response(
        status=response.status,
        body=response.body,
        headers={"Content-Type": response.content_type, **retry_after(response.status)},
    )
    if response.status == HTTPStatus.REQUEST_TIMEOUT:
        converted.force_close()
    return converted


def _allow_only(methods: str) -> web.Response:
    """The 405 response to any other method."""
    return web.Response(
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        body=b'{"error":"use %b"}' % methods.encode(),
        content_type="application/json",
        headers={"Allow": methods},
    )
