"""Hostile bytes, from agents and from SGP through the pass-through, never end the process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.support.hostile_responses import OK, RESPONSES
from tests.support.spans import make_event
from tests.support.world import NOWHERE, Running, running_app

DEADLINE_S = 10.0


def req(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    """A request with a JSON body."""
    sizes = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([line, b"Host: localhost", *headers, *sizes]) + b"\r\n\r\n" + body


ITEM = (
    b'{"items":[{"id":"a","trace_id":"t","name":"n","start_timestamp":"2026-01-02T03:04:05Z",'
    b'"end_timestamp":"2026-01-02T03:04:05Z"}]}'
)
PATCH = (
    b'{"trace_id":"t","name":"n","start_time":"2026-01-02T03:04:05Z",'
    b'"end_time":"2026-01-02T03:04:05Z"}'
)
# fmt: off
# ruff: noqa: E501 (raw requests)
CASES = {
    "account": req(b"PUT /v5/spans/batch HTTP/1.1", b"x-selected-account-id: caf\xe9", body=ITEM),
    "account_ok": req(b"PUT /v5/spans/batch HTTP/1.1", b"x-selected-account-id: caf", body=ITEM),
    "patch_byte": req(b"PATCH /spans/\xff HTTP/1.1", body=PATCH),
    "patch_pct": req(b"PATCH /spans/%FF%ZZ% HTTP/1.1", body=PATCH),
    "patch_surr": req(b"PATCH /spans/%ED%A0%80 HTTP/1.1", body=PATCH),
    "patch_nul": req(b"PATCH /spans/%00 HTTP/1.1", body=PATCH),
    "patch_empty": req(b"PATCH /spans/ HTTP/1.1", body=PATCH),
    "patch_q": req(b"PATCH /spans/a?x=%FF#y HTTP/1.1", body=PATCH),
    "connect": b"CONNECT foo:99999 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect2": b"CONNECT [::: HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect3": b"CONNECT foo:80 HTTP/1.1\r\nHost: localhost\r\n\r\nabc",
    "options": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "abs": b"GET http://evil:99999999/v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "abs2": b"GET http://[::/v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "abs3": b"GET http://evil.example/v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "pathbyte": b"GET /v5/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "pathutf": "GET /v5/é HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "pathown": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "hdrbyte": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nX-A: caf\xe9\r\n\r\n",
    "hosthdr": b"GET /v5/x HTTP/1.1\r\nHost: \xff\r\n\r\n",
    "head": b"HEAD /v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "h10": b"GET /v5/x HTTP/1.0\r\n\r\n",
    "upg": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\nabc",
    "nan": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nx-stainless-read-timeout: nan\r\n\r\n",
    "inf": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nx-stainless-read-timeout: inf\r\n\r\n",
    "clbig": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
    "clplus": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nabcde",
    "trace": b"TRACE /v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "weird": b"SOURCE /v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "ctype": req(b"POST /v1/spans HTTP/1.1", b"Content-Encoding: \xff"),
    "origin": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nOrigin: \xff\r\n\r\n",
    "dots": b"GET /v5/../x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "dots2": b"GET /v5/%2e%2e/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "back": b"GET /v5/..\\x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space": b"GET /v5/a%20b%0d%0aX:%20y HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "pct2f": b"GET %2Fv5%2F@evil/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "conncl": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nab",
    "te_gzip": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "clte": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "badchunk_own": b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    "trailer": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n",
    "cookie": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nCookie: a=\xff\r\n\r\n",
    "auth": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: \xff\r\n\r\n",
    "ce": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nab",
    "ct": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Type: \xff;;=\r\nContent-Length: 2\r\n\r\nab",
    "range": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nRange: bytes=\xff\r\nIf-Modified-Since: \xff\r\n\r\n",
    "dupcl": b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "duphost": b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
}
# fmt: on
METHODS = (
    b"GET /v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"HEAD /v5/x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v5/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /v5/x HTTP/1.0\r\n\r\n",
)


@asynccontextmanager
async def far(response: bytes) -> AsyncIterator[str]:
    """An upstream that responds to each request with these bytes and closes."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            if b"content-length: 5" in head.lower():
                await reader.readexactly(5)
            writer.write(response)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def provoke(app: Running, request: bytes) -> None:
    """Send bytes, wait for the first byte of a response or the end, and disconnect."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(request)
    with suppress(OSError):
        async with asyncio.timeout(DEADLINE_S):
            await reader.read(1)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def assert_alive(app: Running) -> None:
    """The sidecar still accepts events."""
    assert (await app.post(make_event("alive", kind="end"))).status == 202
    assert not app.task.done()


@pytest.mark.parametrize("through", ["true", "false"])
async def test_whatever_an_agent_sends(through: str) -> None:
    """Each case on its own connection, with and without pass-through."""
    async with far(OK) as url:
        environ = {"SGP_CLIENT_BASE_URL": url, "AGENTEX_BASE_URL": NOWHERE}
        settings = {"listener__pass_through": through, "shutdown__grace_s": 0}
        async with running_app(environ, sgp__relay="true", **settings) as app:
            for case in CASES.values():
                await provoke(app, case)
                await assert_alive(app)


@pytest.mark.parametrize("case", RESPONSES)
async def test_whatever_sgp_responds(case: str) -> None:
    """A response that can't be forwarded is a 502 or a closed connection."""
    async with far(RESPONSES[case]) as url:
        environ = {"SGP_CLIENT_BASE_URL": url, "AGENTEX_BASE_URL": NOWHERE}
        settings = {"listener__pass_through": "true", "shutdown__grace_s": 0}
        async with running_app(environ, sgp__relay="true", **settings) as app:
            for method in METHODS:
                await provoke(app, method)
            await assert_alive(app)


@pytest.mark.parametrize("path", [b"/v1/spans", b"/v5/files"])
async def test_disconnecting_instead_of_sending_a_body(path: bytes) -> None:
    """A client that expected 100 Continue has disconnected by the time it is sent."""
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" % path
    head += b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    async with running_app(listener__pass_through="true", shutdown__grace_s=0) as app:
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", app.port)
            writer.write(head)
            await asyncio.sleep(0)
            writer.transport.abort()
        await assert_alive(app)
