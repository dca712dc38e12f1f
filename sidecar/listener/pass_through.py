"""A streaming proxy to SGP for the SGP client's other requests (`listener.pass_through`).

An agent that finds the sidecar through `SGP_CLIENT_BASE_URL` sends it all of the client's calls.
Nothing is queued, retried, logged or kept: a chunk stays in memory until the other side has
received it. Only the configured upstream can be reached.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from http import HTTPStatus

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from sidecar.listener.body_reader import send_continue
from sidecar.listener.refusals import Refusal

# The versions of SGP's API that its clients use; the sidecar's own is /v1.
PREFIXES = ("/v4/", "/v5/")
CONNECT_S = 10.0
KEEPALIVE_S = 4.0
# Read timeout: a model can be silent for minutes. A client can set its own, up to the maximum
# (`x-stainless-read-timeout`, docs/upstreams.md S1.1).
READ_TIMEOUT_S = 600.0
MAX_READ_TIMEOUT_S = 3600.0
_CHUNK = 64 * 1024
# Headers that concern only one connection (RFC 9110, 7.6.1).
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "  # noqa: SIM905
    "transfer-encoding upgrade".split()
)
_NOT_FORWARDED = _HOP_BY_HOP | {"host", "expect"}
_FAILED = {
    "broken": (HTTPStatus.BAD_GATEWAY, "SGP's response can't be forwarded"),
    "unreachable": (HTTPStatus.BAD_GATEWAY, "SGP can't be reached"),
    "timeout": (HTTPStatus.GATEWAY_TIMEOUT, "SGP did not respond in time"),
}


class PassThrough:
    """Forwards requests to `base_url`; `outcomes` counts them by PASS_THROUGH_OUTCOMES."""

    def __init__(self, base_url: str, outcomes: Counter[str]) -> None:
        self._base = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._outcomes = outcomes

    async def forward(self, request: web.BaseRequest) -> web.StreamResponse:
        """Stream the upstream's response to the client; returns it once it is sent.

        Raises `Refusal` if no part of a response has been sent.
        """
        target = request.rel_url.raw_path_qs
        if ".." in request.path.split("/"):
            raise Refusal(HTTPStatus.BAD_REQUEST, "a path can't have dot segments", "invalid")
        if not all(_is_header_value(value) for value in request.headers.values()):
            error = "a header contains bytes that can't be forwarded"
            raise Refusal(HTTPStatus.BAD_REQUEST, error, "invalid")
        outcome = "aborted"
        try:
            await send_continue(request)
            async with self._open_session().request(
                request.method,
                URL(self._base + target, encoded=True),
                headers=_filtered(request.headers, _NOT_FORWARDED),
                data=request.content if request.body_exists else None,
                timeout=_timeout(request.headers),
                allow_redirects=False,
            ) as upstream:
                response = web.StreamResponse(
                    status=upstream.status,
                    reason=upstream.reason if _is_header_value(upstream.reason or "") else None,
                    headers=_filtered(upstream.headers, _HOP_BY_HOP),
                )
                outcome = await _stream(request, upstream, response)
                return response
        except ValueError:
            outcome = "broken"  # aiohttp can't write this response
            raise _failed(outcome) from None
        except TimeoutError:
            outcome = "timeout"
            raise _failed(outcome) from None
        except (aiohttp.ClientError, OSError):
            outcome = "unreachable"
            raise _failed(outcome) from None
        finally:
            self._outcomes[outcome] += 1

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The agent decides how many requests run concurrently. An idle connection is
                # dropped before SGP closes it: uvicorn's default is 5 s (docs/upstreams.md A6).
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
                read_bufsize=_CHUNK,
            )
            # aiohttp would resend a request without a body if a reused connection breaks.
            self._session._retry_connection = False  # noqa: SLF001
        return self._session

    async def close(self) -> None:
        """Close all connections to SGP."""
        if self._session is not None:
            await self._session.close()


async def _stream(
    request: web.BaseRequest, upstream: aiohttp.ClientResponse, response: web.StreamResponse
) -> str:
    """Write the response and return the outcome.

    Once the head is sent, a failure can only close the connection.
    """
    try:
        await response.prepare(request)
        while chunk := await upstream.content.readany():
            await response.write(chunk)
        await response.write_eof()
    except (aiohttp.ClientConnectionResetError, ConnectionResetError):
        return "aborted"
    except (TimeoutError, aiohttp.ClientError, OSError):
        if request.transport is not None:
            request.transport.abort()
        return "broken"
    return "answered"


def _failed(outcome: str) -> Refusal:
    status, text = _FAILED[outcome]
    return Refusal(status, text, "upstream")


def _timeout(headers: Mapping[str, str]) -> aiohttp.ClientTimeout:
    try:
        seconds = float(headers.get("x-stainless-read-timeout", READ_TIMEOUT_S))
    except ValueError:
        seconds = READ_TIMEOUT_S
    seconds = seconds if 0 < seconds < MAX_READ_TIMEOUT_S else MAX_READ_TIMEOUT_S
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=seconds)


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
