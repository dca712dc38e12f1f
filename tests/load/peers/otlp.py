"""OTLP encoded and decoded by hand, for the sender and the sink.

From opentelemetry/proto/trace/v1, both need: ExportTraceServiceRequest.resource_spans = 1,
ResourceSpans.scope_spans = 2, ScopeSpans.spans = 2; in a Span trace_id = 1, span_id = 2, name = 5,
kind = 6, start = 7 and end = 8 (fixed64), attributes = 9 (key = 1, value = 2, string_value = 1).
"""

from collections.abc import Iterator

_BYTES, _FIXED64 = 2, 1
_START_NS = 1_767_323_045_678_901_000


def export_request(spans: list[bytes]) -> bytes:
    """Encode one request with `spans`, of one resource and one scope."""
    resource = _field(1, _field(1, _text("service.name", b"agent")))
    scope = _field(1, _field(1, b"bench"))
    scope_spans = scope + b"".join(_field(2, span) for span in spans)
    return _field(1, resource + _field(2, scope_spans))


def span(number: int, name: str, attributes: dict[str, bytes]) -> bytes:
    """Encode a finished root span."""
    return b"".join(
        (
            _field(1, number.to_bytes(16)),
            _field(2, number.to_bytes(8)),
            _field(5, name.encode()),
            b"\x30\x01",
            _time(7, _START_NS),
            _time(8, _START_NS + 50_000_000),
            *(_field(9, _text(key, value)) for key, value in attributes.items()),
        )
    )


def span_ids(request: bytes) -> Iterator[bytes]:
    """Yield the span id of every span in an export request."""
    view = memoryview(request)
    for resource_spans in _within(view, 1):
        for scope_spans in _within(resource_spans, 2):
            for one in _within(scope_spans, 2):
                yield bytes(next(_within(one, 2)))


def _within(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the values of the length-delimited field `wanted`."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(message, at)
            if tag >> 3 == wanted:
                yield message[at : at + length]
            at += length
        elif kind == _FIXED64:
            at += 8
        elif kind == 0:
            _, at = _varint(message, at)
        else:
            at += 4


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _field(number: int, value: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(value)) + value


def _time(number: int, value: int) -> bytes:
    return _number(number << 3 | _FIXED64) + value.to_bytes(8, "little")


def _text(key: str, value: bytes) -> bytes:
    return _field(1, key.encode()) + _field(2, _field(1, value))


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
