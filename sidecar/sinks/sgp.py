"""The SGP sink: `PUT /v5/spans/batch`, items joined from bytes.

The mapping is the SDK's (docs/upstreams.md S2.2), so that search filters and billing see the same
spans; where the SDK would lose a whole batch, the item is repaired instead (1.4, 4.3 F2): lists
become `{"items": [...]}`, an unknown type `CUSTOM`, a broken `__error__` still makes an error.
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


class _Marks(msgspec.Struct):
    """The two keys of `data` that SGP's columns are made from."""

    span_type: Any = msgspec.field(name="__span_type__", default="STANDALONE")
    error: Any = msgspec.field(name="__error__", default=None)


_MARKS = msgspec.json.Decoder(_Marks)


def enrichment(environ: Mapping[str, str]) -> tuple[bytes, bytes]:
    """Members for every span's metadata: those that give way to the agent's own, those that don't.

    docs/upstreams.md S2.2: `__acp_type__` is `async` where nobody says otherwise.
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
    first = b"" if known["__acp_type__"] else b'"__acp_type__":"async"'
    last = {"__source__": "agentex"} | {key: value for key, value in known.items() if value}
    return first, _text(last)[1:-1]


class SgpSink:
    """Delivers batches to `{base_url}/v5/spans/batch`.

    `enrichment`: see the function of that name. `open_writes`: whether spans that still run are
    written, which is unsafe where START and END come through different sidecars (D20).
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
        """Open writes, where they are off."""
        return "open_writes_off" if span.end_time is None and not self._open_writes else None

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> None:  # noqa: ARG002
        """Insert or replace every span of `batch`."""
        answer = await self._client.request(b"PUT", self._target, self.encode(batch))
        if (error := decide(answer)) is not None:
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
        """`data` with what the SDK adds; the item's status; its type."""
        first, last = self._enrichment
        if data[:1] == b"[":
            data = b'{"items":%b}' % data
        # Content is parsed only where one of the two keys is in it, and then only those.
        if b"__span_type__" not in data and b"__error__" not in data:
            return with_members(data, first, last), b'"SUCCESS"', b'"STANDALONE"'
        marks = _MARKS.decode(data)
        type_ = marks.span_type
        type_ = type_ if isinstance(type_, str) and type_ in SPAN_TYPES else "CUSTOM"
        if not isinstance(marks.error, dict):
            return with_members(data, first, last), b'"SUCCESS"', _text(type_)
        flat: dict[str, Any] = {"error": True}
        for key in ("type", "message", "category"):
            if key in marks.error:
                flat[f"error_{key}"] = marks.error[key]
        last = last + b"," + _text(flat)[1:-1]
        return with_members(data, first, last), b'"ERROR"', _text(type_)

    async def close(self) -> None:
        """Give up connections."""
        await self._client.close()


def batch_as_sent(spans: Sequence[Span]) -> bytes:
    """The request in which an SDK sent `spans`."""
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
        # SGP would do the same (docs/upstreams.md S1.4.5).
        _text(span.name.replace("\0", "\ufffd") if "\0" in span.name else span.name),
        b',"start_timestamp":',
        _text(span.start_time),
    )
    if span.end_time is not None:
        parts += (b',"end_timestamp":', _text(span.end_time))
    if span.parent_id is not None:
        parts += (b',"parent_id":', _text(span.parent_id))


def _as_sent(span: Span, parts: list[bytes]) -> None:
    """An item that the SDK made: it has its metadata, status and type already."""
    if span.extra:
        parts += (b",", span.extra)
    for name, raw in ((b"input", span.input), (b"output", span.output), (b"metadata", span.data)):
        if raw:
            parts.append(b',"%b":' % name)
            _object(raw, parts)
    parts.append(b"}")


def _object(raw: bytes, parts: list[bytes]) -> None:
    """SGP takes objects only: null becomes `{}`, a list is wrapped (D18)."""
    if raw[:1] == b"[":
        parts += (b'{"items":', raw, b"}")
    else:
        parts.append(raw or b"{}")
