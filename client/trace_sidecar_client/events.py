"""The START and the END of a span as the sidecar takes them: one line of JSON each.

In: an object with the attributes of the Agentex SDK's `Span`. Out: bytes, made at the call, because
an agent goes on changing its span. Source: contracts/ingest.md.

An END always carries everything. Its input could be left out where the START had the same, but that
START may be lost with a sidecar, or have gone to another pod's (Temporal); see docs/client.md.
"""

from datetime import UTC, datetime
from typing import Any, Literal

from .engines import Engine
from .values import payload, text

Kind = Literal["start", "end"]

_TEXT = frozenset({str})
_UTC = datetime.max.replace(tzinfo=UTC)
_START, _END = b'{"event_type":"start","span":{"id":', b'{"event_type":"end","span":{"id":'


def event(kind: Kind, span: Any, engine: Engine) -> bytes:  # noqa: ANN401 - any SDK's span
    """One event; an END without an end time ends now, and none ends before it started."""
    if engine.whole is not None:
        try:
            plain = _plain(kind, span)
            if plain is not None:
                return engine.whole(plain)
        except Exception:  # noqa: BLE001, S110 - field by field, what is odd costs itself only
            pass
    dumps = engine.dumps
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


def _plain(kind: Kind, span: Any) -> dict[str, Any] | None:  # noqa: ANN401 - as above
    """The event as one object; None where a field has no form of its own that the sidecar takes."""
    fields: dict[str, Any] = {"id": span.id, "trace_id": span.trace_id, "name": span.name}
    if span.parent_id:
        fields["parent_id"] = span.parent_id
    if span.task_id:
        fields["task_id"] = span.task_id
    if not _TEXT.issuperset(map(type, fields.values())):
        return None
    fields["start_time"] = span.start_time
    if kind == "end":
        fields["end_time"] = _not_before(span.start_time, span.end_time)
    for name, value in (("input", span.input), ("output", span.output), ("data", span.data)):
        if value is not None:
            if type(value) is not dict and not _is_objects(value):
                return None
            fields[name] = value
    # Only of these do all encoders write the same text.
    if fields["start_time"].tzinfo is not UTC or fields.get("end_time", _UTC).tzinfo is not UTC:
        return None
    return {"event_type": kind, "span": fields}


def _is_objects(value: object) -> bool:
    return type(value) is list and all(type(item) is dict for item in value)


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
