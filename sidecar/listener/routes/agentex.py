"""`POST /spans` and `PATCH /spans/{id}`: what the Agentex SDK sends, for the Agentex lane only.

Responses have the Agentex server's format (docs/upstreams.md A1, A2). A PATCH must have the
fields that the SDK always sends: it is the END of a span, and is joined with the POST that was its
START.
"""

from http import HTTPStatus
from urllib.parse import unquote
from uuid import uuid4

import msgspec

from sidecar.http.messages import Request, Response
from sidecar.listener.refusals import Refusal, require_json
from sidecar.listener.routes import JSON, detail, forwardable
from sidecar.spans.decode import Decoded, MalformedBody, Rejection, validated_span
from sidecar.spans.span import Span, WireSpan, to_json
from sidecar.spans.validation import FieldError

PREFIX = "/spans/"
_DISABLED = "Agentex is not enabled in this sidecar: set agentex.base_url"
_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class _Body(msgspec.Struct, gc=False):
    trace_id: str
    name: str
    start_time: str
    id: str | None = None
    end_time: str | None = None
    parent_id: str | None = None
    task_id: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")
    output: msgspec.Raw = msgspec.Raw(b"null")
    data: msgspec.Raw = msgspec.Raw(b"null")


_BODY = msgspec.json.Decoder(_Body)


class AgentexRoute:
    """The Agentex SDK's routes; `bit` is the Agentex lane's bit, 0 if Agentex is not enabled."""

    def __init__(self, bit: int) -> None:
        self._bit = bit

    def check(self, request: Request) -> None:
        """Refuse any media type but JSON, and every request if Agentex is not enabled."""
        if not self._bit:
            raise Refusal(HTTPStatus.NOT_FOUND, _DISABLED, "unsupported")
        require_json(request)

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:
        """The single span in the body."""
        text = forwardable(body)
        try:
            return Decoded([self._span(request, text, now)], [])
        except FieldError as error:
            where = error.field, error.identity
            return Decoded([], [Rejection(0, None, error.problem, "invalid", *where)])
        except msgspec.ValidationError as error:
            raise MalformedBody(str(error)) from None
        except _ERRORS:
            msg = "the body is not JSON, or nested too deeply"
            raise MalformedBody(msg) from None

    def _span(self, request: Request, body: bytes, now: float) -> Span:
        sent = _BODY.decode(body)
        id_ = sent.id
        if request.method == "PATCH":
            id_ = _id_in(request)
            if sent.end_time is None:
                # The SDK sends a PATCH only for an END. Any other PATCH would have to reach the
                # server in order, which no queue can guarantee.
                raise FieldError("end_time", "is required in a PATCH: only ENDs are accepted")
        wire = WireSpan(
            str(uuid4()) if id_ is None else id_,
            sent.trace_id,
            sent.name,
            sent.start_time,
            sent.end_time,
            sent.parent_id,
            sent.task_id,
            sent.input,
            sent.output,
            sent.data,
        )
        span = validated_span(wire, now, self._bit)
        # The server merges the `data` of a PATCH into the span's own (docs/upstreams.md A2).
        span.merges_data = request.method == "PATCH"
        return span

    def respond(self, _: Request, decoded: Decoded) -> Response:
        """The span, or the error for which it was rejected."""
        if decoded.spans:
            return Response(HTTPStatus.OK, to_json(decoded.spans[0]), JSON)
        rejection = decoded.rejected[0]
        where = f"body.{rejection.field}: " if rejection.field else ""
        error = {"status_code": 10422, "message": where + rejection.error, "data": None}
        return Response(HTTPStatus.UNPROCESSABLE_ENTITY, msgspec.json.encode(error), JSON)

    def refusal_body(self, refusal: Refusal) -> bytes:
        return detail(refusal)


def _id_in(request: Request) -> str:
    """The id in the path. Unlike the server, we can tell an escaped slash from a plain one."""
    return unquote(request.path.removeprefix(PREFIX))
