"""The Agentex sink: one span per request, POST to create and PATCH to complete.

It relies on docs/upstreams.md A1 and A2: a duplicate POST is a 400 with a known message, an unknown
task is a permanent 500, a null in a PATCH leaves the field unchanged, list-shaped `data` breaks a
PATCH, and an id with a slash can't be addressed.
"""

from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from sidecar.sinks import Refused, Unavailable
from sidecar.sinks.http import TAKEN, Response, UpstreamClient, decide
from sidecar.spans.raw_json import with_members
from sidecar.spans.span import Span, to_json

_EXISTS = b"Item already exists"
_UNKNOWN_ID = b"Item with id"
_UNKNOWN_TASK = b"fk_spans_task_id_tasks"
# A write that has failed this often while others succeeded may name a task that the server does not
# know, with a proxy hiding the message. It is then sent without the task.
_WITHOUT_TASK_FROM = 3

# Spans with an open write to remember (a hash each). A forgotten one costs one request more.
_MAX_OPENED = 10_000

_STORED = Response(200, b"", 0.0)
_text = msgspec.json.encode


class AgentexSink:
    """Delivers one span at a time to `{base_url}/spans`."""

    name = "agentex"
    max_batch = 1
    max_batch_bytes = 1  # a batch is full at once: nothing lingers

    def __init__(self, client: UpstreamClient) -> None:
        self._client = client
        # Hashes of the keys of spans of which an open write was sent: their ENDs are PATCHes.
        self._opened: dict[int, None] = {}
        self._spans = client.target("/spans")

    def skips(self, span: Span) -> str | None:
        """Skip open writes of spans that no later PATCH could address."""
        if span.end_time is None and not _addressable(span.id):
            return "unaddressable_id"
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:
        """Create or complete the single span of `batch`."""
        (span,) = batch
        without_task = suspicion >= _WITHOUT_TASK_FROM
        response = await self._write(repaired(span, task_in_data=without_task))
        if response.status in TAKEN:
            return
        if not without_task and _is(response, 500, _UNKNOWN_TASK):
            response = await self._write(repaired(span, task_in_data=True))
        if _is(response, 404, _UNKNOWN_ID):
            raise Refused("HTTP 404", 404)
        if response.status not in TAKEN:
            raise decide(response)

    async def _write(self, span: Span) -> Response:
        hashed = hash(span.key)
        if span.end_time is None:
            self._opened[hashed] = None
            if len(self._opened) > _MAX_OPENED:
                del self._opened[next(iter(self._opened))]
        elif hashed in self._opened and _addressable(span.id):
            response = await self._patch(span)
            if response.status in TAKEN:
                self._opened.pop(hashed, None)
            if not _is(response, 404, _UNKNOWN_ID):
                return response
        response = await self._client.request(b"POST", self._spans, to_json(span))
        if not _is(response, 400, _EXISTS):
            return response
        if span.end_time is None or not _addressable(span.id):
            return _STORED
        # Already stored: by its START, possibly through another sidecar, or by a request whose
        # response was lost.
        response = await self._patch(span)
        if _is(response, 404, _UNKNOWN_ID):
            # POST finds the span but PATCH does not: the read replica lags (docs/upstreams.md A2).
            raise Unavailable("HTTP 404 right after a duplicate", 404)
        return response

    async def _patch(self, span: Span) -> Response:
        target = self._client.target(f"/spans/{quote(span.id, safe='')}")
        return await self._client.request(b"PATCH", target, patch_body(span))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def _is(response: Response, status: int, message: bytes) -> bool:
    return response.status == status and message in response.error_body


def _addressable(id_: str) -> bool:
    # The server decodes %2F before routing, and clients normalize dots (docs/upstreams.md A2).
    return "/" not in id_ and id_ not in {".", ".."}


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


def _with_task(data: bytes, task: str) -> bytes:
    member = b'"task_id":' + _text(task)
    if data[:1] != b"[":
        return with_members(data, first=member)
    items = data[1:-1].strip()
    return b"[%b]" % b",".join(part for part in (items, b"{%b}" % member) if part)


def patch_body(span: Span) -> bytes:
    """The span's fields without nulls and without list-shaped `data` (docs/upstreams.md A2)."""
    fields = (
        (b'"trace_id":', _text(span.trace_id)),
        (b'"name":', _text(span.name)),
        (b'"start_time":', _text(span.start_time)),
        (b'"end_time":', _text(span.end_time)),
        (b'"parent_id":', _text(span.parent_id) if span.parent_id else b""),
        (b'"task_id":', _text(span.task_id) if span.task_id else b""),
        (b'"input":', span.input),
        (b'"output":', span.output),
        (b'"data":', b"" if span.data[:1] == b"[" else span.data),
    )
    return b"{%b}" % b",".join([key + value for key, value in fields if value])
