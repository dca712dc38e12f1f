"""Writes that take Agentex more than one request: what is stored, and what metrics say."""

import asyncio
import gzip
import zlib
from collections.abc import Callable

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.stand_in import Answer, Recorded, Refusal, Reset
from tests.support.faults import Json, World, end, fast, for_a_while, span, start, world


def raw_deflate(body: bytes) -> bytes:
    """What some servers call deflate: without the zlib header."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


def brotli(body: bytes) -> bytes:
    """Brotli, if it could not be compressed: one uncompressed meta-block."""
    size = len(body) - 1
    head = (size << 4 | 1 << 20) << 1  # a window of 64 KiB, no last block, four nibbles of size
    return head.to_bytes(3, "little") + body + b"\x03"


UNDERSTOOD: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "GZip": gzip.compress,
    "deflate": zlib.compress,
    "Deflate": raw_deflate,
    "identity": bytes,
}
UNKNOWN: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli,
    "zstd": lambda body: b"\x28\xb5\x2f\xfd" + body,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body)),
    "gzip": lambda body: b"not " + body,
}


class Encoding(AgentexStandIn):
    """Agentex behind a proxy that encodes every body, whatever the client accepts."""

    encoding = "identity"
    encode: Callable[[bytes], bytes] = staticmethod(bytes)

    def use(self, encoding: str, encode: Callable[[bytes], bytes] = bytes) -> None:
        """From now on, encode like that."""
        self.encoding, self.encode = encoding, encode

    def reply(self, request: Recorded) -> Answer:
        """The same, encoded."""
        try:
            answer = super().reply(request)
        except Refusal as refusal:
            answer = refusal.answer
        return Answer(answer.status, self.encode(answer.body), {"Content-Encoding": self.encoding})


async def store(w: World, row: Json) -> None:
    """Another client stores a span."""
    async with w.running.client.post(w.agentex.url + "/spans", json=row) as response:
        assert response.status == 200


def lane_metrics(w: World) -> tuple[dict[str, int], dict[str, int]]:
    """The outcomes of the requests to Agentex, and the repairs, without zeros."""
    metrics = w.app.lanes[0].metrics
    requests, repaired = metrics.requests.items(), metrics.repaired.items()
    return {k: n for k, n in requests if n}, {k: n for k, n in repaired if n}


@pytest.mark.parametrize("name", UNDERSTOOD)
@fast
async def test_an_encoded_error_is_read(name: str) -> None:
    """An END that exists already is patched, and neither an error nor a dead letter is counted."""
    server = Encoding()
    server.use(name, UNDERSTOOD[name])
    async with world(server) as w:
        stored = span("stored", end_time=None, output=None, data=None)
        await store(w, stored)
        await w.post(end(span("stored")))
        await w.drained()
        w.agentex.script = [Reset(after_apply=True)]
        await w.post(start(span("lost")))
        await asyncio.sleep(10)
        await w.post(end(span("lost")))
        await w.finish()
        outcomes, repairs = lane_metrics(w)
        assert outcomes.keys() <= {"ok", "connection"}
        assert repairs == {"exists": 1}


@pytest.mark.parametrize("name", UNKNOWN)
@fast
async def test_an_error_that_can_not_be_read(name: str) -> None:
    """It may say that the span exists: no dead letter says `refused`, and it is sent later."""
    server = Encoding()
    async with world(server) as w:
        rows = [span(f"s{number}", end_time=None, output=None, data=None) for number in range(3)]
        for row in rows:
            await store(w, row)
        server.use(name, UNKNOWN[name])
        await w.post(*(end(span(row["id"])) for row in rows))
        await asyncio.sleep(600)
        assert w.dead() == {}
        assert w.lane("agentex")["depth"] == len(rows)
        server.use("identity")
        await w.finish()


@fast
async def test_an_error_that_can_not_be_read_among_others() -> None:
    """While others get through, it is given up as `failing`, never as `refused`."""
    server = Encoding()
    server.use("br", brotli)
    async with world(server) as w:
        server.spans["s"] = span("s", end_time=None)
        await w.post(end(span("s")))
        await w.feed_until(w.dead)
        await w.finish(dead=[("agentex", "s")])
        assert w.lane("agentex")["dead_lettered_by_reason"]["failing"] == 1


@fast
async def test_a_row_that_is_gone() -> None:
    """The PATCH of an END gets 404 and becomes a POST: one repair, and no failed request."""
    async with world() as w:
        await w.post(start(span("s")))
        await asyncio.sleep(10)
        del w.agentex.spans["s"]
        await w.post(end(span("s")))
        await w.finish()
        assert lane_metrics(w) == ({"ok": 3}, {"unknown_id": 1})


@fast
async def test_a_row_that_is_there() -> None:
    """The POST of an END is a duplicate and becomes a PATCH: one repair, no failed request."""
    async with world() as w:
        await store(w, span("s", end_time=None, output=None, data=None))
        await w.post(end(span("s")))
        await w.finish()
        assert lane_metrics(w) == ({"ok": 3}, {"exists": 1})


@pytest.mark.parametrize("kind", ["end", "start", "patch"])
@fast
async def test_an_unknown_task(kind: str) -> None:
    """It moves into `data`: one repair for each write, and no failed request."""
    async with world(AgentexStandIn(tasks=set())) as w:
        made = span("s", task_id="gone")
        if kind == "patch":
            await w.post(start(made | {"task_id": None}))
            await asyncio.sleep(10)
        await w.post((start if kind == "start" else end)(made))
        await w.drained()
        row = w.agentex.spans["s"]
        assert row["task_id"] is None
        if kind != "start":
            assert row["data"] == {"task_id": "gone"} | made["data"]
        outcomes, repairs = lane_metrics(w)
        assert outcomes.keys() == {"ok"}
        assert repairs == {"unknown_task": 1}
        assert w.dead() == {}


@fast
async def test_repairs_during_an_outage() -> None:
    """A repair that fails half-way counts as a failure, and is made again."""
    async with world(AgentexStandIn(tasks=set())) as w:
        await store(w, span("stored", end_time=None, output=None, data=None))
        await w.post(end(span("other")))
        await w.drained()

        def broken(request: Recorded) -> object:
            return 503 if request.method in {"GET", "PATCH"} else None

        outage = for_a_while(20, 503)
        w.agentex.rule = lambda r: outage(r) if broken(r) else None
        await w.post(end(span("stored")))
        await w.finish()
        outcomes, repairs = lane_metrics(w)
        assert outcomes["unavailable"] >= 2
        assert repairs["exists"] == 1
        assert w.lane("agentex")["state"] == "up"
