"""The Agentex sink: one span per request, POST to create and PATCH to complete.

It relies on docs/upstreams.md A1, A2 and A10: a duplicate POST is a 400 with a known message, an
unknown task is a permanent 500, and a null in a PATCH leaves the field unchanged. The server merges
the `data` of a PATCH into what is stored, and fails for lists. So that a span ends up with exactly
what its END says (D26), an open write has no `data`: the END's PATCH then stores it whole. For a
START that no END will follow, `data` is written after it (queue/supplement.py).
"""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from urllib.parse import quote
from uuid import uuid4

from sidecar.sinks import IdTaken, Misdirected, Refused, RouteGone, Unavailable
from sidecar.sinks.agentex_bodies import (
    StoredSpan,
    only,
    patch_body,
    repaired,
    stored_span,
    without_data,
)
from sidecar.sinks.http import Response, UpstreamClient, decide
from sidecar.spans.span import DATA, Span, payloads_in_memory, to_json

_EXISTS = b"Item already exists"
_UNKNOWN_ID = b"Item with id"
_UNKNOWN_TASK = b"fk_spans_task_id_tasks"
# How the server's merge of `data` fails for lists.
_NOT_MERGED = b"has no attribute 'update'", b"dictionary update sequence", b"convert dictionary"
# A write that gets a 500 and has failed this often while others succeeded may name a task that the
# server does not know, or change `data` that can't be merged, with a proxy hiding the message.
_WITHOUT_TASK_FROM, _WITHOUT_DATA_FROM = 3, 5
_NO_ROUTE = 404, 405, 410
_GONE = "there is no spans API at this base URL: correct agentex.base_url, or unset it"
# Statuses of a GET that leave open whose span it is; other servers may not have this route.
_NO_SUCH_METHOD = 405, 501
_NOT_TOLD = 404, *_NO_SUCH_METHOD

# Spans with an open write to remember (a hash each). A forgotten one costs two requests more.
_MAX_OPENED = 10_000

_STORED = Response(200)


