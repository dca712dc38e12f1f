"""Joins an END with its START: fills in what the END leaves out."""

from sidecar.spans.raw_json import merged
from sidecar.spans.span import Span, measure


def signature(span: Span) -> int:
    """Hash of an END as it arrived; never 0."""
    extra = b"" if span.sdk is None else span.sdk.extra
    return hash((span.end_time, span.input, span.output, span.data, span.name, extra)) or 1


def fill(span: Span, start: Span) -> int:
    """Fill in what `span` leaves out from its earlier event `start`.

    Returns the signature of `span` as it arrived if a payload was filled in, else 0. A repeat
    of such an END is recognized by this signature.
    """
    span.parent_id = span.parent_id or start.parent_id
    span.task_id = span.task_id or start.task_id
    merge_data = (
        span.merges_data and span.data != start.data and span.data[:1] == start.data[:1] == b"{"
    )
    if not (
        merge_data
        or (start.input and not span.input)
        or (start.output and not span.output)
        or (start.data and not span.data)
    ):
        return 0
    as_arrived = signature(span)
    span.input = span.input or start.input
    span.output = span.output or start.output
    span.data = merged(start.data, span.data) if merge_data else span.data or start.data
    span.size = measure(span)
    return as_arrived
