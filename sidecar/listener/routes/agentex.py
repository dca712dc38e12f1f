"""`POST /spans` and `PATCH /spans/{id}`: what the Agentex SDK sends, for the Agentex lane only.

Responses have the Agentex server's format (docs/upstreams.md A1, A2). A PATCH must have the
fields that the SDK always sends: it is the END of a span, and is joined with the POST that was its
START.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal
from urllib.parse import unquote
from uuid import uuid4

import msgspec

from sidecar.http.messages import Request, Response
from sidecar.listener.routes import JSON, NOBODY, SdkRoute, decoded_body, rejection
from sidecar.spans.decode import Decoded, validated_span
from sidecar.spans.span import AGENTEX_ROUTE, SdkFields, Span, WireSpan, to_json
from sidecar.spans.validation import FieldError

PREFIX = "/spans/"
_AGENTEX = SdkFields(AGENTEX_ROUTE)


class _Body(WireSpan, gc=False, kw_only=True):
    id: str | None = None  # type: ignore[assignment]  # `_span` sets it


_BODY = msgspec.json.Decoder(_Body)


class Unprocessable(msgspec.Struct):
    """The body of a 422 in the format of the Agentex server."""

    message: str
    status_code: Literal[10422] = 10422
    data: None = None


class AgentexRoute(SdkRoute):
    """The Agentex SDK's routes."""

    has_accounts = False

    def decode(self, request: Request, body: bytes, now: float, account: int = 0) -> Decoded:
        """The single span in the body."""
        wire = decoded_body(_BODY, body)
        try:
            return Decoded([_span(request, wire, now, account)], [])
        except FieldError as error:
            return Decoded([], [rejection(0, wire.id, error)])

    def respond(self, _: Request, decoded: Decoded, __: Mapping[str, int] = NOBODY) -> Response:
        """The span, or the error for which it was rejected."""
        if decoded.spans:
            return Response(HTTPStatus.OK, to_json(decoded.spans[0]), JSON)
        (rejected,) = decoded.rejected
        where = f"body.{rejected.field}: " if rejected.field else ""
        body = msgspec.json.encode(Unprocessable(where + rejected.error))
        return Response(HTTPStatus.UNPROCESSABLE_ENTITY, body, JSON)


def _span(request: Request, wire: _Body, now: float, account: int) -> Span:
    if request.method != "PATCH":
        if wire.id is None:
            wire.id = str(uuid4())
        return validated_span(wire, now, _AGENTEX, account=account)
    # Unlike the server, we can tell an escaped slash in the id from a plain one.
    wire.id = unquote(request.path.removeprefix(PREFIX))
    if wire.end_time is None:
        # The SDK sends a PATCH only for an END. Any other PATCH would have to reach the server in
        # order, which no queue can guarantee.
        raise FieldError("end_time", "is required in a PATCH: only ENDs are accepted")
    return validated_span(wire, now, _AGENTEX, account=account)
