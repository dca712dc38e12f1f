"""Finds the fastest JSON encoder in the agent's environment: orjson or `json`.

Both get the same options as far as they have them. What remains different, an encoder raises for,
and `parts` takes over: integers of more than 64 bits, NaN, lone surrogates, keys of other types.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeAlias

from .forms import replace_surrogates

Form: TypeAlias = Callable[[Any], object]
# Encodes a value, with the form of each object that it doesn't know; raises if it can't.
Encoder: TypeAlias = Callable[[Any, Form], bytes]


@cache
def default_encoder() -> Encoder:
    """The fastest encoder that is installed.

    It is imported for the first event, not with the client: in Temporal's sandbox, which imports
    the client for each workflow and never gets this far, a process that imported orjson so often
    crashed at its end.
    """
    try:
        orjson = import_module("orjson")
        dumps: Callable[[Any, Form, int], bytes] = orjson.dumps
        # `json` has no form for these, or another one. At Python's recursion limit, orjson 3.13
        # crashes on a datetime.
        options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS
        options |= orjson.OPT_PASSTHROUGH_DATETIME
        any_keys = options | orjson.OPT_NON_STR_KEYS
    except Exception:  # noqa: BLE001 - not installed, or this is a signal handler in its import
        return json_encoder

    def orjson_encoder(value: Any, form: Form) -> bytes:  # noqa: ANN401 - any value
        try:
            return dumps(value, form, options)
        except TypeError as error:
            if str(error) != "Dict key must be str":
                raise
        # Slower for string keys.
        return dumps(value, form, any_keys)

    return orjson_encoder


def json_encoder(value: Any, form: Form) -> bytes:  # noqa: ANN401 - any value
    """Encode with the standard library."""
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=form
    )
    text = encoder.encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        # Surrogates never meet those of another string: there are quotes between them.
        return replace_surrogates(text).encode()
