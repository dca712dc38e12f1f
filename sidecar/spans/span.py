"""Spans as they wait: what every part hands to the next. No I/O, no clock.

`input`, `output` and `data` are the agent's own JSON bytes, never parsed and never rebuilt.
"""

from collections.abc import Sequence
from operator import attrgetter

import msgspec

# What a waiting span costs beside its payloads: the object, its texts, its places in two lanes.
# Measured with tracemalloc on CPython 3.11: about 900 bytes.
SPAN_OVERHEAD = 1024

PAYLOADS = ("input", "output", "data")
DATA_BIT = 4
_NULL = b"null"
_text = msgspec.json.encode
_size = attrgetter("size")


Key = tuple[str, ...]


class Span(msgspec.Struct, gc=False, eq=False):
    """One span: open (a START alone) or complete (it has its `end_time`).

    Payloads are raw JSON bytes, empty for null. `size` is the bytes it holds in memory,
    `accepted_at` the loop time of its 202. It is shared by all lanes; `holders` counts the places
    that hold it, `open_sent_to` has the bit of each lane that already sent an open write of it.
    """

    id: str
    trace_id: str
    name: str
    start_time: str
    end_time: str | None
    parent_id: str | None
    task_id: str | None
    input: bytes
    output: bytes
    data: bytes
    accepted_at: float
    size: int
    holders: int = 0
    open_sent_to: int = 0
    # With a spool: its row there, 0 for none; the bits of the lanes that owe it to their upstream;
    # how many of them have it on disk only; which payloads are on disk only (bits of `PAYLOADS`).
    seq: int = 0
    lanes: int = -1
    lanes_on_disk: int = 0
    payloads_on_disk: int = 0
    # The bit of the one lane it was sent to, by an SDK that speaks that upstream's own API; 0 for
    # an event, which is for every lane. `extra`: the members of an SGP item that have no field
    # here, as they came.
    route: int = 0
    extra: bytes = b""
    # Bytes of the payloads that are on disk only.
    stored: int = 0
    # Its `data` is laid over that of its START, instead of taking its place.
    merges: bool = False

    @property
    def key(self) -> Key:
        """What makes it this span: ids are unique in a trace only (docs/upstreams.md S1.4.8)."""
        return self.trace_id, self.id

    @property
    def join_key(self) -> Key:
        """What its START and its END share: an SDK may tell each upstream the same span."""
        if not self.route:
            return self.trace_id, self.id
        return self.trace_id, self.id, f"lane {self.route}"

    @property
    def kind(self) -> str:
        """`open` or `complete`."""
        return "open" if self.end_time is None else "complete"


def measure(span: Span) -> int:
    """Bytes that `span` holds in memory."""
    texts = (
        len(span.name) + len(span.trace_id) + len(span.parent_id or "") + len(span.task_id or "")
    )
    payloads = len(span.input) + len(span.output) + len(span.data) + len(span.extra)
    # Ordinary texts are in the overhead; a character takes up to 4 bytes.
    return SPAN_OVERHEAD + payloads + (4 * texts if texts > SPAN_OVERHEAD else 0)


class WireSpan(msgspec.Struct, gc=False):
    """A span as JSON has it; the payloads borrow the bytes they were decoded from."""

    id: str
    trace_id: str
    name: str
    start_time: str
    end_time: str | None = None
    parent_id: str | None = None
    task_id: str | None = None
    input: msgspec.Raw = msgspec.Raw(_NULL)
    output: msgspec.Raw = msgspec.Raw(_NULL)
    data: msgspec.Raw = msgspec.Raw(_NULL)


class _Row(WireSpan, gc=False):
    route: int = 0
    extra: msgspec.Raw = msgspec.Raw(b"{}")


_ROW = msgspec.json.Decoder(_Row)


def to_json(span: Span, leave_out: int = 0) -> bytes:
    """The span as its ten keys, null where unset, as the SDK sends it (docs/upstreams.md A8.2).

    Joined from bytes: payloads are not rebuilt. `leave_out`: bits of `PAYLOADS` to be null.
    """
    return b"".join(
        (
            b'{"id":',
            _text(span.id),
            b',"trace_id":',
            _text(span.trace_id),
            b',"name":',
            _text(span.name),
            b',"start_time":',
            _text(span.start_time),
            b',"end_time":',
            _text(span.end_time),
            b',"parent_id":',
            _text(span.parent_id),
            b',"task_id":',
            _text(span.task_id),
            b',"input":',
            _NULL if leave_out & 1 else span.input or _NULL,
            b',"output":',
            _NULL if leave_out & 2 else span.output or _NULL,
            b',"data":',
            _NULL if leave_out & 4 else span.data or _NULL,
            b"}",
        )
    )


def to_row(span: Span, leave_out: int = 0) -> bytes:
    """As `to_json`, with all that `from_row` needs to make the same span of it."""
    body = to_json(span, leave_out)
    if not span.route:
        return body
    return b'%b,"route":%d,"extra":{%b}}' % (body[:-1], span.route, span.extra)


def from_row(body: bytes, accepted_at: float) -> Span:
    """The span that `to_row` wrote, accepted at that loop time."""
    wire = _ROW.decode(body)
    payloads = [bytes(getattr(wire, field)) for field in PAYLOADS]
    input_, output, data = (b"" if raw == _NULL else raw for raw in payloads)
    span = Span(
        wire.id,
        wire.trace_id,
        wire.name,
        wire.start_time,
        wire.end_time,
        wire.parent_id,
        wire.task_id,
        input_,
        output,
        data,
        accepted_at,
        size=0,
        lanes=wire.route or -1,
        route=wire.route,
        extra=bytes(wire.extra)[1:-1],
    )
    span.size = measure(span)
    return span


def which_payloads(span: Span) -> int:
    """The bits of the `PAYLOADS` that `span` has in memory."""
    return bool(span.input) | bool(span.output) << 1 | bool(span.data) << 2


def adds_nothing(span: Span, earlier: Span) -> bool:
    """Whether the END `span` is the END `earlier` again, and less of it.

    An SDK sends it once more when an answer got lost: thin, because what it was filled with was the
    START's, which is gone by then.
    """
    if span.end_time is None or span.end_time != earlier.end_time:
        return False
    there = which_payloads(earlier) | earlier.payloads_on_disk
    return bool(there & ~(which_payloads(span) | span.payloads_on_disk))


def shared_payloads(span: Span, start: Span) -> int:
    """The bits of the `PAYLOADS` that are the same in both, and not empty."""
    shared = 0
    for place, field in enumerate(PAYLOADS):
        payload = getattr(span, field)
        if payload and payload == getattr(start, field):
            shared |= 1 << place
    return shared


def fill_payloads(span: Span, start: Span, which: int) -> None:
    """Give `span` the payloads of `start` that `which` has the bits of."""
    for place, field in enumerate(PAYLOADS):
        if which >> place & 1:
            setattr(span, field, getattr(start, field))
    span.size = measure(span)


def drop_payloads(span: Span) -> None:
    """Let the payloads of `span` be on disk only."""
    span.payloads_on_disk |= which_payloads(span)
    span.stored += len(span.input) + len(span.output) + len(span.data)
    span.input = span.output = span.data = b""
    span.size = measure(span)


def restore_payloads(span: Span, stored: Span) -> None:
    """Give `span` the payloads that `stored` brought back from disk."""
    span.input, span.output, span.data = stored.input, stored.output, stored.data
    span.payloads_on_disk = span.stored = 0
    span.size = measure(span)


def total_size(spans: Sequence[Span]) -> int:
    """Bytes that `spans` hold together."""
    return sum(map(_size, spans))
