"""HTTP in: the listener on loopback, contracts/ingest.md to the letter.

In: requests of agents in this pod. Out: spans handed to the reception, all of a request or none,
and an answer that says what was taken, in the words of the route it came by. It serves programs,
not web pages (design.md D21). Plain requests for spans are read in connection.py; here is the rest,
which aiohttp reads.
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

from sidecar.bodies import BodyReader, Refusal, media_type, stopping
from sidecar.connection import AgentConnection, Desk
from sidecar.credentials import Credentials
from sidecar.events import MalformedBody
from sidecar.intake import Intake
from sidecar.known_heads import KnownHeads
from sidecar.metrics import IntakeMetrics
from sidecar.pass_through import PREFIXES, PassThrough
from sidecar.reception import Reception
from sidecar.routes import Answer, Request, Route, retry_after
from sidecar.routes.agentex import PREFIX, AgentexRoute
from sidecar.routes.ingest import IngestRoute
from sidecar.routes.sgp import SgpRoute

# Longer than any body may take, and than aiohttp keeps a connection between two requests.
IDLE_S = 300.0
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]+))(?::\d*)?")
_MOST_HOSTS = 256
# aiohttp logs what it could not parse, and that may be span content (design.md D19).
_quiet = logging.getLogger("sidecar.listener.http")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False
_SPANS_ONLY = (
    "the sidecar takes spans only; set listener.pass_through = true to hand this on to SGP"
)


class Server(web.Server):
    """Makes a connection for each agent; at the end it closes what aiohttp does not know of."""

    desk: Desk

    def __call__(self) -> AgentConnection:  # type: ignore[override]
        """The protocol of a new connection."""
        return AgentConnection(self.desk)

    def aiohttp(self) -> web.RequestHandler:
        """The protocol that takes over."""
        return super().__call__()

    def pre_shutdown(self) -> None:
        """Close what nobody waits for."""
        super().pre_shutdown()
        for connection in list(self.desk.connections):
            if connection.answering is None:
                connection.close()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 (aiohttp's)
        """Close the rest, after at most `timeout` seconds."""
        answering = [c.answering for c in self.desk.connections if c.answering is not None]
        if answering:
            _, late = await asyncio.wait(answering, timeout=timeout)
            for task in late:
                task.cancel()
        for connection in list(self.desk.connections):
            connection.close()
        # Some may have gone over meanwhile.
        super().pre_shutdown()
        await super().shutdown(timeout)


class Listener:
    """Handles requests on the agents' side."""

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
        self._bodies = bodies
        self._metrics = metrics
        self._reception = Reception(intake, metrics, credentials)
        self._own = IngestRoute()
        self._sgp = SgpRoute(sgp_bit)
        self._agentex = AgentexRoute(agentex_bit)
        self._routes: dict[str, Route] = {
            "/v1/spans": self._own,
            "/v5/spans/batch": self._sgp,
            "/spans": self._agentex,
        }
        self._pass_through = pass_through
        self._hosts = frozenset(host.lower() for host in hosts)
        self._known: dict[str, bool] = {}
        # Holds the exception of a bug in here: the app waits for it and ends the process (D13).
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.idle_s = IDLE_S
        self._server: Server | None = None
        # When the last request on each connection of aiohttp began, in loop time.
        self._begun: dict[web.RequestHandler, float] = {}

    @property
    def stopping(self) -> bool:
        """Whether new events are answered 503."""
        return self._reception.stopping

    def stop(self) -> None:
        """Answer 503 to new events from now on."""
        self._reception.stopping = True

    def server(self) -> web.Server:
        """The protocol factory: no router, no middleware, bodies as they come."""
        self._server = Server(
            self.handle,
            access_log=None,
            auto_decompress=False,
            logger=_quiet,
            # An agent that hangs up must not leave its request running at SGP.
            handler_cancellation=self._pass_through is not None,
        )
        self._server.desk = Desk(
            KnownHeads(self._route_of),
            self._reception,
            self._metrics,
            self._bodies.limits,
            aiohttp=self._server.aiohttp,
            bug=self._bug,
        )
        return self._server

    def sweep(self, now: float) -> None:
        """Close connections on which no request began for `idle_s`; called now and then.

        aiohttp does so only after a first request: half a header would stay for ever.
        """
        if self._server is None:
            return
        self._begun = {each: self._begun.get(each, now) for each in self._server.connections}
        for handler, begun in self._begun.items():
            if now - begun > self.idle_s:
                handler.force_close()
        for connection in list(self._server.desk.connections):
            if connection.answering is None and now - connection.begun > self.idle_s:
                connection.close()

    def _bug(self, bug: Exception) -> None:
        if not self.failed.done():
            self.failed.set_exception(bug)

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
            response = _response(self._reception.refused(self._own, refusal))
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
            return _response(Answer(refusal.status, self._sgp.refused(refusal)))
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

    def _route_of(self, request: Request) -> Route | None:
        """The route of a plain request, None where it would be refused by its head alone."""
        route = self._routes[request.path]
        try:
            self._refuse_pages(request.headers)
            route.check(request)
        except Refusal:
            return None
        return route

    async def _spans(self, request: web.BaseRequest, route: Route) -> web.StreamResponse:
        headers = request.headers
        said = Request(request.method, request.rel_url.raw_path, headers, media_type(headers))
        try:
            route.check(said)
            if self.stopping:
                raise stopping()
            # Not kept here: the budget does not know of it any more.
            answer = self._reception.answer(route, said, await self._bodies.read(request))
        except Refusal as refusal:
            return _response(self._reception.refused(route, refusal))
        except MalformedBody as error:
            return _response(self._reception.malformed(route, said, error))
        return _response(await answer)


def _response(answer: Answer) -> web.Response:
    response = web.Response(
        status=answer.status,
        body=answer.body,
        content_type="application/json",
        headers=retry_after(answer.status),
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
