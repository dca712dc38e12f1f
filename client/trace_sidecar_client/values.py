"""Encodes any Python value as JSON; a value that can't be encoded never affects its neighbors.

In: whatever an agent put into a span. Out: compact JSON in UTF-8 that the sidecar accepts, at most
200 levels deep. Nothing here raises or consumes an iterator.

A fast encoder handles nearly every value. The rest is rebuilt value by value from plain types. What
has no JSON form becomes its truncated `repr`, or a marker such as `"<cycle>"`. NaN and infinities
become null, as in JavaScript.
"""

import base64
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain
from pathlib import PurePath
from typing import Any
from uuid import UUID

# The sidecar rejects payloads that are nested deeper (docs/api.md).
MAX_NESTING = 200
MAX_REPR = 1000
# Each level uses four calls, and Python's recursion limit is 1,000.
_SANITIZED_NESTING = 100

_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
_STRING = re.compile(rb'"[^"]*"')
_SCALARS = frozenset({str, int, float, bool, type(None)})
_OBJECT, _ARRAY, _NULL = b"{", b"[", b"null"

Dumps = Callable[[Any], bytes]


def encode_payload(value: object, dumps: Dumps) -> bytes:
    """Encode an input, output or data: the sidecar accepts an object, an array of objects, or null.

    Any other list becomes `{"items": [...]}`, any other value `{"value": ...}`.
    """
    raw = encode(value, dumps)
    first = raw[:1]
    if first == _OBJECT or raw == _NULL:
        return raw
    if first != _ARRAY:
        return b'{"value":%b}' % raw
    if isinstance(value, (list, tuple)) and all(type(item) is dict for item in value):
        return raw
    return encode({"items": value}, dumps)


def encode(value: object, dumps: Dumps) -> bytes:
    """Encode `value` with `dumps`; rebuild it from plain types if that fails."""
    try:
        raw = dumps(value)
        if not too_deep(raw, value):
            return raw
    except Exception:  # noqa: BLE001, S110 - the agent's objects may raise anything
        pass
    try:
        return json_dumps(_Sanitizer().sanitize(value, 0))
    except Exception as error:  # noqa: BLE001 - the last resort
        return json_dumps(f"<not encodable: {type(error).__name__}>")


def encode_text(value: object) -> bytes:
    """Encode `value` as a JSON string; uses `str` for other types."""
    try:
        return json_dumps(value if type(value) is str else str(value))
    except Exception:  # noqa: BLE001 - `str` of an agent's object, or a lone surrogate
        return encode(value, _unsupported)


def _unsupported(value: object) -> bytes:
    raise TypeError(type(value).__name__)


def json_dumps(value: object) -> bytes:
    """Encode with the standard library."""
    return _ENCODER.encode(value).encode()


