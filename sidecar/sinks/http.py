"""HTTP to one upstream: requests, credentials, and every status mapped to a decision.

In: method, path, body. Out: the first bytes of the answer, or a `SinkError`. Never retries: that is
the drain's (D7). Bodies of answers are read and thrown away, because they echo the spans;
only a short head of an error is looked at for the marks that docs/upstreams.md A6 names, and is
never passed on.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from time import perf_counter
from typing import NamedTuple

from sidecar.credentials import Credentials
from sidecar.http.client import HttpClient
from sidecar.http.failures import NoResponse
from sidecar.sinks import Misdirected, Refused, SinkError, TooLarge, Unauthorized, Unavailable

MAX_RETRY_AFTER_S = 86_400.0

# Statuses that say that the upstream has the batch.
TAKEN = range(200, 300)
_FORBIDDEN = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_LATER = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_ELSEWHERE = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.GONE)


class Response(NamedTuple):
    """An upstream's answer: the status, and the head of the body when it is an error."""

    status: int
    head: bytes
    retry_after: float


def decide(response: Response) -> SinkError | None:
    """The decision for an answer: None when the upstream has the batch.

    Sources: docs/upstreams.md A6, S1.5. What one upstream means by a status in a
    way of its own is its sink's to know, before it asks here.
    """
    status = response.status
    if status in TAKEN:
        return None
    said = f"HTTP {status}"
    if status in _FORBIDDEN:
        return Unauthorized(said, status)
    if status in _LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # It may be about this very batch (D8): SGP hides its own 500s behind a 503.
        suspect = status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return Unavailable(said, status, retry_after=response.retry_after, suspect=suspect)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return TooLarge(said, status)
    if status in _ELSEWHERE or status < HTTPStatus.BAD_REQUEST:
        return Misdirected(said, status)
    return Refused(said, status)


def outcome_of(response: Response) -> str:
    """The name of its decision (telemetry/outcomes.py)."""
    error = decide(response)
    return "ok" if error is None else error.outcome


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


class UpstreamClient:
    """Requests to one upstream with the credential of the moment.

    `requested` is called after every request with its outcome (telemetry/outcomes.py), its
    duration in seconds and the bytes of its body.
    """

    def __init__(
        self,
        http: HttpClient,
        credentials: Credentials,
        requested: Callable[[str, float, int], None],
    ) -> None:
        self._http = http
        self._credentials = credentials
        self._requested = requested
        self.target = http.target

    async def request(self, method: bytes, target: bytes, body: bytes) -> Response:
        """Send one request, to a `target` of that method.

        Raises `Unavailable` when no response comes, and `Unauthorized` when there is no credential
        to send it with.
        """
        headers = self._credentials.headers()
        if headers is None:
            raise Unauthorized("no credential yet")
        head = self._http.head(method, target, headers, len(body))
        started = perf_counter()
        outcome = "connection"
        try:
            status, beginning, retry = await self._http.exchange(head, body)
            response = Response(status, beginning, retry_after_seconds(retry) if retry else 0.0)
            outcome = "ok" if status in TAKEN else outcome_of(response)
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable("timed out") from None
        except NoResponse as error:
            raise Unavailable(str(error), outage=error.outage) from None
        finally:
            self._requested(outcome, perf_counter() - started, len(body))
        return response

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()
