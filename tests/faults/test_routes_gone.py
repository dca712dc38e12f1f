"""An Agentex without its spans API: its writes wait, then new ones are skipped; SGP goes on."""

import asyncio
import random
from collections.abc import Mapping, Sequence

import pytest
from structlog.testing import capture_logs

from sidecar.demo.stand_in import Answer, Recorded, Scripted
from tests.support.faults import World, end, fast, now, page, span, start, world
from tests.support.spans import END_TIME
from tests.support.world import assert_balanced

GONE = {
    "404": Answer(404, b'{"detail":"Not Found"}'),
    "405": Answer(405, b'{"detail":"Method Not Allowed"}'),
    "410": Answer(410, b'{"detail":"Gone"}'),
    "404 page": page(404),
    "405 page": page(405),
    "410 page": page(410),
    "404 bare": Answer(404),
}
ADVICE = "there is no spans API at this base URL: correct agentex.base_url, or unset it"
each_way = pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[] if way == "404" else [pytest.mark.slow]) for way in GONE]
)


def gone(w: World, way: str) -> None:
    """Agentex loses its routes."""
    w.agentex.rule = lambda _: GONE[way]


def skipped(w: World) -> int:
    """Writes that were skipped because the route is gone."""
    count: int = w.lane("agentex")["skipped_by_reason"]["route_gone"]
    return count


def lines(logs: Sequence[Mapping[str, object]]) -> list[object]:
    """The errors of the log lines that say so."""
    return [line["error"] for line in logs if line["event"] == "upstream_route_gone"]


@each_way
@fast
async def test_the_route_is_gone(way: str) -> None:
    """Writes are held for ten minutes, then skipped; what is held is delivered when it is back."""
    with capture_logs() as logs:
        async with world() as w:
            gone(w, way)
            await w.feed(30, per_s=2, prefix="early")
            await asyncio.sleep(540)
            await w.post(start(span("open")))
            await asyncio.sleep(20)
            early = dict(w.accepted)
            lane = w.lane("agentex")
            assert (lane["state"], lane["forwarded"], skipped(w)) == ("down", 0, 0)
            assert lane["last_error"]["kind"] == "misdirected"
            assert ADVICE in lane["last_error"]["text"]
            assert lane["depth"] == len(early) + 1

            await asyncio.sleep(60)
            for number in range(30):
                await w.post(start(span(f"late{number}")))
                await asyncio.sleep(5)
                await w.post(end(span(f"late{number}")))
            await w.post(end(span("open")))
            assert w.lane("agentex")["depth"] == len(early) + 1
            assert skipped(w) == 60
            assert_balanced(w.app)
            await w.until(lambda: w.sgp.complete == w.accepted.keys())
            requests = len(w.agentex.requests)
            await asyncio.sleep(900)
            assert len(w.agentex.requests) - requests <= 900 / 10
            assert len(lines(logs)) == 1
            assert ADVICE in str(lines(logs)[0])

            w.agentex.rule = None
            await w.until(lambda: not w.lane("agentex")["depth"])
            assert set(w.agentex.spans) == {*early, "open"}
            assert w.agentex.spans["open"]["end_time"] == END_TIME
            await w.feed(10, prefix="again")
            w.accepted = {id_: sent for id_, sent in w.accepted.items() if id_[:4] != "late"}
            w.opened = {id_: sent for id_, sent in w.opened.items() if id_[:4] != "late"}
            await w.finish()
            assert skipped(w) == 60

            gone(w, way)
            await w.post(end(span("once more")))
            await asyncio.sleep(60)
            assert len(lines(logs)) == 2
            w.agentex.rule = None
            await w.finish()


@each_way
@fast
async def test_one_write_only(way: str) -> None:
    """A span that gets it while others pass becomes a dead letter; nothing is said or skipped."""
    with capture_logs() as logs:
        async with world() as w:
            w.agentex.rule = lambda r: GONE[way] if b"hated" in r.body else None
            await w.post(end(span("bad", input={"is": "hated"})))
            await w.feed_until(lambda: w.dead() and now() > 900, per_s=0.5)
            assert (lines(logs), skipped(w)) == ([], 0)
            await w.finish(dead=[("agentex", "bad")])


@pytest.mark.parametrize("status", [403, 503])
@fast
async def test_a_gateway_that_cannot_decide(status: int) -> None:
    """If another failure comes in between, the ten minutes go on; a success ends them."""

    def mixed(_: Recorded) -> Scripted:
        return GONE["404"] if len(w.agentex.requests) % 5 else status

    async with world() as w:
        w.agentex.rule = mixed
        await w.post(end(span("early")))
        await asyncio.sleep(660)
        w.agentex.rule = None
        await w.drained()
        gone(w, "404")
        await w.post(end(span("late")))
        await asyncio.sleep(580)
        await w.post(end(span("later")))
        assert skipped(w) == 0
        w.agentex.rule = None
        await w.finish()


@fast
async def test_half_of_the_servers_have_no_route() -> None:
    """A rolling update got stuck: everything is delivered, nothing skipped, and little is said."""
    chance = random.Random(1)
    with capture_logs() as logs:
        async with world() as w:
            w.agentex.rule = lambda _: GONE["404"] if chance.random() < 0.5 else None
            await w.feed(900, per_s=0.5)
            await w.finish()
            assert skipped(w) == 0
            assert len(lines(logs)) <= 30, "a line or two for each minute"


@fast
async def test_it_is_gone_when_the_process_stops() -> None:
    """What waits goes to the dead letters, and nothing else does; SGP has everything."""
    async with world(shutdown__grace_s="5") as w:
        gone(w, "404")
        await w.post(end(span("early")))
        await asyncio.sleep(700)
        await w.post(start(span("held")), end(span("late")))
        assert await w.running.stop()
        assert (w.lane("agentex")["lost"], skipped(w)) == (0, 2)
        assert w.sgp.spans.keys() == {("trace", id_) for id_ in ("early", "late", "held")}
        assert w.dead() == {("agentex", "early"): 1}
