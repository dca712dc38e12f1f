"""`Span`: the object that the stages pass on, its size in memory, and its JSON. No I/O, no clock.

`input`, `output` and `data` are the agent's own JSON bytes, never parsed into objects or rebuilt.
"""

from collections.abc import Sequence
from enum import IntFlag
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias

import msgspec

# Bytes of a queued span besides its payloads: the object, its strings, its entries in two lanes.
# tracemalloc on CPython 3.11 reports about 900.
SPAN_OVERHEAD = 1024

Payload: TypeAlias = Literal["input", "output", "data"]
PAYLOADS: tuple[Payload, ...] = ("input", "output", "data")
DATA = 1 << PAYLOADS.index("data")
ALL_PAYLOADS = (1 << len(PAYLOADS)) - 1
_NULL = b"null"
_text = msgspec.json.encode
_size = attrgetter("size")

Key = tuple[str, ...]


class Lanes(IntFlag):
    """One bit per upstream; the spool's rows store them: never change their meaning.

    Masks are kept as plain integers, because operations on an `IntFlag` are slow.
    """

    AGENTEX = 1
    SGP = 2
    OTLP = 4


# The lanes that what came by an SDK's route is for. The lowest bit is that of the SDK's own API. An
# SDK that writes to both APIs sends each span twice, so only one of its routes has other lanes.
AGENTEX_ROUTE, SGP_ROUTE = int(Lanes.AGENTEX), int(Lanes.SGP | Lanes.OTLP)
# With those of earlier versions, which are in spools and dead letters.
SDK_LANES = frozenset({AGENTEX_ROUTE, SGP_ROUTE, int(Lanes.SGP)})


class SdkFields(NamedTuple):
    """What makes a span differ from an event, which goes to every lane.

    `lanes`: the bits of the lanes that it is for, one of `SDK_LANES`. `extra`: raw members of an
    SGP item that have no field in `Span`, as an SDK sent them; or `SUPPLEMENT`.
    """

    lanes: int
    extra: bytes = b""

    @property
    def api(self) -> int:
        """The bit of the API whose SDK sent it."""
        return self.lanes & -self.lanes


# A write that only adds payloads to a span that the upstream has already (queue/supplement.py).
SUPPLEMENT = b'"supplement":true'


class Stored(msgspec.Struct, gc=False, eq=False):
    """What the spool knows of a span that has a row; there is none without a spool.

    `row` is the row's number. `pending` has the bits of the lanes that have not settled it, and
    `put_off`, for an open write, those of the lanes that have only its number. `replaced`: a newer
    write of the span takes its place. `unreadable`: the row is damaged. `dropped` has the bits of
    the `PAYLOADS` that are no longer in memory, of `dropped_bytes` together. `bytes` is what the
    row takes on disk.
    """

    row: int
    pending: int = -1
    put_off: int = 0
    replaced: bool = False
    unreadable: bool = False
    dropped: int = 0
    dropped_bytes: int = 0
    bytes: int = 0


class Span(msgspec.Struct, gc=False, eq=False):
    """What an agent said about one span: open (only its START is known) or complete.

    `key` is its identity, see `span_key`. Payloads are raw JSON bytes, empty for null. `size` is
    its bytes in memory, `accepted_at` the loop time of its 202. `sdk` is None for an event, which
    goes to every lane. `lanes` has the bits of the lanes that take it, -1 for all lanes. `account`
    is the number of its account (accounts.py). All lanes share the object: `holders` is its
    reference count for `MemoryBudget`.
    """

    key: Key
    name: str
    start_time: str
    end_time: str | None
    parent_id: str | None
    task_id: str | None
    input: bytes
    output: bytes
    data: bytes
    accepted_at: float
    size: int = 0
    sdk: SdkFields | None = None
    stored: Stored | None = None
    holders: int = 0
    lanes: int = -1
    account: int = 0

    @property
    def id(self) -> str:
        return self.key[1]

    @property
    def trace_id(self) -> str:
        return self.key[0]

    @property
    def join_key(self) -> Key:
        """Joins END and START; per API for SDKs, which may post a span to each."""
        return self.key if self.sdk is None else (*self.key, f"lane {self.sdk.api}")

    @property
    def kind(self) -> str:
        """`open` or `complete`."""
        return "open" if self.end_time is None else "complete"

    @property
    def pending(self) -> int:
        """The bits of the lanes that it has to be written to."""
        return self.lanes if self.stored is None else self.lanes & self.stored.pending

    @property
    def addressed_to(self) -> int:
        """The bits of the lanes that it is for, whether they take it or not."""
        return -1 if self.sdk is None else self.sdk.lanes

    @property
    def is_supplement(self) -> bool:
        """Whether it only adds payloads to a span that the upstream has already."""
        return self.sdk is not None and self.sdk.extra == SUPPLEMENT


