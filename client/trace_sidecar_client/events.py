"""Encodes the START or END of a span as the sidecar accepts it (docs/api.md): one line of JSON.

In: an object with the attributes of the Agentex SDK's `Span`. Out: bytes, encoded during the call,
because the agent keeps changing its span.

An END repeats every field, although the sidecar could fill them in from the START: the START may
have been lost with a sidecar or have reached another pod's sidecar, as with Temporal activities
(docs/client.md).
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
    """Encode one event. A span without an end time ends now; no span ends before it starts."""
    if encoder.dumps_event is not None:
        try:
            fields = _as_dict(kind, span)
            if fields is not None:
                return encoder.dumps_event(fields)
        except Exception:  # noqa: BLE001, S110 - encoded field by field below
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
    """The event as a dict; None if a field needs converting before the sidecar accepts it."""
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
    # Encoders agree only on the format of UTC times.
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
        # The wall clock may be set back while a span is open; the sidecar rejects such an END.
        return max(_with_utc(start), _with_utc(end))
    return end


def _with_utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
