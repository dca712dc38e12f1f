"""What the responses of an OTLP receiver say: whether it is one, and what it did not keep."""

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from sidecar.sinks.otlp import _is_own
from sidecar.sinks.otlp_message import rejected_spans


@pytest.mark.parametrize("rejected", [1, 200, 70_000])
def test_a_message_of_any_length(rejected: int) -> None:
    """A length that looks like the beginning of JSON is none."""
    for length in range(300):
        response = ExportTraceServiceResponse()
        response.partial_success.rejected_spans = rejected
        response.partial_success.error_message = "x" * length
        assert rejected_spans(response.SerializeToString()) == rejected


@pytest.mark.parametrize("space", [b"", b"\n", b"\r\n  ", b"\n\n\t"])
def test_json_after_any_space(space: bytes) -> None:
    """JSON may begin with what is protobuf's first byte."""
    assert (
        rejected_spans(space + b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"x"}}') == 3
    )


@pytest.mark.parametrize(
    ("media_type", "says", "own"),
    [
        ("application/x-protobuf", True, True),
        ("application/protobuf", True, True),
        ("application/json", True, True),
        ("text/plain", False, True),
        ("text/plain", True, False),
        ("text/html", False, False),
    ],
)
def test_what_a_receiver_may_say(media_type: str, says: bool, own: bool) -> None:
    """Both names of protobuf, JSON, and a text only where it is no success that says something."""
    assert _is_own(media_type, says) is own