def span_key(trace_id: str, id_: str, account: int = 0) -> Key:
    """The identity of a span: its trace id and id, and the number of its account unless that is 0.

    An id is unique only within its trace (docs/upstreams.md S1.4.8), and within its account (D25).
    """
    return (trace_id, id_, f"account {account}") if account else (trace_id, id_)


def account_of(key: Key) -> int:
    """The number of the account in a `span_key`."""
    return int(key[2].removeprefix("account ")) if len(key) > 2 else 0  # noqa: PLR2004


def measure(span: Span) -> int:
    """Bytes of `span` in memory."""
    trace_id = span.key[0]
    chars = len(span.name) + len(trace_id) + len(span.parent_id or "") + len(span.task_id or "")
    payloads = len(span.input) + len(span.output) + len(span.data)
    if span.sdk is not None:
        payloads += len(span.sdk.extra)
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
    trace_id, id_ = span.key[:2]
    return b"".join(
        (
            b'{"id":',
            _text(id_),
            b',"trace_id":',
            _text(trace_id),
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
    sdk = span.sdk
    if sdk is None:
        return body
    return b'%b,"route":%d,"extra":{%b}}' % (body[:-1], sdk.lanes, sdk.extra)


def from_row(body: bytes, accepted_at: float, account: int = 0) -> Span:
    """The span that `to_row` encoded. `accepted_at` is loop time in seconds."""
    wire = _ROW.decode(body)
    payloads = [bytes(getattr(wire, field)) for field in PAYLOADS]
    input_, output, data = (b"" if raw == _NULL else raw for raw in payloads)
    span = Span(
        span_key(wire.trace_id, wire.id, account),
        wire.name,
        wire.start_time,
        wire.end_time,
        wire.parent_id,
        wire.task_id,
        input_,
        output,
        data,
        accepted_at,
        sdk=SdkFields(wire.route, bytes(wire.extra)[1:-1]) if wire.route else None,
        lanes=wire.route or -1,
        account=account,
    )
    span.size = measure(span)
    return span


def payloads_in_memory(span: Span) -> int:
    """Bits of the `PAYLOADS` that are set and in memory."""
    return bool(span.input) | bool(span.output) << 1 | bool(span.data) << 2


def missing_payloads(span: Span) -> int:
    """Bits of the `PAYLOADS` that an END takes from its START, where the START has them."""
    return ~payloads_in_memory(span)


def shared_payloads(span: Span, start: Span) -> int:
    """Bits of the `PAYLOADS` that are equal in both and not empty."""
    shared = 0
    for index, field in enumerate(PAYLOADS):
        payload = getattr(span, field)
        if payload and payload == getattr(start, field):
            shared |= 1 << index
    return shared


def copy_payloads(span: Span, start: Span, which: int) -> None:
    """Copy the payloads with a bit in `which` from `start` to `span`."""
    for index, field in enumerate(PAYLOADS):
        if which >> index & 1:
            setattr(span, field, getattr(start, field))
    span.size = measure(span)


def drop_payloads(span: Span, stored: Stored) -> None:
    """Drop from memory the payloads of a span that is on disk as `stored`."""
    stored.dropped |= payloads_in_memory(span)
    stored.dropped_bytes += len(span.input) + len(span.output) + len(span.data)
    span.input = span.output = span.data = b""
    span.size = measure(span)


def total_size(spans: Sequence[Span]) -> int:
    """Total bytes of `spans` in memory."""
    total: int = sum(map(_size, spans))
    return total
