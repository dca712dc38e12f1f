"""`PUT` and `POST /v5/spans/batch`: items as the SGP SDK sends them, for SGP and OTLP.

An item that SGP would refuse is refused here, in SGP's error format (docs/upstreams.md S1.4, S1.5).
The other items are accepted, whereas SGP would drop the whole batch. What an agent can't fix is
repaired (D18): lists are wrapped, an unknown type becomes `CUSTOM`, unusual times are rewritten.
Everything else is forwarded unchanged, including unknown members.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal
from uuid import uuid4

import msgspec

from sidecar.credentials import is_header_safe
from sidecar.http.messages import Request, Response
from sidecar.listener.routes import JSON, NOBODY, SdkRoute, decoded_body, rejection
from sidecar.sinks.sgp import SPAN_TYPES
from sidecar.spans.decode import NOT_DECODED, Decoded, Rejection
from sidecar.spans.raw_json import too_deep
from sidecar.spans.span import SGP_ROUTE, SdkFields, Span, measure, span_key
from sidecar.spans.validation import (
    TOO_DEEP,
    FieldError,
    check_id,
    check_ids,
    checked_time,
    validated_payload,
)

_NULL = msgspec.Raw(b"null")
_STATUSES = (b'"SUCCESS"', b'"ERROR"', b'"CANCELED"', b"null")

_Members = dict[str, msgspec.Raw]


class _Batch(msgspec.Struct):
    items: list[msgspec.Raw]


class Created(msgspec.Struct, kw_only=True, gc=False):
    """An accepted item, with what the SDK's response model requires."""

    object: Literal["span"] = "span"
    account_id: str
    id: str
    trace_id: str
    name: str
    start_timestamp: str


class CreatedList(msgspec.Struct, kw_only=True):
    """The body of a 200."""

    object: Literal["list"] = "list"
    items: list[Created]


class Problem(msgspec.Struct, kw_only=True, gc=False):
    """What is wrong with an item, and where: `["body", "items", 3, "status"]`."""

    type: Literal["value_error"] = "value_error"
    loc: list[str | int]
    msg: str


class Problems(msgspec.Struct):
    """The body of a 422, or of a 400."""

    detail: list[Problem]


class _ItemId(msgspec.Struct):
    id: str


_BATCH = msgspec.json.Decoder(_Batch)
_ITEM = msgspec.json.Decoder(_Members)
_ID = msgspec.json.Decoder(_ItemId)
_TEXT: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)


class SgpRoute(SdkRoute):
    """The SGP SDK's route."""

    has_accounts = True

    def decode(self, _: Request, body: bytes, now: float, account: int = 0) -> Decoded:
        """The spans of the valid items."""
        shape = 'the body must be an object with a list of items: {"items": [...]}'
        decoded = Decoded([], [])
        for position, raw in enumerate(decoded_body(_BATCH, body, shape).items):
            try:
                decoded.spans.append(_span(_ITEM.decode(raw), now, account))
            except FieldError as error:
                decoded.rejected.append(rejection(position, _id_of(raw), error))
            except NOT_DECODED:
                problem = "must be an object whose strings are valid UTF-8"
                decoded.rejected.append(Rejection(position, None, problem, "malformed"))
        return decoded

    def respond(
        self, request: Request, decoded: Decoded, __: Mapping[str, int] = NOBODY
    ) -> Response:
        """The fields that the SDK's response model requires, or the errors and where they are."""
        if decoded.rejected:
            return _refused_items(decoded.rejected)
        account_id = request.header(b"x-selected-account-id")
        account_id = account_id if is_header_safe(account_id) else ""
        items = [
            Created(
                account_id=account_id,
                id=span.key[1],
                trace_id=span.key[0],
                name=span.name,
                start_timestamp=span.start_time,
            )
            for span in decoded.spans
        ]
        return Response(HTTPStatus.OK, msgspec.json.encode(CreatedList(items=items)), JSON)


def _refused_items(rejected: list[Rejection]) -> Response:
    problems = [
        Problem(loc=["body", "items", r.position, *([r.field] if r.field else [])], msg=r.error)
        for r in rejected
    ]
    only_identity = all(r.identity for r in rejected)
    status = HTTPStatus.BAD_REQUEST if only_identity else HTTPStatus.UNPROCESSABLE_ENTITY
    return Response(status, msgspec.json.encode(Problems(problems)), JSON)


def _span(members: _Members, now: float, account: int) -> Span:
    id_ = _text_of(members, "id")
    trace_id, name = _required(members, "trace_id"), _required(members, "name")
    parent_id = _text_of(members, "parent_id")
    started, start = checked_time(_required(members, "start_timestamp"), "start_timestamp")
    end = _text_of(members, "end_timestamp")
    if end is not None:
        ended, end = checked_time(end, "end_timestamp")
        if ended < started:
            raise FieldError("end_timestamp", "is before span.start_timestamp")
    # SGP would generate a missing id, but then a retry would create a second span.
    id_ = str(uuid4()) if id_ is None else id_
    check_ids(id_, trace_id, parent_id, name)
    span = Span(
        span_key(trace_id, id_, account),
        name,
        start,
        end,
        parent_id or None,
        None,
        validated_payload(members.pop("input", _NULL), "input"),
        validated_payload(members.pop("output", _NULL), "output"),
        validated_payload(members.pop("metadata", _NULL), "metadata"),
        now,
        sdk=SdkFields(SGP_ROUTE, _extra(members)),
        lanes=SGP_ROUTE,
        account=account,
    )
    span.size = measure(span)
    return span


def _id_of(item: msgspec.Raw) -> str | None:
    try:
        return _ID.decode(item).id
    except NOT_DECODED:
        return None


def _text_of(members: _Members, field: str) -> str | None:
    try:
        return _TEXT.decode(members.pop(field, _NULL))
    except NOT_DECODED:
        raise FieldError(field, "must be a string") from None


def _required(members: _Members, field: str) -> str:
    text = _text_of(members, field)
    if text is None:
        raise FieldError(field, "is required")
    return text


def _extra(members: _Members) -> bytes:
    """The members that `Span` has no field for, as JSON text without the braces."""
    type_ = _text_of(members, "type")
    if bytes(members.get("status", _NULL)) not in _STATUSES:
        raise FieldError("status", "must be SUCCESS, ERROR or CANCELED")
    if bytes(members.get("expected", _NULL))[:1] not in b"{n":
        raise FieldError("expected", "must be an object")
    for name in ("status", "expected"):
        if name in members and bytes(members[name]) == b"null":
            del members[name]  # SGP refuses null, as it does in group_id and type
    group = _text_of(members, "group_id")
    for name, raw in members.items():
        if too_deep(bytes(raw)):
            raise FieldError(name if name == "expected" else "items", f"is {TOO_DEEP}")
    extra: dict[str, msgspec.Raw | str] = {**members}
    if group is not None:
        check_id("group_id", group)
        extra["group_id"] = group
    if type_ is not None:
        extra["type"] = type_ if type_ in SPAN_TYPES else "CUSTOM"
    return msgspec.json.encode(extra)[1:-1]
