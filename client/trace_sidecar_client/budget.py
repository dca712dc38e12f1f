"""Limits for one value, checked before an encoder gets it, because an encoder can't be stopped.

A value may be far larger as JSON than in memory: 27 lists, each of which holds the next one twice,
are 134 million lists as JSON. So a value with many parts is first pickled into a sink that raises
at the limit: pickling visits exactly what an encoder visits, in C. And two equal pickles prove that
a value has not changed between its START and its END. Nothing is ever unpickled.
"""

import time
from gc import get_referents
from operator import is_
from pickle import Pickler
from typing import Any, TypeAlias

# The sidecar rejects payloads that are nested deeper (docs/api.md).
MAX_NESTING = 200
# The sidecar takes 32 MiB a request (`listener.max_body`), and an event with three values must fit.
MAX_BYTES = 8 * 1024 * 1024
# What is kept of a larger value.
CUT_BYTES = 1024 * 1024
# The members of one object.
MAX_NODES = 1_000_000
# What is looked at in Python: about 0.1 s.
_MAX_VISITS = 200_000
MAX_SECONDS = 1.0

_CONTAINERS = frozenset({dict, list, tuple})
_SIZED = _CONTAINERS | {set, frozenset}
_SCALARS = frozenset({int, float, bool, type(None)})
_TEXT: frozenset[type] = frozenset({str})
_IMMUTABLE = _SCALARS | _TEXT
# A container with more members is checked by the set of their types, which is faster.
_MANY = 32
# A value with fewer parts is looked at in Python.
_FEW = 64
# `0,`: the least that a member takes.
_MEMBER_BYTES = 2


# Bytes are equal for equal values; of a tuple, the members are identical.
Fingerprint: TypeAlias = bytes | tuple[Any, ...]


class TooMuch(Exception):
    """A value exceeds a limit."""


class TooDeep(Exception):
    """A value is nested deeper than the sidecar takes."""


class Odd(Exception):
    """A value has a part whose type is not one of the basic ones."""


class Budget:
    """The bytes and the time that one value may still take."""

    def __init__(self, size: int, seconds: float = MAX_SECONDS) -> None:
        self.bytes = size
        self.deadline = time.monotonic() + seconds

    @property
    def seconds(self) -> float:
        """The time that is left; negative when it is over."""
        return self.deadline - time.monotonic()

    @property
    def exhausted(self) -> bool:
        """Whether nothing more may be encoded."""
        return self.bytes <= 0 or self.seconds < 0

    def spend(self, size: int) -> None:
        """Subtract `size`; raise `TooMuch` if nothing is left."""
        self.bytes -= size
        if self.exhausted:
            raise TooMuch


