"""One configured value: what is taken for it, and the words for one that is not.

A value is TOML from a file, or the text of a variable. Other spellings are taken where they can
mean one thing only: `INFO`, `warn`, `yes`, `"30s"`, `"64Mi"`, `"8318"`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from typing import Any
from urllib.parse import unquote

from msgspec import inspect

from sidecar.credentials import Secret, is_header_safe

# By the unit in lower case. "Mi" is Kubernetes' spelling. "M" is none: it is 10^6 there, and 2^20
# elsewhere.
_SIZE_UNITS = {"": 1, "b": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("kmgt", 1)
    for end, base in (("ib", 1024), ("i", 1024), ("b", 1000))
}
_TIME_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_QUANTITY = re.compile(rf"({_NUMBER.pattern})\s*([a-z]*)", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_MAX_SHOWN = 40
_MIN_WORD = 3  # letters of a choice that is cut short, such as "warn"
# difflib's ratio from which a name is similar: about one character in four may be wrong.
_SIMILAR = 0.75


# A header's name (RFC 9110, 5.6.2), and those that describe a request: its client sets them.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CLIENTS_OWN = frozenset(
    "accept accept-encoding connection content-encoding content-length content-type expect host "  # noqa: SIM905
    "keep-alive te trailer transfer-encoding upgrade".split()
)


class HeaderError(ValueError):
    """A header that can't be sent; the text has no value of any in it."""


class Size(int):
    """A number of bytes, configured as `"64MiB"`; `"auto"`, where allowed, is -1."""

    @classmethod
    def parse(cls, value: object) -> "Size":
        """Parse a configured value; raises `ValueError`."""
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        if isinstance(value, str) and value.strip().lower() == "auto":
            return AUTO
        return cls(_quantity(value, _SIZE_UNITS))

    def __str__(self) -> str:
        """The size in the largest unit that divides it evenly; `parse` accepts it."""
        if self == AUTO:
            return "auto"
        for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
            if self and not int(self) % 2**power:
                return f"{int(self) // 2**power}{unit}"
        return f"{int(self)}B"


AUTO = Size(-1)


def utf8(text: str) -> str:
    """Without surrogates, which stand for bytes that are not UTF-8, or that the locale lacks."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def convert(kind: inspect.Type, value: object) -> Any:  # noqa: ANN401 (a value of that type)
    """Convert a configured value to a key's type; raises `ValueError`, which says what is taken."""
    try:
        return _parse(kind, value)
    except HeaderError:
        raise
    except (ValueError, OverflowError):  # of a number beyond all bounds
        message = f"{_shown(kind, value)} is not {description(kind)}"
        raise ValueError(message + did_you_mean(_meant(kind, value))) from None


def description(kind: inspect.Type) -> str:  # noqa: C901, PLR0911 (one for each type)
    """What a key of this type takes, as the end of a sentence."""
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            *others, last = (json.dumps(each) for each in _words(kind))
            return f"{', '.join(others)} or {last}" if others else last
        case inspect.UnionType(types):
            return ", ".join(map(description, types))
        case inspect.IntType(ge=least, le=most):
            return "a whole number " + (f"from {least} to {most}" if most else f"from {least} up")
        case inspect.FloatType(gt=above):
            return (
                f'a number of seconds, {"from 0 up" if above is None else "above 0"}, such as "30s"'
            )
        case inspect.VarTupleType(inspect.LiteralType() as choice):
            return f"a list of {description(choice)}, each at most once"
        case inspect.DictType():
            return 'a table of names and values, such as { authorization = "..." }'
        case inspect.VarTupleType():
            return 'a list of texts in quotes, such as ["127.0.0.1", "::1"]'
        case inspect.CustomType(cls) if cls is Size:
            return 'a size such as "64MiB"'
        case inspect.CustomType():
            return "text of printable ASCII characters"
    return "text in quotes"


def nearest(name: str, names: Mapping[str, str]) -> str:
    """The value in `names` whose key is most similar to `name`, or "" if none is similar."""
    found = get_close_matches(name, names, 1, _SIMILAR)
    return names[found[0]] if found else ""


def did_you_mean(name: str) -> str:
    """The end of a message about an unknown name; `name` is the nearest real one, or ""."""
    return f"; did you mean {name}?" if name else ""


def _parse(kind: inspect.Type, value: Any) -> object:  # noqa: ANN401, C901, PLR0911 (one for each type)
    match kind:
        case inspect.BoolType():
            return value if isinstance(value, bool) else _choice(value, _BOOLEANS)
        case inspect.LiteralType():
            return _choice(value, {each: each for each in _words(kind)})
        case inspect.UnionType((first, second)):
            try:
                return _parse(first, value)
            except ValueError:
                return _parse(second, value)
        case inspect.IntType():
            return _within(kind, _whole(value))
        case inspect.FloatType():
            return _within(kind, _seconds(value))
        case inspect.VarTupleType(inspect.LiteralType() as choice):
            return _distinct([_parse(choice, each) for each in _texts(value)])
        case inspect.VarTupleType():
            return tuple(_texts(value))
        case inspect.DictType():
            return headers(_pairs(value))
        case inspect.CustomType(cls) if cls is Size:
            return Size.parse(value)
        case inspect.CustomType():
            return _secret(value)
    # A number can only be meant as text: an account, for example.
    return str(value) if _is_number(value) else _instance(value, str)


