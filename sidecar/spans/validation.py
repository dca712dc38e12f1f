"""Validation of a span's fields (docs/api.md), shared by all routes. Pure.

Every error names the field, as its route calls it, and the rule. It never repeats the value, which
is customer data.
"""

from datetime import UTC, datetime

import msgspec

from sidecar.spans.raw_json import MAX_NESTING, is_list_of_objects, too_deep

MAX_ID_BYTES = 256
TOO_DEEP = f"nested more than {MAX_NESTING} levels deep"
# First bytes of JSON values.
_NULL_N, _ARRAY, _OBJECT = b"n[{"


class EventError(ValueError):
    """An event breaks a rule of docs/api.md."""


class FieldError(EventError):
    """A field breaks a rule. `identity`: the upstream's own API returns 400 for it, not 422."""

    def __init__(self, field: str, problem: str, *, identity: bool = False) -> None:
        super().__init__(f"span.{field} {problem}")
        self.field = field
        self.problem = problem
        self.identity = identity


def check_ids(id_: str, trace_id: str, parent_id: str | None, name: str) -> None:
    """Check the ids and the name. Raises `FieldError`."""
    if not (id_ and trace_id and name):
        field = "id" if not id_ else "trace_id" if not trace_id else "name"
        raise FieldError(field, "is empty")
    # A character takes up to 4 bytes, so a short id need not be encoded to be measured.
    if len(id_) * 4 > MAX_ID_BYTES or "\0" in id_:
        check_id("id", id_)
    if "\0" in trace_id or (parent_id and "\0" in parent_id):
        field = "trace_id" if "\0" in trace_id else "parent_id"
        raise FieldError(field, "contains a NUL character", identity=True)


def check_id(field: str, text: str) -> None:
    """Check an id that upstreams use as a key. Raises `FieldError`."""
    if len(text.encode()) > MAX_ID_BYTES:
        raise FieldError(field, f"is longer than {MAX_ID_BYTES} bytes", identity=True)
    if "\0" in text:
        raise FieldError(field, "contains a NUL character", identity=True)


def validated_payload(view: msgspec.Raw, field: str, known: bytes = b"") -> bytes:
    """A copy of the payload's bytes, empty for null. Raises `FieldError`.

    A payload is an object or an array of objects. If it equals `known`, which was checked before,
    `known` itself is returned.
    """
    # A Raw is a view into the request body: if kept, one small event could hold 32 MiB alive.
    raw = bytes(view)
    if raw == known:
        return known
    first = raw[0]
    if first == _NULL_N:
        return b""
    if first == _ARRAY:
        if not is_list_of_objects(raw):
            raise FieldError(field, "must contain only objects if it is an array")
    elif first != _OBJECT:
        raise FieldError(field, "must be an object, an array of objects, or null")
    if len(raw) > 2 * MAX_NESTING and too_deep(raw):
        raise FieldError(field, f"is {TOO_DEEP}")
    return raw


def check_order(start: str, end: str, start_field: str, end_field: str) -> None:
    """Check that both are times and that `end` is not before `start`. Raises `FieldError`."""
    started = check_time(start, start_field)
    if check_time(end, end_field) < started:
        raise FieldError(end_field, f"is before span.{start_field}")


def check_time(text: str, field: str) -> datetime:
    """Parse ISO 8601 in extended form; without an offset, it is UTC. Raises `FieldError`."""
    try:
        instant = datetime.fromisoformat(text if text[-1:] != "z" else text.upper())
        if text[10] in "Tt " and text[4] == text[7] == "-" and text[13] == ":":
            return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    except (ValueError, IndexError):
        pass
    raise FieldError(field, "is not an RFC 3339 time")


def with_offset(text: str) -> str:
    """`text`, with `+00:00` appended if it has no offset."""
    has_offset = text.endswith(("Z", "z")) or "+" in text or "-" in text[10:]
    return text if has_offset else text + "+00:00"
