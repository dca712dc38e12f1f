"""HTTP in: the listener on loopback, contracts/ingest.md to the letter.

In: requests of agents in this pod. Out: spans handed to the intake, all of a request or none, and
an answer that says what was taken, in the words of the route it came by. It serves programs, not
web pages (design.md D21).
"""

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from math import inf
from time import perf_counter

from aiohttp import web

from sidecar.bodies import BodyReader, Refusal, no_room, stopping
from sidecar.credentials import Credentials
from sidecar.events import Decoded, MalformedBody, Rejection
from sidecar.intake import Intake, NeverFits, NoRoom
from sidecar.metrics import IntakeMetrics
from sidecar.pass_through import PREFIXES, PassThrough
from sidecar.ready_response import answer_to
from sidecar.routes import Answer, Route
from sidecar.routes.agentex import PREFIX, AgentexRoute
from sidecar.routes.ingest import IngestRoute
from sidecar.routes.sgp import SgpRoute

RETRY_AFTER_S = "1"
# Longer than any body may take, and than aiohttp keeps a connection between two requests.
IDLE_S = 300.0
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]+))(?::\d*)?")
_MOST_HOSTS = 256
# aiohttp logs what it could not parse, and that may be span content (design.md D19).
_quiet = logging.getLogger("sidecar.listener.http")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False
_LATER = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_SPANS_ONLY = (
    "the sidecar takes spans only; set listener.pass_through = true to hand this on to SGP"
)


class Listener:
    """Handles requests on the agents' side. `stopping` makes it answer 503 to new events."""

    def __init__(
        self,
        intake: Intake,
        bodies: BodyReader,
        metrics: IntakeMetrics,
        credentials: Sequence[Credentials],
        *,
        hosts: Sequence[str],
        agentex_bit: int,
        sgp_bit: int,
        pass_through: PassThrough | None,
    ) -> None:
        self._intake = intake
        self._bodies = bodies
        self._metrics = metrics
        self._credentials = credentials
        self._own = IngestRoute()
        self._sgp = SgpRoute(sgp_bit)
        self._agentex = AgentexRoute(agentex_bit)
        self._pass_through = pass_through
        self._hosts = frozenset(host.lower() for host in hosts)
        self._known: dict[str, bool] = {}
        # Holds the exception of a bug in here: the app waits for it and ends the process (D13).
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.stopping = False
        self.idle_s = IDLE_S
        self._server: web.Server | None = None
        # When the last request on each connection began, in loop time.
        self._begun: dict[web.RequestHandler, float] = {}

    def server(self) -> web.Server:
        """The protocol factory: no router, no middleware, bodies as they come."""
        self._server = web.Server(
            self.handle,
            access_log=None,
            auto_decompress=False,
            logger=_quiet,
            # An agent that hangs up must not leave its request running at SGP.
            handler_cancellation=self._pass_through is not None,
        )
        return self._server

    def sweep(self, now: float) -> None:
        """Close connections on which no request began for `idle_s`; called now and then.

        aiohttp does so only after a first request: half a header would stay for ever.
        """
        connections = self._server.connections if self._server is not None else []
        self._begun = {each: self._begun.get(each, now) for each in connections}
        for connection, begun in self._begun.items():
            if now - begun > self.idle_s:
                connection.force_close()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        started = perf_counter()
        self._begun[request.protocol] = self._loop.time()
        response: web.StreamResponse
        try:
            self._refuse_pages(request.headers)
            if self._pass_through is not None and self._is_sgps(request.path):
                return await self._hand_on(request, self._pass_through)
            response = await self._route(request)
        except Refusal as refusal:
            response = self._refused(refusal, self._own.refused(refusal))
        except Exception as bug:
            if not self.failed.done():
                self.failed.set_exception(bug)
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
            if self.stopping:
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
            if self.stopping:
                raise stopping()
            return await pass_through.answer(request)
        except Refusal as refusal:
            return _error(refusal, self._sgp.refused(refusal))
        finally:
            self._begun[request.protocol] = self._loop.time()

    def _refuse_pages(self, headers: Mapping[str, str]) -> None:
        host = headers.get("Host")
        if "Origin" in headers or (host is not None and not self._knows(host)):
            error = "this port serves programs in the pod, not web pages"
            raise Refusal(HTTPStatus.FORBIDDEN, error, "not_ours")

    def _knows(self, host: str) -> bool:
        known = self._known.get(host)
        if known is None:
            known = self._is_ours(host)
            if len(self._known) < _MOST_HOSTS:
                self._known[host] = known
        return known

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().removesuffix(".")
        if name == "localhost" or name in self._hosts:
            return True
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return False

    async def _spans(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        try:
            answer = await self._taken(request, route)
        except Refusal as refusal:
            return self._refused(refusal, route.refused(refusal))
        return answer_to(request, answer.status, answer.body)

    async def _taken(self, request: web.BaseRequest, route: Route) -> Answer:
        route.check(request)
        if self.stopping:
            raise stopping()
        try:
            body = await self._bodies.read(request)
            size = len(body)
            decoded = route.decode(request, body, self._loop.time())
            del body
        except MalformedBody as error:
            decoded = Decoded([], [Rejection(0, None, str(error), "malformed")])
            size = 0
        for credentials in self._credentials:
            credentials.offer(request.headers)
        if decoded.spans:
            await self._take(decoded, size)
            self._metrics.accepted(decoded.spans, self._loop.time())
            await self._intake.give_way()
        for rejection in decoded.rejected:
            self._metrics.rejected[rejection.reason] += 1
        return route.answer(request, decoded)

    async def _take(self, decoded: Decoded, size: int) -> None:
        if self.stopping:
            raise stopping()
        try:
            await self._intake.take_durably(decoded.spans)
        except NeverFits:
            limit = self._intake.limit
            error = f"{size} bytes never fit: see queue.max_bytes ({limit}) and spool.max_bytes"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error, "too_large") from None
        except NoRoom:
            raise no_room() from None

    def _refused(self, refusal: Refusal, body: bytes) -> web.Response:
        self._metrics.refused(refusal.reason, self._loop.time())
        return _error(refusal, body)


def _error(refusal: Refusal, body: bytes) -> web.Response:
    response = web.Response(
        status=refusal.status,
        body=body,
        content_type="application/json",
        headers={"Retry-After": RETRY_AFTER_S} if refusal.status in _LATER else None,
    )
    if refusal.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()
    return response


def _use(methods: str) -> web.Response:
    return web.Response(
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        body=b'{"error":"use %b"}' % methods.encode(),
        content_type="application/json",
        headers={"Allow": methods},
    )
