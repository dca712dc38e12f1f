"""HTTP to one upstream: requests, credentials, and every status mapped to a decision.

In: method, path, body. Out: the first bytes of the answer, or a `SinkError`. Never retries: that is
the drain's (D7). Bodies of answers are read and thrown away, because they echo the spans;
only a short head of an error is looked at for the marks that docs/upstreams.md A6 names, and is
never passed on.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from time import perf_counter
from typing import NamedTuple

from yarl import URL

from sidecar import __version__
from sidecar.credentials import Credentials, is_header_safe
from sidecar.http.dialer import Dialer
from sidecar.http.pool import Pool
from sidecar.sinks import Misdirected, Refused, SinkError, TooLarge, Unauthorized, Unavailable

MAX_RETRY_AFTER_S = 86_400.0

# Statuses that say that the upstream has the batch.
TAKEN = range(200, 300)
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

    Sources: docs/upstreams.md A6, S1.5. What one upstream means by a status in a
    way of its own is its sink's to know, before it asks here.
    """
    status = answer.status
    if status in TAKEN:
        return None
    said = f"HTTP {status}"
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
        url = URL(base_url)
        self._prefix = url.raw_path_qs.rstrip("/")
        self._dialer = Dialer(url)
        self._answered = answered
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._pool: Pool | None = None
        self._own = _own_headers(url)
        self._last: Mapping[str, str] | None = None
        self._lines = b""

    def target(self, path: str) -> bytes:
        """`path`, already percent-encoded, under the base URL's own path."""
        target = self._prefix + path
        if not is_header_safe(target) or " " in target:
            raise ValueError("a path must be percent-encoded")
        return target.encode()

    async def request(self, method: bytes, target: bytes, body: bytes) -> Answer:
        """Send one request, to a `target` of that method.

        Raises `Unavailable` when there is no answer, `Unauthorized` when there is no credential to
        send it with.
        """
        headers = self._credentials.headers()
        if headers is None:
            msg = "no credential yet"
            raise Unauthorized(msg)
        if headers is not self._last:
            self._lines = _lines(self._own | headers)
            self._last = headers
        if self._pool is None:
            self._pool = Pool(self._dialer, timeout_s=self._timeout_s, most=self._max_connections)
        header = b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (
            method, target, self._lines, len(body)
        )  # fmt: skip
        started = perf_counter()
        outcome = "connection"
        try:
            status, head, retry = await self._pool.exchange(header, body)
            answer = Answer(status, head, retry_after_seconds(retry) if retry else 0.0)
            outcome = "ok" if status in TAKEN else _OUTCOMES[type(decide(answer))]
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable("timed out") from None
        finally:
            self._answered(outcome, perf_counter() - started, len(body))
        return answer

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close()


def _own_headers(url: URL) -> dict[str, str]:
    headers = {
        "Host": url.host_port_subcomponent or "",
        "Content-Type": "application/json",
        "Accept": "application/json",
        # A compressed answer would only cost CPU to throw away.
        "Accept-Encoding": "identity",
        "User-Agent": f"trace-sidecar/{__version__}",
    }
    if url.user is not None or url.password is not None:
        userinfo = f"{url.user or ''}:{url.password or ''}".encode()
        headers["Authorization"] = "Basic " + b64encode(userinfo).decode()
    return headers


def _lines(headers: Mapping[str, str]) -> bytes:
    if not all(is_header_safe(text) for text in headers.values()):
        raise ValueError("a header would end its line")
    return "".join(f"{name}: {text}\r\n" for name, text in headers.items()).encode()
