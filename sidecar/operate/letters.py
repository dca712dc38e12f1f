"""Reads a dead-letter file for `sidecar replay` and `sidecar explain`.

A line that is not a dead letter, such as one that a full disk cut short, is reported on standard
error and counted; the others are read all the same. So is a letter that could cost others their
request: its event is not what an agent could have sent. No content is ever printed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from sidecar.config import ConfigError
from sidecar.credentials import is_header_safe
from sidecar.lanes import UPSTREAMS
from sidecar.process.terminal import complain
from sidecar.sinks.dead_letters import Head
from sidecar.sinks.replayed import Place, known_by
from sidecar.spans.decode import NOT_DECODED
from sidecar.spans.span import PAYLOADS, SDK_LANES, Span, from_row
from sidecar.spans.validation import FieldError, validated_payload

_SINKS = {each.name for each in UPSTREAMS}
# The lanes that a write can be for: all, or those of an SDK's route.
_LANES = {-1, *SDK_LANES}


class _Event(msgspec.Struct):
    event_type: Literal["start", "end"]
    span: msgspec.Raw


class _Line(Head, kw_only=True):
    event: _Event


class _Extra(msgspec.Struct):
    extra: dict[str, msgspec.Raw] = {}  # joined into a request as it is


class Letter(NamedTuple):
    """A dead letter: its metadata, its write, and where its line is."""

    head: Head
    span: Span
    place: Place

    def __str__(self) -> str:
        """What, where and why, never the content."""
        head, span, _ = self
        kind = "start" if span.end_time is None else "end"
        hidden = f"  (without {', '.join(head.hidden)})" if head.hidden else ""
        return (
            f"{head.time}  {head.sink:8} {head.reason:10} {head.status or '-':>4}  "
            f"{kind:5}  {span.id}{hidden}"
        )


_LINE = msgspec.json.Decoder(_Line)
_EXTRA = msgspec.json.Decoder(_Extra)


def read(
    path: str,
    sink: str | None,
    counts: Counter[str],
    number_of: Callable[[str], int] = lambda _: 0,
) -> Iterator[Letter]:
    """Yield the letters of one sink or of all, oldest first.

    Other lines are counted in `counts["unreadable"]`. `number_of` returns the number of the account
    with an id. Raises ConfigError when the file can't be used.
    """
    try:
        with Path(path).open("rb") as file:
            end, known = 0, ""
            for number, line in enumerate(file, 1):
                known = known or known_by(line)
                start, end = end, end + len(line)
                if not line.strip():
                    continue
                try:
                    letter = _decoded(line, number_of, Place(known, start, end))
                except ValueError as error:
                    counts["unreadable"] += 1
                    complain(f"{path}:{number}: {error}")
                    continue
                if sink in {None, letter.head.sink}:
                    yield letter
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _decoded(line: bytes, number_of: Callable[[str], int], place: Place) -> Letter:
    """Raises ValueError, whose text says what is wrong, without content."""
    try:
        line.decode()
        letter = _LINE.decode(line)
    except NOT_DECODED:
        raise ValueError("not a dead letter") from None
    # Without the event: its bytes need not stay in memory twice.
    head = Head(**{name: getattr(letter, name) for name in Head.__struct_fields__})
    if head.sink not in _SINKS:
        raise ValueError("a dead letter of an unknown sink")
    if not is_header_safe(head.account):
        raise ValueError("a dead letter with an invalid account")
    raw = bytes(letter.event.span)
    try:
        _EXTRA.decode(raw)
        span = from_row(raw, 0.0, number_of(head.account))
        for field in PAYLOADS:
            validated_payload(msgspec.Raw(getattr(span, field) or b"null"), field)
    except (*NOT_DECODED, FieldError):
        raise ValueError("a dead letter whose event can't be decoded") from None
    kind = "start" if span.end_time is None else "end"
    if span.addressed_to not in _LANES or kind != letter.event.event_type:
        raise ValueError("a dead letter whose event can't be decoded")
    return Letter(head, span, place)
