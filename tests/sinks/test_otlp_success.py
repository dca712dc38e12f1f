"""What a success of OTLP says that it did not keep, however long its message is."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sidecar.sinks.otlp_message import rejected_spans


@pytest.mark.parametrize("rejected", [1, 200, 70_000])
def test_a_message_of_any_length(rejected: int) -> None:
    """A length that looks like the beginning of JSON is none."""
    for length in range(300):
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = "x" * length
        assert rejected_spans(response.SerializeToString()) == rejected
