"""The bodies that the Agentex sink sends and reads. Pure."""

import re

import msgspec

from sidecar.spans.raw_json import with_members
from sidecar.spans.span import Span

_text = msgspec.json.encode


class _Identity(msgspec.Struct):
    id: str
    trace_id: str


_IDENTITY = msgspec.json.Decoder(_Identity)
_STRING = rb'("(?:[^"\\]|\\.)*")'
# The server sends these two first (docs/upstreams.md A10).
_BEGINNING = re.compile(rb'\s*\{\s*"id"\s*:\s*%b\s*,\s*"trace_id"\s*:\s*%b' % (_STRING, _STRING))


def identity(body: bytes) -> tuple[str, str] | None:
    """The trace id and the id of the span in a response, of which `body` may be the beginning."""
    try:
        found = _IDENTITY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    else:
        return found.trace_id, found.id
    beginning = _BEGINNING.match(body)
    if beginning is None:
        return None
    try:
        id_, trace_id = (msgspec.json.decode(text, type=str) for text in beginning.groups())
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return trace_id, id_


def repaired(span: Span, *, task_in_data: bool = False) -> Span:
    """`span` in a form that the server can store; the same object if nothing needs to change.

    A NUL in a text column is a permanent 500 (docs/upstreams.md A1), so NULs in the name are
    replaced. `task_in_data`, or a NUL in the task id, moves the task id into `data`.
    """
    name = span.name.replace("\0", "\ufffd") if "\0" in span.name else span.name
    task, data = span.task_id, span.data
    if task is not None and (task_in_data or "\0" in task):
        data = _with_task(data, task)
        task = None
    if name is span.name and task is span.task_id:
        return span
    return msgspec.structs.replace(span, name=name, task_id=task, data=data)


def without_data(span: Span) -> Span:
    """`span` without its `data`."""
    return msgspec.structs.replace(span, data=b"")


def _with_task(data: bytes, task: str) -> bytes:
    member = b'"task_id":' + _text(task)
    if data[:1] != b"[":
        return with_members(data, first=member)
    items = data[1:-1].strip()
    return b"[%b]" % b",".join(part for part in (items, b"{%b}" % member) if part)


def patch_body(span: Span) -> bytes:
    """The span's fields without nulls, which a PATCH ignores (docs/upstreams.md A2).

    Of a supplement, only what it adds: the rest of the span is stored already.
    """
    adds_only = span.is_supplement
    fields = (
        (b'"trace_id":', _text(span.trace_id)),
        (b'"name":', b"" if adds_only else _text(span.name)),
        (b'"start_time":', b"" if adds_only else _text(span.start_time)),
        (b'"end_time":', b"" if span.end_time is None else _text(span.end_time)),
        (b'"parent_id":', _text(span.parent_id) if span.parent_id else b""),
        (b'"task_id":', _text(span.task_id) if span.task_id else b""),
        (b'"input":', span.input),
        (b'"output":', span.output),
        (b'"data":', span.data),
    )
    return b"{%b}" % b",".join([key + value for key, value in fields if value])
