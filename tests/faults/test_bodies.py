"""Bad bodies and connections: bombs, truncated bodies, odd characters. The sidecar survives."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from tests.support.faults import World, end, fast, span, world

MIB = 2**20
HEAD = (
    b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
)


@asynccontextmanager
async def connected(w: World) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the listener."""
    reader, writer = await asyncio.open_connection("127.0.0.1", w.running.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def finish_with_one_more(w: World) -> None:
    """One more event arrives, and no body is still counted in the budget."""
    assert w.app.budget.reading == 0
    await w.post(end(span("after")))
    await w.finish()
    assert set(w.agentex.spans) == {id_ for _, id_ in w.sgp.spans} == set(w.accepted)


@fast
async def test_a_thousand_idle_connections() -> None:
    """Idle connections do not affect the others."""
    async with world() as w, AsyncExitStack() as idle:
        for _ in range(1000):
            await idle.enter_async_context(connected(w))
        await w.feed(10)
        await finish_with_one_more(w)


@pytest.mark.parametrize("sent", [0, 1, 700])
@fast
async def test_a_body_that_never_ends(sent: int) -> None:
    """A slow client gets 408 after `body_timeout_s`, and its connection is closed."""
    async with world() as w:
        async with connected(w) as (reader, writer):
            writer.write(HEAD % (b"", 100_000) + b" " * sent)
            response = await reader.read()
            assert response.startswith(b"HTTP/1.1 408 ")
        await finish_with_one_more(w)


@pytest.mark.parametrize("chunked", [False, True])
@fast
async def test_an_aborted_body(chunked: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A client disconnects in the middle of its body: no event is accepted, nothing is logged."""
    async with world() as w:
        body = json.dumps([end(span(f"s{number}")) for number in range(100)]).encode()
        head = HEAD % (b"", len(body))
        if chunked:
            head = (
                head.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n2000\r\n"
            )
        for cut in (0, 10, 5000):
            async with connected(w) as (_, writer):
                writer.write(head + body[:cut])
                await writer.drain()
                await asyncio.sleep(1)
            await asyncio.sleep(1)
        assert w.app.accounting.received == 0
        await finish_with_one_more(w)
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@fast
async def test_a_bomb(encoding: str) -> None:
    """A body of 64 MiB compressed to 64 KiB gets 413."""
    async with world() as w:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
        bomb = b"".join([packer.compress(bytes(MIB)) for _ in range(64)] + [packer.flush()])
        reply = await w.send(bomb, content_encoding=encoding)
        assert reply.status == 413
        await finish_with_one_more(w)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@fast
async def test_data_after_the_compressed_stream(encoding: str) -> None:
    """Data after a compressed stream counts toward the limit, so it can't grow without bound."""
    async with world(listener__max_body="100KiB") as w:
        event = json.dumps(end(span("s"))).encode()
        packed = zlib.compress(event, wbits=31 if encoding == "gzip" else 15)
        head = HEAD % (b"Content-Encoding: " + encoding.encode() + b"\r\n", 0)
        head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        async with connected(w) as (reader, writer):
            writer.write(head)
            with suppress(ConnectionError):
                for part in (packed, *[bytes(16_384)] * 64):
                    writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            status_line = await reader.readline()
            assert status_line.split()[1] in {b"400", b"413"}
        await finish_with_one_more(w)


@fast
async def test_two_gzip_members() -> None:
    """A gzip stream of two members is accepted or refused as a whole."""
    async with world() as w:
        lines = [json.dumps(end(span(f"s{number}"))).encode() + b"\n" for number in range(2)]
        body = b"".join(map(gzip.compress, lines))
        reply = await w.send(body, content_encoding="gzip", content_type="application/x-ndjson")
        if reply.status == 202:
            assert reply.body["accepted"] == 2
            w.accepted |= {f"s{number}": span(f"s{number}") for number in range(2)}
        else:
            assert reply.status == 400
        await finish_with_one_more(w)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("levels", [201, 255, 2000, 100_000])
@fast
async def test_a_nesting_bomb(levels: int, opening: str) -> None:
    """Nesting that would make a trace unreadable upstream gets 400."""
    async with world() as w:
        closing = opening.translate(str.maketrans("[{", "]}", '"a:'))[::-1]
        deep = opening * levels + "1" + closing * levels
        whole = json.dumps(end(span("s", input={"deep": "HERE"}))).replace('"HERE"', deep)
        for body in (whole, deep, opening * levels):
            assert (await w.send(body.encode())).status == 400
        await finish_with_one_more(w)


@fast
async def test_deep_but_not_too_deep() -> None:
    """Nesting within the limit is accepted, and the span is readable at Agentex."""
    async with world() as w:
        value: dict[str, object] = {}
        for _ in range(190):
            value = {"d": value}
        await w.post(end(span("s", input=value)))
        await w.finish()
        assert not w.agentex.poisoned


@pytest.mark.parametrize("content_type", ["application/json", "application/x-ndjson"])
@fast
async def test_invalid_utf8(content_type: str) -> None:
    """Bytes that are not UTF-8 get 400, in any field."""
    async with world() as w:
        for bad in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
            for field in ("id", "name", "input"):
                made = json.dumps(
                    end(span("s", **{field: {"x": "HERE"} if field == "input" else "HERE"}))
                )
                body = made.encode().replace(b"HERE", bad)
                assert (await w.send(body, content_type=content_type)).status == 400
        await finish_with_one_more(w)


@fast
async def test_lone_surrogates() -> None:
    """Lone surrogates become U+FFFD, so that Agentex can still return the trace; pairs are kept."""
    async with world() as w:
        odd = {"half": "HERE", "whole": "\U0001f600", "text": r"\ud800 is no escape"}
        body = json.dumps([end(span("s", name="HERE", input=odd, data={"HERE": 1}))])
        reply = await w.send(body.replace("HERE", r"\ud83d").encode())
        assert reply.status == 202
        repaired = odd | {"half": "\ufffd"}
        w.accepted["s"] = span("s", name="\ufffd", input=repaired, data={"\ufffd": 1})
        await finish_with_one_more(w)
        assert not w.agentex.poisoned


@fast
async def test_huge_numbers() -> None:
    """Numbers are forwarded unchanged; those that no upstream can store become dead letters."""
    async with world() as w:
        await w.post(end(span("large", input={"n": 10**400})))
        for id_, number in (("digits", "1" * 5000), ("float", "1e400")):
            body = json.dumps(end(span(id_, input={"n": "HERE"}))).replace('"HERE"', number)
            assert (await w.send(body.encode())).status == 202
        await w.feed(300, per_s=1)
        await w.finish(
            dead=[(sink, id_) for sink in ("agentex", "sgp") for id_ in ("digits", "float")]
        )


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "0x10", "01", "1.", "+1"])
@fast
async def test_invalid_numbers(number: str) -> None:
    """A number that JSON does not have gets 400."""
    async with world() as w:
        body = json.dumps(end(span("s", input={"n": "HERE"}))).replace('"HERE"', number)
        assert (await w.send(body.encode())).status == 400
        await finish_with_one_more(w)
