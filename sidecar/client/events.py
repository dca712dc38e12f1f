"""The START and the END of a span as the sidecar takes them: one line of JSON each.

In: an object with the attributes of the Agentex SDK's `Span`. Out: bytes, made at the call, because
an agent goes on changing its span. Source: contracts/ingest.md.

An END always carries everything. Its input could be left out where the START had the same, but that
START may be lost with a sidecar, or have gone to another pod's (Temporal); see docs/client.md.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from .values import Dumps, payload, text

Kind = Literal["start", "end"]

_START, _END = b'{"event_type":"start","span":{"id":', b'{"event_type":"end","span":{"id":'


def event(kind: Kind, span: Any, dumps: Dumps) -> bytes:  # noqa: ANN401 - any SDK's span
    """One event; an END without an end time ends now, and none ends before it started."""
    start = span.start_time
    parts = [
        _START if kind == "start" else _END,
        text(span.id),
        b',"trace_id":',
        text(span.trace_id),
        b',"name":',
        text(span.name),
        b',"start_time":',
        _time(start),
    ]
    if kind == "end":
        parts += [b',"end_time":', _time(_not_before(start, span.end_time))]
    if span.parent_id:
        parts += [b',"parent_id":', text(span.parent_id)]
    if span.task_id:
        parts += [b',"task_id":', text(span.task_id)]
    if span.input is not None:
        parts += [b',"input":', payload(span.input, dumps)]
    if span.output is not None:
        parts += [b',"output":', payload(span.output, dumps)]
    if span.data is not None:
        parts += [b',"data":', payload(span.data, dumps)]
    parts.append(b"}}")
    return b"".join(parts)


def _time(moment: datetime | str) -> bytes:
    return b'"%b"' % moment.isoformat().encode() if isinstance(moment, datetime) else text(moment)


def _not_before(start: datetime | str, end: datetime | str | None) -> datetime | str:
    if end is None:
        end = datetime.now(UTC)
    if isinstance(start, datetime) and isinstance(end, datetime):
        # The wall clock may be set back while a span is open; the sidecar refuses such an END.
        return max(_aware(start), _aware(end))
    return end


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
