"""Finds the fastest JSON encoder in the agent's environment: orjson, pydantic's, or `json`.

orjson encodes a whole event in one call. It also rejects deep nesting, but at a limit above the
sidecar's. Wrapping the event in lists uses up the difference, so no separate depth check is needed;
the extra brackets are removed afterwards.
"""

from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

from .values import MAX_NESTING, Dumps, json_default, json_dumps, occurs_more_than, too_deep

# orjson does not count a tuple nested in a tuple, so a quarter of the levels is left for those.
_UNCOUNTED_LEVELS = 50
# The event object and the span object around every field.
_EVENT_LEVELS = 2
_MAX_PROBED_DEPTH = 1000


class Encoder(NamedTuple):
    """`dumps` encodes any value. `dumps_event`, if any, encodes a whole event or raises."""

    dumps: Dumps
    dumps_event: Dumps | None = None


@cache
def default_encoder() -> Encoder:
    """The encoder for `Spans`: orjson or json, neither of which consumes iterators."""
    try:
        orjson_dumps = import_module("orjson").dumps
    except ImportError:
        return Encoder(json_dumps)

    def dumps(value: Any) -> bytes:  # noqa: ANN401 - any value
        raw: bytes = orjson_dumps(value, json_default)
        return raw

    return Encoder(dumps, with_depth_limit(dumps))


@cache
def sdk_encoder() -> Encoder:
    """The encoder for the Agentex SDK's spans. Unlike the default, it may consume iterators."""
    encoder = default_encoder()
    if encoder.dumps_event is None:
        try:
            to_json = import_module("pydantic_core").to_json
        except ImportError:
            return encoder
        return Encoder(lambda value: to_json(value, inf_nan_mode="null", fallback=json_default))
    return encoder


def with_depth_limit(dumps: Dumps) -> Dumps | None:
    """Make `dumps` raise for an event that is, or may be, nested too deep for the sidecar.

    Returns None if `dumps` itself has no nesting limit to build on, or one that is too low.
    """
    wraps = _max_depth(dumps) - _EVENT_LEVELS - (MAX_NESTING - _UNCOUNTED_LEVELS)
    if wraps <= 0:
        return None

    def dumps_event(event: Any) -> bytes:  # noqa: ANN401 - the type of `Dumps`
        wrapped = event
        for _ in range(wraps):
            wrapped = [wrapped]
        raw = dumps(wrapped)[wraps:-wraps]
        if occurs_more_than(_UNCOUNTED_LEVELS, b"[", raw) and too_deep(raw, event):
            raise ValueError
        return raw

    return dumps_event


def _max_depth(dumps: Dumps) -> int:
    """How many nested lists `dumps` accepts; 0 if there seems to be no limit."""
    value: object = 0
    for levels in range(_MAX_PROBED_DEPTH):
        try:
            dumps(value)
        except Exception:  # noqa: BLE001 - any error means the limit
            return levels - 1
        value = [value]
    return 0
