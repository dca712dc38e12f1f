"""Turns a request body into accepted spans and a response, however the request was read.

In: a route, a parsed request head and the whole body. Out: a response in the route's format
(docs/api.md). The valid events of a request are accepted together or not at all, and refusals are
counted.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from sidecar.http.messages import Request, Response
from sidecar.lanes import Lane
from sidecar.listener.refusals import Limits, Refusal, no_room, stopping
from sidecar.listener.routes import Route, refused
from sidecar.queue.admission import Admission, QueueFull, RequestTooLarge
from sidecar.spans.decode import Decoded, MalformedBody, Rejection
from sidecar.telemetry.metrics import IntakeMetrics


class Ingest:
    """Decodes bodies and admits their spans; while `stopping` is set, refuses requests with 503."""

    def __init__(
        self,
        admission: Admission,
        metrics: IntakeMetrics,
        lanes: Sequence[Lane],
        limits: Limits,
    ) -> None:
        self._admission = admission
        self.metrics = metrics
        self.limits = limits
        self._lanes = lanes
        self._relayed = frozenset[bytes]().union(*(lane.credentials.relayed for lane in lanes))
        self._loop = asyncio.get_running_loop()
        self.stopping = False
        # Whether a response has to wait for the disk or for the drains; if so, use `respond`.
        self.must_wait = admission.must_wait

    def respond_now(self, route: Route, request: Request, body: bytes) -> Response:
        """Accept the spans of `body`; call only when `must_wait` returns False."""
        try:
            decoded = self._decoded(route, request, body)
            if decoded.spans:
                self._admission.take(decoded.spans)
        except (Refusal, RequestTooLarge, QueueFull) as error:
            return self.refuse(route, request, error, len(body))
        return self._accepted(route, request, decoded)

    async def respond(self, route: Route, request: Request, body: bytes) -> Response:
        """Like `respond_now`, once the events are on disk (with a spool) and the drains keep up."""
        size = len(body)
        try:
            decoded = self._decoded(route, request, body)
            del body
            if decoded.spans:
                await self._admission.take_durably(decoded.spans)
                await self._admission.yield_to_drain()
        except (Refusal, RequestTooLarge, QueueFull) as error:
            return self.refuse(route, request, error, size)
        return self._accepted(route, request, decoded)

    def refuse(
        self,
        route: Route,
        request: Request,
        error: Refusal | MalformedBody | RequestTooLarge | QueueFull,
        size: int = 0,
    ) -> Response:
        """Count a request whose body, of `size` bytes, was not accepted; returns its response."""
        if isinstance(error, MalformedBody):
            return self._accepted(route, request, _malformed(error))
        if isinstance(error, RequestTooLarge):
            text = (
                f"the body ({size} bytes) is too large even for an empty queue: "
                f"see queue.max_bytes ({self._admission.limit}) and spool.max_bytes"
            )
            error = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, "too_large")
        elif isinstance(error, QueueFull):
            error = no_room()
        self.metrics.refused(error.reason, self._loop.time())
        return refused(error, route.error_key)

    def _decoded(self, route: Route, request: Request, body: bytes) -> Decoded:
        if self.stopping:
            raise stopping()
        try:
            decoded = route.decode(request, body, self._loop.time())
        except MalformedBody as error:
            decoded = _malformed(error)
        if not self._relayed.isdisjoint(request.headers):
            for lane in self._lanes:
                lane.offer(request.headers)
        return decoded

    def _accepted(self, route: Route, request: Request, decoded: Decoded) -> Response:
        if decoded.spans:
            self.metrics.accepted(decoded.spans, self._loop.time())
        for rejection in decoded.rejected:
            self.metrics.rejected[rejection.reason] += 1
        return route.respond(request, decoded)


def _malformed(error: MalformedBody) -> Decoded:
    return Decoded([], [Rejection(0, None, str(error), "malformed")])