class _Sink:
    """A file for the pickler that holds up to `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self.pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        self._left -= len(piece)
        if self._left < 0:
            raise TooMuch
        self.pieces.append(piece)


class _Pickler(Pickler):
    """Writes each occurrence of an object, as an encoder does, and runs no code of the agent."""

    def __init__(self, sink: _Sink) -> None:
        super().__init__(sink, 5)
        self.fast = True  # no references to what was written before

    def reducer_override(self, value: object) -> Any:  # noqa: ANN401, ARG002 - as in the base
        """Stop at the first object of any other type."""
        raise Odd


def snapshot(value: object, limit: int) -> Fingerprint | None:
    """The parts of a value with few of them; None for others.

    Raises `TooMuch` above `limit` bytes. Two snapshots of the same objects prove that nothing has
    changed, since those objects can't change. This saves copying a long text.
    """
    parts: list[Any] = []
    waiting: list[Any] = [value]
    while waiting:
        part = waiting.pop()
        kind = type(part)
        parts.append(part)
        if kind is str:
            limit -= len(part)
        elif kind in _CONTAINERS:
            parts[-1:] = (kind, len(part))
            if len(part) > _FEW:
                return None
            if kind is dict:
                parts += part
                if not _IMMUTABLE.issuperset(map(type, part)):
                    return None
                limit -= sum(len(key) for key in part if type(key) is str)
                part = part.values()
            waiting += part
        elif kind not in _SCALARS:
            return None
        if len(parts) > _FEW:
            return None
    if limit < 0:
        raise TooMuch
    return tuple(parts)


def is_same(before: Fingerprint | None, now: Fingerprint | None) -> bool:
    """Whether two snapshots or fingerprints are of equal values."""
    if isinstance(before, tuple) and isinstance(now, tuple):
        return len(before) == len(now) and all(map(is_, before, now))
    return isinstance(before, bytes) and before == now


def fingerprint(value: object, limit: int) -> bytes:
    """Bytes that are equal only for equal values of basic types, without cycles.

    Raises `TooMuch` above `limit` bytes, and any other exception for other values.
    """
    members = dict.values(value) if type(value) is dict else ()
    for part in (value, *members):
        # The sink is not asked while one flat container is written.
        if type(part) in _SIZED and _MEMBER_BYTES * len(part) > limit:
            raise TooMuch
    sink = _Sink(limit)
    _Pickler(sink).dump(value)
    return b"".join(sink.pieces)


def check_size(value: object, limit: int) -> int:
    """Return what `value` leaves of `limit` bytes; raise `TooMuch` or `TooDeep`. For any type.

    An object takes nothing: what it contains is checked when it is converted. Only models are
    entered, because pydantic converts all that they contain at once.
    """
    nodes = _MAX_VISITS
    level: list[Any] = [[value]]
    for _ in range(MAX_NESTING + 2):
        inner: list[Any] = []
        for container in level:
            members, characters = _opened(container)
            limit -= _MEMBER_BYTES * len(members) + characters
            kinds: set[type] = set(map(type, members)) if len(members) > _MANY else set()
            if kinds and kinds <= _SCALARS:
                members = []
            elif kinds == _TEXT:
                limit -= sum(map(len, members))
                members = []
            nodes -= 1 + len(members)
            if nodes < 0 or limit < 0:
                raise TooMuch
            limit -= _visit(members, inner)
        if limit < 0:
            raise TooMuch
        if not inner:
            return limit
        level = inner
    raise TooDeep


def _opened(container: Any) -> tuple[list[Any], int]:  # noqa: ANN401 - a dict, list or tuple
    """The members and the characters in the keys, whatever methods a subclass overrides."""
    if not isinstance(container, dict):
        base = list if isinstance(container, list) else tuple
        return list(base.__iter__(container)), 0
    keys = list(dict.keys(container))
    try:
        characters = len("".join(keys))
    except TypeError:
        characters = sum(str.__len__(key) for key in keys if issubclass(type(key), str))
    return list(dict.values(container)), characters


def _visit(members: list[Any], containers: list[Any]) -> int:
    """The characters in the strings; adds what has members of its own to `containers`."""
    characters = 0
    for member in members:
        kind = type(member)
        if kind in _SCALARS:
            continue
        if issubclass(kind, str):
            characters += str.__len__(member)
        elif issubclass(kind, (dict, list, tuple)):
            containers.append(member)
        elif is_model(kind):
            containers.append(fields_of(member))
    return characters


def is_model(kind: type) -> bool:
    """Whether `kind` is a class of pydantic models, of version 2 or 1."""
    return hasattr(kind, "model_dump") or (hasattr(kind, "dict") and hasattr(kind, "__fields__"))


def fields_of(model: object) -> dict[str, Any]:
    """What a model contains, before it is converted."""
    fields: dict[str, Any] = getattr(model, "__dict__", {})
    return fields


def may_be_deeper(value: object, levels: int) -> bool:
    """Whether a value of basic types may be nested more than `levels` deep."""
    level = [value]
    for _ in range(levels):
        level = get_referents(*level)
        if not level:
            return False
    return True
