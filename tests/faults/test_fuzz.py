"""Fuzzing the listener: every response is one of docs/api.md, and the accounting balances."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faults import FastLoop, World, end, span, start, world
from tests.support.world import assert_balanced

STATUSES = {202, 400, 413, 415, 429}
VALID = json.dumps([start(span("a")), end(span("a")), end(span("\u00e9", input=[{"x": "\\"}]))])
LINES = "\n".join(json.dumps(event) for event in json.loads(VALID))
TYPES = [
    "application/json",
    "application/x-ndjson",
    "APPLICATION/JSON; charset=utf-8",
    "text/x",
    "",
]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "GZIP": lambda body: gzip.compress(body)[:-1],
    "br": bytes,
}
mutations = st.lists(
    st.tuples(st.integers(0, len(VALID)), st.integers(0, 3), st.binary(max_size=4)), max_size=6
)
events = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)


class Fuzzed:
    """A world shared by all examples of a test."""

    def __init__(self, runner: asyncio.Runner, w: World) -> None:
        self.runner = runner
        self.w = w

    def post(self, body: bytes, content_type: str, encoding: str) -> None:
        """Send a body; check the response, the accounting, and that the sidecar still responds."""
        self.runner.run(self._post(body, content_type, encoding))

    async def _post(self, body: bytes, content_type: str, encoding: str) -> None:
        before = self.w.app.accounting.received
        reply = await self.w.send(body, content_type=content_type, content_encoding=encoding)
        assert reply.status in STATUSES
        accepted = reply.body["accepted"] if reply.status == 202 else 0
        assert self.w.app.accounting.received - before == accepted
        await self._assert_alive()

    def send_bytes(self, sent: bytes) -> None:
        """Send bytes that need not be HTTP."""
        self.runner.run(self._send_bytes(sent))

    async def _send_bytes(self, sent: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.w.running.port)
        try:
            with suppress(ConnectionError):  # closed without a response
                writer.write(sent)
                writer.write_eof()
                assert b"HTTP/1.1 5" not in await reader.read()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await self._assert_alive()

    async def _assert_alive(self) -> None:
        reply = await self.w.running.request("GET", "/readyz", timeout=aiohttp.ClientTimeout(60))
        assert reply.status == 200
        assert self.w.app.budget.reading == 0
        assert_balanced(self.w.app)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Fuzzed]:
    with asyncio.Runner(loop_factory=FastLoop) as runner:
        stack = AsyncExitStack()
        w = runner.run(stack.enter_async_context(world()))
        yield Fuzzed(runner, w)
        runner.run(stack.aclose())


@given(body=st.binary(max_size=300), kind=st.sampled_from(TYPES), encoding=st.sampled_from([*PACK]))
def test_random_bodies(fuzzed: Fuzzed, body: bytes, kind: str, encoding: str) -> None:
    """Random bytes, with any content type and encoding."""
    fuzzed.post(body, kind, encoding)


@given(changes=mutations, lines=st.booleans(), encoding=st.sampled_from([*PACK]))
def test_mutated_bodies(
    fuzzed: Fuzzed, changes: list[tuple[int, int, bytes]], lines: bool, encoding: str
) -> None:
    """Valid bodies with bytes changed, inserted or removed."""
    body = (LINES if lines else VALID).encode()
    for at, cut, put in changes:
        body = body[:at] + put + body[at + cut :]
    fuzzed.post(PACK[encoding](body), TYPES[lines], encoding)


@given(value=events, field=st.sampled_from([*span("a")]), kind=st.sampled_from(["start", "end"]))
def test_any_json_in_any_field(fuzzed: Fuzzed, value: object, field: str, kind: str) -> None:
    """Any JSON value in any field of an event."""
    event = {"event_type": kind, "span": span("b") | {field: value}}
    fuzzed.post(json.dumps(event).encode(), TYPES[0], "")


@given(sent=st.binary(max_size=200), head=st.sampled_from([b"", b"POST /v1/spans HTTP/1.1\r\n"]))
def test_random_bytes(fuzzed: Fuzzed, sent: bytes, head: bytes) -> None:
    """Bytes that need not be HTTP never get a 500, and do not affect other connections."""
    fuzzed.send_bytes(head + sent)
