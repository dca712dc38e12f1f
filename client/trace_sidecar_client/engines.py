"""The encoders that an agent may have: orjson, else pydantic's, else the standard library's.

An `Engine` encodes any value that JSON has a form for. With orjson it also encodes a whole event at
once and without a look at how deep it is: orjson gives up at a depth of its own, which is brought
down to ours by wrapping the event in lists, whose brackets are cut off again.
"""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from .values import MAX_NESTING, Dumps, json_dumps, known, more_than, too_deep

# orjson does not count a tuple inside a tuple, so a quarter of all levels is left to those.
_UNCOUNTED = 50
# An event is an object with the span, an object, inside; its fields come below these.
_EVENT_LEVELS = 2
_MOST_LEVELS = 1000


class Engine(NamedTuple):
    """`whole` encodes an event, and raises where a field may be too deep; None: nothing can."""

    dumps: Dumps
    whole: Dumps | None = None


@cache
def any_engine() -> Engine:
    """The fastest that leaves iterators alone: orjson where there is one, else json."""
    try:
        orjson_dumps = import_module("orjson").dumps
    except ImportError:
        return Engine(json_dumps)

    def dumps(value: Any) -> bytes:  # noqa: ANN401 - whatever an agent has
        raw: bytes = orjson_dumps(value, known)
        return raw

    return Engine(dumps, bounded(dumps))


@cache
def model_engine() -> Engine:
    """The fastest for the fields of a pydantic model."""
    engine = any_engine()
    if engine.whole is None:
        try:
            to_json = import_module("pydantic_core").to_json
        except ImportError:
            return engine
        return Engine(lambda value: to_json(value, inf_nan_mode="null", fallback=known))
    return engine


def bounded(dumps: Dumps) -> Dumps | None:
    """`dumps` for events, raising where a field is too deep for the sidecar, or nearly so.

    None where `dumps` does not give up by itself at a depth that this could be made of.
    """
    wraps = _most_levels(dumps) - _EVENT_LEVELS - (MAX_NESTING - _UNCOUNTED)
    if wraps <= 0:
        return None

    def whole(event: Any) -> bytes:  # noqa: ANN401 - as `Dumps` has it
        wrapped = event
        for _ in range(wraps):
            wrapped = [wrapped]
        raw = dumps(wrapped)[wraps:-wraps]
        if more_than(_UNCOUNTED, b"[", raw) and too_deep(raw, event):
            raise ValueError
        return raw

    return whole


def _most_levels(dumps: Dumps) -> int:
    """How many lists inside each other `dumps` takes; 0 where it seems to take any number."""
    value: object = 0
    for levels in range(_MOST_LEVELS):
        try:
            dumps(value)
        except Exception:  # noqa: BLE001 - whatever it raises, that is its end
            return levels - 1
        value = [value]
    return 0
