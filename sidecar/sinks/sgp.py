"""The SGP sink: `PUT /v5/spans/batch`, with the request body joined from raw JSON.

The mapping is the SDK's (docs/upstreams.md S2.2), so that search filters and billing see the same
spans. Where the SDK would lose a whole batch (docs/upstreams.md S1.4, S4.3 F2), the item is
repaired: a list becomes `{"items": [...]}`, an unknown type becomes `CUSTOM`, and an incomplete
`__error__` still sets the error status.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sidecar.sinks.http import UpstreamClient, decide
from sidecar.spans.raw_json import with_members
from sidecar.spans.span import Span

# docs/upstreams.md S2.1
SPAN_TYPES = frozenset(
    "TEXT_INPUT TEXT_OUTPUT COMPLETION_INPUT COMPLETION KB_RETRIEVAL KB_INPUT RERANKING "  # noqa: SIM905
    "EXTERNAL_ENDPOINT PROMPT_ENGINEERING DOCUMENT_INPUT MAP_REDUCE DOCUMENT_SEARCH "
    "DOCUMENT_PROMPT CUSTOM CODE_EXECUTION DATA_MANIPULATION EVALUATION FILE_RETRIEVAL "
    "KB_ADD_CHUNK KB_MANAGEMENT GUARDRAIL OUTPUT_GUARDRAIL TRACER AGENT_TRACER "
    "AGENT_WORKFLOW STANDALONE".split()
)
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")

_text = msgspec.json.encode


class _TypeAndError(msgspec.Struct):
    """The two keys of `data` that determine the item's type and status."""

    span_type: Any = msgspec.field(name="__span_type__", default="STANDALONE")
    error: Any = msgspec.field(name="__error__", default=None)


_TYPE_AND_ERROR = msgspec.json.Decoder(_TypeAndError)


class Enrichment(NamedTuple):
    """JSON members for metadata, without braces; `data` overrides all but `overrides`.

    For an item that we build, `defaults` and `overrides`. An SDK has put those of its own into the
    item that it built, so that one gets `resource` only, which `defaults` has as well.
    """

    resource: bytes
    defaults: bytes
    overrides: bytes


_NOTHING = Enrichment(b"", b"", b"")


def enrichment(environ: Mapping[str, str], resource: Mapping[str, str]) -> Enrichment:
    """What the SDK adds to a span's metadata (docs/upstreams.md S2.2), and `resource`.

    `__acp_type__` defaults to `async`. All of it is joined here, once, and not for each span.
    """
    known = {
        "__acp_type__": environ.get("ACP_TYPE", ""),
        "__agent_name__": environ.get("AGENT_NAME", ""),
        "__agent_id__": environ.get("AGENT_ID", ""),
        "__agent_version__": environ.get("AGENT_VERSION", ""),
    }
    commit = environ.get("AGENT_COMMIT_SHA", "")
    if _COMMIT.fullmatch(commit):
        known["__commit_sha__"] = commit
    defaults = dict(resource) if known["__acp_type__"] else {"__acp_type__": "async", **resource}
    # A variable need not be UTF-8: it is then told as far as it is.
    valid = {key: value.encode(errors="replace").decode() for key, value in known.items() if value}
    overrides = {"__source__": "agentex"} | valid
    return Enrichment(*(_text(each)[1:-1] for each in (resource, defaults, overrides)))


