"""Requests that are not plain, read by aiohttp: compressed, in chunks, for other paths, broken.

They get the same answers as plain ones (connection.py), by the same reception. Loaded when the
first of them comes (listener.py).
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from math import inf
from time import perf_counter

from aiohttp import web

from sidecar.listener.body import Limits, Refusal, media_type, stopping
from sidecar.listener.body_reader import BodyReader
from sidecar.listener.host_check import HostCheck
from sidecar.listener.ingest import Ingest
from sidecar.listener.pass_through import PREFIXES, PassThrough
from sidecar.listener.routes import Answer, Request, Route, retry_after
from sidecar.listener.routes.agentex import PREFIX
from sidecar.spans.decode import MalformedBody
from sidecar.telemetry.metrics import IntakeMetrics

# aiohttp logs what it could not parse, and that may be span content (D19).
_quiet = logging.getLogger("sidecar.listener.http")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False
_SPANS_ONLY = (
    "the sidecar takes spans only; set listener.pass_through = true to hand this on to SGP"
)


class OtherRequests:
    """Serves the connections that have had a request which is not plain.

    `routes` are those of plain requests, by path; `bug` is told of an exception in here.
    """

    def __init__(
        self,
        ingest: Ingest,
        routes: Mapping[str, Route],
        host_check: HostCheck,
        limits: Limits,
        metrics: IntakeMetrics,
        pass_through: PassThrough | None,
        bug: Callable[[Exception], None],
    ) -> None:
        self._ingest = ingest
        self._own, self._sgp = routes["/v1/spans"], routes["/v5/spans/batch"]
        self._agentex = routes["/spans"]
        self._host_check = host_check
        self._bodies = BodyReader(limits)
        self._metrics = metrics
        self._pass_through = pass_through
        self._bug = bug
        self._loop = asyncio.get_running_loop()
        # No router, no middleware, bodies as they come (DECISIONS.md 2).
        self._server = web.Server(
            self._handle,
            access_log=None,
            auto_decompress=False,
            logger=_quiet,
            # An agent that hangs up must not leave its request running at SGP.
            handler_cancellation=pass_through is not None,
        )
        # When the last request on each connection began, in loop time.
        self._begun: dict[web.RequestHandler, float] = {}

    def connect(self) -> asyncio.Protocol:
        """The protocol that takes a connection over."""
        return self._server()

    def sweep(self, now: float, idle_s: float) -> None:
        """Close connections on which no request began for `idle_s`.

        aiohttp does so only after a first request: half a header would stay for ever.
        """
        self._begun = {each: self._begun.get(each, now) for each in self._server.connections}
        for handler, begun in self._begun.items():
            if now - begun > idle_s:
                handler.force_close()

    def close_idle(self) -> None:
        """Close connections on which nothing is answered."""
        self._server.pre_shutdown()

    async def close(self, timeout_s: float) -> None:
        """Close all; what is being answered has `timeout_s` for it."""
        self._server.pre_shutdown()
        await self._server.shutdown(timeout_s)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        started = perf_counter()
        self._begun[request.protocol] = self._loop.time()
        response: web.StreamResponse
        try:
            self._host_check.refuse_pages(request.headers)
            if self._pass_through is not None and self._is_sgps(request.path):
                return await self._hand_on(request, self._pass_through)
            response = await self._route(request)
        except Refusal as refusal:
            response = _response(self._ingest.refused(self._own, refusal))
        except Exception as bug:
            self._bug(bug)
            raise
        self._metrics.answered(response.status, perf_counter() - started)
        return response

    async def _route(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.path, request.method
        if path == "/v1/spans":
            return await self._spans(request, self._own) if method == "POST" else _use("POST")
        if path == "/v5/spans/batch":
            taken = method in {"PUT", "POST"}
            return await self._spans(request, self._sgp) if taken else _use("PUT, POST")
        if path == "/spans" and method == "POST":
            return await self._spans(request, self._agentex)
        if path.startswith(PREFIX) and method == "PATCH":
            return await self._spans(request, self._agentex)
        if path == "/readyz":
            if method not in {"GET", "HEAD"}:
                return _use("GET")
            if self._ingest.stopping:
                raise stopping()
            return web.Response(text="ready\n")
        text = f"no such path; agents post to /v1/spans of this port, not {method} here"
        if path.startswith(PREFIXES):
            text = _SPANS_ONLY
        raise Refusal(HTTPStatus.NOT_FOUND, text, "not_ours")

    def _is_sgps(self, path: str) -> bool:
        return path.startswith(PREFIXES) and path != "/v5/spans/batch"

    async def _hand_on(
        self, request: web.BaseRequest, pass_through: PassThrough
    ) -> web.StreamResponse:
        # A model may answer for minutes: such a connection is not idle.
        self._begun[request.protocol] = inf
        try:
            if self._ingest.stopping:
                raise stopping()
            return await pass_through.answer(request)
        except Refusal as refusal:
            return _response(Answer(refusal.status, self._sgp.refused(refusal)))
        finally:
            self._begun[request.protocol] = self._loop.time()

    async def _spans(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        headers = request.headers
        said = Request(request.method, request.rel_url.raw_path, headers, media_type(headers))
        try:
            route.check(said)
            if self._ingest.stopping:
                raise stopping()
            # Not kept here: the budget does not know of it any more.
            answer = self._ingest.answer(route, said, await self._bodies.read(request))
        except Refusal as refusal:
            return _response(self._ingest.refused(route, refusal))
        except MalformedBody as error:
            return _response(self._ingest.malformed(route, said, error))
        return _response(await answer)


def _response(answer: Answer) -> web.Response:
    response = web.Response(
        status=answer.status,
        body=answer.body,
        headers={"Content-Type": answer.content_type, **retry_after(answer.status)},
    )
    if answer.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()
    return response


def _use(methods: str) -> web.Response:
    return web.Response(
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        body=b'{"error":"use %b"}' % methods.encode(),
        content_type="application/json",
        headers={"Allow": methods},
    )
