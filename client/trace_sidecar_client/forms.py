"""The JSON form of objects that encoders don't know: numbers, text, lists or dicts.

Only one level is converted: the encoder comes back for what is inside. Code of the agent's own
classes, such as a `__repr__`, can't be interrupted. So a class whose code was slow once is not
called again for a while.
"""

import base64
import codecs
import dataclasses
import math
import time
from array import array
from collections import UserString, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import islice
from pathlib import PurePath
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from .budget import CUT_BYTES, MAX_BYTES, MAX_NODES, TooMuch, check_size, fields_of, is_model
from .interrupts import is_interrupt

MAX_REPR = 1000
SLOW_SECONDS = 0.25
_AVOID_SECONDS = 60.0
# The elements of an array or the cells of a table; larger ones are cut to a part of about the
# second size.
_MAX_CELLS = 10_000
_CUT_CELLS = 1_000

# What is kept of larger bytes: as base64, it is within `CUT_BYTES`.
_CUT_BYTES = CUT_BYTES // 4
# NumPy's kinds of dates and durations.
_TIMES = frozenset("mM")

Convert = Callable[[Any], object]

# Until when the code of a class is not called, on the monotonic clock.
_avoided: "WeakKeyDictionary[type, float]" = WeakKeyDictionary()
# Loads the codec now: a child that is forked in the middle of an import could never finish it.
codecs.lookup("utf-16")
_type_name = type.__dict__["__name__"].__get__


class TooSlow(Exception):
    """The class of an object took too long before."""


def form_or_marker(value: object) -> object:
    """The JSON form of `value`, or a marker if its code fails. Raises interrupts only."""
    try:
        form = _form(value)
        return replace_surrogates(form) if type(form) is str else form
    except BaseException as error:  # a `__repr__` may even raise SystemExit
        if is_interrupt(error):
            raise
        return marker(value, error)


def marker(value: object, error: BaseException) -> str:
    """What stands in place of a value that can't be converted."""
    return replace_surrogates(f"<{_type_name(type(value))}: {_type_name(type(error))}>")


def _form(value: Any) -> object:  # noqa: ANN401 - any value
    kind: Any = type(value)
    convert, is_builtin = _converter(kind)
    if is_builtin:
        return convert(value)
    now = time.monotonic()
    if _avoided.get(kind, now) > now:
        raise TooSlow
    try:
        return convert(value)
    finally:
        done = time.monotonic()
        if done - now > SLOW_SECONDS:
            _avoided[kind] = done + _AVOID_SECONDS


@lru_cache(maxsize=256)
def _converter(kind: Any) -> tuple[Convert, bool]:  # noqa: ANN401 - a type
    """What converts instances of `kind`, and whether that runs no code of the agent's."""
    for base, convert in _BUILTIN:
        if issubclass(kind, base):
            return convert, True
    return next(convert for applies, convert in _OBJECTS if applies(kind)), False


def _bytes_as_text(value: Any) -> str:  # noqa: ANN401 - bytes, bytearray or memoryview
    view = memoryview(value)
    cut = view.nbytes > MAX_BYTES
    if not cut:
        head = view.tobytes()
    elif view.c_contiguous:
        head = view.cast("B")[:_CUT_BYTES].tobytes()
    else:
        raise TooMuch
    try:
        # Not final if it was cut, perhaps in the middle of a character.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=not cut)
    except UnicodeDecodeError:
        text = base64.b64encode(head).decode()
    return f"{text}...<{view.nbytes} bytes>" if cut else text


def _head(values: Iterable[Any]) -> list[Any]:
    return list(islice(values, MAX_NODES))


def _taken(values: Iterable[Any]) -> list[Any]:
    """The members of a collection of the agent's own, as far as there is time."""
    deadline = time.monotonic() + SLOW_SECONDS
    taken: list[Any] = []
    for value in islice(values, MAX_NODES):
        taken.append(value)
        if time.monotonic() > deadline:
            break
    return taken


