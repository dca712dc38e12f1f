"""The encoders that an agent may have: orjson, else pydantic's, else the standard library's.

An `Encoder` encodes any value that JSON has a form for. With orjson it also encodes a whole event
at once and without a look at how deep it is: orjson gives up at a depth of its own, which is
brought down to ours by wrapping the event in lists, whose brackets are cut off again.
"""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from .values import MAX_NESTING, Dumps, json_default, json_dumps, occurs_more_than, too_deep

# orjson does not count a tuple inside a tuple, so a quarter of all levels is left to those.
_UNCOUNTED_LEVELS = 50
# An event is an object with the span, an object, inside; its fields come below these.
_EVENT_LEVELS = 2
_MAX_PROBED_DEPTH = 1000


class Encoder(NamedTuple):
    """`whole` encodes an event, and raises where a field may be too deep; None: nothing can."""

    dumps: Dumps
    dumps_event: Dumps | None = None


@cache
def default_encoder() -> Encoder:
    """The fastest that leaves iterators alone: orjson where there is one, else json."""
    try:
        orjson_dumps = import_module("orjson").dumps
    except ImportError:
        return Encoder(json_dumps)

    def dumps(value: Any) -> bytes:  # noqa: ANN401 - whatever an agent has
        raw: bytes = orjson_dumps(value, json_default)
        return raw

    return Encoder(dumps, with_depth_limit(dumps))


@cache
def sdk_encoder() -> Encoder:
    """The fastest for the fields of a pydantic model."""
    encoder = default_encoder()
    if encoder.dumps_event is None:
        try:
            to_json = import_module("pydantic_core").to_json
        except ImportError:
            return encoder
        return Encoder(lambda value: to_json(value, inf_nan_mode="null", fallback=json_default))
    return encoder


def with_depth_limit(dumps: Dumps) -> Dumps | None:
    """`dumps` for events, raising where a field is too deep for the sidecar, or nearly so.

    None where `dumps` does not give up by itself at a depth that this could be made of.
    """
    wraps = _max_depth(dumps) - _EVENT_LEVELS - (MAX_NESTING - _UNCOUNTED_LEVELS)
    if wraps <= 0:
        return None

    def dumps_event(event: Any) -> bytes:  # noqa: ANN401 - as `Dumps` has it
        wrapped = event
        for _ in range(wraps):
            wrapped = [wrapped]
        raw = dumps(wrapped)[wraps:-wraps]
        if occurs_more_than(_UNCOUNTED_LEVELS, b"[", raw) and too_deep(raw, event):
            raise ValueError
        return raw

    return dumps_event


def _max_depth(dumps: Dumps) -> int:
    """How many lists inside each other `dumps` takes; 0 where it seems to take any number."""
    value: object = 0
    for levels in range(_MAX_PROBED_DEPTH):
        try:
            dumps(value)
        except Exception:  # noqa: BLE001 - whatever it raises, that is its end
            return levels - 1
        value = [value]
    return 0
