"""Encodes any Python value as JSON; a value that can't be encoded never affects its neighbors.

In: whatever an agent put into a span. Out: compact JSON in UTF-8 that the sidecar accepts, at most
200 levels deep and 8 MiB long. Nothing here raises or consumes an iterator, except that it lets the
user's Ctrl-C through.

A fast encoder handles nearly every value at once, after its size was checked (`budget`). It asks
`forms` for the JSON form of objects. The rest is encoded in parts (`parts`), so that only what the
encoder can't take is replaced: by its form, or by a marker such as `"<cycle>"`. NaN and infinities
become null, as in JavaScript.
"""

import re
from typing import Any, NamedTuple

from .budget import (
    CUT_BYTES,
    MAX_BYTES,
    MAX_NESTING,
    Budget,
    Fingerprint,
    TooDeep,
    TooMuch,
    check_size,
    fingerprint,
    is_same,
    may_be_deeper,
    snapshot,
)
from .encoders import Encoder
from .forms import form_or_marker
from .interrupts import is_interrupt
from .parts import Parts, encode_string

# Names and ids. The sidecar rejects an id of more than 1,024 bytes; this keeps the rest.
_MAX_TEXT = 64 * 1024
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'"{}[]'))
_STRING = re.compile(rb'"[^"]*"')
_OBJECT, _ARRAY, _NULL = b"{", b"[", b"null"
# What an object takes besides its content.
_OBJECT_BYTES = 64


class Payload(NamedTuple):
    """An encoded input, output or data. With a `fingerprint`, it can be reused for an equal one."""

    raw: bytes
    fingerprint: Fingerprint | None = None


def encode_payload(value: object, encoder: Encoder, before: Payload | None = None) -> Payload:
    """Encode an input, output or data: the sidecar accepts an object, an array of objects, or null.

    Any other list becomes `{"items": [...]}`, any other value `{"value": ...}`. Returns `before` if
    its value was the same.
    """
    # One level is left for wrapping.
    whole = _Whole(encoder, MAX_NESTING - (type(value) is not dict))
    parts = None
    try:
        try:
            raw = whole.encode(value, Budget(MAX_BYTES), before=before)
        except TooMuch:
            parts = Parts(whole.encode, Budget(CUT_BYTES), cut=True)
            raw = parts.encode(value, CUT_BYTES)
        except Exception as error:  # the agent's objects may raise anything
            if whole.is_interrupted(error):
                raise
            parts = Parts(whole.encode, Budget(MAX_BYTES), cut=False)
            raw = parts.encode(value, MAX_BYTES)
    except Exception as error:  # the last resort
        if whole.is_interrupted(error):
            raise
        raw = encode_string(f"<not encodable: {type(error).__name__}>")
    if whole.unchanged is not None:
        return whole.unchanged
    first = raw[:1]
    if first == _ARRAY and not (_is_list_of_dicts(value) and (not parts or parts.only_objects)):
        raw = b'{"items":%b}' % raw
    elif first not in {_OBJECT, _ARRAY} and raw != _NULL:
        raw = b'{"value":%b}' % raw
    return Payload(raw, None if parts else whole.fingerprint)


def _is_list_of_dicts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(type(item) is dict for item in value)


def encode_text(value: object) -> bytes:
    """Encode `value` as a JSON string; uses `str` for other types."""
    if type(value) is not str:
        try:
            value = str(value)
        except BaseException as error:  # a `__str__` may even raise SystemExit
            if is_interrupt(error):
                raise
            value = str(form_or_marker(value))
    return encode_string(value[:_MAX_TEXT])


class _Whole:
    """Encodes values as a whole, if their size and nesting are within the limits."""

    def __init__(self, encoder: Encoder, nesting: int) -> None:
        self._encoder = encoder
        self._nesting = nesting
        self._budget = Budget(0)
        self._interrupt: BaseException | None = None
        self.fingerprint: Fingerprint | None = None
        self.unchanged: Payload | None = None

    def is_interrupted(self, error: Exception) -> bool:
        """Whether `error` is an interrupt, which the agent must see."""
        return error is self._interrupt or is_interrupt(error)

    def encode(
        self, value: object, budget: Budget, level: int = 0, before: Payload | None = None
    ) -> bytes:
        """Encode `value`, inside `level` containers. Raises whatever prevents that."""
        self._budget, limit = budget, budget.bytes
        self._check_size(value, limit)
        if before is not None and is_same(before.fingerprint, self.fingerprint):
            self.unchanged = before
            return before.raw
        try:
            raw = self._encoder(value, self._form)
        except Exception as error:
            # The encoder may have replaced what `_form` raised.
            if self._interrupt is not None:
                raise self._interrupt from None
            if is_interrupt(error):
                raise
            if budget.exhausted:
                raise TooMuch from None
            raise
        if len(raw) > limit:
            raise TooMuch
        self._check_nesting(value, raw, self._nesting - level)
        return raw

    def _check_size(self, value: object, limit: int) -> None:
        self.fingerprint = None
        try:
            self.fingerprint = snapshot(value, limit) or fingerprint(value, limit)
        except TooMuch:
            raise
        except Exception as error:  # for many reasons, and then this decides
            if is_interrupt(error):
                raise
            check_size(value, limit)

    def _form(self, value: Any) -> object:  # noqa: ANN401 - any value
        """The encoder calls this for objects that it doesn't know."""
        try:
            form = form_or_marker(value)
        except BaseException as interrupt:
            self._interrupt = interrupt
            raise
        left = self._budget.bytes
        # What a subclass of these contains was checked with the value that it is in.
        if not isinstance(value, (dict, list, tuple)):
            left = check_size(form, left)
        self._budget.spend(self._budget.bytes - left + _OBJECT_BYTES)
        return form

    def _check_nesting(self, value: object, raw: bytes, nesting: int) -> None:
        if len(raw) <= 2 * nesting:
            return
        if isinstance(self.fingerprint, tuple):
            return  # too few parts
        if self.fingerprint is not None and not may_be_deeper(value, nesting):
            return
        if _is_deeper(raw, nesting):
            raise TooDeep


def _is_deeper(raw: bytes, levels: int) -> bool:
    """Whether `raw` is nested more than `levels` deep."""
    if raw.count(_OBJECT) + raw.count(_ARRAY) <= levels:
        return False
    # Remove escapes, then all but quotes and brackets, then strings: only the structure is left.
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NOT_STRUCTURE)
    bare = _STRING.sub(b"", bare).translate(bytes.maketrans(b"[]", b"{}"))
    for _ in range(levels):
        if not bare:
            return False
        bare = bare.replace(b"{}", b"")
    return bool(bare)
