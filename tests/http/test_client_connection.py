"""One connection of the sinks' client: requests on the wire, and answers in every form."""

import asyncio

import pytest

from sidecar import __version__
from sidecar.credentials import Credentials, Secret
from sidecar.http import client_connection as connection_module
from sidecar.http.client import HttpClient
from sidecar.http.client_connection import HEAD_BYTES, MAX_HEADER_BYTES
from sidecar.sinks import Unauthorized, Unavailable
from sidecar.sinks.http import Response, UpstreamClient
from tests.faults.test_hostile import ANSWERS as HOSTILE
from tests.support.upstream_connection import (
    DONE,
    OK,
    TIMEOUT_S,
    Line,
    far,
    new_client,
    on_both_loops,
)


@on_both_loops
async def test_a_request_on_the_wire() -> None:
    """Every byte: the base URL's path and user, the host with its port, the credential."""
    async with far() as upstream:
        base = upstream.url.replace("http://", "http://us%20er:p%40w@") + "/pre%20fix/"
        client = new_client(base, [], key="secret")
        asking = asyncio.create_task(
            client.request(b"PATCH", client.target("/spans/a%2Fb"), b'{"a":1}')
        )
        line = await upstream.line()
        assert await line.serve() == (
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
        assert await asking == DONE
        await client.close()


def test_nothing_can_end_a_header_line() -> None:
    """Neither a path nor a credential; a path that was not percent-encoded is a bug."""
    client = new_client("http://host:1", [])
    for path in ("/a b", "/a\r\nx: y", "/\u00e9", "/\x7f"):
        with pytest.raises(ValueError, match="percent"):
            client.target(path)


@pytest.mark.parametrize("text", ["a\r\nx: y", "a\nb", "\u00e9", "\0"])
@on_both_loops
async def test_a_credential_that_no_header_can_hold_is_not_sent(text: str) -> None:
    """It is refused before there is a connection."""
    client = new_client("http://127.0.0.1:1", [], key=text)
    with pytest.raises(ValueError, match="header"):
        await client.request(b"POST", client.target("/spans"), b"{}")


@on_both_loops
async def test_without_a_credential_nothing_is_sent() -> None:
    """No request, no outcome."""
    outcomes: list[str] = []
    client = new_client("http://127.0.0.1:1", outcomes, key="")
    with pytest.raises(Unauthorized):
        await client.request(b"POST", client.target("/spans"), b"{}")
    assert outcomes == []


@on_both_loops
async def test_a_new_credential_is_in_the_next_request() -> None:
    """The headers are built anew when the credential changes, not for each request."""
    async with far() as upstream:
        credentials = Credentials({"key": Secret("")}, key_header="key", relay=True, required=False)
        http = HttpClient(upstream.url, timeout_s=TIMEOUT_S, max_connections=1)
        client = UpstreamClient(http, credentials, lambda *_: None)
        seen: list[bytes] = []
        line: Line | None = None
        for key in ("", "one", "two"):
            credentials.offer({"key": key})
            asking = asyncio.create_task(client.request(b"PUT", client.target("/"), b"{}"))
            line = line or await upstream.line()
            seen.append(await line.serve())
            await asking
        assert [b"key: one" in seen[1], b"key: two" in seen[2], b"key" in seen[0]] == [
            True,
            True,
            False,
        ]
        await client.close()


ANSWERS = {
    "ends with the connection": (b"HTTP/1.1 200 OK\r\n\r\nwhatever", "end"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", "drop"),
    "close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", "drop"),
    "two answers": (OK + OK, "drop"),
    "more than was said": (OK + b"more", "drop"),
    "length": (OK, "keep"),
    "nothing": (b"HTTP/1.1 204 No Content\r\n\r\n", "keep"),
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
@pytest.mark.parametrize("case", ANSWERS)
@on_both_loops
async def test_an_answer_in_any_form(case: str, bytewise: bool) -> None:
    """Whole or byte by byte; the connection is kept only where the answer allows it."""
    answer, then = ANSWERS[case]
    if bytewise and case in {"two answers", "more than was said"}:
        answer = answer[: len(OK) + 1]
    async with far() as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.request()
        for part in [answer[n : n + 1] for n in range(len(answer))] if bytewise else [answer]:
            line.writer.write(part)
            await line.writer.drain()
            await asyncio.sleep(0)
        if then == "end":
            line.hang_up()
        status, _, _ = await asking
        assert status in {200, 204}
        if then != "keep":
            assert await line.ended()
        again = upstream.ask()
        next_line = line if then == "keep" else await upstream.line()
        await next_line.serve()
        assert await again == DONE


BROKEN = {
    "garbage": b"\x00\xffHELO who is there?\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nxyz",
    "bare 101": b"HTTP/1.1 101 S\r\n\r\n",
    "too long a header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2 * MAX_HEADER_BYTES,
    "informed without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000,
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "endless trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"X: y\r\n" * 100_000,
}


@pytest.mark.parametrize("case", BROKEN)
@on_both_loops
async def test_what_is_no_answer(case: str) -> None:
    """The request fails at once, the connection ends, nothing else does."""
    async with far() as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.serve(BROKEN[case])
        with pytest.raises(Unavailable, match="not an HTTP answer") as failed:
            await asking
        assert not failed.value.outage
        assert await line.ended()
        assert upstream.outcomes == ["connection"]
        await upstream.used()


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
@on_both_loops
async def test_half_an_answer_is_none(cut: bytes) -> None:
    """A new connection that ends too early is not tried again here: that is the drain's."""
    async with far() as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.serve(cut)
        line.hang_up()
        with pytest.raises(Unavailable, match="connection ended"):
            await asking
        assert upstream.lines.empty()


@pytest.mark.parametrize("case", HOSTILE)
@on_both_loops
async def test_whatever_an_upstream_answers(case: str) -> None:
    """An `Response` or `Unavailable`, and the next request is not hurt by it."""
    async with far() as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.serve(HOSTILE[case])
        line.hang_up()
        try:
            assert (await asking).status not in range(100, 200)
        except Unavailable:
            assert upstream.outcomes == ["connection"]
        assert await line.ended()
        await upstream.used()


@on_both_loops
async def test_the_beginning_of_an_error_is_kept() -> None:
    """So many bytes, and when to come back."""
    body = b"x" * 3 * HEAD_BYTES
    for status in (200, 429):
        async with far() as upstream:
            asking = upstream.ask()
            line = await upstream.line()
            head = b"HTTP/1.1 %d S\r\nretry-after: 7\r\nContent-Length: %d\r\n\r\n"
            await line.serve(head % (status, len(body)) + body)
            kept = body[:HEAD_BYTES] if status == 429 else b""
            assert await asking == Response(status, kept, 7.0)


@on_both_loops
async def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status counts; the connection ends."""
    monkeypatch.setattr(connection_module, "MAX_ANSWER_BYTES", 100_000)
    async with far() as upstream:
        asking = upstream.ask()
        line = await upstream.line()
        await line.serve(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000)
        assert await asking == DONE
        assert await line.ended()
