"""`POST /v1/spans`: START and END events; one, an array, or one per line (docs/api.md)."""

from http import HTTPStatus

import msgspec

from sidecar.http.messages import Request, Response
from sidecar.listener.refusals import Refusal, media_type
from sidecar.listener.routes import JSON
from sidecar.spans.decode import Decoded, Started, decode

_NDJSON = {"application/json": False, "application/x-ndjson": True}
_PLAIN = b"application/json"  # what almost every agent sends
_ACCEPTED = HTTPStatus.ACCEPTED
_ONE_ACCEPTED = Response(_ACCEPTED, b'{"accepted":1,"rejected":[]}', JSON)


class IngestRoute:
    """The sidecar's own route: its spans go to every lane. `started` is as for `decode`."""

    error_key = "error"

    def __init__(self, started: Started) -> None:
        self._started = started

    def check(self, request: Request) -> None:
        """Refuse any media type but JSON and NDJSON."""
        if request.headers.get(b"content-type") != _PLAIN and media_type(request) not in _NDJSON:
            error = "Content-Type must be application/json or application/x-ndjson"
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:
        """One span for each valid event."""
        plain = request.headers.get(b"content-type") == _PLAIN
        ndjson = not plain and _NDJSON[media_type(request)]
        return decode(body, now, ndjson=ndjson, started=self._started)

    def respond(self, _: Request, decoded: Decoded) -> Response:
        """The number of accepted events, and each rejected one with its error."""
        accepted = len(decoded.spans)
        if accepted and not decoded.rejected:
            if accepted == 1:
                return _ONE_ACCEPTED
            return Response(_ACCEPTED, b'{"accepted":%d,"rejected":[]}' % accepted, JSON)
        rejected = [{"index": r.position, "id": r.id, "error": r.error} for r in decoded.rejected]
        return Response(
            _ACCEPTED if accepted else HTTPStatus.BAD_REQUEST,
            msgspec.json.encode({"accepted": accepted, "rejected": rejected}),
            JSON,
        )
