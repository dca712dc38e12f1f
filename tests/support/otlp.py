"""A stand-in for an OTLP receiver, which reads with OpenTelemetry's own package."""

import gzip
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias, Unpack

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from sidecar.demo.bodies import digest_of
from sidecar.demo.stand_in import Answer, Options, Recorded, Refusal, StandIn
from sidecar.sinks.otlp import OtlpSink
from tests.support.upstream_connection import new_client

PROTOBUF = "application/x-protobuf"
Value: TypeAlias = str | bool | int | float
Attributes: TypeAlias = dict[str, Value]


class OtlpStandIn(StandIn):
    """An OTLP receiver at `{url}{prefix}/v1/traces`.

    `spans` holds the newest message of each span by its id as the agent sent it, `resources` the
    attributes of each request's resource. `headers`: what a request needs to have, or gets a 401.
    `bad`: a request with a span for which it is true is refused with 400. `rejected`: spans for
    which it is true are not kept, and counted in `partial_success`.
    """

    def __init__(
        self,
        *,
        prefix: str = "",
        headers: Mapping[str, str] | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        self.prefix = prefix
        self.headers = headers or {}
        self.bad: Callable[[Span], bool] = lambda _: False
        self.rejected: Callable[[Span], bool] = lambda _: False
        self.spans: dict[str, Span] = {}
        self.resources: list[Attributes] = []

    def reply(self, request: Recorded) -> Answer:
        """Keep the request's spans, and say how many were not kept."""
        if any(request.headers.get(name) != text for name, text in self.headers.items()):
            raise Refusal(Answer(401))
        if request.path != f"{self.prefix}/v1/traces":
            raise Refusal(Answer(404))
        if request.headers.get("Content-Type") != PROTOBUF:
            raise Refusal(Answer(415))
        message = decoded(request)
        spans = spans_in(message)
        if any(map(self.bad, spans)):
            raise Refusal(Answer(400))
        self.resources += [attributes(each.resource.attributes) for each in message.resource_spans]
        ids = [span_id(span) for span in spans]
        self.duplicates_in_batch += len(ids) - len(set(ids))
        kept = {id_: span for id_, span in zip(ids, spans, strict=True) if not self.rejected(span)}
        self.spans |= kept
        for id_ in kept:
            self.wrote(id_, complete=True)
        return answer(sum(map(self.rejected, spans)))

    def reply_lightly(self, request: Recorded) -> Answer:
        """Count the writes."""
        for span in spans_in(decoded(request)):
            if sent := text_of(span, "input.value"):
                self.digests[span_id(span)] = digest_of(sent.encode())
            self.wrote(span_id(span), complete=True)
        return answer()


@asynccontextmanager
async def sink_for(
    url: str, outcomes: list[str], *, compress: bool = False, **headers: str
) -> AsyncIterator[OtlpSink]:
    """A sink that sends to `url`; `headers` are its credentials."""
    sink = OtlpSink(
        new_client(url, outcomes, max_requests=4, **headers),
        max_batch=500,
        max_batch_bytes=2**20,
        resource={"service.name": "agent"},
        compress=compress,
        account_id={0: "", 1: "one"}.__getitem__,
    )
    try:
        yield sink
    finally:
        await sink.close()


def answer(rejected: int = 0, message: str = "") -> Answer:
    """A success, partial if spans were rejected."""
    response = ExportTraceServiceResponse()
    if rejected or message:
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = message
    return Answer(200, response.SerializeToString(), {"Content-Type": PROTOBUF})


def decoded(request: Recorded) -> ExportTraceServiceRequest:
    """The message of a request; raises `Refusal` if there is none."""
    zipped = request.headers.get("Content-Encoding") == "gzip"
    try:
        body = gzip.decompress(request.body) if zipped else request.body
        return ExportTraceServiceRequest.FromString(body)
    except (OSError, EOFError, DecodeError):
        raise Refusal(Answer(400)) from None


def spans_in(message: ExportTraceServiceRequest) -> list[Span]:
    """All spans of a request."""
    return [
        span
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def span_id(span: Span) -> str:
    """The span's id as the agent sent it."""
    return text_of(span, "agentex.span_id")


def text_of(span: Span, name: str) -> str:
    """An attribute that is a string, "" if there is none."""
    return next((pair.value.string_value for pair in span.attributes if pair.key == name), "")


def attributes(pairs: Iterable[KeyValue]) -> Attributes:
    """Attributes as a mapping; fails if a key is there twice."""
    found: Attributes = {}
    for pair in pairs:
        assert pair.key not in found, "a key is there twice"
        found[pair.key] = value(pair.value)
    return found


def value(sent: AnyValue) -> Value:
    """The Python value of a scalar attribute."""
    which = sent.WhichOneof("value")
    assert which in {"string_value", "bool_value", "int_value", "double_value"}, which
    found: Value = getattr(sent, which)
    return found