class AgentexSink:
    """Delivers one span at a time to `{base_url}/spans`.

    `repaired` is called with the reason when a write takes more than one request.
    """

    name = "agentex"
    max_batch = 1
    max_batch_bytes = 1  # a batch is full at once: nothing lingers
    data_follows = True
    reasons = frozenset({"unaddressable_id", "id_taken"})
    repairs = True

    def __init__(self, client: UpstreamClient, repaired: Callable[[str], None]) -> None:
        self._client = client
        self._repaired = repaired
        # Hashes of the keys of spans whose open write was accepted: their ENDs are PATCHes.
        self._opened: dict[int, None] = {}
        self._spans = client.target("/spans")
        self._stopping = False

    async def try_out(self) -> bool:
        """Read a span that does not exist. Other servers may not have this route."""
        target = self._client.target(f"/spans/{uuid4()}")
        response = await self._client.request(b"GET", target, b"", expected=_is_step, keyless=True)
        if response.taken or _says(response, 404, _UNKNOWN_ID):
            return True
        if response.status in _NO_SUCH_METHOD:
            return False
        raise decide(response)

    def stopping(self) -> None:
        """From now on, open writes without a row in the spool have their `data`."""
        self._stopping = True

    def skips(self, span: Span) -> str | None:
        """Skip open writes of spans that no later PATCH could address."""
        if span.end_time is None and not _addressable(span.id):
            return "unaddressable_id"
        return None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:
        """Create or complete the single span of `batch`."""
        (span,) = batch
        hidden_merge = suspicion >= _WITHOUT_DATA_FROM
        response = await self._write(repaired(span), hidden_merge=hidden_merge)
        unknown_task = b"" if suspicion >= _WITHOUT_TASK_FROM else _UNKNOWN_TASK
        if span.task_id is not None and _says(response, 500, unknown_task):
            self._repaired("unknown_task")
            moved = repaired(span, task_in_data=True)
            response = await self._write(moved, hidden_merge=hidden_merge)
        if response.taken:
            return 0
        if _says(response, 404, _UNKNOWN_ID):
            raise Refused("HTTP 404", 404)
        error = decide(response)
        if isinstance(error, Misdirected) and response.status in _NO_ROUTE:
            raise RouteGone(f"HTTP {response.status}: {_GONE}", response.status)
        raise error

    async def _write(self, span: Span, *, hidden_merge: bool) -> Response:
        if span.is_supplement:
            return await self._add(span, hidden_merge=hidden_merge)
        if span.end_time is None:
            return await self._open(span)
        hashed = hash(span.key)
        if hashed in self._opened and _addressable(span.id):
            response = await self._patch(span, hidden_merge=hidden_merge)
            if response.taken:
                self._opened.pop(hashed, None)
            if not _says(response, 404, _UNKNOWN_ID):
                return response
            self._repaired("unknown_id")
        response = await self._post(to_json(span))
        if not _says(response, 400, _EXISTS):
            return response
        # Already stored: by its START, possibly through another sidecar, or by a request whose
        # response was lost. Or an id is used in two traces.
        if not _addressable(span.id):
            return _STORED
        await self._stored(span)
        self._repaired("exists")
        return await self._patch_stored(span, hidden_merge=hidden_merge)

    async def _add(self, span: Span, *, hidden_merge: bool) -> Response:
        """PATCH what a supplement adds to the stored span: its END may have come elsewhere."""
        stored = await self._stored(span)
        if stored is not None:
            span = only(span, stored.lacks)
            if not payloads_in_memory(span):
                return _STORED
        return await self._patch_stored(span, hidden_merge=hidden_merge)

    async def _open(self, span: Span) -> Response:
        # With a spool, the START is still there for its END after a restart.
        whole = self._stopping and span.stored is None
        response = await self._post(to_json(span, leave_out=0 if whole else DATA))
        if _says(response, 400, _EXISTS):
            stored = await self._stored(span)
            response = _STORED
            if stored is not None:
                # By a request whose response was lost, or by its END, without what is only here.
                lacks = stored.lacks if whole or stored.ended else stored.lacks & ~DATA
                adds = only(span, lacks)
                if payloads_in_memory(adds):
                    response = await self._patch_stored(adds, hidden_merge=False)
        if response.taken:
            self._opened[hash(span.key)] = None
            if len(self._opened) > _MAX_OPENED:
                del self._opened[next(iter(self._opened))]
        return response

    async def _post(self, body: bytes) -> Response:
        return await self._client.request(b"POST", self._spans, body, expected=_is_step)

    async def _patch(self, span: Span, *, hidden_merge: bool) -> Response:
        """PATCH the span; without `data` if the server can't merge it into what is stored.

        `hidden_merge`: a 500 means that it can't, whatever it says.
        """
        target = self._target(span)
        response = await self._client.request(b"PATCH", target, patch_body(span), expected=_is_step)
        failed = hidden_merge and response.status == HTTPStatus.INTERNAL_SERVER_ERROR
        if span.data and (failed or _is_not_merged(response)):
            self._repaired("data_not_merged")
            body = patch_body(without_data(span))
            response = await self._client.request(b"PATCH", target, body, expected=_is_step)
        return response

    async def _patch_stored(self, span: Span, *, hidden_merge: bool) -> Response:
        response = await self._patch(span, hidden_merge=hidden_merge)
        if _says(response, 404, _UNKNOWN_ID):
            # Another request has just found the span: the read replica lags (docs/upstreams.md A2).
            raise Unavailable("HTTP 404 for a span that is stored", 404)
        return response

    async def _stored(self, span: Span) -> StoredSpan | None:
        """The stored span with this id; None if the server does not show it.

        Raises `IdTaken` if it belongs to another trace.
        """
        response = await self._client.request(
            b"GET", self._target(span), b"", expected=_is_not_told
        )
        if response.status in _NOT_TOLD:
            return None
        if not response.taken:
            error = decide(response)
            if error.about_content:  # of this request, not of the span
                raise Unavailable(str(error), response.status)
            raise error
        found = stored_span(response.body or b"")
        if found is None:
            raise Unavailable("HTTP 200 without the ids of a span", response.status)
        if found.key != span.key[:2]:
            raise IdTaken("the id belongs to a span of another trace", 400)
        return found

    def _target(self, span: Span) -> bytes:
        return self._client.target(f"/spans/{quote(span.id, safe='')}")

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def _says(response: Response, status: int, message: bytes) -> bool:
    return response.status == status and message in (response.body or b"")


def _is_not_merged(response: Response) -> bool:
    """Whether a PATCH failed because its `data` can't be merged into what is stored."""
    if response.status != HTTPStatus.INTERNAL_SERVER_ERROR:
        return False
    return any(message in (response.body or b"") for message in _NOT_MERGED)


def _is_step(response: Response) -> bool:
    """Whether the exchange goes on after this error."""
    return (
        _says(response, 400, _EXISTS)
        or _says(response, 404, _UNKNOWN_ID)
        or _says(response, 500, _UNKNOWN_TASK)
        or _is_not_merged(response)
    )


def _is_not_told(response: Response) -> bool:
    return response.status in _NOT_TOLD


def _addressable(id_: str) -> bool:
    # The server decodes %2F before routing, and clients normalize dots (docs/upstreams.md A2).
    return "/" not in id_ and id_ not in {".", ".."}
