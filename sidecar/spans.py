"""Span events as they come, spans as they wait: decode and validate, no I/O, no clock.

In: one request body (contracts/ingest.md). Out: `Span` objects whose `input`, `output` and `data`
are the agent's own JSON bytes, copied once, and one `Rejection` for each event that was not taken.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import msgspec

from sidecar.payloads import is_list_of_objects, is_utf8, replace_lone_surrogates, too_deep

MAX_ID_BYTES = 256
# What a waiting span costs beside its payloads: the object, its texts, its places in two lanes.
# Measured with tracemalloc on CPython 3.11: about 900 bytes.
SPAN_OVERHEAD = 1024

PAYLOADS = ("input", "output", "data")
_NULL = b"null"
_text = msgspec.json.encode
_T = TypeVar("_T")


class Span(msgspec.Struct, gc=False, eq=False):
    """One span: open (a START alone) or complete (it has its `end_time`).

    Payloads are raw JSON bytes, empty for null. `size` is the bytes it holds in memory,
    `accepted_at` the loop time of its 202. It is shared by all lanes; `holders` counts the places
    that keep it, `known_to` has the bit of each lane that sent an open write of this span before.
    """

    id: str
    trace_id: str
    name: str
    start_time: str
    end_time: str | None
    parent_id: str | None
    task_id: str | None
    input: bytes
    output: bytes
    data: bytes
    accepted_at: float
    size: int
    holders: int = 0
    known_to: int = 0
    # With a spool: its row there, 0 for none; the bits of the lanes that owe it to their upstream;
    # how many of them have it on disk only; which payloads are on disk only (bits of `PAYLOADS`).
    seq: int = 0
    lanes: int = -1
    tails: int = 0
    dropped: int = 0

    @property
    def kind(self) -> str:
        """`open` or `complete`."""
        return "open" if self.end_time is None else "complete"


def measure(span: Span) -> int:
    """Bytes that `span` holds in memory."""
    return SPAN_OVERHEAD + len(span.input) + len(span.output) + len(span.data)


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


class _WireSpan(msgspec.Struct, gc=False):
    id: str
    trace_id: str
    name: str
    start_time: str
    end_time: str | None = None
    parent_id: str | None = None
    task_id: str | None = None
    input: msgspec.Raw = msgspec.Raw(_NULL)
    output: msgspec.Raw = msgspec.Raw(_NULL)
    data: msgspec.Raw = msgspec.Raw(_NULL)


class _WireEvent(msgspec.Struct, gc=False):
    event_type: str
    span: _WireSpan


class _SpanId(msgspec.Struct):
    id: str


class _EventId(msgspec.Struct):
    span: _SpanId


_SPAN = msgspec.json.Decoder(_WireSpan)
_ONE = msgspec.json.Decoder(_WireEvent)
_MANY = msgspec.json.Decoder(list[_WireEvent])
_ID = msgspec.json.Decoder(_EventId)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_ERRORS = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


def decode(body: bytes, now: float, *, ndjson: bool = False) -> Decoded:
    """Decode a whole body at once; item by item only when something in it is wrong.

    `now` is loop time in seconds. Raises `MalformedBody` when it is not JSON.
    """
    if not is_utf8(body):
        msg = "the body is not valid UTF-8"
        raise MalformedBody(msg)
    array = not ndjson and body[:64].lstrip()[:1] == b"["
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
        items = (line for line in repaired.split(b"\n") if line.strip())
    elif array:
        items = _decoded(_ITEMS.decode, repaired)
    else:
        _decoded(msgspec.json.Decoder(msgspec.Raw).decode, repaired)
        items = [repaired]
    return _one_by_one(items, now)


def _decoded(decode_: Callable[[bytes], _T], body: bytes) -> _T:
    try:
        return decode_(body)
    except _ERRORS as error:
        raise MalformedBody(_reason(error)) from None


def _one_by_one(items: Iterable[bytes | msgspec.Raw], now: float) -> Decoded:
    spans: list[Span] = []
    rejected: list[Rejection] = []
    for index, item in enumerate(items):
        try:
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
        return "the body is not valid UTF-8"
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
    input_, output, data = (_payload(wire, field) for field in PAYLOADS)
    return Span(
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
        SPAN_OVERHEAD + len(input_) + len(output) + len(data),
    )


def _check_ids(wire: _WireSpan) -> None:
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


def _payload(wire: _WireSpan, field: str) -> bytes:
    # The Raw borrows the whole request body: kept, one small event would keep 32 MiB alive.
    raw = bytes(getattr(wire, field))
    first = raw[:1]
    if first == b"n":
        return b""
    if first == b"[":
        if not is_list_of_objects(raw):
            msg = f"span.{field} must hold objects only when it is an array"
            raise EventError(msg)
    elif first != b"{":
        msg = f"span.{field} must be an object, an array of objects, or null"
        raise EventError(msg)
    if too_deep(raw):
        msg = f"span.{field} is nested more than 200 levels deep"
        raise EventError(msg)
    return raw


def _instant(text: str, field: str) -> datetime:
    """The instant that `text` names; ISO 8601 in its extended form, UTC where no offset is given."""
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


def to_json(span: Span, leave_out: int = 0) -> bytes:
    """The span as its ten keys, null where unset, as the SDK sends it (contracts/agentex.md 8.2).

    Joined from bytes: payloads are not rebuilt. `leave_out`: bits of `PAYLOADS` to be null.
    """
    return b"".join(
        (
            b'{"id":',
            _text(span.id),
            b',"trace_id":',
            _text(span.trace_id),
            b',"name":',
            _text(span.name),
            b',"start_time":',
            _text(span.start_time),
            b',"end_time":',
            _text(span.end_time),
            b',"parent_id":',
            _text(span.parent_id),
            b',"task_id":',
            _text(span.task_id),
            b',"input":',
            _NULL if leave_out & 1 else span.input or _NULL,
            b',"output":',
            _NULL if leave_out & 2 else span.output or _NULL,
            b',"data":',
            _NULL if leave_out & 4 else span.data or _NULL,
            b"}",
        )
    )


def from_json(body: bytes, accepted_at: float) -> Span:
    """The span that `to_json` wrote, accepted at that loop time."""
    wire = _SPAN.decode(body)
    payloads = [bytes(getattr(wire, field)) for field in PAYLOADS]
    input_, output, data = (b"" if raw == _NULL else raw for raw in payloads)
    return Span(
        wire.id,
        wire.trace_id,
        wire.name,
        wire.start_time,
        wire.end_time,
        wire.parent_id,
        wire.task_id,
        input_,
        output,
        data,
        accepted_at,
        SPAN_OVERHEAD + len(input_) + len(output) + len(data),
    )


def which_payloads(span: Span) -> int:
    """The bits of the `PAYLOADS` that `span` has in memory."""
    return bool(span.input) | bool(span.output) << 1 | bool(span.data) << 2


def shared_payloads(span: Span, start: Span) -> int:
    """The bits of the `PAYLOADS` that are the same in both, and not empty."""
    shared = 0
    for place, field in enumerate(PAYLOADS):
        payload = getattr(span, field)
        if payload and payload == getattr(start, field):
            shared |= 1 << place
    return shared


def fill_payloads(span: Span, start: Span, which: int) -> None:
    """Give `span` the payloads of `start` that `which` has the bits of."""
    for place, field in enumerate(PAYLOADS):
        if which >> place & 1:
            setattr(span, field, getattr(start, field))
    span.size = measure(span)


def drop_payloads(span: Span) -> None:
    """Let the payloads of `span` be on disk only."""
    span.dropped |= which_payloads(span)
    span.input = span.output = span.data = b""
    span.size = measure(span)


def restore_payloads(span: Span, stored: Span) -> None:
    """Give `span` the payloads that `stored` brought back from disk."""
    span.input, span.output, span.data = stored.input, stored.output, stored.data
    span.dropped = 0
    span.size = measure(span)


def total_size(spans: Sequence[Span]) -> int:
    """Bytes that `spans` hold together."""
    return sum(span.size for span in spans)
