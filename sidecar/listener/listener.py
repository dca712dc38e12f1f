"""The agents' port as specified in docs/api.md: which request goes where.

In: requests from agents in this pod. Out: the valid spans of each request, accepted together or
not at all, and a response in the format of the request's route.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from sidecar.credentials import KEY_HEADER, Accounts
from sidecar.drain.lane import Lane
from sidecar.http.messages import Discard, Flow, Receiver, Request, Response
from sidecar.http.server import HttpServer
from sidecar.listener.flush import Flush
from sidecar.listener.host_check import HostCheck
from sidecar.listener.ingest import Ingest
from sidecar.listener.refusals import Limits, Refusal, stopping
from sidecar.listener.routes import JSON, RETRY_AFTER, Route
from sidecar.listener.routes.agentex import PREFIX, AgentexRoute
from sidecar.listener.routes.flush import FlushRequest
from sidecar.listener.routes.ingest import IngestRoute
from sidecar.listener.routes.sgp import SgpRoute
from sidecar.listener.span_body import SpanBody
from sidecar.queue.admission import Admission
from sidecar.spans.span import SGP_ROUTE
from sidecar.telemetry.metrics import IntakeMetrics

if TYPE_CHECKING:
    from sidecar.listener.pass_through import PassThrough

# Well above the default `listener.body_timeout_s`.
IDLE_S = 300.0
# The versions of SGP's API that its clients use; the sidecar's own is /v1.
SGP_PREFIXES = ("/v4/", "/v5/")
_SPANS_ONLY = (
    "the sidecar only accepts spans; with listener.pass_through = true and a usable SGP base URL, "
    "it forwards this to SGP"
)
_ALLOWED = {
    "/v1/spans": "POST",
    "/v1/flush": "POST",
    "/v5/spans/batch": "PUT, POST",
    "/readyz": "GET",
}
_KEY = KEY_HEADER.encode()
_READY = Response(HTTPStatus.OK, b"ready\n")


class Listener:
    """Serves the agents' port with `server`. Create it inside a running loop.

    `flush` makes what carries out flushes, given what to call with the exception of a bug in it.
    `hosts` are the names and addresses that a `Host` may have, besides those of loopback;
    `missing`: for each upstream that is off what it needs, and under "" if all are.
    """

    def __init__(
        self,
        admission: Admission,
        limits: Limits,
        metrics: IntakeMetrics,
        lanes: Sequence[Lane],
        accounts: Accounts,
        flush: Callable[[Callable[[BaseException], None]], Flush],
        *,
        hosts: Sequence[str],
        pass_through: "PassThrough | None",
        missing: Mapping[str, str],
    ) -> None:
        self._metrics = metrics
        self._ingest = Ingest(admission, metrics, lanes, limits, accounts)
        self._host_check = HostCheck(hosts)
        self._own = IngestRoute(admission.open_spans.started, missing.get("", ""))
        # An upstream that is off does not keep others from the spans of its SDK.
        others = any(SGP_ROUTE & lane.bit for lane in lanes)
        sgp = SgpRoute("" if others else missing.get("sgp", ""))
        self._agentex = AgentexRoute(missing.get("agentex", ""))
        self._routes: dict[tuple[str, str], Route] = {
            ("POST", "/v1/spans"): self._own,
            ("PUT", "/v5/spans/batch"): sgp,
            ("POST", "/v5/spans/batch"): sgp,
            ("POST", "/spans"): self._agentex,
        }
        self._flush = flush(self._on_bug)
        self._pass_through = pass_through
        # Without SGP, its client's spans are passed through as its other requests are, if they can
        # be delivered: with a key of their own.
        self._not_queued = sgp if "sgp" in missing else None
        # Receives the exception of a bug in the listener: the app awaits it and stops (D13).
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.server = HttpServer(
            self._receive,
            max_connections=limits.connections,
            idle_s=IDLE_S,
            body_s=limits.timeout_s,
            refused=self._malformed,
            crowded=lambda: metrics.crowded("listener", self._loop.time()),
            failed=self._on_bug,
        )

    @property
    def stopping(self) -> bool:
        """Whether new events are refused with 503."""
        return self._ingest.stopping

    def stop(self) -> None:
        """Refuse new events with 503 from now on."""
        self._ingest.stopping = True

    async def close(self, timeout_s: float) -> None:
        """Close every connection; pending responses have `timeout_s` to finish."""
        self._flush.end()
        await self.server.close(timeout_s)

    def _receive(self, request: Request, flow: Flow) -> Receiver:
        """The service of the agents' port (http/messages.py)."""
        method, path, headers = request.method, request.path, request.headers
        responds_as: Route = self._own
        try:
            # Almost always decided by these two look-ups, without a call (DECISIONS.md 32).
            if b"origin" in headers or headers.get(b"host") not in self._host_check.allowed:
                self._host_check.refuse_browsers(headers)
            route = self._routes.get((method, path))
            if route is None and method == "PATCH" and path.startswith(PREFIX):
                route = self._agentex
            if route is not None:
                responds_as = route
                if route is self._not_queued and self._pass_through and _KEY in headers:
                    return self._passed(self._pass_through, request, flow)
                route.check(request)
                if self._ingest.stopping:
                    raise stopping()
                return SpanBody(self._ingest, route, request)
            if self._pass_through and _is_sgps(path):
                return self._passed(self._pass_through, request, flow)
            if path == "/v1/flush" and method == "POST":
                return self._flushed(request)
            return self._discard(self._without_spans(request))
        except Refusal as refusal:
            return self._discard(self._ingest.refuse(responds_as, request, refusal))

    def _passed(self, through: "PassThrough", request: Request, flow: Flow) -> Receiver:
        return through.receive(request, flow, is_stopping=self._ingest.stopping)

    def _flushed(self, request: Request) -> Receiver:
        if self._ingest.stopping:
            raise stopping()
        return FlushRequest(self._flush, request, self._metrics.flushes)

    def _without_spans(self, request: Request) -> Response:
        """The response of /readyz, or to a request that no route takes."""
        allowed = _ALLOWED.get(request.path)
        if allowed is None:
            text = f"no such path for {request.method}; agents POST their events to /v1/spans"
            error = _SPANS_ONLY if _is_sgps(request.path) else text
            raise Refusal(HTTPStatus.NOT_FOUND, error, "not_ours")
        if request.path == "/readyz" and request.method in {"GET", "HEAD"}:
            if self._ingest.stopping:
                raise stopping()
            return _READY
        use = b'{"error":"use %b"}' % allowed.encode()
        return Response(HTTPStatus.METHOD_NOT_ALLOWED, use, JSON, [("Allow", allowed)])

    def _discard(self, response: Response) -> Receiver:
        """Respond to a request whatever its body."""
        self._metrics.responded(response.status, 0.0)
        return Discard(response)

    def _malformed(self, status: int, error: str) -> Response:
        """Count a request that is not HTTP as we speak it; returns its response."""
        self._metrics.refused("malformed", status, self._loop.time())
        self._metrics.responded(status, 0.0)
        retry = RETRY_AFTER if status == HTTPStatus.TOO_MANY_REQUESTS else ()
        return Response(status, f"{error}\n".encode(), headers=retry)

    def _on_bug(self, bug: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(bug)


def _is_sgps(path: str) -> bool:
    """Whether SGP, not the sidecar, serves this path."""
    return path.startswith(SGP_PREFIXES) and path not in _ALLOWED
