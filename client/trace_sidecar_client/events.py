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
from .repeats import Payloads, recall, remember
from .values import encode_payload, encode_text

Kind = Literal["start", "end"]

_START_PREFIX = b'{"event_type":"start","span":{"id":'
_END_PREFIX = b'{"event_type":"end","span":{"id":'


def encode_event(kind: Kind, span: Any, encoder: Encoder) -> bytes:  # noqa: ANN401 - any SDK's span
    """Encode one event. A span without an end time ends now; no span ends before it starts."""
    span_id, start = span.id, span.start_time
    parts = [
        _START_PREFIX if kind == "start" else _END_PREFIX,
        encode_text(span_id),
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
    before = recall(span_id) if kind == "end" and type(span_id) is str else {}
    payloads: Payloads = {}
    for field, value in (("input", span.input), ("output", span.output), ("data", span.data)):
        if value is not None:
            payload = payloads[field] = encode_payload(value, encoder, before.get(field))
            parts += [b',"%b":' % field.encode(), payload.raw]
    if kind == "start" and type(span_id) is str:
        remember(span_id, payloads)
    parts.append(b"}}")
    return b"".join(parts)


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
