"""HTTP to one upstream: adds credentials to requests and maps every status to a decision.

In: method, target, body. Out: a `Response`, or a `SinkError` when there is none. Retries are left
to the drain (D7). Response bodies are discarded, because they echo the spans. Only the beginning of
an error body is kept, for the messages listed in docs/upstreams.md A6, and it is never logged.
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

# The upstream has accepted the batch.
TAKEN = range(200, 300)
# Other statuses: 5xx is `Unavailable`, 4xx `Refused`, and a redirect `Misdirected`.
_DECISIONS: dict[int, type[SinkError]] = {
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Unauthorized,
    HTTPStatus.NOT_FOUND: Misdirected,
    HTTPStatus.METHOD_NOT_ALLOWED: Misdirected,
    HTTPStatus.REQUEST_TIMEOUT: Unavailable,
    HTTPStatus.GONE: Misdirected,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLarge,
    HTTPStatus.TOO_EARLY: Unavailable,
    HTTPStatus.TOO_MANY_REQUESTS: Unavailable,
}


class Response(NamedTuple):
    """An upstream's response; `error_body` is the start of an error response's body, else empty."""

    status: int
    error_body: bytes
    retry_after: float  # seconds, 0 if the response does not ask for a delay


def decide(response: Response) -> SinkError:
    """The decision that follows from a response with a status that is not in `TAKEN`.

    Sources: docs/upstreams.md A6, S1.5. Before it calls this, a sink handles the statuses that
    have a special meaning for its upstream.
    """
    status, _, retry_after = response
    message = f"HTTP {status}"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        # The batch may be the cause (D8): SGP reports its internal 500s as 503.
        return Unavailable(message, status, retry_after=retry_after, suspect=True)
    default = Misdirected if status < HTTPStatus.BAD_REQUEST else Refused
    decision = _DECISIONS.get(status, default)
    if decision is Unavailable:
        return Unavailable(message, status, retry_after=retry_after)
    return decision(message, status)


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """The delay requested by `retry-after-ms` or `Retry-After` (seconds or an HTTP date), or 0.

    Capped at a day, so that no response can stop the retries for longer.
    """
    text = headers.get("Retry-After", "").strip()
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        elif text.replace(".", "", 1).isdigit():
            seconds = float(text)
        else:
            at = parsedate_to_datetime(text)
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            seconds = (at - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if isfinite(seconds) else 0.0


class UpstreamClient:
    """Sends requests to one upstream with the current credentials.

    `requested` is called after every request with its outcome (telemetry/outcomes.py), its
    duration in seconds and the size of its body in bytes.
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
        """Send one request; `target` is a result of the `target` method.

        Raises `Unavailable` when no response arrives, and `Unauthorized`, without sending anything,
        while a required credential is missing.
        """
        headers = self._credentials.headers()
        if headers is None:
            raise Unauthorized("no credential yet")
        head = self._http.head(method, target, headers, len(body))
        started = perf_counter()
        outcome = "connection"
        try:
            status, error_body, retry = await self._http.exchange(head, body)
            response = Response(status, error_body, retry_after_seconds(retry) if retry else 0.0)
            outcome = "ok" if status in TAKEN else decide(response).outcome
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable("timed out") from None
        except NoResponse as failure:
            raise Unavailable(str(failure), outage=failure.outage) from None
        finally:
            self._requested(outcome, perf_counter() - started, len(body))
        return response

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()
