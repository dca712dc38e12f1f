"""One client connection: request bytes on the wire, and every form of response."""

import asyncio
import selectors

import pytest

from sidecar import __version__
from sidecar.credentials import Credentials, Secret
from sidecar.http import client_connection
from sidecar.http.client_connection import (
    MAX_ASKED_BODY_BYTES,
    MAX_HEAD_BYTES,
    MAX_KEPT_BODY_BYTES,
    RawResponse,
)
from sidecar.sinks import Unauthorized, Unavailable
from sidecar.sinks.http import UpstreamClient
from tests.support.hostile_responses import RESPONSES as HOSTILE
from tests.support.upstream_connection import (
    DONE,
    OK,
    AcceptedConnection,
    new_client,
    new_http_client,
    on_both_loops,
    raw_upstream,
)


@on_both_loops
async def test_a_request_on_the_wire() -> None:
    """Every byte: the base URL's path and userinfo, the host with its port, the credential."""
    async with raw_upstream() as upstream:
        base = upstream.url.replace("http://", "http://us%20er:p%40w@") + "/pre%20fix/"
        client = new_client(base, [], key="secret")
        sending = asyncio.create_task(
            client.request(b"PATCH", client.target("/spans/a%2Fb"), b'{"a":1}')
        )
        connection = await upstream.accept()
        assert await connection.serve() == (
            b"PATCH /pre%%20fix/spans/a%%2Fb HTTP/1.1\r\n"
            b"Host: %b\r\n"
            b"Content-Type: application/json\r\n"
            b"Accept: application/json\r\n"
            b"Accept-Encoding: identity\r\n"
            b"User-Agent: trace-sidecar/%b\r\n"
            b"Authorization: Basic dXMgZXI6cEB3\r\n"
            b"key: secret\r\n"
            b"Content-Length: 7\r\n"
            b"\r\n"
            b'{"a":1}'
        ) % (upstream.url.removeprefix("http://").encode(), __version__.encode())
        assert await sending == DONE
        await client.close()


async def test_a_request_without_a_body_leaves_nothing_to_send() -> None:
    """An empty part that stays in the buffer would keep asyncio busy for ever (Python 3.12)."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    async with raw_upstream() as upstream:
        client = new_client(upstream.url, [])
        sending = asyncio.create_task(client.request(b"GET", client.target("/spans/a"), b""))
        connection = await upstream.accept()
        await connection.serve()
        assert (await sending).taken
        watched = loop._selector.get_map().values()  # type: ignore[attr-defined]
        assert not any(each.events & selectors.EVENT_WRITE for each in watched)
        await client.close()


async def test_a_path_that_is_not_percent_encoded() -> None:
    """Such a path raises `ValueError`, so that it can't inject headers."""
    client = new_client("http://host:1", [])
    for path in ("/a b", "/a\r\nx: y", "/\u00e9", "/\x7f"):
        with pytest.raises(ValueError, match="percent"):
            client.target(path)


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "\u00e9", "\0"])
@on_both_loops
async def test_a_credential_that_is_no_valid_header_value(value: str) -> None:
    """Raises `ValueError` before a connection is opened."""
    client = new_client("http://127.0.0.1:1", [], key=value)
    with pytest.raises(ValueError, match="header"):
        await client.request(b"POST", client.target("/spans"), b"{}")


@on_both_loops
async def test_without_a_credential_nothing_is_sent() -> None:
    """Without a credential, no request is sent or counted."""
    outcomes: list[str] = []
    client = new_client("http://127.0.0.1:1", outcomes, key="")
    with pytest.raises(Unauthorized):
        await client.request(b"POST", client.target("/spans"), b"{}")
    assert outcomes == []


@on_both_loops
async def test_a_new_credential_is_in_the_next_request() -> None:
    """The client does not keep sending its cached headers after the credential changes."""
    async with raw_upstream() as upstream:
        credentials = Credentials({"key": Secret("")}, relay=True, required=False)
        http = new_http_client(upstream.url, max_requests=1)
        client = UpstreamClient(http, credentials, lambda *_: None)
        seen: list[bytes] = []
        accepted: AcceptedConnection | None = None
        for key in ("", "one", "two"):
            credentials.offer({b"key": key.encode()})
            sending = asyncio.create_task(client.request(b"PUT", client.target("/"), b"{}"))
            accepted = accepted or await upstream.accept()
            seen.append(await accepted.serve())
            await sending
        assert b"key" not in seen[0]
        assert b"key: one" in seen[1]
        assert b"key: two" in seen[2]
        await client.close()