class SgpSink:
    """Delivers batches to `{base_url}/v5/spans/batch`.

    `enrichment`: the result of the function of that name. `open_writes`: whether running spans are
    written, which is unsafe if START and END can reach different sidecars (D20).
    """

    name = "sgp"
    data_follows = False
    reasons = frozenset({"open_writes_off"})
    repairs = False

    def __init__(
        self,
        client: UpstreamClient,
        *,
        max_batch: int,
        max_batch_bytes: int,
        enrichment: Enrichment,
        open_writes: bool,
    ) -> None:
        self.max_batch = max_batch
        self.max_batch_bytes = max_batch_bytes
        self._client = client
        self._target = client.target("/v5/spans/batch")
        self._enrichment = enrichment
        self._open_writes = open_writes

    def skips(self, span: Span) -> str | None:
        """Skip open writes if they are turned off."""
        return "open_writes_off" if span.end_time is None and not self._open_writes else None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:  # noqa: ARG002
        """Insert or replace every span of `batch`."""
        body = _batch(batch, self._enrichment)
        response = await self._client.request(b"PUT", self._target, body)
        if not response.taken:
            raise decide(response)
        return 0

    async def try_out(self) -> bool:
        """Send a batch of no items: whatever is said about it, the credential is accepted."""
        response = await self._client.request(b"PUT", self._target, b'{"items":[]}', keyless=True)
        if not (response.taken or decide(response).about_content):
            raise decide(response)
        return True

    def stopping(self) -> None:
        """It makes no difference: open writes are whole."""

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def batch_as_sent(spans: Sequence[Span]) -> bytes:
    """The request body for `spans` received from an SDK, with its items unchanged."""
    return _batch(spans, _NOTHING)


def _batch(spans: Sequence[Span], enrichment: Enrichment) -> bytes:
    resource, defaults, overrides = enrichment
    parts = [b'{"items":[']
    for span in spans:
        _head(span, parts)
        if span.sdk is None:
            metadata, status, type_ = _metadata(span.data, defaults, overrides)
            parts += (b',"status":', status, b',"type":', type_, b',"input":')
            _object(span.input, parts)
            parts.append(b',"output":')
            _object(span.output, parts)
            parts += (b',"metadata":', metadata)
        else:
            _as_sent(span, span.sdk.extra, resource, parts)
        parts.append(b"},")
    parts[-1] = b"}]}"
    return b"".join(parts)


def _head(span: Span, parts: list[bytes]) -> None:
    trace_id, id_ = span.key[:2]
    parts += (
        b'{"id":',
        _text(id_),
        b',"trace_id":',
        _text(trace_id),
        b',"name":',
        # SGP does the same when it stores a name (docs/upstreams.md S1.4.5).
        _text(span.name.replace("\0", "\ufffd") if "\0" in span.name else span.name),
        b',"start_timestamp":',
        _text(span.start_time),
    )
    if span.end_time is not None:
        parts += (b',"end_timestamp":', _text(span.end_time))
    if span.parent_id is not None:
        parts += (b',"parent_id":', _text(span.parent_id))


def _metadata(data: bytes, defaults: bytes, overrides: bytes) -> tuple[bytes, bytes, bytes]:
    """The item's metadata (`data` with the SDK's additions), its status and its type."""
    data = _wrapped(data)
    status, type_ = b'"SUCCESS"', b'"STANDALONE"'
    # Content is parsed only for these two keys, and only if one of them occurs in it.
    if b"__span_type__" in data or b"__error__" in data:
        sent = _TYPE_AND_ERROR.decode(data)
        is_known = isinstance(sent.span_type, str) and sent.span_type in SPAN_TYPES
        type_ = _text(sent.span_type if is_known else "CUSTOM")
        if isinstance(sent.error, dict):
            status = b'"ERROR"'
            keys = [key for key in ("type", "message", "category") if key in sent.error]
            members = {"error": True} | {f"error_{key}": sent.error[key] for key in keys}
            overrides = overrides + b"," + _text(members)[1:-1]
    return with_members(data, defaults, overrides), status, type_


def _as_sent(span: Span, extra: bytes, resource: bytes, parts: list[bytes]) -> None:
    """The rest of an item that an SDK built: its status, type and own metadata are already set."""
    if extra:
        parts += (b",", extra)
    data = with_members(_wrapped(span.data), resource) if resource else span.data
    for name, raw in ((b"input", span.input), (b"output", span.output), (b"metadata", data)):
        if raw:
            parts.append(b',"%b":' % name)
            _object(raw, parts)


def _wrapped(data: bytes) -> bytes:
    return b'{"items":%b}' % data if data[:1] == b"[" else data


def _object(raw: bytes, parts: list[bytes]) -> None:
    """SGP accepts only objects: null becomes `{}`, and a list is wrapped (D18)."""
    if raw[:1] == b"[":
        parts += (b'{"items":', raw, b"}")
    else:
        parts.append(raw or b"{}")
