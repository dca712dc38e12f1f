"""Fills an END with what only its START has."""

from sidecar.spans.raw_json import merged
from sidecar.spans.span import Span, measure


def signature(span: Span) -> int:
    """What an END came with, as a number that is never 0."""
    return hash((span.end_time, span.input, span.output, span.data, span.name, span.extra)) or 1


def fill(span: Span, start: Span) -> int:
    """Put into `span` what it leaves out and `start` has.

    Returns the signature of what came, 0 when no payload was missing: only an END that was filled
    has to be known again, as it came.
    """
    span.parent_id = span.parent_id or start.parent_id
    span.task_id = span.task_id or start.task_id
    laid_over = span.merges and span.data != start.data and span.data[:1] == start.data[:1] == b"{"
    if not (
        laid_over
        or (start.input and not span.input)
        or (start.output and not span.output)
        or (start.data and not span.data)
    ):
        return 0
    came = signature(span)
    span.input = span.input or start.input
    span.output = span.output or start.output
    span.data = merged(start.data, span.data) if laid_over else span.data or start.data
    span.size = measure(span)
    return came
