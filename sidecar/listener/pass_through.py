"""Hands other requests of the SGP client to SGP as they are, and the answers back, streaming.

For agents that are pointed here by `SGP_CLIENT_BASE_URL`, which also redirects the client's other
calls (`listener.pass_through`). Nothing is queued, retried, logged or kept: a chunk is in memory
until the other side has taken it. Only the configured upstream can be reached.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from http import HTTPStatus

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from sidecar.listener.body import Refusal
from sidecar.listener.body_reader import say_continue

# The versions of SGP's API that its clients speak; ours is /v1.
PREFIXES = ("/v4/", "/v5/")
CONNECT_S = 10.0
KEEPALIVE_S = 4.0
# A model may think for long; a client that says how long it waits is believed (docs/upstreams.md
# 1.1), and one that hangs up ends the request at once.
SILENCE_S = 600.0
MAX_SILENCE_S = 3600.0
_CHUNK = 64 * 1024
# RFC 9110 7.6.1, and what is between two neighbours only.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer "  # noqa: SIM905
    "transfer-encoding upgrade".split()
)
_NOT_SENT = _HOP_BY_HOP | {"host", "expect"}
_FAILED = {
    "broken": (HTTPStatus.BAD_GATEWAY, "SGP's answer can't be handed on"),
    "unreachable": (HTTPStatus.BAD_GATEWAY, "SGP could not be reached"),
    "timeout": (HTTPStatus.GATEWAY_TIMEOUT, "SGP did not answer in time"),
}


class PassThrough:
    """Proxies requests to `base_url`; `outcomes` counts what became of them."""

    def __init__(self, base_url: str, outcomes: Counter[str]) -> None:
        self._base = base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None
        self._outcomes = outcomes

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The upstream's answer, once it has gone to the client; raises `Refusal` before that."""
        target = request.rel_url.raw_path_qs
        if ".." in request.path.split("/"):
            raise Refusal(HTTPStatus.BAD_REQUEST, "a path must not have dot segments", "invalid")
        if not all(_is_text(value) for value in request.headers.values()):
            error = "a header has bytes that can't be handed on"
            raise Refusal(HTTPStatus.BAD_REQUEST, error, "invalid")
        outcome = "aborted"
        try:
            await say_continue(request)
            async with self._opened().request(
                request.method,
                URL(self._base + target, encoded=True),
                headers=_forwarded(request.headers, _NOT_SENT),
                data=request.content if request.body_exists else None,
                timeout=_timeout(request.headers),
                allow_redirects=False,
            ) as upstream:
                response = web.StreamResponse(
                    status=upstream.status,
                    reason=upstream.reason if _is_text(upstream.reason or "") else None,
                    headers=_forwarded(upstream.headers, _HOP_BY_HOP),
                )
                outcome = await _stream(request, upstream, response)
                return response
        except ValueError:
            outcome = "broken"  # an answer that can't be written
            raise _failed(outcome) from None
        except TimeoutError:
            outcome = "timeout"
            raise _failed(outcome) from None
        except (aiohttp.ClientError, OSError):
            outcome = "unreachable"
            raise _failed(outcome) from None
        finally:
            self._outcomes[outcome] += 1

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # The agent sets the number of requests at once. Connections that SGP may have
                # closed are not used again: uvicorn's default is 5 s (docs/upstreams.md A6).
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Content-Type", "Accept", "Accept-Encoding"),
                read_bufsize=_CHUNK,
            )
            # Or it would send a request without a body again when a kept connection ends.
            self._session._retry_connection = False  # noqa: SLF001
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()


async def _stream(
    request: web.BaseRequest, upstream: aiohttp.ClientResponse, response: web.StreamResponse
) -> str:
    """Write the answer; once its head is out, an error can only end the connection."""
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
        silence = float(headers.get("x-stainless-read-timeout", SILENCE_S))
    except ValueError:
        silence = SILENCE_S
    silence = silence if 0 < silence < MAX_SILENCE_S else MAX_SILENCE_S
    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence)


def _forwarded(headers: Mapping[str, str], without: Iterable[str]) -> CIMultiDict[str]:
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    left_out = named.union(without)
    kept = ((name, value) for name, value in headers.items() if name.lower() not in left_out)
    return CIMultiDict((name, value) for name, value in kept if _is_text(value))


def _is_text(value: str) -> bool:
    """Whether aiohttp can write it as a header: no control characters, and nothing but UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return value.replace("\t", " ").isprintable()
