"""Finds the fastest JSON encoder in the agent's environment: orjson or `json`.

Both get the same options as far as they have them. What remains different, an encoder raises for,
and `parts` takes over: integers of more than 64 bits, NaN, lone surrogates, keys of other types.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from .forms import replace_surrogates

Form: TypeAlias = Callable[[Any], object]
# Encodes a value, with the form of each object that it doesn't know; raises if it can't.
Encoder: TypeAlias = Callable[[Any, Form], bytes]


def _in_sandbox() -> bool:
    """Whether this is Temporal's sandbox, which imports the client for each workflow.

    Nothing is encoded there, and a process that imported orjson so often crashed at its end.
    """
    workflow = sys.modules.get("temporalio.workflow")
    return workflow is not None and bool(workflow.unsafe.in_sandbox())


def _imported() -> Any:  # noqa: ANN401 - a module
    """orjson, if it is installed.

    Imported with the client: a child that another thread forks in the middle of an import could
    never finish it, and a signal handler that traces would find half a module.
    """
    try:
        return None if _in_sandbox() else import_module("orjson")
    except Exception:  # noqa: BLE001 - an ImportError, or what a sandbox raises
        return None


def _fastest() -> Encoder:
    orjson = _imported()
    if orjson is None:
        return json_encoder
    dumps: Callable[[Any, Form, int], bytes] = orjson.dumps
    # `json` has no form for these, or another one. At Python's recursion limit, orjson 3.13 crashes
    # on a datetime.
    options = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS
    options |= orjson.OPT_PASSTHROUGH_DATETIME
    any_keys = options | orjson.OPT_NON_STR_KEYS

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


_FASTEST = _fastest()


def default_encoder() -> Encoder:
    """The fastest encoder that is installed."""
    return _FASTEST
