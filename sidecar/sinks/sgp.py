"""The SGP sink: `PUT /v5/spans/batch`, with the request body joined from raw JSON.

The mapping is the SDK's (docs/upstreams.md S2.2), so that search filters and billing see the same
spans. Where the SDK would lose a whole batch (docs/upstreams.md S1.4, S4.3 F2), the item is
repaired: a list becomes `{"items": [...]}`, an unknown type becomes `CUSTOM`, and an incomplete
`__error__` still sets the error status.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sidecar.sinks.http import UpstreamClient, decide
from sidecar.spans.raw_json import with_members
from sidecar.spans.span import Span

# docs/upstreams.md S2.1
SPAN_TYPES = frozenset(
    {
        "TEXT_INPUT",
        "TEXT_OUTPUT",
        "COMPLETION_INPUT",
        "COMPLETION",
        "KB_RETRIEVAL",
        "KB_INPUT",
        "RERANKING",
        "EXTERNAL_ENDPOINT",
        "PROMPT_ENGINEERING",
        "DOCUMENT_INPUT",
        "MAP_REDUCE",
        "DOCUMENT_SEARCH",
        "DOCUMENT_PROMPT",
        "CUSTOM",
        "CODE_EXECUTION",
        "DATA_MANIPULATION",
        "EVALUATION",
        "FILE_RETRIEVAL",
        "KB_ADD_CHUNK",
        "KB_MANAGEMENT",
        "GUARDRAIL",
        "OUTPUT_GUARDRAIL",
        "TRACER",
        "AGENT_TRACER",
        "AGENT_WORKFLOW",
        "STANDALONE",
    }
)
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")

_text = msgspec.json.encode


class _TypeAndError(msgspec.Struct):
    """The two keys of `data` that determine the item's type and status."""

    span_type: Any = msgspec.field(name="__span_type__", default="STANDALONE")
    error: Any = msgspec.field(name="__error__", default=None)


_TYPE_AND_ERROR = msgspec.json.Decoder(_TypeAndError)


def enrichment(environ: Mapping[str, str]) -> tuple[bytes, bytes]:
    """JSON members for every span's metadata: defaults, which `data` overrides, and overrides.

    `__acp_type__` defaults to `async` (docs/upstreams.md S2.2).
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
    defaults = b"" if known["__acp_type__"] else b'"__acp_type__":"async"'
    overrides = {"__source__": "agentex"} | {key: value for key, value in known.items() if value}
    return defaults, _text(overrides)[1:-1]


class SgpSink:
    """Delivers batches to `{base_url}/v5/spans/batch`.

    `enrichment`: the result of the function of that name. `open_writes`: whether running spans are
    written, which is unsafe if START and END can reach different sidecars (D20).
    """

    name = "sgp"

    def __init__(
        self,
        client: UpstreamClient,
        *,
        max_batch: int,
        max_batch_bytes: int,
        enrichment: tuple[bytes, bytes],
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

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:  # noqa: ARG002
        """Insert or replace every span of `batch`."""
        response = await self._client.request(b"PUT", self._target, self.encode(batch))
        if (error := decide(response)) is not None:
            raise error

    def encode(self, batch: Sequence[Span]) -> bytes:
        """The request body."""
        parts = [b'{"items":[']
        for span in batch:
            self._item(span, parts)
            parts.append(b",")
        parts[-1] = b"]}"
        return b"".join(parts)

    def _item(self, span: Span, parts: list[bytes]) -> None:
        _head(span, parts)
        if span.route:
            _as_sent(span, parts)
            return
        metadata, status, type_ = self._metadata(span.data)
        parts += (b',"status":', status, b',"type":', type_, b',"input":')
        _object(span.input, parts)
        parts.append(b',"output":')
        _object(span.output, parts)
        parts += (b',"metadata":', metadata, b"}")

    def _metadata(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        """The item's metadata (`data` with the SDK's additions), its status and its type."""
        defaults, overrides = self._enrichment
        if data[:1] == b"[":
            data = b'{"items":%b}' % data
        # Content is parsed only for these two keys, and only if one of them occurs in it.
        if b"__span_type__" not in data and b"__error__" not in data:
            return with_members(data, defaults, overrides), b'"SUCCESS"', b'"STANDALONE"'
        parsed = _TYPE_AND_ERROR.decode(data)
        type_ = parsed.span_type
        type_ = type_ if isinstance(type_, str) and type_ in SPAN_TYPES else "CUSTOM"
        if not isinstance(parsed.error, dict):
            return with_members(data, defaults, overrides), b'"SUCCESS"', _text(type_)
        error_members: dict[str, Any] = {"error": True}
        for key in ("type", "message", "category"):
            if key in parsed.error:
                error_members[f"error_{key}"] = parsed.error[key]
        overrides = overrides + b"," + _text(error_members)[1:-1]
        return with_members(data, defaults, overrides), b'"ERROR"', _text(type_)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def batch_as_sent(spans: Sequence[Span]) -> bytes:
    """The request body for `spans` received from an SDK, with its items unchanged."""
    items = []
    for span in spans:
        parts: list[bytes] = []
        _head(span, parts)
        _as_sent(span, parts)
        items.append(b"".join(parts))
    return b'{"items":[%b]}' % b",".join(items)


def _head(span: Span, parts: list[bytes]) -> None:
    parts += (
        b'{"id":',
        _text(span.id),
        b',"trace_id":',
        _text(span.trace_id),
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


def _as_sent(span: Span, parts: list[bytes]) -> None:
    """The rest of an item that an SDK built: its metadata, status and type are already set."""
    if span.extra:
        parts += (b",", span.extra)
    for name, raw in ((b"input", span.input), (b"output", span.output), (b"metadata", span.data)):
        if raw:
            parts.append(b',"%b":' % name)
            _object(raw, parts)
    parts.append(b"}")


def _object(raw: bytes, parts: list[bytes]) -> None:
    """SGP accepts only objects: null becomes `{}`, and a list is wrapped (D18)."""
    if raw[:1] == b"[":
        parts += (b'{"items":', raw, b"}")
    else:
        parts.append(raw or b"{}")
