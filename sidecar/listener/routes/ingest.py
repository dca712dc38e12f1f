"""`POST /v1/spans`: START and END events; one, an array, or one per line (docs/api.md)."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from msgspec import UNSET, UnsetType

from sidecar.http.messages import Request, Response
from sidecar.listener.refusals import media_type, no_upstream, unsupported_type
from sidecar.listener.routes import JSON, NOBODY
from sidecar.spans.decode import Decoded, Started, decode

_NDJSON = {"application/json": False, "application/x-ndjson": True}
_PLAIN = b"application/json"  # what almost every agent sends
_ACCEPTED = HTTPStatus.ACCEPTED
_ONE_ACCEPTED = Response(_ACCEPTED, b'{"accepted":1,"rejected":[]}', JSON)
_AN_EVENT = (
    'an event is {"event_type": "start" or "end", "span": '
    '{"id": ..., "trace_id": ..., "name": ..., "start_time": ...}}'
)
_NO_EVENT = f"the body has no event; {_AN_EVENT}"
_NO_VALID_EVENT = f'no event was accepted: "rejected" says why; {_AN_EVENT}'


class Rejected(msgspec.Struct, gc=False):
    """An event that was rejected: its place in the request, from 0, and the rule that it breaks."""

    index: int
    id: str | None
    error: str


class Accepted(msgspec.Struct, gc=False):
    """The body of a 202, or of a 400, which has an `error` that says what to send."""

    accepted: int
    rejected: list[Rejected]
    not_taken_for: Mapping[str, int] | UnsetType = UNSET
    error: str | UnsetType = UNSET


class IngestRoute:
    """The sidecar's own route: its spans go to every lane.

    `started` is as for `decode`; `missing`: what it needs to have a lane.
    """

    error_key = "error"
    has_accounts = True

    def __init__(self, started: Started, missing: str = "") -> None:
        self._started = started
        self._missing = missing

    def check(self, request: Request) -> None:
        """Refuse any media type but JSON and NDJSON, and every request without a lane."""
        if self._missing:
            raise no_upstream(self._missing)
        if request.headers.get(b"content-type") != _PLAIN and media_type(request) not in _NDJSON:
            raise unsupported_type(request, "application/json or application/x-ndjson")

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
        rejected = [Rejected(each.position, each.id, each.error) for each in decoded.rejected]
        body = Accepted(accepted, rejected, not_taken_for or UNSET)
        status = _ACCEPTED
        if not accepted:
            status = HTTPStatus.BAD_REQUEST
            body.error = _NO_VALID_EVENT if rejected else _NO_EVENT
        return Response(status, msgspec.json.encode(body), JSON)
