"""Reading responses: status, Content-Type, Content-Encoding, and the delays that they ask for."""

import asyncio
import gzip
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.credentials import Credentials, Secret
from sidecar.http.client import HttpClient
from sidecar.http.client_connection import RawResponse
from sidecar.http.failures import NoResponse
from sidecar.network.dialer import Dialer
from sidecar.sinks import SinkError, Unauthorized, Unavailable
from sidecar.sinks.http import (
    MAX_BODY_BYTES,
    Response,
    UpstreamClient,
    decide,
    parse_response,
    retry_after_seconds,
)
from tests.support.upstream_connection import new_dialer, new_http_client

EXISTS = b'{"message":"Item already exists"}'
NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


def http_date(seconds: float, start: datetime = NOON) -> str:
    """An HTTP date, so many seconds after `start`."""
    return format_datetime(start + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("content_type", "is_own"),
    [
        (None, True),
        ("", True),
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        (" Application/JSON ", True),
        ("text/json", True),
        ("application/problem+json", True),
        ("application/vnd.api+JSON; version=1", True),
        ("text/html", False),
        ("text/plain", False),
        ("application/jsonp", False),
        ("application/xml+json+xml", False),
        (";", False),
    ],
)
def test_whether_a_response_is_the_apis_own(content_type: str | None, is_own: bool) -> None:
    """A gateway's page says what it is; a missing type is no reason for doubt."""
    headers = {} if content_type is None else {"content-type": content_type}
    for status in (200, 204, 299, 400, 401, 503):
        for body in (b"", EXISTS):
            response = parse_response(RawResponse(status, body, headers))
            assert response[:3] == (status, body, is_own)
            assert response.taken is (is_own and status < 300)


def test_a_success_without_a_readable_body_is_a_success() -> None:
    """Its body is not needed, so neither is its encoding."""
    headers = {"content-type": "application/json", "content-encoding": "br"}
    assert parse_response(RawResponse(200, b"", headers)).taken


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("", EXISTS),
        ("identity", EXISTS),
        ("gzip", gzip.compress(EXISTS)),
        ("x-gzip", gzip.compress(EXISTS)),
        ("deflate", zlib.compress(EXISTS)),
    ],
)
def test_the_head_of_a_refusal_is_decoded(encoding: str, body: bytes) -> None:
    """The sinks look for known messages in it."""
    raw = RawResponse(400, body, {"content-type": "application/json", "content-encoding": encoding})
    assert parse_response(raw) == Response(400, EXISTS)


def test_a_body_that_is_cut_off_or_large_is_decoded_up_to_a_limit() -> None:
    """Only its beginning is received, and no more than its beginning is decoded."""
    text = EXISTS + b" " * 10 * MAX_BODY_BYTES
    for body, expected in (
        (gzip.compress(text), text[:MAX_BODY_BYTES]),
        (gzip.compress(EXISTS)[:-4], EXISTS),
        (gzip.compress(EXISTS)[:5], b""),
    ):
        response = parse_response(RawResponse(400, body, {"content-encoding": "gzip"}))
        assert response.body == expected


@pytest.mark.parametrize(
    ("encoding", "body"), [("br", b"\x0b\x0f\x80"), ("gzip", EXISTS), ("gzip, gzip", b"")]
)
@pytest.mark.parametrize(
    ("status", "decision"),
    [
        (400, "Unavailable"),
        (409, "Unavailable"),
        (422, "Unavailable"),
        (401, "Unauthorized"),
        (404, "Misdirected"),
        (413, "TooLarge"),
        (503, "Unavailable"),
    ],
)
def test_a_refusal_that_cannot_be_read_is_none(
    encoding: str, body: bytes, status: int, decision: str
) -> None:
    """It may say that the span exists already; where the text makes no difference, it counts."""
    headers = {"content-encoding": encoding, "retry-after": "7"}
    response = parse_response(RawResponse(status, body, headers))
    assert response.body is None
    error = decide(response)
    assert type(error).__name__ == decision
    assert error.status == status
    assert error.retry_after == (7.0 if decision == "Unavailable" else 0.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 0.5 ", "retry-after-ms": "soon"}, 0.5),
        ({"retry-after": "86400"}, 300.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "inf", "retry-after": "9"}, 9.0),
        ({"retry-after-ms": "1e300"}, 300.0),
        ({"retry-after": http_date(100), "date": http_date(0)}, 100.0),
        ({"retry-after": http_date(7200), "date": http_date(0)}, 300.0),
        ({"retry-after": http_date(0), "date": http_date(100)}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT", "date": "noon"}, 300.0),
    ],
)
def test_retry_after_is_parsed_and_bounded(headers: dict[str, str], seconds: float) -> None:
    """Seconds, milliseconds or a date, whichever is valid; at most five minutes."""
    assert retry_after_seconds(headers) == seconds


@pytest.mark.parametrize("clock_s", [-3000.0, 0.0, 3000.0])
def test_a_date_is_relative_to_the_responses_own(clock_s: float) -> None:
    """The upstream's clock may be fifty minutes from ours."""
    now = datetime.now(UTC)
    headers = {"date": http_date(clock_s, now), "retry-after": http_date(clock_s + 100, now)}
    assert retry_after_seconds(headers) == 100.0


