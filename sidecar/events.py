"""Events as they come: decode and validate one request body, no I/O, no clock.

In: a body (contracts/ingest.md). Out: `Span` objects whose `input`, `output` and `data` are the
agent's own JSON bytes, copied once, and one `Rejection` for each event that was not taken.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import msgspec

from sidecar.payloads import (
    MAX_NESTING,
    is_list_of_objects,
    is_utf8,
    replace_lone_surrogates,
    too_deep,
)
from sidecar.spans import Span, WireSpan, measure

MAX_ID_BYTES = 256
# First bytes of JSON values.
_NULL_N, _ARRAY, _OBJECT = b"n[{"

_T = TypeVar("_T")


class Rejection(NamedTuple):
    """One event of a request that was not taken: which, and why. Never holds its content."""

    position: int
    id: str | None
    error: str
    reason: str


class Decoded(NamedTuple):
    """What a body held."""

    spans: list[Span]
    rejected: list[Rejection]


class MalformedBody(ValueError):
    """The body is not JSON at all, so no event of it can be named."""


class EventError(ValueError):
    """One event breaks a rule of contracts/ingest.md."""


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
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_NOT_UTF8 = "not valid UTF-8"
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)
_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def decode(body: bytes, now: float, *, ndjson: bool = False) -> Decoded:
    """Decode a whole body at once; item by item only when something in it is wrong.

    `now` is loop time in seconds. Raises `MalformedBody` when it is not JSON.
    """
    if not is_utf8(body):
        if ndjson:
            return _one_by_one(_lines(body), now)
        raise MalformedBody(f"the body is {_NOT_UTF8}")
    array = not ndjson and (body if body[:1] > b" " else body.lstrip())[:1] == b"["
    try:
        if ndjson:
            events = _ONE.decode_lines(body)
        else:
            events = _MANY.decode(body) if array else [_ONE.decode(body)]
        return Decoded([_checked(event, now) for event in events], [])
    except (*_ERRORS, EventError):
        # Most likely nothing is wrong but one event, or a lone surrogate that we repair.
        pass
    repaired = replace_lone_surrogates(body)
    items: Iterable[bytes | msgspec.Raw]
    if ndjson:
        items = _lines(repaired)
    elif array:
        items = _items(repaired)
    else:
        _decoded(msgspec.json.Decoder(msgspec.Raw).decode, repaired)
        items = [repaired]
    return _one_by_one(items, now)


def _decoded(decode_: Callable[[bytes], _T], body: bytes) -> _T:
    try:
        return decode_(body)
    except _ERRORS as error:
        raise MalformedBody(_reason(error)) from None


def _lines(body: bytes) -> list[bytes]:
    return [line for line in body.split(b"\n") if line.strip()]


def _items(body: bytes) -> Iterable[bytes | msgspec.Raw]:
    """The items of an array; one that is nested without end must not refuse the others."""
    try:
        return _ITEMS.decode(body)
    except RecursionError:
        return list(_items_of_deep_array(body))
    except _ERRORS as error:
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
        raise MalformedBody("nested more than 200 levels deep, and not closed")


def _one_by_one(items: Iterable[bytes | msgspec.Raw], now: float) -> Decoded:
    spans: list[Span] = []
    rejected: list[Rejection] = []
    for index, item in enumerate(items):
        try:
            if isinstance(item, bytes) and not is_utf8(item):
                rejected.append(Rejection(index, None, _NOT_UTF8, "malformed"))
                continue
            spans.append(_checked(_ONE.decode(item), now))
        except EventError as error:
            rejected.append(Rejection(index, _id_of(item), str(error), "invalid"))
        except _ERRORS as error:
            rejected.append(Rejection(index, _id_of(item), _reason(error), "malformed"))
    return Decoded(spans, rejected)


def _id_of(item: bytes | msgspec.Raw) -> str | None:
    try:
        return _ID.decode(item).span.id[:MAX_ID_BYTES]
    except _ERRORS:
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested more than 200 levels deep"
    if isinstance(error, UnicodeDecodeError):
        return _NOT_UTF8
    if isinstance(error, msgspec.ValidationError):
        what, _, where = str(error).partition(" - at `$.")
        return f"{where.rstrip('`')}: {what}" if where else what
    return f"not JSON: {error}"


def _checked(event: _WireEvent, now: float) -> Span:
    """The span of an event that keeps every rule of contracts/ingest.md, or `EventError`."""
    wire = event.span
    if event.event_type == "end":
        end = wire.end_time
        if end is None:
            msg = "span.end_time is required at end"
            raise EventError(msg)
        started = _instant(wire.start_time, "span.start_time")
        if _instant(end, "span.end_time") < started:
            msg = "span.end_time is before span.start_time"
            raise EventError(msg)
        end = _with_offset(end)
    elif event.event_type == "start":
        _instant(wire.start_time, "span.start_time")
        end = None
    else:
        msg = 'event_type must be "start" or "end"'
        raise EventError(msg)
    _check_ids(wire)
    input_ = _payload(wire.input, "input")
    output = _payload(wire.output, "output")
    data = _payload(wire.data, "data")
    span = Span(
        wire.id,
        wire.trace_id,
        wire.name,
        _with_offset(wire.start_time),
        end,
        wire.parent_id or None,
        wire.task_id or None,
        input_,
        output,
        data,
        now,
        size=0,
    )
    span.size = measure(span)
    return span


def _check_ids(wire: WireSpan) -> None:
    id_ = wire.id
    if not (id_ and wire.trace_id and wire.name):
        field = "id" if not id_ else "trace_id" if not wire.trace_id else "name"
        msg = f"span.{field} is empty"
        raise EventError(msg)
    # A character takes up to 4 bytes, so most ids need no encoding to know.
    if len(id_) * 4 > MAX_ID_BYTES and len(id_.encode()) > MAX_ID_BYTES:
        msg = f"span.id is longer than {MAX_ID_BYTES} bytes"
        raise EventError(msg)
    for field, text in (
        ("id", id_),
        ("trace_id", wire.trace_id),
        ("parent_id", wire.parent_id or ""),
    ):
        if "\0" in text:
            msg = f"span.{field} has a NUL character"
            raise EventError(msg)


def _payload(borrowed: msgspec.Raw, field: str) -> bytes:
    # The Raw borrows the whole request body: kept, one small event would keep 32 MiB alive.
    raw = bytes(borrowed)
    first = raw[0]
    if first == _NULL_N:
        return b""
    if first == _ARRAY:
        if not is_list_of_objects(raw):
            raise EventError(f"span.{field} must hold objects only when it is an array")
    elif first != _OBJECT:
        raise EventError(f"span.{field} must be an object, an array of objects, or null")
    if len(raw) > 2 * MAX_NESTING and too_deep(raw):
        raise EventError(f"span.{field} is nested more than 200 levels deep")
    return raw


def _instant(text: str, field: str) -> datetime:
    """The instant that `text` names: ISO 8601 in its extended form, UTC without an offset."""
    try:
        instant = datetime.fromisoformat(text if text[-1:] != "z" else text.upper())
        if text[10] in "Tt " and text[4] == text[7] == "-" and text[13] == ":":
            return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (ValueError, IndexError):
        pass
    msg = f"{field} is not an RFC 3339 time"
    raise EventError(msg)


def _with_offset(text: str) -> str:
    """`text` as it came, with `+00:00` where it names no offset: a replay must keep its start."""
    if text.endswith(("Z", "z", "+00:00")) or "+" in text or "-" in text[10:]:
        return text
    return text + "+00:00"
