"""Request bodies: compressed, too large, chunked, too slow or incomplete."""

import asyncio
import gzip
import logging
import zlib
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sidecar.http.encodings import Inflater
from tests.support.spans import make_event
from tests.support.world import Running, running_app

EVENTS = orjson.dumps([make_event(str(number), input={"p": "x" * 500}) for number in range(20)])
LIMIT = 64 * 1024


def raw_deflate(body: bytes) -> bytes:
    """A deflate stream without the zlib header."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


Compress = Callable[[bytes], bytes]
ENCODINGS: list[tuple[str, Compress]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
]
each_encoding = pytest.mark.parametrize(("encoding", "compress"), ENCODINGS)


@pytest.fixture
async def app() -> AsyncIterator[Running]:
    """An app that accepts bodies of at most 64 KiB, within 0.05 s."""
    async with running_app(listener__max_body="64KiB", listener__body_timeout_s=0.05) as running:
        yield running


def head(*headers: bytes) -> bytes:
    """A request head; the test sends the body itself."""
    lines = [b"POST /v1/spans HTTP/1.1", b"Host: localhost", b"Content-Type: application/json"]
    return b"\r\n".join([*lines, *headers, b"", b""])


@each_encoding
async def test_compressed_bodies(app: Running, encoding: str, compress: Compress) -> None:
    """Gzip and deflate, with and without the zlib header, are accepted."""
    reply = await app.post(compress(EVENTS), content_encoding=encoding)
    assert (reply.status, reply.body["accepted"]) == (202, 20)


async def test_identity_is_no_compression(app: Running) -> None:
    """`identity` means uncompressed, and encoding names are case-insensitive."""
    assert (await app.post(EVENTS, content_encoding="Identity")).status == 202
    assert (await app.post(gzip.compress(EVENTS), content_encoding="GZip")).status == 202


@each_encoding
async def test_truncated_streams(app: Running, encoding: str, compress: Compress) -> None:
    """A stream that is truncated, empty or not compressed gets 400."""
    whole = compress(EVENTS)
    for body in (whole[:-1], whole[: len(whole) // 2], whole[:1], b"", b"\xff" * 100):
        reply = await app.post(body, content_encoding=encoding)
        assert reply.status == 400
        assert "error" in reply.body or reply.body["rejected"]
    assert app.app.accounting.received == 0


async def test_400_has_one_form(app: Running) -> None:
    """Every 400 has a body of the same form, also when decompression fails."""
    reply = await app.post(gzip.compress(EVENTS)[:-1], content_encoding="gzip")
    assert (reply.status, reply.body["accepted"]) == (400, 0)


@each_encoding
async def test_bombs(app: Running, encoding: str, compress: Compress) -> None:
    """The limit applies to decompressed bytes, and decompression stops at it."""
    bomb = compress(b" " * 50_000_000)
    assert len(bomb) < LIMIT
    reply = await app.post(bomb, content_encoding=encoding)
    assert reply.status == 413
    assert "64KiB" in reply.body["error"]


@each_encoding
async def test_the_limit_is_exact(app: Running, encoding: str, compress: Compress) -> None:
    """A body of exactly the limit is accepted, compressed or not; one more byte gets 413."""
    fits = EVENTS.ljust(LIMIT)
    assert (await app.post(fits)).status == 202
    assert (await app.post(compress(fits), content_encoding=encoding)).status == 202
    assert (await app.post(fits + b" ")).status == 413
    assert (await app.post(compress(fits + b" "), content_encoding=encoding)).status == 413
    assert app.app.budget.reading == 0


async def test_gzip_of_several_members(app: Running) -> None:
    """A gzip stream of several members is one body (RFC 1952, 2.2)."""
    lines = [orjson.dumps(make_event(str(number))) + b"\n" for number in range(3)]
    body = b"".join(gzip.compress(line) for line in lines)
    reply = await app.post(body, content_encoding="gzip", content_type="application/x-ndjson")
    assert (reply.status, reply.body["accepted"]) == (202, 3)


@given(st.integers(0, 2), st.sets(st.integers(1, 60)))
@example(1, {1})
def test_inflating_does_not_depend_on_the_pieces(which: int, cuts: set[int]) -> None:
    """However a stream is cut, it decompresses to the same bytes."""
    encoding, compress = ENCODINGS[which]
    stream = compress(EVENTS)
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(edges)]
    inflate = Inflater(encoding)
    assert b"".join(inflate(piece, LIMIT) for piece in pieces if piece) == EVENTS
    assert inflate.complete


async def test_413_before_anything_is_sent(app: Running) -> None:
    """A client that asks first gets 413 for a Content-Length that is too large, and no 100."""
    status, body = await app.raw(head(b"Content-Length: 65537", b"Expect: 100-continue"))
    assert status == 413
    assert "64KiB" in orjson.loads(body)["error"]


async def test_413_without_a_length(app: Running) -> None:
    """A chunked body that is too large gets 413, too."""
    chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))
    assert (await app.raw(head(b"Transfer-Encoding: chunked") + chunk))[0] == 413


async def test_chunked_bodies(app: Running) -> None:
    """A chunked body is accepted."""
    chunks = [EVENTS[at : at + 1000] for at in range(0, len(EVENTS), 1000)] + [b""]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    status, response = await app.raw(head(b"Transfer-Encoding: chunked") + body)
    assert (status, orjson.loads(response)["accepted"]) == (202, 20)


async def test_408_for_a_stalled_body(app: Running) -> None:
    """A body that stalls gets 408, and its bytes are released."""
    status, body = await app.raw(head(b"Content-Length: 100") + b"[")
    assert (status, list(orjson.loads(body))) == (408, ["error"])
    assert app.app.budget.reading == 0
    assert (await app.post(EVENTS)).status == 202


async def test_100_continue() -> None:
    """A client that expects 100 Continue (curl, above 1 MiB) gets it."""
    async with running_app(listener__body_timeout_s=0.05) as app:
        expect = head(b"Content-Length: 100", b"Expect: 100-continue")
        assert (await app.raw(expect))[0] == 100


async def test_an_aborted_body(app: Running) -> None:
    """An agent that disconnects in the middle of a body leaves nothing in memory."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(head(b"Content-Length: 100") + b"[")
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b""
    assert (await app.post(EVENTS)).status == 202
    assert (app.app.budget.reading, app.app.accounting.received) == (0, 20)


async def test_an_aborted_body_is_no_error(app: Running, caplog: pytest.LogCaptureFixture) -> None:
    """An agent that stops sending in the middle of a body gets a 400, and nothing is logged."""
    with caplog.at_level(logging.WARNING):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
        writer.write(head(b"Content-Length: 100") + b"[")
        writer.write_eof()
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        await writer.wait_closed()
    assert caplog.records == []


async def test_a_full_queue_refuses_bodies_while_they_arrive() -> None:
    """Bodies being read count as memory: 429 comes before they are complete."""
    async with running_app(queue__max_bytes="16KiB") as app:
        reply = await app.post(EVENTS.ljust(LIMIT), content_encoding="identity")
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert app.app.budget.reading == 0


async def test_a_large_array() -> None:
    """200 events of 50 KB are accepted in one request."""
    async with running_app() as app:
        events = [make_event(str(number), input={"p": "x" * 50_000}) for number in range(200)]
        reply = await app.post(gzip.compress(orjson.dumps(events), 1), content_encoding="gzip")
        assert (reply.status, reply.body) == (202, {"accepted": 200, "rejected": []})
        assert app.app.budget.used > 200 * 50_000
