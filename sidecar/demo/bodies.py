"""Inspection of JSON bodies for both stand-ins, by the real servers' rules."""

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

_MILLISECONDS_FROM = 2e10  # pydantic's rule for numbers as times
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)", re.ASCII)
# Not imported from the sidecar's validation: a shared pattern would hide an error in it.
_TEXT = re.compile(
    r"\d{4}-\d\d-\d\d"
    r"(?:[Tt _](?!24)\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:[Zz]|[+\-\N{MINUS SIGN}]\d\d:?[0-5]\d)?)?",
    re.ASCII,
)


def digest_of(raw: bytes | msgspec.Raw) -> bytes:
    """Return what `StandIn.digests` holds for a span with this `input`."""
    return hashlib.blake2b(raw, digest_size=8).digest()


class NoUtcError(ValueError):
    """A time that pydantic accepts, but whose UTC lies outside the years 1 to 9999."""


def parse_time(value: object) -> datetime:
    """Parse a time by pydantic's rules (docs/upstreams.md A11), and return it in UTC.

    Accepts ISO 8601 (naive means UTC), and Unix seconds or milliseconds as a number or a string.
    Raises ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("not a time")  # noqa: TRY004 (callers catch one type)
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return _parse_text(value)
    try:
        number = float(value)
        seconds = number / 1000 if abs(number) > _MILLISECONDS_FROM else number
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError) as error:
        raise ValueError("out of range") from error


def _parse_text(text: str) -> datetime:
    if not _TEXT.fullmatch(text):
        raise ValueError("not a time")
    time = datetime.fromisoformat(text.upper().replace("\N{MINUS SIGN}", "-"))
    if time.tzinfo is None:
        return time.replace(tzinfo=UTC)
    try:
        return time.astimezone(UTC)
    except OverflowError as error:
        raise NoUtcError("date value out of range") from error


def encodes(text: str) -> bool:
    """Whether the text encodes as UTF-8, that is, has no lone surrogate."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


class Survey(NamedTuple):
    """Properties of a JSON value."""

    depth: int  # nesting of containers
    finite: bool  # no NaN, no Infinity, no overflow such as 1e400
    encodes: bool  # no lone surrogate in values or keys


def survey(value: Any) -> Survey:  # noqa: ANN401 (JSON)
    """Survey a whole value, level by level, so that deep nesting can't overflow the stack."""
    depth, finite, clean = 0, True, True
    level = [value]
    while level:
        below: list[Any] = []
        containers = 0
        for item in level:
            match item:
                case dict():
                    containers += 1
                    below += item.values()
                    clean = clean and all(map(encodes, item))
                case list():
                    containers += 1
                    below += item
                case str():
                    clean = clean and encodes(item)
                case float():
                    finite = finite and math.isfinite(item)
        depth += containers > 0
        level = below
    return Survey(depth, finite, clean)
