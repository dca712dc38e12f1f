"""Receives the body of a request with spans: decompressed, and bounded in size and time.

A body that is refused is still read to its end, but not kept: most clients read the response only
after they have sent everything.
"""

import zlib
from collections.abc import Awaitable
from http import HTTPStatus
from time import perf_counter

from sidecar.http.encodings import Inflater
from sidecar.http.messages import Answer, Request, Response
from sidecar.listener.ingest import Ingest
from sidecar.listener.refusals import Refusal, ended_early, no_room, too_large
from sidecar.listener.routes import Route
from sidecar.spans.decode import MalformedBody


class SpanBody:
    """The receiver of one request (http/messages.py).

    Raises `Refusal` for a request that can be refused by its head.
    """

    __slots__ = (
        "_error",
        "_inflate",
        "_ingest",
        "_parts",
        "_request",
        "_route",
        "_size",
        "_started",
    )
    wants_body = True
    is_stream = False

    def __init__(self, ingest: Ingest, route: Route, request: Request) -> None:
        headers, max_body = request.headers, ingest.limits.max_body
        self._inflate = _inflater(request) if b"content-encoding" in headers else None
        if int(headers.get(b"content-length", 0)) > max_body:
            raise too_large(max_body)
        self._started = perf_counter()
        self._ingest, self._route, self._request = ingest, route, request
        self._parts: list[bytes] = []
        self._size = 0
        self._error: Refusal | MalformedBody | None = None

    def data(self, chunk: bytes) -> None:
        if self._error is not None:
            return
        budget, max_body, _, _ = self._ingest.limits
        if self._inflate is not None:
            try:
                chunk = self._inflate(chunk, min(max_body - self._size, budget.limit) + 1)
            except zlib.error:
                self._give_up(_incomplete())
                return
        self._parts.append(chunk)
        self._size += len(chunk)
        budget.reading += len(chunk)
        if self._size > max_body:
            self._give_up(too_large(max_body))
        elif not budget.has_room_for_bodies():
            self._give_up(no_room())

    def _give_up(self, error: Refusal | MalformedBody) -> None:
        self._error = error
        self._release()

    def _release(self) -> None:
        """A whole body no longer counts as arriving; its spans count once they are accepted."""
        self._ingest.limits.budget.reading -= self._size
        self._parts, self._size = [], 0

    def end(self) -> Answer:
        if self._inflate is not None and not self._inflate.complete and self._error is None:
            self._error = _incomplete()
        # `_release` and `_counted`, in place: each function on this path costs (DECISIONS.md 32).
        parts, ingest = self._parts, self._ingest
        ingest.limits.budget.reading -= self._size
        self._parts, self._size = [], 0
        if self._error is not None:
            response = ingest.refuse(self._route, self._request, self._error)
        else:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            if ingest.must_wait():
                return self._later(ingest.respond(self._route, self._request, body))
            response = ingest.respond_now(self._route, self._request, body)
        ingest.metrics.responded(response.status, perf_counter() - self._started)
        return response

    def lost(self, *, late: bool) -> Response:
        self._release()
        error = self._error or ended_early()
        if late and self._error is None:
            seconds = self._ingest.limits.timeout_s
            text = (
                f"the body did not arrive within {seconds:g} s (listener.body_timeout_s): "
                "send the request again"
            )
            error = Refusal(HTTPStatus.REQUEST_TIMEOUT, text, "malformed")
        return self._counted(self._ingest.refuse(self._route, self._request, error))

    async def _later(self, response: Awaitable[Response]) -> Response:
        return self._counted(await response)

    def _counted(self, response: Response) -> Response:
        self._ingest.metrics.responded(response.status, perf_counter() - self._started)
        return response


def _inflater(request: Request) -> Inflater | None:
    encoding = request.header(b"content-encoding").lower()
    if encoding in {"gzip", "deflate"}:
        return Inflater(encoding)
    if encoding in {"", "identity"}:
        return None
    error = (
        "Content-Encoding must be gzip, deflate or identity, and only one of them: "
        "send the body as it is, without the header"
    )
    raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")


def _incomplete() -> MalformedBody:
    return MalformedBody("the body is not one complete stream of its Content-Encoding")
