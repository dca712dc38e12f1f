"""Encodes spans as an OTLP request, `ExportTraceServiceRequest`. Pure.

A span is encoded by OpenTelemetry's own package, but for attributes that are JSON text: they are
framed here and joined into the body, so that payloads are copied once. Protobuf allows it: fields
may come in any order, and concatenated fields are one message.

Importing this loads protobuf, 2.3 MiB: only for an OTLP lane that is on (DECISIONS.md 54).
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from sidecar.sinks.otlp_mapping import Json, Mapped
from sidecar.spans.decode import NOT_DECODED

# The tags of length-delimited fields: the field's number, and 2 for its wire type.
_REQUEST_RESOURCE_SPANS = 1 << 3 | 2
_RESOURCE = 1 << 3 | 2  # in ResourceSpans
_SCOPE_SPANS = 2 << 3 | 2
_SCOPE = 1 << 3 | 2  # in ScopeSpans
_SPAN = 2 << 3 | 2
_ATTRIBUTE = 9 << 3 | 2  # in Span
_KEY = 1 << 3 | 2  # in KeyValue
_VALUE = 2 << 3 | 2
_TEXT = 1 << 3 | 2  # in AnyValue


class _PartialSuccess(msgspec.Struct, rename="camel", frozen=True):
    rejected_spans: int | str = 0  # 64 bits, so JSON's form of protobuf has it as a string


class _Response(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess = _PartialSuccess()


_RESPONSE = msgspec.json.Decoder(_Response)


class Encoder:
    """Encodes requests. `resource`: attributes of what the spans come from.

    `scope` and `version` name what made the spans.
    """

    def __init__(self, resource: Mapping[str, str], scope: str, version: str) -> None:
        made = Resource()
        for name, text in resource.items():
            made.attributes.add(key=name).value.string_value = text
        encoded = InstrumentationScope(name=scope, version=version).SerializeToString()
        self._resource = _field(_RESOURCE, made.SerializeToString())
        self._scope = _field(_SCOPE, encoded)

    def parts(self, spans: Iterable[Mapped]) -> list[Json]:
        """The parts of one request's body, in order; of none, an empty request."""
        fields: list[Json] = []
        size = 0
        for span in spans:
            inside = _span_parts(span)
            length = sum(map(len, inside))
            head = _head(_SPAN, length)
            fields += (head, *inside)
            size += len(head) + length
        if not fields:
            return []
        size += len(self._scope)
        scope_spans = _head(_SCOPE_SPANS, size)
        size += len(self._resource) + len(scope_spans)
        head = _head(_REQUEST_RESOURCE_SPANS, size)
        return [head, self._resource, scope_spans, self._scope, *fields]


def rejected_spans(body: bytes) -> int:
    """How many spans a success says that it rejects: `partial_success`, in protobuf or JSON.

    0 if it says nothing that we understand: some servers answer with a text of their own.
    """
    # Protobuf first: it begins with what is a newline in JSON, and "{" may be the length after it.
    with suppress(DecodeError):
        response = ExportTraceServiceResponse.FromString(body)
        return max(0, response.partial_success.rejected_spans)
    with suppress(ValueError, *NOT_DECODED):
        return max(0, int(_RESPONSE.decode(body).partial_success.rejected_spans))
    return 0


def _span_parts(span: Mapped) -> list[Json]:
    message = SpanMessage(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        name=span.name,
        kind=SpanMessage.SPAN_KIND_INTERNAL,
        start_time_unix_nano=span.start,
        end_time_unix_nano=span.end,
    )
    if span.error is not None:
        message.status.code = Status.STATUS_CODE_ERROR
        message.status.message = span.error
    if span.link is not None:
        message.links.add(trace_id=span.link[0], span_id=span.link[1])
    texts: list[Json] = []
    add = message.attributes.add
    for name, value in span.attributes.items():
        if isinstance(value, str):
            add(key=name).value.string_value = value
        elif isinstance(value, bool):
            add(key=name).value.bool_value = value
        elif isinstance(value, int):
            add(key=name).value.int_value = value
        elif isinstance(value, float):
            add(key=name).value.double_value = value
        else:
            texts += _text_attribute(name, value)
    return [message.SerializeToString(), *texts]


def _text_attribute(name: str, text: Json) -> tuple[bytes, Json]:
    """An attribute whose value is `text`, which is valid UTF-8: its head, and `text` itself."""
    key = _field(_KEY, name.encode())
    value = _head(_TEXT, len(text))
    inside = key + _head(_VALUE, len(value) + len(text)) + value
    return _head(_ATTRIBUTE, len(inside) + len(text)) + inside, text


def _field(tag: int, content: bytes) -> bytes:
    return _head(tag, len(content)) + content


def _head(tag: int, length: int) -> bytes:
    """A field's tag and the length of its content, as a varint."""
    head = [tag]
    while length > 0x7F:  # noqa: PLR2004 (seven bits a byte)
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head)
