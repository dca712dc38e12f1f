"""The Agentex sink: one span a request, POST to create and PATCH to complete.

Everything about its answers is from contracts/agentex.md: a duplicate POST is a 400 that says so
(1), null in a PATCH leaves a field alone (2), an id with a slash can't be addressed (2), an unknown
task is a 500 that lasts (1), list-shaped `data` breaks a PATCH (2).
"""

from collections.abc import Sequence
from urllib.parse import quote

import msgspec

from sidecar.payloads import with_members
from sidecar.sinks import Refused, SinkError, Unavailable
from sidecar.sinks.http import Answer, HttpClient, decide
from sidecar.spans import Span

_EXISTS = b"Item already exists"
_UNKNOWN_ID = b"Item with id"
_UNKNOWN_TASK = b"fk_spans_task_id_tasks"
# A write that fails so often beside others that get through may name a task the server doesn't
# know, behind a proxy that hides the message: it is tried without, before it is given up.
_WITHOUT_TASK_FROM = 3

_text = msgspec.json.encode


class AgentexSink:
    """Delivers one span at a time to `{base_url}/spans`."""

    name = "agentex"
    max_batch = 1
    max_batch_bytes = 1

    def __init__(self, client: HttpClient, bit: int) -> None:
        self._client = client
        self._bit = bit
        self._spans = client.url("/spans")

    def skips(self, span: Span) -> str | None:
        """Open writes of spans that no later PATCH could reach."""
        if span.end_time is None and not _addressable(span.id):
            return "unaddressable_id"
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:
        """Create or complete the one span of `batch`."""
        for span in batch:
            moved = suspicion >= _WITHOUT_TASK_FROM and span.task_id is not None
            answer = await self._write(span, task_in_data=moved)
            if answer is not None and not moved and _is(answer, 500, _UNKNOWN_TASK):
                answer = await self._write(span, task_in_data=True)
            if answer is not None and (error := _decide(answer)) is not None:
                raise error

    async def _write(self, span: Span, *, task_in_data: bool) -> Answer | None:
        """None when the upstream has the span, else the answer that says why not."""
        if span.end_time is not None and span.known_to & self._bit and _addressable(span.id):
            answer = await self._patch(span, task_in_data=task_in_data)
            if answer is None or not _is(answer, 404, _UNKNOWN_ID):
                return answer
        answer = await self._client.request("POST", self._spans, post_body(span, task_in_data))
        if not _is(answer, 400, _EXISTS):
            return answer
        if span.end_time is None or not _addressable(span.id):
            return None
        # Stored before: by its START, maybe through another sidecar, or by a reply that got lost.
        answer = await self._patch(span, task_in_data=task_in_data)
        if answer is not None and _is(answer, 404, _UNKNOWN_ID):
            # It exists and it doesn't: a read replica that lags (agentex.md 2).
            msg = "HTTP 404 right after a duplicate"
            raise Unavailable(msg, 404)
        return answer

    async def _patch(self, span: Span, *, task_in_data: bool) -> Answer:
        url = self._client.url(f"/spans/{quote(span.id, safe='')}")
        return await self._client.request("PATCH", url, patch_body(span, task_in_data))

    async def close(self) -> None:
        """Give up connections."""
        await self._client.close()


def _decide(answer: Answer) -> SinkError | None:
    if _is(answer, 404, _UNKNOWN_ID):
        return Refused("HTTP 404", 404)
    return decide(answer)


def _is(answer: Answer, status: int, mark: bytes) -> bool:
    return answer.status == status and mark in answer.head


def _addressable(id_: str) -> bool:
    # %2F is decoded before routing, and clients normalise the dots (agentex.md 2).
    return "/" not in id_ and id_ not in {".", ".."}


def post_body(span: Span, task_in_data: bool = False) -> bytes:  # noqa: FBT001, FBT002
    """All ten keys, null where unset, as the SDK sends them (contracts/agentex.md 8.2)."""
    task, data = _task_and_data(span, moved=task_in_data)
    return b"".join(
        (
            b'{"id":',
            _text(span.id),
            b',"trace_id":',
            _text(span.trace_id),
            b',"name":',
            _name(span),
            b',"start_time":',
            _text(span.start_time),
            b',"end_time":',
            _text(span.end_time),
            b',"parent_id":',
            _text(span.parent_id),
            b',"task_id":',
            _text(task),
            b',"input":',
            span.input or b"null",
            b',"output":',
            span.output or b"null",
            b',"data":',
            data or b"null",
            b"}",
        )
    )


def patch_body(span: Span, task_in_data: bool = False) -> bytes:  # noqa: FBT001, FBT002
    """What the span says, without nulls; list-shaped `data` stays out (contracts/agentex.md 2)."""
    task, data = _task_and_data(span, moved=task_in_data)
    fields = (
        (b'"trace_id":', _text(span.trace_id)),
        (b'"name":', _name(span)),
        (b'"start_time":', _text(span.start_time)),
        (b'"end_time":', _text(span.end_time)),
        (b'"parent_id":', _text(span.parent_id) if span.parent_id else b""),
        (b'"task_id":', _text(task) if task else b""),
        (b'"input":', span.input),
        (b'"output":', span.output),
        (b'"data":', b"" if data[:1] == b"[" else data),
    )
    return b"{%b}" % b",".join([key + value for key, value in fields if value])


def _name(span: Span) -> bytes:
    # A NUL in a text column is a 500 for ever (agentex.md 1).
    return _text(span.name.replace("\0", "\ufffd") if "\0" in span.name else span.name)


def _task_and_data(span: Span, *, moved: bool) -> tuple[str | None, bytes]:
    """`task_id` and `data`; a task that the server does not know is kept inside `data`."""
    task = span.task_id
    if task is None or not (moved or "\0" in task):
        return task, span.data
    if span.data[:1] == b"[":
        member = b'{"task_id":' + _text(task) + b"}"
        return None, b",".join((span.data[:-1].rstrip(), member + b"]"))
    return None, with_members(span.data, first=b'"task_id":' + _text(task))
