"""`POST /v1/spans`: START and END events, one, an array, or a line each (docs/api.md)."""

from http import HTTPStatus

import msgspec

from sidecar.listener.body import Refusal
from sidecar.listener.routes import Answer, Request
from sidecar.spans.decode import Decoded, Started, decode

_NDJSON = {"application/json": False, "application/x-ndjson": True}
_ACCEPTED = HTTPStatus.ACCEPTED
_ONE_TAKEN = Answer(_ACCEPTED, b'{"accepted":1,"rejected":[]}')


class IngestRoute:
    """Our own route: every lane gets its spans. `started` as for `events.decode`."""

    def __init__(self, started: Started) -> None:
        self._started = started

    def check(self, request: Request) -> None:
        """Refuse what is neither JSON nor NDJSON."""
        if request.media_type not in _NDJSON:
            error = "Content-Type must be application/json or application/x-ndjson"
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:
        """The spans of the events."""
        ndjson = _NDJSON[request.media_type]
        return decode(body, now, ndjson=ndjson, started=self._started)

    def answer(self, _: Request, decoded: Decoded) -> Answer:
        """How many were taken, and which were not."""
        taken = len(decoded.spans)
        if taken and not decoded.rejected:
            if taken == 1:
                return _ONE_TAKEN
            return Answer(_ACCEPTED, b'{"accepted":%d,"rejected":[]}' % taken)
        rejected = [{"index": r.position, "id": r.id, "error": r.error} for r in decoded.rejected]
        return Answer(
            _ACCEPTED if taken else HTTPStatus.BAD_REQUEST,
            msgspec.json.encode({"accepted": taken, "rejected": rejected}),
        )

    def refused(self, refusal: Refusal) -> bytes:
        """An `error` text."""
        return msgspec.json.encode({"error": str(refusal)})
