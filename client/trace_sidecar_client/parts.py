"""Encodes a value in parts, when it can't be encoded as a whole.

Either a part of it is odd: then that part is replaced, and the rest still goes to the encoder in
pieces that are as large as possible. Or it is too large: then its beginning is kept, strings and
containers are cut, and a marker says how much is missing.
"""

import json
import math
import time
from collections.abc import Callable
from itertools import islice
from json.encoder import encode_basestring
from typing import Any

from .budget import Budget, TooMuch
from .forms import SLOW_SECONDS, form_or_marker, key_text, marker, replace_surrogates
from .interrupts import is_interrupt

# Each level uses three calls, and Python's recursion limit is 1,000.
_MAX_LEVELS = 100
# The members that are tried together, at first.
_CHUNK = 256
# Containers up to this length are tried as a whole at each so many levels only: if the reason is
# far below them, each attempt takes as long to fail.
_SHORT = 8
_STRIDE = 10
# Room for a marker.
_MARKER_BYTES = 64

# The others keep their share of the time, if it is more than this, when a member takes too long.
_MIN_SHARE_S = 0.001

# Encodes a value as a whole, within a budget and inside so many containers, or raises.
Whole = Callable[[Any, Budget, int], bytes]


class Parts:
    """Encodes one value. `only_objects`: whether it became an array of objects and nothing else.

    `cut`: it is too large, so each member gets at most half of what is left, but the last one all.
    """

    def __init__(self, whole: Whole, budget: Budget, *, cut: bool) -> None:
        self._whole = whole
        self._budget = budget
        self._cut = cut
        self._ancestors: set[int] = set()
        self.only_objects = False

    def encode(self, value: Any, limit: int, level: int = 0) -> bytes:  # noqa: ANN401 - any value
        """Encode `value`, inside `level` containers, in about `limit` bytes or less."""
        if type(value) is str:
            return _text(value, limit)
        if type(value) in _ATOMS:
            return _atom(value)
        if id(value) in self._ancestors:
            return b'"<cycle>"'
        if level >= _MAX_LEVELS:
            return b'"<nested too deep>"'
        if self._budget.exhausted:
            return b'"<too large>"'
        return self._nested(value, limit, level)

    def _nested(self, value: Any, limit: int, level: int) -> bytes:  # noqa: ANN401 - any value
        self._ancestors.add(id(value))
        try:
            if type(value) is dict:
                return self._object(value, limit, level)
            if type(value) in _CONTAINERS:
                return self._array(value, limit, level)
            started = time.monotonic()
            form = form_or_marker(value)
            self._forgive(time.monotonic() - started)
            return self.encode(form, limit, level)
        except RecursionError:
            return b'"<nested too deep>"'
        finally:
            self._ancestors.discard(id(value))

    def _part(self, value: Any, limit: int, level: int) -> bytes:  # noqa: ANN401 - any value
        """Encode `value` as a whole, or else in parts."""
        if type(value) in _CONTAINERS and (len(value) > _SHORT or level % _STRIDE == 0):
            try:
                return self._try(value, limit, level)
            except TooMuch:
                self._cut = True
            except Exception as error:  # the agent's objects may raise anything
                if is_interrupt(error):
                    raise
        return self.encode(value, limit, level)

    def _try(self, value: Any, limit: int, level: int) -> bytes:  # noqa: ANN401 - any value
        started, share = time.monotonic(), self._budget.seconds / 2
        try:
            return self._whole(value, Budget(limit, share), level)
        finally:
            self._forgive(time.monotonic() - started - share)

    def _forgive(self, late: float) -> None:
        """Don't let the other members suffer from a slow class, which is called only once."""
        if late > SLOW_SECONDS:
            self._budget.deadline += late

    def _array(self, value: list[Any] | tuple[Any, ...], limit: int, level: int) -> bytes:
        # A copy, because another thread may be adding to the list; without what can't fit.
        items = list(value[:limit])
        pieces, done = self._pieces(items, limit, level, list, self._part)
        if done < len(value):
            pieces.append(b'"<%d more items>"' % (len(value) - done))
        if level == 0:
            self.only_objects = all(piece[:1] == b"{" for piece in pieces)
        return b"[%b]" % b",".join(pieces)

    def _object(self, value: dict[Any, Any], limit: int, level: int) -> bytes:
        members = list(islice(dict.items(value), limit))
        pieces, done = self._pieces(members, limit, level, dict, self._member)
        if done < len(value):
            pieces.append(b'"...":"<%d more members>"' % (len(value) - done))
        return b"{%b}" % b",".join(pieces)

    def _member(self, member: tuple[Any, Any], limit: int, level: int) -> bytes:
        name, value = member
        key = _text(key_text(name), limit)
        return b"%b:%b" % (key, self._part(value, limit - len(key), level))

    def _pieces(
        self,
        members: list[Any],
        limit: int,
        level: int,
        container: Callable[[list[Any]], Any],
        encode_one: Callable[[Any, int, int], bytes],
    ) -> tuple[list[bytes], int]:
        """Encode members, many at once where that works; also returns how many are encoded."""
        pieces: list[bytes] = []
        growth = 2 if len(members) > _SHORT else 1
        at, chunk = 0, _CHUNK if growth > 1 else 1
        while at < len(members):
            if limit < _MARKER_BYTES or self._budget.exhausted:
                break
            if chunk > 1:
                try:
                    raw = self._try(container(members[at : at + chunk]), limit, level)[1:-1]
                except Exception as error:  # the agent's objects may raise anything
                    if is_interrupt(error):
                        raise
                    chunk //= 2
                    continue
            elif self._cut and at + 1 < len(members):
                # The others get at least as much, of the time too.
                share = self._budget.seconds / 2
                self._budget.deadline -= share
                raw = encode_one(members[at], limit // 2, level + 1)
                late = max(0.0, -self._budget.seconds) if share > _MIN_SHARE_S else 0.0
                self._budget.deadline += share + late
            else:
                raw = encode_one(members[at], limit, level + 1)
            at = min(at + chunk, len(members))
            chunk *= growth
            pieces.append(raw)
            limit -= len(raw) + 1
        return pieces, at


_CONTAINERS = frozenset({dict, list, tuple})
_ATOMS = frozenset({int, float, bool, type(None)})


def _atom(value: float | None) -> bytes:
    if isinstance(value, float) and not math.isfinite(value):
        return b"null"
    try:
        return json.dumps(value).encode()
    except ValueError as error:  # an integer of more than 4,300 digits
        return encode_string(marker(value, error))


def _text(value: str, limit: int) -> bytes:
    """A JSON string of up to `limit` bytes."""
    limit = max(limit, 0)
    raw = encode_string(value[:limit])
    if len(raw) <= limit and len(value) <= limit:
        return raw
    # A character may take several bytes.
    kept = limit * limit // max(len(raw), limit, 1)
    return encode_string(f"{value[:kept]}...<{len(value)} characters>")


def encode_string(value: str) -> bytes:
    """A JSON string; lone surrogates become U+FFFD."""
    try:
        return encode_basestring(value).encode()
    except UnicodeEncodeError:
        return encode_basestring(replace_surrogates(value)).encode()
