"""Finds a span by its ids in the JSON that `to_json` makes, without decoding the rest of it."""

import re
from typing import NamedTuple, Protocol

import msgspec

from sidecar.spans.validation import MAX_ID_BYTES, MAX_REFERENCE_BYTES

_text = msgspec.json.encode
# A byte takes up to six in JSON; the names of the members, and the braces, come on top.
HEAD_BYTES = 6 * (MAX_ID_BYTES + MAX_REFERENCE_BYTES) + 512
_STRING = rb'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rb'(\{"id":%b,"trace_id":%b),"name":' % (_STRING, _STRING))


class HasIds(Protocol):
    """Whatever has the ids of a span."""

    @property
    def id(self) -> str: ...
    @property
    def trace_id(self) -> str: ...


class Ids(msgspec.Struct):
    """The ids of a span."""

    id: str
    trace_id: str


_IDS = msgspec.json.Decoder(Ids)


class Wanted(NamedTuple):
    """The id of a span, or if `or_trace` also of a trace."""

    id: str
    or_trace: bool

    @property
    def text(self) -> bytes:
        """What is in the JSON of every such span, and may be in that of others."""
        return _text(self.id)

    @property
    def of_span(self) -> bytes:
        """How the JSON of a span with this id begins."""
        return b'{"id":%b,"trace_id":' % self.text

    @property
    def of_trace(self) -> bytes:
        """What is in the head of the JSON of a span of this trace."""
        return b',"trace_id":%b,"name":' % self.text

    def matches(self, ids: HasIds) -> bool:
        """Whether a span with these ids is wanted."""
        return ids.id == self.id or (self.or_trace and ids.trace_id == self.id)


def ids_in(head: bytes) -> Ids | None:
    """The ids of the span whose JSON begins with `head`; None if it is not of that form."""
    found = _HEAD.match(head)
    try:
        return None if found is None else _IDS.decode(found[1] + b"}")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
