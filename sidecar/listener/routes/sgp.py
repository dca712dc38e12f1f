"""`PUT` and `POST /v5/spans/batch`: items as the SGP SDK sends them, for the SGP lane only.

An item that SGP would refuse is refused here, in SGP's error format (docs/upstreams.md S1.4, S1.5).
The other items are accepted, whereas SGP would drop the whole batch. What an agent can't fix is
repaired (D18): lists are wrapped, an unknown type becomes `CUSTOM`. Everything else is forwarded
unchanged, including unknown members.
"""

from http import HTTPStatus
from uuid import uuid4

import msgspec

from sidecar.credentials import is_header_safe
from sidecar.http.messages import Request, Response
from sidecar.listener.refusals import Refusal, require_json
from sidecar.listener.routes import JSON, detail, forwardable
from sidecar.sinks.sgp import SPAN_TYPES
from sidecar.spans.decode import Decoded, MalformedBody, Rejection
from sidecar.spans.raw_json import MAX_NESTING, too_deep
from sidecar.spans.span import Span, measure
from sidecar.spans.validation import (
    FieldError,
    check_id,
    check_ids,
    check_order,
    check_time,
    validated_payload,
)

_Members = dict[str, msgspec.Raw]

_NULL = b"null"
_CUSTOM = b'"CUSTOM"'
_STATUSES = (b'"SUCCESS"', b'"ERROR"', b'"CANCELED"', _NULL)
_DISABLED = "SGP is not enabled in this sidecar: set sgp.api_key and sgp.account_id, or sgp.relay"
_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_text = msgspec.json.encode
_string = msgspec.json.Decoder(str).decode


class _Batch(msgspec.Struct):
    items: list[msgspec.Raw]


_BATCH = msgspec.json.Decoder(_Batch)
_ITEM = msgspec.json.Decoder(_Members)


class SgpRoute:
    """The SGP SDK's route; `bit` is the SGP lane's bit, 0 if SGP is not enabled."""

    def __init__(self, bit: int) -> None:
        self._bit = bit

    def check(self, request: Request) -> None:
        """Refuse any media type but JSON, and every request if SGP is not enabled."""
        if not self._bit:
            raise Refusal(HTTPStatus.NOT_FOUND, _DISABLED, "unsupported")
        require_json(request)

    def decode(self, request: Request, body: bytes, now: float) -> Decoded:  # noqa: ARG002
        """The spans of the valid items."""
        text = forwardable(body)
        try:
            items = _BATCH.decode(text).items
        except msgspec.ValidationError:
            msg = "the body must be an object with a list of items"
            raise MalformedBody(msg) from None
        except _ERRORS:
            msg = "the body is not JSON, or nested too deeply"
            raise MalformedBody(msg) from None
        decoded = Decoded([], [])
        for position, raw in enumerate(items):
            try:
                decoded.spans.append(self._span(_ITEM.decode(raw), now))
            except FieldError as error:
                where = error.field, error.identity
                decoded.rejected.append(Rejection(position, None, error.problem, "invalid", *where))
            except _ERRORS:
                problem = "must be an object whose strings are valid UTF-8"
                decoded.rejected.append(Rejection(position, None, problem, "malformed"))
        return decoded

    def _span(self, members: _Members, now: float) -> Span:
        id_ = _text_of(members, "id")
        trace_id, name = _required(members, "trace_id"), _required(members, "name")
        parent_id = _text_of(members, "parent_id")
        start, end = _required(members, "start_timestamp"), _text_of(members, "end_timestamp")
        if end is None:
            check_time(start, "start_timestamp")
        else:
            check_order(start, end, "start_timestamp", "end_timestamp")
        # SGP would generate a missing id, but then a retry would create a second span.
        id_ = str(uuid4()) if id_ is None else id_
        check_ids(id_, trace_id, parent_id, name)
        input_, output, metadata = (
            validated_payload(members.pop(field, msgspec.Raw(_NULL)), field)
            for field in ("input", "output", "metadata")
        )
        span = Span(
            id_,
            trace_id,
            name,
            start,
            end,
            parent_id or None,
            None,
            input_,
            output,
            metadata,
            now,
            size=0,
            lanes=self._bit,
            route=self._bit,
            extra=_extra(members),
        )
        span.size = measure(span)
        return span

    def respond(self, request: Request, decoded: Decoded) -> Response:
        """The fields that the SDK's response model requires, or the errors and where they are."""
        if decoded.rejected:
            return _refused_items(decoded.rejected)
        account_id = request.header(b"x-selected-account-id")
        account = _text(account_id if is_header_safe(account_id) else "")
        items = b",".join(
            b'{"object":"span","account_id":%b,"id":%b,"trace_id":%b,"name":%b,"start_timestamp":%b}'
            % (account, _text(s.id), _text(s.trace_id), _text(s.name), _text(s.start_time))
            for s in decoded.spans
        )
        return Response(HTTPStatus.OK, b'{"object":"list","items":[%b]}' % items, JSON)

    def refusal_body(self, refusal: Refusal) -> bytes:
        return detail(refusal)


def _refused_items(rejected: list[Rejection]) -> Response:
    details = [
        {
            "type": "value_error",
            "loc": ["body", "items", r.position, *([r.field] if r.field else [])],
            "msg": r.error,
        }
        for r in rejected
    ]
    only_identity = all(r.identity for r in rejected)
    status = HTTPStatus.BAD_REQUEST if only_identity else HTTPStatus.UNPROCESSABLE_ENTITY
    return Response(status, msgspec.json.encode({"detail": details}), JSON)


def _text_of(members: _Members, field: str) -> str | None:
    raw = members.pop(field, None)
    if raw is None or bytes(raw) == _NULL:
        return None
    try:
        return _string(raw)
    except _ERRORS:
        raise FieldError(field, "must be a string") from None


def _required(members: _Members, field: str) -> str:
    text = _text_of(members, field)
    if text is None:
        raise FieldError(field, "is required")
    return text


def _extra(members: _Members) -> bytes:
    """The members that `Span` has no field for, as JSON text without the braces."""
    type_ = _text_of(members, "type")
    status = bytes(members.get("status", _NULL))
    if status not in _STATUSES:
        raise FieldError("status", "must be SUCCESS, ERROR or CANCELED")
    if bytes(members.get("expected", _NULL))[:1] not in b"{n":
        raise FieldError("expected", "must be an object")
    group = _text_of(members, "group_id")
    for name in [name for name, raw in members.items() if too_deep(bytes(raw))]:
        field = name if name == "expected" else "items"
        raise FieldError(field, f"is nested more than {MAX_NESTING} levels deep")
    parts = [b"%b:%b" % (_text(name), bytes(raw)) for name, raw in members.items()]
    if group is not None:
        check_id("group_id", group)
        parts.append(b'"group_id":' + _text(group))
    if type_ is not None:
        parts.append(b'"type":' + (_text(type_) if type_ in SPAN_TYPES else _CUSTOM))
    return b",".join(parts)