def _instance(value: object, kind: type) -> Any:  # noqa: ANN401 (of that type)
    if not isinstance(value, kind):
        raise ValueError(kind.__name__)  # noqa: TRY004 (as for any other bad value)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choice(value: object, choices: Mapping[str, object]) -> object:
    text = str(value) if _is_number(value) else _instance(value, str)
    text = text.strip().lower()
    begins = [each for each in choices if each.startswith(text) and len(text) >= _MIN_WORD]
    meant = [text] if text in choices else begins
    if len(meant) != 1:
        raise ValueError("not a choice")
    return choices[meant[0]]


def _whole(value: object) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value)
    # Templates write large numbers as 1e+06.
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not _is_number(value):
        raise ValueError("not a whole number")
    return int(_instance(value, int))


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return _quantity(value, _TIME_UNITS)


def _quantity(value: object, units: Mapping[str, float]) -> float:
    match = _QUANTITY.fullmatch(_instance(value, str).strip().lower())
    if match is None or match[2] not in units:
        raise ValueError("not a number with a unit")
    return float(match[1]) * units[match[2]]


def _within(kind: inspect.IntType | inspect.FloatType, number: float) -> float:
    low = (kind.gt is not None and number <= kind.gt) or (kind.ge is not None and number < kind.ge)
    if low or (kind.le is not None and number > kind.le) or not isfinite(number):
        raise ValueError("out of range")
    return number


def _texts(value: object) -> Iterable[str]:
    """The texts of a list, or of a variable, where they are separated by commas."""
    if isinstance(value, str):
        # Without blank ones: to listen on "" is to listen on every address.
        return [each.strip() for each in value.split(",") if each.strip()]
    return [_instance(each, str) for each in _instance(value, list)]


def _distinct(values: Sequence[object]) -> tuple[object, ...]:
    if len(set(values)) < len(values):
        raise ValueError("one of them is there twice")
    return tuple(values)


def headers(pairs: Iterable[tuple[str, str]]) -> dict[str, Secret]:
    """The headers with these names and values, the names in lower case; raises `HeaderError`."""
    found: dict[str, Secret] = {}
    for number, (name, text) in enumerate(pairs, 1):
        lower = name.strip().lower()
        if not _TOKEN.fullmatch(lower):  # it may be part of a secret
            raise HeaderError(f"the name of header {number} is not that of an HTTP header")
        if lower in _CLIENTS_OWN:
            raise HeaderError(f"{lower} is set by the sidecar itself: leave it out")
        if lower in found:
            raise HeaderError(f"{lower} is there twice: leave one out")
        if not is_header_safe(text.strip()) or not text.strip():
            raise HeaderError(f"the value of {lower} must be printable ASCII, and not empty")
        found[lower] = Secret(text.strip())
    return found


def _pairs(value: object) -> Iterable[tuple[str, str]]:
    """Names and values: of a table, or of a variable, where OpenTelemetry percent-encodes them."""
    if not isinstance(value, str):
        table = _instance(value, dict)
        return [(name, _instance(text, str)) for name, text in table.items()]
    parts = [each.partition("=") for each in value.split(",") if each.strip()]
    # Without a name, what is in front of the padding of base64 would be taken for one, and shown.
    if not all(equals and text.strip() not in {"=", "=="} for _, equals, text in parts):
        raise HeaderError("each header must be NAME=VALUE, with commas between them")
    return [(name, unquote(text)) for name, _, text in parts]


def _secret(value: object) -> Secret:
    text = (str(value) if _is_number(value) else _instance(value, str)).strip()
    if not is_header_safe(text):
        raise ValueError("not printable ASCII")
    return Secret(text)


def _shown(kind: inspect.Type, value: object) -> str:
    """The value in a message, unless it may be secret, as text may: a URL has a password in it."""
    choosing = isinstance(kind, inspect.BoolType | inspect.LiteralType | inspect.UnionType)
    measuring = isinstance(kind, inspect.IntType | inspect.FloatType)
    if choosing or measuring or (isinstance(kind, inspect.CustomType) and kind.cls is Size):
        if isinstance(value, str | int | float):
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}..."'
        if isinstance(value, dict):
            return "a table"
        return "a list" if isinstance(value, list) else "a date or a time"
    return "the value"


def _meant(kind: inspect.Type, value: object) -> str:
    if not isinstance(kind, inspect.LiteralType) or not isinstance(value, str):
        return ""
    return nearest(value.strip().lower(), {each: json.dumps(each) for each in _words(kind)})


def _words(kind: inspect.LiteralType) -> list[str]:
    return [str(each) for each in kind.values]
