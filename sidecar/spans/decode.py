"""Decodes and validates the events of one request body. No I/O, no clock.

In: a body (docs/api.md). Out: `Span` objects whose `input`, `output` and `data` are the agent's
own JSON bytes, copied once, and one `Rejection` for each invalid event.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from sidecar.spans.raw_json import is_utf8, replace_lone_surrogates
from sidecar.spans.span import Key, SdkFields, Span, WireSpan, measure, span_key
from sidecar.spans.validation import (
    MAX_ID_BYTES,
    TOO_DEEP,
    EventError,
    FieldError,
    check_ids,
    checked_time,
    validated_payload,
)

# What msgspec raises for a body that is not JSON, or not of the expected form.
NOT_DECODED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


class Rejection(NamedTuple):
    """One rejected event of a request: which one, and why. Never contains span content.

    `field` is the invalid field, empty if no single field is to blame. `identity` is set where the
    upstream's own API returns 400 rather than 422 for such a field.
    """

    position: int
    id: str | None
    error: str
    reason: str
    field: str = ""
    identity: bool = False


class Decoded(NamedTuple):
    """The valid and the rejected events of a body."""

    spans: list[Span]
    rejected: list[Rejection]


class MalformedBody(ValueError):
    """The body as a whole is not valid JSON, so no single event can be blamed."""


class _WireEvent(msgspec.Struct, gc=False):
    event_type: str
    span: WireSpan


class _SpanId(msgspec.Struct):
    id: str


class _EventId(msgspec.Struct):
    span: _SpanId


_ONE = msgspec.json.Decoder(_WireEvent)
_MANY = msgspec.json.Decoder(list[_WireEvent])
_ID = msgspec.json.Decoder(_EventId)
_ANY = msgspec.json.Decoder(msgspec.Raw)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_NOT_UTF8 = "not valid UTF-8"
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)

# Returns the START of the span with this key, or None.
Started = Callable[[Key], Span | None]


def decode(
    body: bytes,
    now: float,
    *,
    ndjson: bool = False,
    started: Started = lambda _: None,
    account: int = 0,
) -> Decoded:
    """Decode a whole body in one pass, or event by event if anything in it is invalid.

    `now` is loop time in seconds. `started` returns the START of a span whose END is in `body`.
    `account` is the number of the account that the spans belong to.
    Raises `MalformedBody` if the body is not JSON.
    """
    array = not ndjson and (body if body[:1] > b" " else body.lstrip())[:1] == b"["
    if is_utf8(body):
        try:
            if ndjson:
                events = _ONE.decode_lines(body)
            elif array:
                events = _MANY.decode(body)
            else:
                return Decoded([_checked(_ONE.decode(body), now, started, account)], [])
            return Decoded([_checked(event, now, started, account) for event in events], [])
        except (*NOT_DECODED, EventError):
            # Usually a single invalid event, or a lone surrogate that can be repaired.
            pass
    elif not ndjson:
        raise MalformedBody(f"the body is {_NOT_UTF8}")
    repaired = replace_lone_surrogates(body)
    if ndjson:
        items: Iterable[bytes] = filter(bytes.strip, repaired.split(b"\n"))
    else:
        items = _items(repaired, array=array)
    return _one_by_one(items, now, started, account)


def _items(body: bytes, *, array: bool) -> Iterable[bytes]:
    """The events of a JSON body. One that is nested too deep must not affect the others."""
    try:
        return map(bytes, _ITEMS.decode(body) if array else [_ANY.decode(body)])
    except NOT_DECODED as error:
        if not body.strip():
            raise MalformedBody("the body is empty") from None
        if array and isinstance(error, RecursionError):
            return _items_of_deep_array(body)
        raise MalformedBody(_reason(error)) from None


def _items_of_deep_array(body: bytes) -> Iterable[bytes]:
    depth, start = 0, 0
    for token in _TOKEN.finditer(body):
        mark = token[0]
        if depth == 1 and mark in {b",", b"]"}:
            yield body[start : token.start()]
            start = token.end()
        if mark in {b"[", b"{"}:
            depth += 1
            start = token.end() if depth == 1 else start
        elif mark in {b"]", b"}"}:
            depth -= 1
    if depth:
        raise MalformedBody(f"{TOO_DEEP} and never closed")


def _one_by_one(items: Iterable[bytes], now: float, started: Started, account: int) -> Decoded:
    decoded = Decoded([], [])
    for position, item in enumerate(items):
        try:
            if is_utf8(item):
                decoded.spans.append(_checked(_ONE.decode(item), now, started, account))
                continue
            rejection = Rejection(position, None, _NOT_UTF8, "malformed")
        except EventError as error:
            rejection = Rejection(position, _id_of(item), str(error), "invalid", error.field)
        except NOT_DECODED as error:
            rejection = Rejection(
                position, _id_of(item), _reason(error), "malformed", _field_of(error)
            )
        decoded.rejected.append(rejection)
    return decoded


def _id_of(item: bytes) -> str | None:
    try:
        return _ID.decode(item).span.id[:MAX_ID_BYTES]
    except NOT_DECODED:
        return None


def _field_of(error: Exception) -> str:
    """The field whose value is of another type; "" if it is not about one field."""
    path = located(error)[1] if isinstance(error, msgspec.ValidationError) else ""
    return path.removeprefix("span.")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return TOO_DEEP
    if isinstance(error, msgspec.ValidationError):
        problem, path = located(error)
        return f"{path or 'event'}: {problem}"
    return f"not JSON: {error}"


def located(error: msgspec.ValidationError) -> tuple[str, str]:
    """What is wrong with a JSON value, and where: `span.id`, "" for the value itself."""
    problem, _, path = str(error).partition(" - at `$.")
    return problem, path.rstrip("`")


def _checked(event: _WireEvent, now: float, started: Started, account: int) -> Span:
    """The span of a valid event. Raises `EventError` or `FieldError` (docs/api.md)."""
    wire = event.span
    if event.event_type == "end":
        if wire.end_time is None:
            raise FieldError("end_time", 'is required in an "end" event')
        key = span_key(wire.trace_id, wire.id, account) if account else (wire.trace_id, wire.id)
        return validated_span(wire, now, None, started(key), account)
    if event.event_type != "start":
        raise EventError('event_type must be "start" or "end"', "event_type")
    wire.end_time = None
    return validated_span(wire, now, None, None, account)


def validated_span(
    wire: WireSpan,
    now: float,
    sdk: SdkFields | None = None,
    start: Span | None = None,
    account: int = 0,
) -> Span:
    """The validated span of `wire`: open if it has no `end_time`. Raises `FieldError`.

    `now` is loop time in seconds. `sdk` is None for an event, which goes to all lanes. A payload
    equal to that of its `start` is neither checked nor stored a second time. `account` is the
    number of its account.
    """
    end = wire.end_time
    started, begin = checked_time(wire.start_time, "start_time")
    if end is not None:
        ended, end = checked_time(end, "end_time")
        if ended < started:
            raise FieldError("end_time", "is before span.start_time")
    check_ids(wire.id, wire.trace_id, wire.parent_id, wire.name, wire.task_id)
    span = Span(
        span_key(wire.trace_id, wire.id, account) if account else (wire.trace_id, wire.id),
        wire.name,
        begin,
        end,
        wire.parent_id or None,
        wire.task_id or None,
        validated_payload(wire.input, "input", b"" if start is None else start.input),
        validated_payload(wire.output, "output", b"" if start is None else start.output),
        validated_payload(wire.data, "data", b"" if start is None else start.data),
        now,
    )
    if sdk is not None:
        span.sdk, span.lanes = sdk, sdk.lanes
    if account:
        span.account = account
    span.size = measure(span)
    return span
