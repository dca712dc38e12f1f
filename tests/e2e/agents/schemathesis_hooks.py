"""What schemathesis has to know about the agents' port that docs/openapi.json can't say.

schemathesis imports this module; see test_openapi.py.
"""

import json
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import schemathesis  # type: ignore[import-not-found]
from hypothesis import strategies as st

LINES = "application/x-ndjson"
# The limits of docs/api.md in bytes, where JSON Schema counts characters.
MAX_BYTES = {
    "id": 256,
    "group_id": 256,
    "trace_id": 1024,
    "parent_id": 1024,
    "task_id": 1024,
}
TIMES = (("start_time", "end_time"), ("start_timestamp", "end_timestamp"))
SPAN = {"trace_id": "lines", "name": "one of several", "start_time": "2026-03-01T09:00:00Z"}


def events(ids: list[str]) -> bytes:
    """Return one START per line."""
    made = ({"event_type": "start", "span": SPAN | {"id": id_}} for id_ in ids)
    return b"".join(json.dumps(event).encode() + b"\n" for event in made)


schemathesis.openapi.media_type(LINES, st.lists(st.uuids().map(str), min_size=1).map(events))


@schemathesis.serializer(LINES)  # type: ignore[untyped-decorator, unused-ignore]
def lines(_: object, value: object) -> bytes:
    """Send the text of an example, or what `events` made, as it is."""
    return value if isinstance(value, bytes) else str(value).encode()


def instant(text: str) -> datetime:
    """Parse a time; without an offset it is UTC. Raises `ValueError`."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def keep_rules(span: dict[str, Any]) -> None:
    """Put the times of a valid span in order, and shorten ids that are too long in UTF-8."""
    for start, end in TIMES:
        if isinstance(span.get(end), str) and instant(span[end]) < instant(span[start]):
            span[start], span[end] = span[end], span[start]
    for name, limit in MAX_BYTES.items():
        if isinstance(span.get(name), str):
            span[name] = span[name].encode()[:limit].decode(errors="ignore")


def spans(body: object) -> list[dict[str, Any]]:
    """Return the spans in a valid body, of any route."""
    if isinstance(body, list):
        return list(chain.from_iterable(map(spans, body)))
    if isinstance(body, dict):
        return spans(body["items"]) if "items" in body else [body.get("span", body)]
    return []


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def before_call(_: object, case: Any, __: object) -> None:  # noqa: ANN401 (its class)
    """Make valid bodies keep the rules that only docs/api.md has.

    No body is compressed: test_http_clients.py has requests that are. An empty Content-Encoding is
    the same as none, so it breaks no rule.
    """
    if case.headers and case.headers.get("Content-Encoding") in {"gzip", "deflate", ""}:
        del case.headers["Content-Encoding"]
    if case.meta is not None and case.meta.generation.mode.is_positive:
        for span in spans(case.body):
            keep_rules(span)
        if case.path_parameters and "id" in case.path_parameters:
            keep_rules(case.path_parameters)
