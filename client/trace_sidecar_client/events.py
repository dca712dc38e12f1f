"""The START and the END of a span as the sidecar takes them: one line of JSON each.

In: an object with the attributes of the Agentex SDK's `Span`. Out: bytes, made at the call, because
an agent goes on changing its span. Source: contracts/ingest.md.

An END always carries everything. Its input could be left out where the START had the same, but that
START may be lost with a sidecar, or have gone to another pod's (Temporal); see docs/client.md.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from .encoders import Encoder
from .values import encode_payload, encode_text

Kind = Literal["start", "end"]

_STR_ONLY = frozenset({str})
_START_PREFIX = b'{"event_type":"start","span":{"id":'
_END_PREFIX = b'{"event_type":"end","span":{"id":'


def encode_event(kind: Kind, span: Any, encoder: Encoder) -> bytes:  # noqa: ANN401 - any SDK's span
    """One event; an END without an end time ends now, and none ends before it started."""
    if encoder.dumps_event is not None:
        try:
            fields = _as_dict(kind, span)
            if fields is not None:
                return encoder.dumps_event(fields)
        except Exception:  # noqa: BLE001, S110 - field by field, what is odd costs itself only
            pass
    dumps = encoder.dumps
    start = span.start_time
    parts = [
        _START_PREFIX if kind == "start" else _END_PREFIX,
        encode_text(span.id),
        b',"trace_id":',
        encode_text(span.trace_id),
        b',"name":',
        encode_text(span.name),
        b',"start_time":',
        _encode_time(start),
    ]
    if kind == "end":
        parts += [b',"end_time":', _encode_time(_valid_end_time(start, span.end_time))]
    if span.parent_id:
        parts += [b',"parent_id":', encode_text(span.parent_id)]
    if span.task_id:
        parts += [b',"task_id":', encode_text(span.task_id)]
    if span.input is not None:
        parts += [b',"input":', encode_payload(span.input, dumps)]
    if span.output is not None:
        parts += [b',"output":', encode_payload(span.output, dumps)]
    if span.data is not None:
        parts += [b',"data":', encode_payload(span.data, dumps)]
    parts.append(b"}}")
    return b"".join(parts)


def _as_dict(kind: Kind, span: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as above
    """The event as one object; None where a field has no form of its own that the sidecar takes."""
    fields: dict[str, Any] = {"id": span.id, "trace_id": span.trace_id, "name": span.name}
    if span.parent_id:
        fields["parent_id"] = span.parent_id
    if span.task_id:
        fields["task_id"] = span.task_id
    if not _STR_ONLY.issuperset(map(type, fields.values())):
        return None
    fields["start_time"] = span.start_time
    if kind == "end":
        fields["end_time"] = _valid_end_time(span.start_time, span.end_time)
    for name, value in (("input", span.input), ("output", span.output), ("data", span.data)):
        if value is not None:
            if type(value) is not dict and not _is_list_of_dicts(value):
                return None
            fields[name] = value
    # Only of these do all encoders write the same text.
    if fields["start_time"].tzinfo is not UTC:
        return None
    if kind == "end" and fields["end_time"].tzinfo is not UTC:
        return None
    return {"event_type": kind, "span": fields}


def _is_list_of_dicts(value: object) -> bool:
    return type(value) is list and all(type(item) is dict for item in value)


def _encode_time(moment: datetime | str) -> bytes:
    if isinstance(moment, datetime):
        return b'"%b"' % moment.isoformat().encode()
    return encode_text(moment)


def _valid_end_time(start: datetime | str, end: datetime | str | None) -> datetime | str:
    if end is None:
        end = datetime.now(UTC)
    if isinstance(start, datetime) and isinstance(end, datetime):
        # The wall clock may be set back while a span is open; the sidecar refuses such an END.
        return max(_with_utc(start), _with_utc(end))
    return end


def _with_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