RESPONSES = {
    "until EOF": (b"HTTP/1.1 200 OK\r\n\r\nwhatever", "upstream closes"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "client closes"),
    "Connection: close": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "client closes",
    ),
    "two responses": (OK + OK, "client closes"),
    "surplus bytes": (OK + b"more", "client closes"),
    "Content-Length": (OK, "keep"),
    "no body": (b"HTTP/1.1 204 No Content\r\n\r\n", "keep"),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n0\r\nT: x\r\n\r\n",
        "keep",
    ),
    "informational first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nRetry-After: 5\r\n\r\n" + OK,
        "keep",
    ),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "keep"),
}


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("case", RESPONSES)
@on_both_loops
async def test_every_form_of_response(case: str, bytewise: bool) -> None:
    """The response may come byte by byte; the connection is reused only if it allows that."""
    response, then = RESPONSES[case]
    if bytewise and case in {"two responses", "surplus bytes"}:
        response = response[: len(OK) + 1]
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.request()
        step = 1 if bytewise else len(response)
        for part in (response[at : at + step] for at in range(0, len(response), step)):
            connection.writer.write(part)
            await connection.writer.drain()
            await asyncio.sleep(0)
        if then == "upstream closes":
            connection.close()
        assert (await sending).status in {200, 204}
        if then != "keep":
            assert await connection.closed_by_client()
        again = upstream.send()
        next_connection = connection if then == "keep" else await upstream.accept()
        await next_connection.serve()
        assert await again == DONE


MALFORMED = {
    "garbage": b"\x00\xffHELO upstream\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nxyz",
    "bare 101": b"HTTP/1.1 101 S\r\n\r\n",
    "oversized header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2 * MAX_HEAD_BYTES,
    "endless informational responses": b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000,
    "conflicting lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
    "bad chunk": b"HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless trailers": b"HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"X: y\r\n" * 100_000,
}


@pytest.mark.parametrize("case", MALFORMED)
@on_both_loops
async def test_a_malformed_response(case: str) -> None:
    """The request fails immediately and the connection closes; the next request works."""
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.serve(MALFORMED[case])
        with pytest.raises(Unavailable, match="not an HTTP response") as failed:
            await sending
        assert failed.value.reached
        assert await connection.closed_by_client()
        assert upstream.outcomes == ["connection"]
        await upstream.idle_connection()


@pytest.mark.parametrize(
    "received",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 400 X\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 400 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@on_both_loops
async def test_a_truncated_response(received: bytes) -> None:
    """The request fails and is not resent on a new connection: retrying is up to the drain."""
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.serve(received)
        connection.close()
        with pytest.raises(Unavailable, match="connection ended"):
            await sending
        assert upstream.connections.empty()


@pytest.mark.parametrize("case", HOSTILE)
@on_both_loops
async def test_hostile_responses(case: str) -> None:
    """The request ends with a `Response` or `Unavailable`; the next request works."""
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.serve(HOSTILE[case])
        connection.close()
        try:
            assert (await sending).status not in range(100, 200)
        except Unavailable:
            assert upstream.outcomes == ["connection"]
        assert await connection.closed_by_client()
        await upstream.idle_connection()


@pytest.mark.parametrize(
    ("status", "keep_body", "kept"),
    [
        (200, False, 0),
        (302, False, MAX_KEPT_BODY_BYTES),
        (429, False, MAX_KEPT_BODY_BYTES),
        (200, True, MAX_ASKED_BODY_BYTES),
        (429, True, MAX_ASKED_BODY_BYTES),
    ],
)
@on_both_loops
async def test_the_beginning_of_a_body_is_kept(status: int, keep_body: bool, kept: int) -> None:
    """Of an error, and more of it on demand; the rest is read, for the next response."""
    body = b"x" * kept + b"y" * 2 * MAX_KEPT_BODY_BYTES
    async with raw_upstream() as upstream:
        sending = upstream.exchange(keep_body=keep_body)
        connection = await upstream.accept()
        head = b"HTTP/1.1 %d S\r\nContent-Length: %d\r\n\r\n"
        await connection.serve(head % (status, len(body)) + body)
        assert await sending == RawResponse(status, body[:kept], {})
        again = upstream.exchange()
        await connection.serve()
        assert await again == RawResponse(200, b"", {})


@pytest.mark.parametrize("status", [200, 400])
@on_both_loops
async def test_headers_that_are_kept(status: int) -> None:
    """The first value of each, for every status; nothing of an informational head or a trailer."""
    response = (
        b"HTTP/1.1 103 Early Hints\r\nRetry-After: 1\r\nDate: early\r\n\r\n"
        b"HTTP/1.1 %d X\r\nServer: caf\xe9\r\nRETRY-AFTER: 7\r\nContent-Type: text/caf\xe9\r\n"
        b"content-type: b/c\r\nContent-Encoding: gzip\r\nDate: now\r\nX-Date: x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
        b"0\r\nRetry-After-Ms: 1\r\nRetry-After: 9\r\n\r\n"
    )
    async with raw_upstream() as upstream:
        sending = upstream.exchange()
        connection = await upstream.accept()
        await connection.serve(response % status)
        assert (await sending).headers == {
            "retry-after": "7",
            "content-type": "text/caf\xe9",
            "content-encoding": "gzip",
            "date": "now",
        }
        again = upstream.exchange()
        await connection.serve(b"HTTP/1.1 204 N\r\nRetry-After-MS: 5\r\n\r\n")
        assert await again == RawResponse(204, b"", {"retry-after-ms": "5"})


@on_both_loops
async def test_an_endless_response_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status counts, and the connection closes."""
    monkeypatch.setattr(client_connection, "MAX_RESPONSE_BYTES", 100_000)
    async with raw_upstream() as upstream:
        sending = upstream.send()
        connection = await upstream.accept()
        await connection.serve(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000)
        assert await sending == DONE
        assert await connection.closed_by_client()
