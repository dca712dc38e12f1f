"""`POST /spans` and `PATCH /spans/{id}`: what the Agentex SDK sends, for the Agentex lane only.

Answers are the Agentex server's (docs/upstreams.md A1, A2). A PATCH is taken with what the SDK
always puts into one: it is the END of a span, and joined with the POST that was its START.
"""

from http import HTTPStatus
from urllib.parse import unquote
from uuid import uuid4

import msgspec

from sidecar.listener.body import Refusal, require_json
from sidecar.listener.routes import Answer, Request, detail, sound
from sidecar.spans.decode import Decoded, MalformedBody, Rejection, checked
from sidecar.spans.span import Span, WireSpan, to_json
from sidecar.spans.validation import FieldError

PREFIX = "/spans/"
_OFF = "Agentex is off in this sidecar: set agentex.base_url"
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
    """The Agentex SDK's routes; `bit` is the Agentex lane's, 0 where that is off."""

    def __init__(self, bit: int) -> None:
        self._bit = bit

    def check(self, request: Request) -> None:
        """Refuse other content types, and everything where Agentex is off."""
        if not self._bit:
            raise Refusal(HTTPStatus.NOT_FOUND, _OFF, "unsupported")
        require_json(request.media_type)

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:
        """The one span of the body."""
        text = sound(body)
        try:
            return Decoded([self._span(request, text, now)], [])
        except FieldError as error:
            where = error.field, error.identity
            return Decoded([], [Rejection(0, None, error.problem, "invalid", *where)])
        except msgspec.ValidationError as error:
            raise MalformedBody(str(error)) from None
        except _ERRORS:
            msg = "the body is not JSON, or nested too deep"
            raise MalformedBody(msg) from None

    def _span(self, request: Request, body: bytes, now: float) -> Span:
        sent = _BODY.decode(body)
        id_ = sent.id
        if request.method == "PATCH":
            id_ = _id_in(request)
            if sent.end_time is None:
                # Only an END is a PATCH at the SDK; any other one would have to reach the server
                # in an order that no queue can promise.
                raise FieldError("end_time", "is required in a PATCH that the sidecar takes")
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
        span = checked(wire, now, self._bit)
        # The server lays the `data` of a PATCH over what it has (docs/upstreams.md A2).
        span.merges = request.method == "PATCH"
        return span

    def answer(self, _: Request, decoded: Decoded) -> Answer:
        """The span; or what was wrong with it."""
        if decoded.spans:
            return Answer(HTTPStatus.OK, to_json(decoded.spans[0]))
        rejection = decoded.rejected[0]
        where = f"body.{rejection.field}: " if rejection.field else ""
        said = {"status_code": 10422, "message": where + rejection.error, "data": None}
        return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, msgspec.json.encode(said))

    def refused(self, refusal: Refusal) -> bytes:
        """A `detail` text."""
        return detail(refusal)


def _id_in(request: Request) -> str:
    """The id in the path; unlike the server we can tell an escaped slash from a plain one."""
    return unquote(request.path.removeprefix(PREFIX))
