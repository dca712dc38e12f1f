"""Takes the spans of a request and says what was taken, whichever way the request was read.

In: a route, a request's head and its whole body. Out: the answer, in the words of the route
(docs/api.md). All of a request is taken or none, and what is refused is counted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from sidecar.credentials import Credentials
from sidecar.listener.body import Refusal, no_room, stopping
from sidecar.listener.routes import Answer, Request, Route
from sidecar.queue.admission import Admission, NeverFits, NoRoom
from sidecar.spans.decode import Decoded, MalformedBody, Rejection
from sidecar.telemetry.metrics import IntakeMetrics

# docs/api.md, "Credentials that come with a request".
_BRINGS_CREDENTIALS = frozenset({"POST", "PUT", "PATCH"})


class Ingest:
    """The way from a body to an answer. `stopping` makes it refuse what is new with 503."""

    def __init__(
        self, admission: Admission, metrics: IntakeMetrics, credentials: Sequence[Credentials]
    ) -> None:
        self._admission = admission
        self._metrics = metrics
        self._credentials = credentials
        self._loop = asyncio.get_running_loop()
        self._offered: Mapping[str, str] | None = None
        self.stopping = False
        # Whether an answer has to wait, for the disk or for the drains: then `answer` gives it.
        self.waits = admission.waits

    def answer_now(self, route: Route, request: Request, body: bytes) -> Answer:
        """Take what `body` holds; only when nothing `waits`."""
        try:
            decoded = self._decoded(route, request, body)
            if decoded.spans:
                try:
                    self._admission.take(decoded.spans)
                except (NeverFits, NoRoom) as error:
                    raise self._does_not_fit(error, len(body)) from None
        except Refusal as refusal:
            return self.refused(route, refusal)
        return self._taken(route, request, decoded)

    async def answer(self, route: Route, request: Request, body: bytes) -> Answer:
        """As `answer_now`, once the spool has it on disk and the drains keep up."""
        try:
            decoded = self._decoded(route, request, body)
            size = len(body)
            del body
            if decoded.spans:
                try:
                    await self._admission.take_durably(decoded.spans)
                except (NeverFits, NoRoom) as error:
                    raise self._does_not_fit(error, size) from None
                await self._admission.yield_to_drain()
        except Refusal as refusal:
            return self.refused(route, refusal)
        return self._taken(route, request, decoded)

    def malformed(self, route: Route, request: Request, error: MalformedBody) -> Answer:
        """The answer to a body that is none."""
        rejection = Rejection(0, None, str(error), "malformed")
        return self._taken(route, request, Decoded([], [rejection]))

    def refused(self, route: Route, refusal: Refusal) -> Answer:
        """The answer to a request of which nothing was taken."""
        self._metrics.refused(refusal.reason, self._loop.time())
        return Answer(refusal.status, route.refused(refusal))

    def _decoded(self, route: Route, request: Request, body: bytes) -> Decoded:
        if self.stopping:
            raise stopping()
        try:
            decoded = route.decode(request, body, self._loop.time())
        except MalformedBody as error:
            decoded = Decoded([], [Rejection(0, None, str(error), "malformed")])
        # Known heads come again and again as the same object.
        if request.headers is not self._offered:
            self._offered = request.headers
            if request.method in _BRINGS_CREDENTIALS:
                for credentials in self._credentials:
                    credentials.offer(request.headers)
        return decoded

    def _does_not_fit(self, error: NeverFits | NoRoom, size: int) -> Refusal:
        if isinstance(error, NoRoom):
            return no_room()
        limit = self._admission.limit
        text = f"{size} bytes never fit: see queue.max_bytes ({limit}) and spool.max_bytes"
        return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text, "too_large")

    def _taken(self, route: Route, request: Request, decoded: Decoded) -> Answer:
        if decoded.spans:
            self._metrics.accepted(decoded.spans, self._loop.time())
        for rejection in decoded.rejected:
            self._metrics.rejected[rejection.reason] += 1
        return route.answer(request, decoded)
