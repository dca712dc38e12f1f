"""The rules for one span's fields (docs/api.md), however the span came. Pure.

Every error names its field, as the routes call it, and says what is wrong; it never repeats the
value, which is customers' data.
"""

from datetime import UTC, datetime

import msgspec

from sidecar.spans.raw_json import MAX_NESTING, is_list_of_objects, too_deep

MAX_ID_BYTES = 256
# First bytes of JSON values.
_NULL_N, _ARRAY, _OBJECT = b"n[{"


class FieldError(ValueError):
    """A field of a span breaks a rule. `identity`: upstreams answer 400 for it, not 422."""

    def __init__(self, field: str, problem: str, *, identity: bool = False) -> None:
        super().__init__(f"span.{field} {problem}")
        self.field = field
        self.problem = problem
        self.identity = identity


def check_ids(id_: str, trace_id: str, parent_id: str | None, name: str) -> None:
    """What identifies a span, and its name."""
    if not (id_ and trace_id and name):
        field = "id" if not id_ else "trace_id" if not trace_id else "name"
        raise FieldError(field, "is empty")
    # A character takes up to 4 bytes, so most ids need no encoding to know.
    if len(id_) * 4 > MAX_ID_BYTES or "\0" in id_:
        check_id("id", id_)
    if "\0" in trace_id or (parent_id and "\0" in parent_id):
        field = "trace_id" if "\0" in trace_id else "parent_id"
        raise FieldError(field, "has a NUL character", identity=True)


def check_id(field: str, text: str) -> None:
    """An id that upstreams keep as a key."""
    if len(text.encode()) > MAX_ID_BYTES:
        raise FieldError(field, f"is longer than {MAX_ID_BYTES} bytes", identity=True)
    if "\0" in text:
        raise FieldError(field, "has a NUL character", identity=True)


def checked_payload(borrowed: msgspec.Raw, field: str, known: bytes = b"") -> bytes:
    """The payload's own bytes, empty for null: an object or an array of objects.

    `known` is a payload that was checked before: its equal is the same object.
    """
    # The Raw borrows the whole request body: kept, one small event would keep 32 MiB alive.
    raw = bytes(borrowed)
    if raw == known:
        return known
    first = raw[0]
    if first == _NULL_N:
        return b""
    if first == _ARRAY:
        if not is_list_of_objects(raw):
            raise FieldError(field, "must hold objects only when it is an array")
    elif first != _OBJECT:
        raise FieldError(field, "must be an object, an array of objects, or null")
    if len(raw) > 2 * MAX_NESTING and too_deep(raw):
        raise FieldError(field, "is nested more than 200 levels deep")
    return raw


def check_order(start: str, end: str, start_field: str, end_field: str) -> None:
    """Both times are times, and the end is not before the start."""
    started = check_time(start, start_field)
    if check_time(end, end_field) < started:
        raise FieldError(end_field, f"is before span.{start_field}")


def check_time(text: str, field: str) -> datetime:
    """The instant that `text` names: ISO 8601 in its extended form, UTC without an offset."""
    try:
        instant = datetime.fromisoformat(text if text[-1:] != "z" else text.upper())
        if text[10] in "Tt " and text[4] == text[7] == "-" and text[13] == ":":
            return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (ValueError, IndexError):
        pass
    raise FieldError(field, "is not an RFC 3339 time")


def with_offset(text: str) -> str:
    """`text` as it came, with `+00:00` where it names no offset: a replay must keep its start."""
    if text.endswith(("Z", "z", "+00:00")) or "+" in text or "-" in text[10:]:
        return text
    return text + "+00:00"
