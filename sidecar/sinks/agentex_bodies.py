"""The bodies that the Agentex sink sends and reads. Pure."""

import re
from typing import NamedTuple

import msgspec

from sidecar.spans.raw_json import with_members
from sidecar.spans.span import ALL_PAYLOADS, PAYLOADS, SUPPLEMENT, Lanes, SdkFields, Span

_text = msgspec.json.encode


class _Row(msgspec.Struct):
    id: str
    trace_id: str
    end_time: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"null")
    output: msgspec.Raw = msgspec.Raw(b"null")
    data: msgspec.Raw = msgspec.Raw(b"null")


_ROW = msgspec.json.Decoder(_Row)
_STRING = rb'("(?:[^"\\]|\\.)*")'
# The server sends these two first, and the payloads last (docs/upstreams.md A10).
_BEGINNING = re.compile(rb'\s*\{\s*"id"\s*:\s*%b\s*,\s*"trace_id"\s*:\s*%b' % (_STRING, _STRING))
_OPEN = re.compile(rb'"end_time"\s*:\s*null')
_NOT_DECODED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class StoredSpan(NamedTuple):
    """A span as the server shows it: whose it is, and the `PAYLOADS` that it lacks, as bits."""

    key: tuple[str, str]
    ended: bool
    lacks: int


def stored_span(body: bytes) -> StoredSpan | None:
    """The span in a response, of which `body` may be only the beginning; None if unknown.

    If its end is missing, an open span is taken to lack everything, and another one nothing.
    """
    try:
        row = _ROW.decode(body)
    except _NOT_DECODED:
        return _from_beginning(body)
    payloads = (bytes(getattr(row, name)) for name in PAYLOADS)
    lacks = sum((raw == b"null") << index for index, raw in enumerate(payloads))
    return StoredSpan((row.trace_id, row.id), row.end_time is not None, lacks)


def _from_beginning(body: bytes) -> StoredSpan | None:
    beginning = _BEGINNING.match(body)
    if beginning is None:
        return None
    try:
        id_, trace_id = (msgspec.json.decode(text, type=str) for text in beginning.groups())
    except _NOT_DECODED:
        return None
    is_open = _OPEN.search(body) is not None
    return StoredSpan((trace_id, id_), not is_open, ALL_PAYLOADS if is_open else 0)


def only(span: Span, which: int) -> Span:
    """A supplement with the payloads of `span` that have a bit in `which`."""
    payloads = [getattr(span, name) if which >> n & 1 else b"" for n, name in enumerate(PAYLOADS)]
    input_, output, data = payloads
    sdk = SdkFields(int(Lanes.AGENTEX), SUPPLEMENT)
    return msgspec.structs.replace(span, input=input_, output=output, data=data, sdk=sdk)


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
