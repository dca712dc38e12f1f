"""The OTLP sink: `POST {endpoint}/v1/traces`, in protobuf over HTTP (docs/otlp.md).

Any OpenTelemetry receiver can be behind it. OTLP has no running spans, so only complete writes are
sent. A span may arrive twice, as with any upstream; its ids are the same each time.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence

from sidecar import __version__
from sidecar.process.blocking import BlockingThread
from sidecar.sinks import Refused, SinkError, Unavailable
from sidecar.sinks.http import Api, Response, UpstreamClient, decide
from sidecar.sinks.otlp_mapping import Json, mapped
from sidecar.sinks.otlp_message import Encoder, rejected_spans
from sidecar.spans.span import Span

SCOPE = "trace-sidecar"
_GZIP_LEVEL = 1  # more saves little, and takes several times as long
_GZIP_WINDOW = zlib.MAX_WBITS | 16  # with gzip's header
_MEDIA_TYPES = frozenset(("application/x-protobuf", "application/protobuf", "application/json"))
_TEXT = "text/plain"


def otlp_resource(environ: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """The resource of all spans: `known`, and what the pod's variables say about the agent."""
    named = {
        "service.name": environ.get("AGENT_NAME") or "unknown_service",
        "service.version": environ.get("AGENT_VERSION", ""),
        "agentex.agent.id": environ.get("AGENT_ID", ""),
        "agentex.acp_type": environ.get("ACP_TYPE", ""),
        **known,
    }
    # A variable need not be UTF-8: it is then told as far as it is.
    return {name: text.encode(errors="replace").decode() for name, text in named.items() if text}


class OtlpSink:
    """Delivers batches to `{endpoint}/v1/traces`.

    `client` gets the API that it speaks. `resource`: the result of `otlp_resource`. `compress`:
    bodies are gzip. `account_id` gives the id of an account by its number, "" while it is unknown.
    Create it inside a running loop.
    """

    name = "otlp"
    data_follows = False
    reasons = frozenset({"open_writes_off"})
    repairs = False

    def __init__(
        self,
        client: UpstreamClient,
        *,
        max_batch: int,
        max_batch_bytes: int,
        resource: Mapping[str, str],
        compress: bool,
        account_id: Callable[[int], str],
    ) -> None:
        self.max_batch = max_batch
        self.max_batch_bytes = max_batch_bytes
        client.api = _api(compress=compress)
        self._client = client
        self._target = client.target("/v1/traces")
        self._encoder = Encoder(resource, SCOPE, __version__)
        self._account_id = account_id
        self._compressing = BlockingThread("gzip") if compress else None

    def skips(self, span: Span) -> str | None:
        """Skip what is not whole: open writes, and what is added to them later."""
        is_whole = span.end_time is not None and not span.is_supplement
        return None if is_whole else "open_writes_off"

    async def send(self, batch: Sequence[Span], *, suspicion: int = 0) -> int:  # noqa: ARG002
        """Send every span of `batch`; how many of them the receiver says that it did not keep.

        Which ones they are, it does not say. Raises `Refused` if they are all of them.
        """
        spans = [mapped(span, self._account_id(span.account)) for span in batch]
        response = await self._post(self._encoder.parts(spans))
        rejected = rejected_spans(response.body) if response.body else 0
        if rejected >= len(batch):
            raise Refused(f"HTTP {response.status} that rejects all spans", response.status)
        return rejected

    async def try_out(self) -> bool:
        """Send a request without spans: whatever is said about it, the credential is accepted."""
        try:
            await self._post([])
        except SinkError as error:
            if not error.about_content:
                raise
        return True

    async def _post(self, parts: Sequence[Json]) -> Response:
        gzip = self._compressing
        body = b"".join(parts) if gzip is None else await _compressed(parts, gzip)
        response = await self._client.request(b"POST", self._target, body)
        if not response.taken:
            raise decide(response, self._client.api.form)
        return response

    def stopping(self) -> None:
        """It makes no difference: every write is whole."""

    async def close(self) -> None:
        """Close all connections."""
        if self._compressing is not None:
            self._compressing.close()
        await self._client.close()


def _api(*, compress: bool) -> Api:
    headers = {
        "Content-Type": "application/x-protobuf",
        "Accept": "application/x-protobuf, application/json",
    }
    if compress:
        headers["Content-Encoding"] = "gzip"
    return Api("OTLP", _is_own, headers, reads_success=True)


def _is_own(media_type: str, says: bool) -> bool:  # noqa: FBT001
    """Some receivers refuse in plain text, but a success with a text is not OTLP's; nor is HTML."""
    return media_type in _MEDIA_TYPES or (media_type == _TEXT and not says)


async def _compressed(parts: Sequence[Json], thread: BlockingThread) -> bytes:
    """Compress beside the loop, which a batch would hold up for milliseconds."""
    try:
        return await thread.start(_gzip, parts)
    except OSError:
        raise Unavailable("there is no thread for gzip", reached=False) from None


def _gzip(parts: Sequence[Json]) -> bytes:
    stream = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)
    return b"".join([*map(stream.compress, parts), stream.flush()])
