"""`POST /v1/spans`: START and END events; one, an array, or one per line (docs/api.md)."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from sidecar.http.messages import Request, Response
from sidecar.listener.refusals import Refusal, media_type
from sidecar.listener.routes import JSON, NOBODY
from sidecar.spans.decode import Decoded, Started, decode

_NDJSON = {"application/json": False, "application/x-ndjson": True}
_PLAIN = b"application/json"  # what almost every agent sends
_ACCEPTED = HTTPStatus.ACCEPTED
_ONE_ACCEPTED = Response(_ACCEPTED, b'{"accepted":1,"rejected":[]}', JSON)


class IngestRoute:
    """The sidecar's own route: its spans go to every lane. `started` is as for `decode`."""

    error_key = "error"
    has_accounts = True

    def __init__(self, started: Started) -> None:
        self._started = started

    def check(self, request: Request) -> None:
        """Refuse any media type but JSON and NDJSON."""
        if request.headers.get(b"content-type") != _PLAIN and media_type(request) not in _NDJSON:
            error = "Content-Type must be application/json or application/x-ndjson"
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")

    def decode(self, request: Request, body: bytes, now: float, account: int = 0) -> Decoded:
        """One span for each valid event."""
        plain = request.headers.get(b"content-type") == _PLAIN
        ndjson = not plain and _NDJSON[media_type(request)]
        return decode(body, now, ndjson=ndjson, started=self._started, account=account)

    def respond(
        self, _: Request, decoded: Decoded, not_taken_for: Mapping[str, int] = NOBODY
    ) -> Response:
        """The number of accepted events, each rejected one with its error, and who is full."""
        accepted = len(decoded.spans)
        if accepted and not decoded.rejected and not not_taken_for:
            if accepted == 1:
                return _ONE_ACCEPTED
            return Response(_ACCEPTED, b'{"accepted":%d,"rejected":[]}' % accepted, JSON)
        rejected = [{"index": r.position, "id": r.id, "error": r.error} for r in decoded.rejected]
        body: dict[str, object] = {"accepted": accepted, "rejected": rejected}
        if not_taken_for:
            body["not_taken_for"] = not_taken_for
        status = _ACCEPTED if accepted else HTTPStatus.BAD_REQUEST
        return Response(status, msgspec.json.encode(body), JSON)
