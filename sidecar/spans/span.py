"""`Span`: the object that the stages pass on, its size in memory, and its JSON. No I/O, no clock.

`input`, `output` and `data` are the agent's own JSON bytes, never parsed into objects or rebuilt.
"""

from collections.abc import Sequence
from operator import attrgetter

import msgspec

# Bytes of a queued span besides its payloads: the object, its strings, its entries in two lanes.
# tracemalloc on CPython 3.11 reports about 900.
SPAN_OVERHEAD = 1024

PAYLOADS = ("input", "output", "data")
DATA_BIT = 4
_NULL = b"null"
_text = msgspec.json.encode
_size = attrgetter("size")


Key = tuple[str, ...]


class Span(msgspec.Struct, gc=False, eq=False):
    """One span: open (only its START is known) or complete (it has an `end_time`).

    Payloads are raw JSON bytes, empty for null. `size` is its bytes in memory, `accepted_at` the
    loop time of its 202. All lanes share the object: `holders` is its reference count for
    `MemoryBudget`, `open_sent_to` has the bits of the lanes that have sent an open write of it.
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
    # With a spool: its row number, 0 for none; the bits of the lanes that have not settled it; how
    # many of those have it only on disk; which payloads are only on disk (bits of `PAYLOADS`).
    seq: int = 0
    lanes: int = -1
    lanes_on_disk: int = 0
    payloads_on_disk: int = 0
    # The bit of the only lane it is for, if an SDK posted it to that upstream's API; 0 for an
    # event, which goes to every lane. `extra`: raw members of an SGP item that have no field here.
    route: int = 0
    extra: bytes = b""
    # Bytes of the payloads that are only on disk.
    bytes_on_disk: int = 0
    # Whether its `data` is merged into that of its START instead of replacing it.
    merges_data: bool = False

    @property
    def key(self) -> Key:
        """Its identity: an id is unique only within its trace (docs/upstreams.md S1.4.8)."""
        return self.trace_id, self.id

    @property
    def join_key(self) -> Key:
        """Joins END and START; per lane for SDKs, which may post a span to each upstream."""
        if not self.route:
            return self.trace_id, self.id
        return self.trace_id, self.id, f"lane {self.route}"

    @property
    def kind(self) -> str:
        """`open` or `complete`."""
        return "open" if self.end_time is None else "complete"


def measure(span: Span) -> int:
    """Bytes of `span` in memory."""
    chars = (
        len(span.name) + len(span.trace_id) + len(span.parent_id or "") + len(span.task_id or "")
    )
    payloads = len(span.input) + len(span.output) + len(span.data) + len(span.extra)
    # The overhead covers strings of ordinary length. A character takes up to 4 bytes.
    return SPAN_OVERHEAD + payloads + (4 * chars if chars > SPAN_OVERHEAD else 0)


class WireSpan(msgspec.Struct, gc=False):
    """A span as decoded from JSON. Its payloads are views into the decoded bytes."""

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
    """The span's ten JSON keys, null where unset, as the SDK sends it (docs/upstreams.md A8.2).

    Payloads are copied in as raw bytes. Those with a bit in `leave_out` (see `PAYLOADS`) are null.
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
    """`to_json`, plus what `from_row` needs to restore the span."""
    body = to_json(span, leave_out)
    if not span.route:
        return body
    return b'%b,"route":%d,"extra":{%b}}' % (body[:-1], span.route, span.extra)


def from_row(body: bytes, accepted_at: float) -> Span:
    """The span that `to_row` encoded. `accepted_at` is loop time in seconds."""
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


def payloads_in_memory(span: Span) -> int:
    """Bits of the `PAYLOADS` that are set and in memory."""
    return bool(span.input) | bool(span.output) << 1 | bool(span.data) << 2


def is_partial_duplicate(span: Span, earlier: Span) -> bool:
    """Whether the END `span` repeats the END `earlier` with fewer payloads.

    An SDK sends an END again after a lost response. The first one was filled from its START; the
    repeat is not, because the START is gone by then.
    """
    if span.end_time is None or span.end_time != earlier.end_time:
        return False
    known = payloads_in_memory(earlier) | earlier.payloads_on_disk
    return bool(known & ~(payloads_in_memory(span) | span.payloads_on_disk))


def shared_payloads(span: Span, start: Span) -> int:
    """Bits of the `PAYLOADS` that are equal in both and not empty."""
    shared = 0
    for index, field in enumerate(PAYLOADS):
        payload = getattr(span, field)
        if payload and payload == getattr(start, field):
            shared |= 1 << index
    return shared


def fill_payloads(span: Span, start: Span, which: int) -> None:
    """Copy the payloads with a bit in `which` from `start` to `span`."""
    for index, field in enumerate(PAYLOADS):
        if which >> index & 1:
            setattr(span, field, getattr(start, field))
    span.size = measure(span)


def drop_payloads(span: Span) -> None:
    """Drop the payloads of `span` from memory. They must be on disk."""
    span.payloads_on_disk |= payloads_in_memory(span)
    span.bytes_on_disk += len(span.input) + len(span.output) + len(span.data)
    span.input = span.output = span.data = b""
    span.size = measure(span)


def restore_payloads(span: Span, stored: Span) -> None:
    """Put the payloads of `stored`, which was loaded from disk, back into `span`."""
    span.input, span.output, span.data = stored.input, stored.output, stored.data
    span.payloads_on_disk = span.bytes_on_disk = 0
    span.size = measure(span)


def total_size(spans: Sequence[Span]) -> int:
    """Total bytes of `spans` in memory."""
    return sum(map(_size, spans))
