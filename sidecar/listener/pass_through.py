"""A streaming proxy to SGP for the SGP client's other requests (`listener.pass_through`).

An agent that finds the sidecar through `SGP_CLIENT_BASE_URL` sends it all of the client's calls.
Nothing is queued, retried, logged or kept: a chunk stays in memory until the other side has
received it. Only the configured upstream can be reached.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sidecar.http.messages import (
    Answer,
    Discard,
    Flow,
    Receiver,
    Request,
    Response,
    StreamedResponse,
    Truncated,
)
from sidecar.listener.connector import Connector
from sidecar.listener.refusals import Refusal, ended_early, stopping
from sidecar.listener.routes import SdkRoute, refused
from sidecar.network.dialer import Dialer, Unreachable
from sidecar.network.tunnel import refusal

# An idle connection is dropped before SGP does so: uvicorn's default is 5 s (docs/upstreams.md A6).
KEEPALIVE_S = 4.0
# Read timeout: a model can be silent for minutes. A client can set its own, up to the maximum
# (`x-stainless-read-timeout`, docs/upstreams.md S1.1).
READ_TIMEOUT_S = 600.0
MAX_READ_TIMEOUT_S = 3600.0
_CHUNK = 64 * 1024
_ERROR_KEY = SdkRoute.error_key
# Headers that concern only one connection (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "  # noqa: SIM905
    "transfer-encoding upgrade".split()
)
_NOT_FORWARDED = _HOP_BY_HOP | {"host", "expect"}
_WHOLE = (
    "sgp.hide is set, and this would reach SGP whole: send spans to PUT /v5/spans/batch, with SGP "
    "enabled"
)
_FAILED = {
    "broken": (HTTPStatus.BAD_GATEWAY, "SGP's response can't be forwarded"),
    "unreachable": (HTTPStatus.BAD_GATEWAY, "SGP can't be reached"),
    "timeout": (HTTPStatus.GATEWAY_TIMEOUT, "SGP did not respond in time"),
}


def _writes_spans(request: Request) -> bool:
    """Whether a request may have spans in its body, however its path is spelled."""
    resource = [part.lower() for part in unquote(request.path).split("/") if part][1:2]
    return resource == ["spans"] and request.method not in {"GET", "HEAD"}


class PassThrough:
    """Forwards requests to the URL of `dialer`; `outcomes` counts them by PASS_THROUGH_OUTCOMES.

    `max_age_s`: for how long a connection is used. `hides`: SGP must not see all of a span, so
    requests that would write spans are refused; nothing is taken out of what is forwarded.
    """

    def __init__(
        self, dialer: Dialer, outcomes: Counter[str], *, max_age_s: float, hides: bool = False
    ) -> None:
        url = dialer.url
        self._base = f"{url.scheme}://{url.authority}{url.path.rstrip('/')}"
        self.dialer = dialer
        # With a proxy that forwards requests, aiohttp sends the whole URL, over what we dial.
        self._proxy = URL(str(dialer.proxy)) if dialer.forwards else None
        self._max_age_s = max_age_s
        self._hides = hides
        self._connector: Connector | None = None
        self._session: aiohttp.ClientSession | None = None
        self.outcomes = outcomes

    def receive(self, request: Request, flow: Flow, *, is_stopping: bool) -> Receiver:
        """The receiver of a request that is forwarded, or refused by its head."""
        if is_stopping:
            refusal = stopping()
        elif ".." in unquote(request.path).split("/"):
            refusal = Refusal(HTTPStatus.BAD_REQUEST, "a path can't have dot segments", "invalid")
        elif not all(_is_header_value(request.header(name)) for name in request.headers):
            error = "a header contains bytes that can't be forwarded"
            refusal = Refusal(HTTPStatus.BAD_REQUEST, error, "invalid")
        elif self._hides and _writes_spans(request):
            refusal = Refusal(HTTPStatus.FORBIDDEN, _WHOLE, "upstream")
        else:
            return _Forwarding(self, request, flow)
        return Discard(refused(refusal, _ERROR_KEY))

    async def send(
        self, request: Request, body: AsyncIterator[bytes] | None
    ) -> aiohttp.ClientResponse:
        """Send a request to SGP; return its response once the head has arrived.

        Raises `Unreachable`, or what aiohttp raises.
        """
        session, connector = self._open()
        received = CIMultiDict((name.decode(), request.header(name)) for name in request.headers)
        headers = _filtered(received, _NOT_FORWARDED)
        dialer = self.dialer
        if credential := dialer.url.credential:
            headers.setdefault("Authorization", credential)
        proxy = dialer.proxy if dialer.forwards else None
        if proxy is not None and proxy.authorization:
            headers["Proxy-Authorization"] = proxy.authorization.reveal()
        response = await session.request(
            request.method,
            URL(self._base + request.target, encoded=True),
            headers=headers,
            data=body,
            timeout=_timeout(received),
            allow_redirects=False,
            proxy=self._proxy,
        )
        status = response.status
        if proxy is not None and status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            reason = refusal(status, has_credential=bool(proxy.authorization))
            raise Unreachable(f"the proxy {proxy}: {reason}")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            connector.distrust()
        return response

    def _open(self) -> tuple[aiohttp.ClientSession, Connector]:
        if self._session is None or self._connector is None:
            self._connector = Connector(
                self.dialer, keepalive_s=KEEPALIVE_S, max_age_s=self._max_age_s
            )
            self._session = aiohttp.ClientSession(
                connector=self._connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
                read_bufsize=_CHUNK,
            )
            # aiohttp would resend a request without a body if a reused connection breaks.
            self._session._retry_connection = False  # noqa: SLF001
        return self._session, self._connector

    async def close(self) -> None:
        """Close all connections to SGP."""
        if self._session is not None:
            await self._session.close()


class _Forwarding:
    """The receiver of one request, which is sent to SGP while it arrives."""

    wants_body = is_stream = True

    def __init__(self, upstream: PassThrough, request: Request, flow: Flow) -> None:
        self._pass_through, self._request, self._flow = upstream, request, flow
        self._upstream: aiohttp.ClientResponse | None = None
        self._outcome = ""
        # Pauses the agent while SGP takes less than it sends.
        self._body: asyncio.StreamReader | None = asyncio.StreamReader(limit=_CHUNK)
        self._body.set_transport(cast("asyncio.Transport", flow))  # it needs no more than `Flow`
        self._response = asyncio.create_task(self._forward())

    def data(self, chunk: bytes) -> None:
        if self._body is not None:
            self._body.feed_data(chunk)

    def end(self) -> Answer:
        if self._body is not None:
            self._body.feed_eof()
        return self._response

    def lost(self, *, late: bool) -> Response:  # noqa: ARG002 (a stream is never late)
        self._response.cancel()
        self._finish("aborted")
        return refused(ended_early(), _ERROR_KEY)

    async def _forward(self) -> Response | StreamedResponse:
        headers = self._request.headers
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        try:
            upstream = await self._pass_through.send(
                self._request, self._chunks() if has_body else None
            )
        except Unreachable as failure:
            return self._failed("timeout" if failure.late else "unreachable", str(failure))
        except ValueError:
            return self._failed("broken")  # aiohttp can't read this response
        except TimeoutError:
            return self._failed("timeout")
        except (aiohttp.ClientError, OSError):
            return self._failed("unreachable")
        self._upstream = upstream
        kept = _filtered(upstream.headers, _HOP_BY_HOP)
        reason = upstream.reason if _is_header_value(upstream.reason or "") else None
        return StreamedResponse(
            upstream.status, reason or "", [*kept.items()], self._relay(upstream)
        )

    async def _chunks(self) -> AsyncIterator[bytes]:
        """The body of the request; when SGP takes no more, the rest is discarded."""
        body = self._body
        try:
            while body is not None and (chunk := await body.read(_CHUNK)):
                yield chunk
        finally:
            self._discard_body()

    async def _relay(self, upstream: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body of the response.

        Once the head is sent, a failure can only close the connection.
        """
        try:
            while chunk := await upstream.content.readany():
                yield chunk
        except (TimeoutError, aiohttp.ClientError, OSError):
            self._finish("broken")
            raise Truncated from None
        self._finish("answered")

    def _failed(self, outcome: str, reason: str = "") -> Response:
        self._discard_body()
        self._finish(outcome)
        status, text = _FAILED[outcome]
        text = f"{text}: {reason}" if reason else text
        return refused(Refusal(status, text, "upstream"), _ERROR_KEY)

    def _discard_body(self) -> None:
        self._body = None
        self._flow.resume_reading()

    def _finish(self, outcome: str) -> None:
        """Count how the request ended, once."""
        if not self._outcome:
            self._outcome = outcome
            self._pass_through.outcomes[outcome] += 1
            if self._upstream is not None:
                self._upstream.close()


def _timeout(headers: Mapping[str, str]) -> aiohttp.ClientTimeout:
    try:
        seconds = float(headers.get("x-stainless-read-timeout", READ_TIMEOUT_S))
    except ValueError:
        seconds = READ_TIMEOUT_S
    seconds = seconds if 0 < seconds < MAX_READ_TIMEOUT_S else MAX_READ_TIMEOUT_S
    return aiohttp.ClientTimeout(total=None, sock_read=seconds)


def _filtered(headers: Mapping[str, str], excluded: Iterable[str]) -> CIMultiDict[str]:
    """The headers to forward: not `excluded`, not listed in `Connection`, and writable."""
    hop_by_hop = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    dropped = hop_by_hop.union(excluded)
    kept = ((name, value) for name, value in headers.items() if name.lower() not in dropped)
    return CIMultiDict((name, value) for name, value in kept if _is_header_value(value))


def _is_header_value(value: str) -> bool:
    """Whether aiohttp can write it as a header value: UTF-8 without control characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return value.replace("\t", " ").isprintable()