def _array_form(value: Any) -> object:  # noqa: ANN401 - an array or a scalar of any library
    """Numbers in nested lists, as NumPy, PyTorch and pandas give them; a large array is cut."""
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tuple):
        return _other_form(value)
    whole = math.prod(shape) <= _MAX_CELLS
    if whole:
        part = value
    elif len(shape) == 1:
        part = value[:_CUT_CELLS]
    else:
        edge = max(1, int(_CUT_CELLS ** (1 / len(shape))))
        part = value[(slice(edge),) * len(shape)]
    dtype = getattr(value, "dtype", "")
    if getattr(dtype, "kind", "") in _TIMES:
        # As numbers they would have no unit.
        part = part.astype(str)
    cells = part.tolist()
    if type(cells) is type(value):
        return float(cells)  # a long double
    return cells if whole else {"shape": list(shape), "dtype": str(dtype), "head": cells}


def _table_form(value: Any) -> object:  # noqa: ANN401 - a data frame
    """The rows of a pandas data frame; a large one is cut."""
    rows, columns = value.shape
    if rows * columns <= _MAX_CELLS:
        return value.to_dict(orient="records")
    head = value.iloc[: max(1, _CUT_CELLS // columns), :_CUT_CELLS]
    return {"shape": [rows, columns], "head": head.to_dict(orient="records")}


def _model_form(value: Any) -> object:  # noqa: ANN401 - a pydantic model
    check_size(fields_of(value), MAX_BYTES)
    return value.model_dump() if hasattr(type(value), "model_dump") else value.dict()


def _fields(names: Iterable[str], value: object) -> object:
    return {name: getattr(value, name, None) for name in names}


def _other_form(value: Any) -> object:  # noqa: ANN401 - any object
    if callable(value) and hasattr(value, "__qualname__"):
        return f"<function {value.__qualname__}>"
    return repr(value)[:MAX_REPR]


def _has(*names: str) -> Callable[[type], bool]:
    return lambda kind: all(hasattr(kind, name) for name in names)


# Their own methods, whatever a subclass overrides.
_BUILTIN: tuple[tuple[Any, Convert], ...] = (
    (Enum, lambda value: value.value),
    (str, str.__str__),
    (bool, bool),
    (int, int.__int__),
    (float, float.__float__),
    (dict, lambda value: dict(dict.items(value))),
    (list, lambda value: list(list.__iter__(value))),
    (tuple, lambda value: list(tuple.__iter__(value))),
    ((set, frozenset, deque, range), _head),
    ((bytes, bytearray, memoryview), _bytes_as_text),
    (array, lambda value: value[:MAX_NODES].tolist()),
    ((datetime, date, time_of_day), lambda value: value.isoformat()),
    ((UUID, Decimal, PurePath, timedelta, UserString), str),
)
# By what a class has, so that the client depends on none of these libraries.
_OBJECTS: tuple[tuple[Callable[[type], bool], Convert], ...] = (
    (lambda kind: issubclass(kind, AbstractSet | ValuesView | Sequence), _taken),
    (lambda kind: issubclass(kind, Mapping), lambda value: dict(_taken(value.items()))),
    (lambda kind: issubclass(kind, type), lambda value: f"<class {value.__qualname__}>"),
    (is_model, _model_form),
    (
        dataclasses.is_dataclass,
        lambda value: _fields([each.name for each in dataclasses.fields(value)], value),
    ),
    (
        _has("__attrs_attrs__"),
        lambda value: _fields([each.name for each in value.__attrs_attrs__], value),
    ),
    (_has("__struct_fields__"), lambda value: _fields(value.__struct_fields__, value)),
    (_has("tolist"), _array_form),
    (_has("to_dict", "iloc"), _table_form),
    (lambda _: True, _other_form),
)


def replace_surrogates(value: str) -> str:
    """Replace every lone surrogate with U+FFFD."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def key_text(name: object) -> str:
    """The text of a dict's key: as JSON has it for numbers and None, else as for a value."""
    try:
        return replace_surrogates(_key_text(name))
    except BaseException as error:
        if is_interrupt(error):
            raise
        return marker(name, error)


def _key_text(name: object) -> str:
    form = name if type(name) in _KEYS else _form(name)
    if type(form) is str:
        return form
    if form is None or (type(form) is float and not math.isfinite(form)):
        return "null"
    if type(form) is bool:
        return "true" if form else "false"
    return str(form) if type(form) in _KEYS else repr(name)[:MAX_REPR]


_KEYS = frozenset({str, int, float, bool, type(None)})
