"""HTTP to one upstream: session, deadlines, credentials, and every status mapped to a decision.

In: method, URL, body. Out: the first bytes of the answer, or a `SinkError`. Never retries: that is
the drain's (design.md D7). Bodies of answers are read and thrown away, because they echo the spans;
only a short head of an error is looked at for the marks that contracts/agentex.md 6 names, and is
never passed on.
"""

import asyncio
import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from time import perf_counter
from typing import NamedTuple

import aiohttp
from yarl import URL

from sidecar import __version__
from sidecar.credentials import Credentials
from sidecar.sinks import Misdirected, Refused, SinkError, TooLarge, Unauthorized, Unavailable

MAX_RETRY_AFTER_S = 86_400.0
HEAD_BYTES = 4096
# An answer echoes the batch (contracts/sgp.md 1.3); more than this is not worth the connection.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
# Idle connections end before the server's 5 s, or they would be reset (agentex.md 6).
KEEPALIVE_S = 4.0
CONNECT_S = 5.0

_IN_ONE_PIECE = 2**20

_FORBIDDEN = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_LATER = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_ELSEWHERE = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE)


_OUTCOMES: dict[type, str] = {
    Refused: "refused",
    TooLarge: "too_large",
    Unavailable: "unavailable",
    Unauthorized: "unauthorized",
    Misdirected: "misdirected",
}


class Answer(NamedTuple):
    """An upstream's answer: the status, and the head of the body when it is an error."""

    status: int
    head: bytes
    retry_after: float


def decide(answer: Answer) -> SinkError | None:
    """The decision for an answer: None when the upstream has the batch.

    Sources: contracts/agentex.md 6, contracts/sgp.md 1.5. What one upstream means by a status in a
    way of its own is its sink's to know, before it asks here.
    """
    status = answer.status
    said = f"HTTP {status}"
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    if status in _FORBIDDEN:
        return Unauthorized(said, status)
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # It may be about this very batch (D8): SGP hides its own 500s behind a 503.
        suspect = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return Unavailable(said, status, retry_after=answer.retry_after, suspect=suspect)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return TooLarge(said, status)
    if status in _ELSEWHERE or status < HTTPStatus.BAD_REQUEST:
        return Misdirected(said, status)
    return Refused(said, status)


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After` (seconds or an HTTP date) or `retry-after-ms` asks for, or 0.

    At most a day: an upstream is asked again now and then, whatever it said.
    """
    try:
        seconds = _asked_for(headers)
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if isfinite(seconds) else 0.0


def _asked_for(headers: Mapping[str, str]) -> float:
    if milliseconds := headers.get("retry-after-ms"):
        return float(milliseconds) / 1000
    text = headers.get("Retry-After")
    if not text:
        return 0.0
    if text.strip().replace(".", "", 1).isdigit():
        return float(text)
    at = parsedate_to_datetime(text)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return (at - datetime.now(UTC)).total_seconds()


class HttpClient:
    """Requests to one base URL with the credential of the moment.

    `answered` is told of every request: its outcome, its seconds, the bytes of its body.
    """

    def __init__(
        self,
        base_url: str,
        credentials: Credentials,
        answered: Callable[[str, float, int], None],
        *,
        timeout_s: float,
        max_connections: int,
    ) -> None:
        self._base = base_url.rstrip("/")
        self._answered = answered
        self._credentials = credentials
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    def url(self, path: str) -> URL:
        """`path`, already percent-encoded, under the base URL and its own path prefix."""
        return URL(self._base + path, encoded=True)

    def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections, keepalive_timeout=KEEPALIVE_S
            ),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            # A compressed answer would only cost CPU to throw away.
            headers={
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"trace-sidecar/{__version__}",
            },
        )

    async def request(self, method: str, url: URL, body: bytes) -> Answer:
        """Send one request.

        Raises `Unavailable` when there is no answer, `Unauthorized` when there is no credential to
        send it with.
        """
        headers = self._credentials.headers()
        if headers is None:
            msg = "no credential yet"
            raise Unauthorized(msg)
        if self._session is None:
            self._session = self._open()
        started = perf_counter()
        outcome = "connection"
        try:
            async with self._session.request(
                method, url, data=_payload(body), headers=headers, allow_redirects=False
            ) as response:
                answer = await _read(response)
            outcome = _OUTCOMES.get(type(decide(answer)), "ok")
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable("timed out") from None
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(_no_content(error), outage=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(_no_content(error)) from None
        finally:
            self._answered(outcome, perf_counter() - started, len(body))
        return answer

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            # aiohttp closes transports in the next round of the loop.
            await asyncio.sleep(0)


async def _read(response: aiohttp.ClientResponse) -> Answer:
    content = response.content
    head = b""
    if response.status >= HTTPStatus.MULTIPLE_CHOICES:
        while len(head) < HEAD_BYTES and not content.at_eof():
            head += (await content.readany())[:HEAD_BYTES]
    size = 0
    while not content.at_eof() and size < MAX_ANSWER_BYTES:
        size += len(await content.readany())
    return Answer(response.status, head, retry_after_seconds(response.headers))


def _payload(body: bytes) -> bytes | io.BytesIO:
    # aiohttp warns of larger bytes, because they go to the socket in one piece.
    return body if len(body) <= _IN_ONE_PIECE else io.BytesIO(body)


def _no_content(error: Exception) -> str:
    """What went wrong on the wire, by class: texts may repeat what was sent."""
    cause = error.__cause__ or getattr(error, "os_error", None)
    return type(cause or error).__name__