@pytest.mark.parametrize(("after", "seconds"), [(200, 200.0), (-200, 0.0), (3600, 300.0)])
def test_a_date_alone_is_relative_to_our_clock(after: float, seconds: float) -> None:
    """There is no other."""
    headers = {"retry-after": http_date(after, datetime.now(UTC))}
    assert retry_after_seconds(headers) == pytest.approx(seconds, abs=10.0)


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "soon"},
        {"retry-after": "-5"},
        {"retry-after": "1.2.3"},
        {"retry-after": "\u00b2"},
        {"retry-after": "9" * 400},
        {"retry-after": "Fri, 99 Foo 2026 12:00:00 GMT"},
        {"retry-after-ms": "inf"},
        {"retry-after-ms": "nan"},
        {"retry-after-ms": "-250"},
        {"retry-after-ms": "soon"},
    ],
)
def test_an_invalid_delay_is_none(headers: dict[str, str]) -> None:
    """Then the drain's own back-off applies."""
    assert retry_after_seconds(headers) == 0.0


@given(
    st.dictionaries(
        st.sampled_from(["retry-after", "retry-after-ms", "date"]),
        st.one_of(
            st.text(st.characters(max_codepoint=255), max_size=40),
            st.floats().map(str),
            st.datetimes().map(format_datetime),
            st.text("0123456789+-: GMTJanFri,", max_size=40),
        ),
    )
)
@example({"retry-after": "Fri, 31 Dec 9999 23:59:59 -9999"})
@example({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359", "date": http_date(0)})
def test_no_header_can_stop_the_retries(headers: dict[str, str]) -> None:
    """Whatever it says, the delay is from 0 to five minutes."""
    assert 0.0 <= retry_after_seconds(headers) <= 300.0


class ScriptedHttp(HttpClient):
    """An HTTP client whose exchange ends as the test says."""

    def __init__(self, ending: RawResponse | Exception) -> None:
        super().__init__(
            new_dialer("http://127.0.0.1:9"), timeout_s=1.0, max_requests=1, max_age_s=300.0
        )
        self._ending = ending

    async def exchange(self, head: bytes, body: bytes, *, keep_body: bool = False) -> RawResponse:
        """End without sending anything."""
        await asyncio.sleep(0)
        if isinstance(self._ending, Exception):
            raise self._ending
        return self._ending


NO_KEY = Credentials({}, relay=False, required=False)


async def counted(
    ending: RawResponse | Exception, expected: Callable[[Response], bool], key: str = "key"
) -> tuple[list[str], SinkError | Response]:
    """The outcomes counted for one request, and how it ended."""
    outcomes: list[str] = []
    client = UpstreamClient(
        ScriptedHttp(ending),
        Credentials({"key": Secret(key)}, relay=False, required=True),
        lambda outcome, _seconds, _size: outcomes.append(outcome),
    )
    try:
        response = await client.request(b"POST", client.target("/x"), b"", expected=expected)
    except SinkError as error:
        return outcomes, error
    return outcomes, response


@pytest.mark.parametrize("is_expected", [False, True])
@pytest.mark.parametrize(
    ("status", "content_type", "outcome"),
    [
        (200, "application/json", "ok"),
        (200, "text/html", "misdirected"),
        (400, "application/json", "refused"),
        (400, "text/html", "misdirected"),
        (403, "application/json", "unauthorized"),
        (404, "application/json", "misdirected"),
        (413, "text/html", "too_large"),
        (500, "application/json", "unavailable"),
    ],
)
async def test_an_expected_error_is_counted_as_ok(
    status: int, content_type: str, outcome: str, is_expected: bool
) -> None:
    """It is a step of an exchange that goes on; the caller gets the same response."""
    raw = RawResponse(status, b"", {"content-type": content_type})
    outcomes, response = await counted(raw, lambda _: is_expected)
    assert outcomes == ["ok" if is_expected else outcome]
    assert response == parse_response(raw)


@pytest.mark.parametrize(
    ("failure", "outcome", "reached"),
    [
        (TimeoutError(), "timeout", True),
        (NoResponse("timed out", outage=True, late=True), "timeout", False),
        (NoResponse("connection ended"), "connection", True),
        (NoResponse("h:1 refuses connections", outage=True), "connection", False),
    ],
)
async def test_a_request_without_a_response(
    failure: Exception, outcome: str, reached: bool
) -> None:
    """It is counted, and never as expected; the drain learns whether it can have arrived."""
    outcomes, error = await counted(failure, lambda _: True)
    assert outcomes == [outcome]
    assert isinstance(error, Unavailable)
    assert (error.status, error.reached) == (0, reached)


async def test_a_connection_that_times_out_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """If packets are dropped, the upstream can't have seen the request."""

    async def dial(_dialer: Dialer, _protocol: asyncio.Protocol) -> None:
        raise TimeoutError

    monkeypatch.setattr(Dialer, "dial", dial)
    http = new_http_client("http://127.0.0.1:9", timeout_s=1.0, max_requests=1)
    client = UpstreamClient(http, NO_KEY, lambda *_: None)
    with pytest.raises(Unavailable) as failed:
        await client.request(b"POST", client.target("/x"), b"")
    assert not failed.value.reached


async def test_without_a_credential_nothing_is_sent_or_counted() -> None:
    """The upstream can't have seen the request."""
    outcomes, error = await counted(RawResponse(200, b"", {}), lambda _: True, key="")
    assert outcomes == []
    assert isinstance(error, Unauthorized)
    assert not error.reached
