"""HTTP to one upstream: adds credentials to requests and maps every response to a decision.

In: method, target, body. Out: a `Response`, or a `SinkError` when there is none. Retries are left
to the drain (D7). Response bodies are discarded, because they echo the spans. Only the beginning of
an error's body, of the response to a GET, and of a success of which the API says more (`Api`), is
kept, for docs/upstreams.md A3 and A6 and docs/otlp.md, and it is never logged.
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
from sidecar.http.client_connection import RawResponse
from sidecar.http.encodings import decoded_head
from sidecar.http.failures import NoResponse
from sidecar.sinks import Misdirected, Refused, SinkError, TooLarge, Unauthorized, Unavailable

MAX_RETRY_AFTER_S = 300.0  # then the lane probes, whatever the upstream asked for (D7)
MAX_BODY_BYTES = 256 * 1024

_SUCCESS = range(200, 300)
_UNAUTHORIZED = HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN
# The only statuses with which either API refuses a write (docs/upstreams.md A1, S1.5). All other
# 4xx, and redirects, are about the hop, and `Misdirected`: a proxy, a gateway, a wrong base URL.
_DECISIONS: dict[int, type[SinkError]] = {
    HTTPStatus.BAD_REQUEST: Refused,
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Unauthorized,
    HTTPStatus.REQUEST_TIMEOUT: Unavailable,
    HTTPStatus.CONFLICT: Refused,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TooLarge,
    HTTPStatus.UNPROCESSABLE_ENTITY: Refused,
    HTTPStatus.TOO_EARLY: Unavailable,
    HTTPStatus.TOO_MANY_REQUESTS: Unavailable,
}


class Response(NamedTuple):
    """An upstream's response.

    `body` is the decoded beginning of an error's body, or of one that is read, else empty; None if
    its Content-Encoding is not one that we understand. `is_own`: its Content-Type is one of the
    API's, or missing.
    """

    status: int
    body: bytes | None = b""
    is_own: bool = True
    retry_after: float = 0.0  # seconds, 0 if the response does not ask for a delay
    from_proxy: bool = False  # it may be the proxy's own, and not the upstream's

    @property
    def taken(self) -> bool:
        """Whether the upstream has accepted the batch (D24)."""
        return self.status in _SUCCESS and self.is_own


_OK = Response(200)  # by far the most frequent one


def _is_json(media_type: str, _: bool) -> bool:  # noqa: FBT001
    return media_type in {"application/json", "text/json"} or media_type.endswith("+json")


class Api(NamedTuple):
    """How an upstream's API differs from others.

    `form` is the form of its responses, for people, and `is_own` says whether one with this media
    type, in lower case and without parameters, is in that form; the second argument is whether it
    is a success that says something. `headers` are sent with every
    request, instead of the client's defaults. `reads_success`: a success may say more in its body,
    so it counts only once all of it has arrived.
    """

    form: str
    is_own: Callable[[str, bool], bool]
    headers: Mapping[str, str]
    reads_success: bool = False


JSON_API = Api("JSON", _is_json, {})


def decide(response: Response, form: str = JSON_API.form) -> SinkError:
    """The decision that follows from a response that is not `taken`; `form` is the API's.

    Sources: docs/upstreams.md A6, S1.5. Before it calls this, a sink handles the responses that
    have a special meaning for its upstream.
    """
    status, body, is_own, retry_after, from_proxy = response
    where = ", perhaps from the proxy" if from_proxy else ""
    message = f"HTTP {status}{where}"
    if from_proxy and status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        message = f"HTTP {status}: the proxy requires a credential, or refuses the one in its URL"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(message, status, retry_after=retry_after)
    decision = _DECISIONS.get(status, Misdirected)
    if decision is Refused and body is None:
        # It may say that the span exists already, which is no refusal.
        unknown = f"HTTP {status} in an unknown encoding{where}"
        return Unavailable(unknown, status, retry_after=retry_after)
    if not is_own and (decision is Refused or status in _SUCCESS):
        return Misdirected(f"HTTP {status} that is not {form}{where}", status)
    if decision is Unauthorized and from_proxy:
        return Misdirected(message, status)  # nobody has looked at the upstream's credential
    if decision.about_content or decision.holds is not None:
        return decision(message, status)
    return decision(message, status, retry_after=retry_after)


def parse_response(raw: RawResponse, api: Api = JSON_API, *, forwarded: bool = False) -> Response:
    """The response as far as a sink needs it. `forwarded`: a proxy may have made it."""
    status, body, headers = raw
    content_type = headers.get("content-type")
    if status == HTTPStatus.OK and not body and content_type == "application/json":
        return _OK
    # A proxy's own response may have no Content-Type; the upstreams' responses always have one.
    is_own = not forwarded
    if content_type:
        media_type = content_type.partition(";")[0].strip().lower()
        is_own = api.is_own(media_type, status in _SUCCESS and bool(body))
    return Response(
        status,
        decoded_head(body, headers.get("content-encoding", ""), MAX_BODY_BYTES),
        is_own,
        retry_after_seconds(headers),
        forwarded and (status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED or not is_own),
    )


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """The delay requested by `retry-after-ms` or `Retry-After` (seconds or an HTTP date), or 0.

    Names are in lower case. A date is relative to the response's own `Date`, if it has one: the
    upstream's clock may be wrong, or ours. Capped, so that no response can stop the retries.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    text = headers.get("retry-after", "").strip()
    seconds = _number(text) if milliseconds is None else milliseconds / 1000
    if seconds is None:
        at, now = _instant(text), _instant(headers.get("date", ""))
        seconds = 0.0 if at is None else (at - (now or datetime.now(UTC))).total_seconds()
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) and number >= 0 else None


