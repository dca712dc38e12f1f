"""Events as agents post them, and decoded spans."""

from typing import Any

from sidecar.spans.span import Span, measure

START_TIME = "2026-01-02T03:04:05.678901+00:00"
END_TIME = "2026-01-02T03:04:06.5+00:00"


def make_event(id: str = "s1", *, kind: str = "start", **fields: Any) -> dict[str, Any]:  # noqa: A002
    """A valid START or END; `fields` override those of its span."""
    span = {"id": id, "trace_id": "t1", "name": "turn", "start_time": START_TIME}
    if kind == "end":
        span["end_time"] = END_TIME
    return {"event_type": kind, "span": span | fields}


def make_span(
    id: str = "s1",  # noqa: A002
    *,
    complete: bool = True,
    trace_id: str = "t1",
    **fields: Any,
) -> Span:
    """A decoded span; `fields` override its defaults."""
    values: dict[str, Any] = {
        "key": (trace_id, id),
        "name": "turn",
        "start_time": START_TIME,
        "end_time": END_TIME if complete else None,
        "parent_id": None,
        "task_id": None,
        "input": b'{"q":1}',
        "output": b'{"a":2}' if complete else b"",
        "data": b"",
        "accepted_at": 0.0,
    }
    if (sdk := fields.get("sdk")) is not None:
        fields = {"lanes": sdk.lanes} | fields
    span = Span(**(values | fields))
    span.size = measure(span)
    return span
