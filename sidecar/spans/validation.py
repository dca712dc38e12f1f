"""Validation of a span's fields (docs/api.md), shared by all routes. Pure.

Every error names the field, as its route calls it, and the rule. It never repeats the value, which
is customer data.
"""

import re
from datetime import UTC, datetime, timedelta

import msgspec

from sidecar.spans.raw_json import MAX_NESTING, is_list_of_objects, too_deep

MAX_ID_BYTES = 256
# For the other ids. Agentex's database has indexes of them, which hold about 2,700 bytes
# (docs/upstreams.md A10).
MAX_REFERENCE_BYTES = 1024
# A character takes up to 4 bytes, so an id of so few need not be encoded to be measured.
_SHORT_ID = MAX_ID_BYTES // 4
_SHORT_REFERENCE = MAX_REFERENCE_BYTES // 4
TOO_DEEP = f"nested more than {MAX_NESTING} levels deep"
# First bytes of JSON values.
_NULL_N, _ARRAY, _OBJECT = b"n[{"

_parsed = datetime.fromisoformat
# Nearly every time that agents send. Only for text that `_parsed` accepts: that has checked the
# digits, but accepts what upstreams refuse, such as ":05,6", ":05.Z" and, from Python 3.14 on,
# hour 24.
_is_common = re.compile(r"....-..-..T(?!24)..:..:..(?:\.[0-9]+)?(?:Z|\+00:00)").fullmatch
# The only form that is forwarded as it came: upstreams accept it (docs/upstreams.md A11).
_PLAIN = re.compile(
    r"\d{4}-\d\d-\d\d[T ](?!24)\d\d:\d\d(?::\d\d(?:\.\d+)?)?(Z|[+-]\d\d:[0-5]\d)?", re.ASCII
)
# What agents may send: a time, then its offset. The parser alone would take even ":05X+00:00", and
# misread a fraction of a minute, and the offset "+00:00:00.5".
_EXTENDED = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)"
    r"(?: ?([Zz]|(?!.00:?00:?00[.,])[+-]\d\d(?::?\d\d(?::?\d\d(?:[.,]\d+)?)?)?))?",
    re.ASCII,
)


class EventError(ValueError):
    """An event breaks a rule of docs/api.md about `field`."""

    def __init__(self, text: str, field: str) -> None:
        super().__init__(text)
        self.field = field


class FieldError(EventError):
    """A field breaks a rule. `identity`: the upstream's own API returns 400 for it, not 422."""

    def __init__(self, field: str, problem: str, *, identity: bool = False) -> None:
        super().__init__(f"span.{field} {problem}", field)
        self.problem = problem
        self.identity = identity


def check_ids(
    id_: str, trace_id: str, parent_id: str | None, name: str, task_id: str | None = None
) -> None:
    """Check the ids and the name. Raises `FieldError`."""
    if not (id_ and trace_id and name):
        field = "id" if not id_ else "trace_id" if not trace_id else "name"
        raise FieldError(field, "is empty")
    if len(id_) > _SHORT_ID or "\0" in id_:
        check_id("id", id_)
    if len(trace_id) > _SHORT_REFERENCE or "\0" in trace_id:
        check_id("trace_id", trace_id, MAX_REFERENCE_BYTES)
    if parent_id and (len(parent_id) > _SHORT_REFERENCE or "\0" in parent_id):
        check_id("parent_id", parent_id, MAX_REFERENCE_BYTES)
    if task_id and len(task_id) > _SHORT_REFERENCE:
        _check_length("task_id", task_id, MAX_REFERENCE_BYTES, identity=False)


def check_id(field: str, text: str, max_bytes: int = MAX_ID_BYTES) -> None:
    """Check an id that upstreams use as a key. Raises `FieldError`."""
    _check_length(field, text, max_bytes, identity=True)
    if "\0" in text:
        raise FieldError(field, "contains a NUL character", identity=True)


def _check_length(field: str, text: str, max_bytes: int, *, identity: bool) -> None:
    if len(text.encode()) > max_bytes:
        raise FieldError(field, f"is longer than {max_bytes} bytes", identity=identity)


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


def checked_time(text: str, field: str) -> tuple[datetime, str]:
    """The instant, and the text to forward: `text` itself, if upstreams accept it.

    A time without an offset is UTC, and gets `+00:00`. Raises `FieldError`.
    """
    try:
        instant = _parsed(text)
        if _is_common(text):
            return instant, text
    except ValueError:
        pass
    try:
        return _unusual_time(text)
    except ValueError:
        raise FieldError(field, "is not an RFC 3339 time") from None
    except OverflowError:
        raise FieldError(field, "is outside the years 1 to 9999 in UTC") from None


def _unusual_time(text: str) -> tuple[datetime, str]:
    plain = _PLAIN.fullmatch(text)
    time = plain or _EXTENDED.fullmatch(text)
    if time is None:
        raise ValueError("not in the extended form")
    # The parser does not know "z", and knows the space before an offset only in some times.
    instant = _parsed(text if plain else "".join(time.groups("")).upper())
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    utc = instant.astimezone(UTC)
    if plain:
        return utc, text if plain[1] else text + "+00:00"
    offset = instant.utcoffset() or timedelta()
    return utc, (utc if offset % timedelta(minutes=1) else instant).isoformat()