def _instant(text: str) -> datetime | None:
    try:
        instant = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _never(_: Response) -> bool:
    return False


class UpstreamClient:
    """Sends requests to one upstream with the current credentials.

    `requested` is called after every request with its outcome (telemetry/outcomes.py), its
    duration in seconds and the size of its body in bytes. `api` is what the upstream speaks: JSON,
    unless its sink says otherwise.
    """

    def __init__(
        self,
        http: HttpClient,
        credentials: Credentials,
        requested: Callable[[str, float, int], None],
    ) -> None:
        self._http = http
        self.credentials = credentials
        self._requested = requested
        self.api = JSON_API
        self._added_to: Mapping[str, str] | None = None
        self._headers: Mapping[str, str] = {}
        self.target = http.target

    async def request(
        self,
        method: bytes,
        target: bytes,
        body: bytes,
        *,
        expected: Callable[[Response], bool] = _never,
        keyless: bool = False,
    ) -> Response:
        """Send one request; `target` is a result of the `target` method.

        `expected` says whether an error is part of an exchange that goes on, and so no failure.
        Raises `Unavailable` when no response arrives, and `Unauthorized`, without sending anything,
        while a required credential is missing; `keyless`: it is sent without one.
        """
        headers = self.credentials.headers()
        if headers is None and keyless:
            headers = {}
        if headers is None:
            raise Unauthorized("no credential yet", reached=False)
        head = self._http.head(method, target, self._with_own(headers), len(body))
        started = perf_counter()
        outcome, is_connections_fault = "connection", True
        try:
            reads = method == b"GET" or self.api.reads_success
            raw = await self._http.exchange(head, body, keep_body=reads)
            response = parse_response(raw, self.api, forwarded=self._http.forwarded)
            if taken := response.taken:
                self.credentials.accepted(headers)
            elif response.status in _UNAUTHORIZED and not response.from_proxy:
                self.credentials.refused(headers)
            if taken or expected(response):
                outcome, is_connections_fault = "ok", False
            else:
                decision = decide(response)
                outcome = decision.outcome
                is_connections_fault = not (decision.about_content or decision.retry_after)
        except TimeoutError:
            outcome = "timeout"
            raise Unavailable("timed out") from None
        except NoResponse as failure:
            outcome = "timeout" if failure.late else "connection"
            raise Unavailable(str(failure), reached=not failure.outage) from None
        finally:
            if is_connections_fault:
                # The name may mean another server by now, so the next request looks it up again.
                self._http.distrust()
            self._requested(outcome, perf_counter() - started, len(body))
        return response

    def _with_own(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """The credential's headers and the API's: the same object as long as `headers` is."""
        if headers is not self._added_to:
            self._added_to = headers
            self._headers = {**headers, **self.api.headers} if self.api.headers else headers
        return self._headers

    async def close(self) -> None:
        """Close all connections."""
        await self._http.close()