def json_default(value: Any) -> object:  # noqa: ANN401, C901, PLR0911 - one rule per type
    """The JSON form of an object that encoders don't know; raises what the object raises."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, (UUID, Decimal, PurePath, timedelta)):
        return str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bytes_as_text(bytes(value))
    if isinstance(value, AbstractSet):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, type):
        return f"<class {value.__qualname__}>"
    if hasattr(type(value), "__pydantic_serializer__") and hasattr(value, "model_dump"):
        return value.model_dump()
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: getattr(value, field.name, None) for field in fields}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<function {value.__qualname__}>"
    return repr(value)[:MAX_REPR]


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=json_default
)


def _bytes_as_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return base64.b64encode(value).decode()


class _Sanitizer:
    """Rebuilds a value from plain types; a part that fails becomes a marker."""

    def __init__(self) -> None:
        self._ancestors: set[int] = set()

    def sanitize(self, value: Any, depth: int) -> object:  # noqa: ANN401 - any value
        """The plain form of `value`, which is nested `depth` containers deep."""
        try:
            return self._sanitize(value, depth)
        except Exception as error:  # noqa: BLE001 - the agent's objects may raise anything
            return f"<{_type_name(value)}: {type(error).__name__}>"

    def _sanitize(self, value: Any, depth: int) -> object:  # noqa: ANN401, PLR0911 - one rule per type
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Enum):
            return self._sanitize(value.value, depth)
        if isinstance(value, str):
            return _replace_surrogates(str.__str__(value))
        if isinstance(value, int):
            plain = int.__int__(value)
            str(plain)  # raises above 4,300 digits: fail here, for this value only
            return plain
        if isinstance(value, float):
            return float.__float__(value) if math.isfinite(value) else None
        if id(value) in self._ancestors:
            return "<cycle>"
        if depth >= _SANITIZED_NESTING:
            return "<nested too deep>"
        self._ancestors.add(id(value))
        try:
            return self._sanitize_container(value, depth + 1)
        finally:
            self._ancestors.discard(id(value))

    def _sanitize_container(self, value: Any, depth: int) -> object:  # noqa: ANN401 - any value
        if isinstance(value, dict):
            # A copy, because another thread may be adding to the dict.
            members = list(dict.items(value))
            return {_key_as_text(name): self.sanitize(member, depth) for name, member in members}
        if isinstance(value, (list, tuple)):
            return [self.sanitize(item, depth) for item in list(value)]
        return self.sanitize(json_default(value), depth)


def _key_as_text(name: Any) -> str:  # noqa: ANN401 - any value
    try:
        if isinstance(name, Enum):
            name = name.value
        if name is None or name is True or name is False:
            return json_dumps(name).decode()
        return _replace_surrogates(name if type(name) is str else str(name))
    except Exception as error:  # noqa: BLE001 - the agent's objects may raise anything
        return f"<{_type_name(name)}: {type(error).__name__}>"


def _replace_surrogates(value: str) -> str:
    """Replace every lone surrogate with U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _type_name(value: object) -> str:
    return _replace_surrogates(type(value).__name__)


def too_deep(raw: bytes, value: object) -> bool:
    """Whether `raw`, which encodes `value`, is nested more than `MAX_NESTING` levels deep."""
    if len(raw) <= 2 * MAX_NESTING:
        return False
    if _remaining(_remaining(MAX_NESTING, _OBJECT, raw), _ARRAY, raw) >= 0:
        return False
    depth = _container_depth(value)
    return _exceeds_nesting(raw) if depth is None else depth > MAX_NESTING


def occurs_more_than(limit: int, opening: bytes, raw: bytes) -> bool:
    """Whether `opening` occurs in `raw` more than `limit` times."""
    return _remaining(limit, opening, raw) < 0


def _remaining(limit: int, opening: bytes, raw: bytes) -> int:
    # find() skips through long strings at memory speed; count() looks at every byte.
    at = raw.find(opening)
    while at >= 0 <= limit:
        limit -= 1
        at = raw.find(opening, at + 1)
    return limit


def _container_depth(value: object) -> int | None:
    """Levels of dicts and lists; None if another type may add more."""
    level = [value]
    depth = 0
    while level and depth <= MAX_NESTING:
        dicts = [item for item in level if type(item) is dict]
        lists = [item for item in level if type(item) is list]
        if len(dicts) + len(lists) < len(level):
            return None
        level = list(chain.from_iterable(chain(map(dict.values, dicts), lists)))
        depth += 1
        # Most values are in the last level: check their types without building a list.
        if _SCALARS.issuperset(map(type, level)):
            return depth
        level = [item for item in level if type(item) not in _SCALARS]
    return depth


def _exceeds_nesting(raw: bytes) -> bool:
    # Remove escapes, then all but quotes and brackets, then strings: only the structure is left.
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    bare = _STRING.sub(b"", bare).translate(bytes.maketrans(b"[]", b"{}"))
    for _ in range(MAX_NESTING):
        if not bare:
            return False
        bare = bare.replace(b"{}", b"")
    return bool(bare)
