"""Bad spans among good ones: only the bad ones become dead letters, with few requests."""

import asyncio
import json

import pytest

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.stand_in import Answer
from tests.support.faults import World, end, fast, for_a_while, for_ids, span, start, world

THOUSAND = [span(f"p{number:03}") for number in range(1000)]


def requests(w: World) -> int:
    """The number of requests to SGP."""
    return len(w.sgp.requests)


@pytest.mark.parametrize("status", [400, 409, 422])
@pytest.mark.parametrize("bad", [1, 17])
@fast
async def test_bad_in_a_thousand_at_sgp(bad: int, status: int) -> None:
    """If SGP refuses 1 or 17 of 1,000 spans, only those die, at 25 extra requests each at most."""
    poison = [f"p{number * 57 + 13:03}" for number in range(bad)]
    async with world() as w:
        w.sgp.rule = for_ids(poison, status)
        await w.post(*map(end, THOUSAND))
        await w.finish(dead=[("sgp", id_) for id_ in poison])
        assert w.lane("sgp")["dead_lettered_by_reason"]["refused"] == bad
        assert requests(w) - 2 <= 25 * bad


@pytest.mark.slow
@fast
async def test_a_span_that_sgp_answers_with_500() -> None:
    """A span that makes SGP respond 500 becomes a dead letter; its neighbors are delivered."""
    async with world() as w:
        w.sgp.rule = for_ids(["bad"], 500)
        await w.post(*map(end, [*THOUSAND[:100], span("bad"), *THOUSAND[100:200]]))
        feeding = asyncio.create_task(w.feed(300, per_s=1))
        await w.until(lambda: w.dead().total() > 0)
        await feeding
        await w.finish(dead=[("sgp", "bad")])
        assert w.lane("sgp")["dead_lettered_by_reason"]["failing"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "5"}])
@fast
async def test_a_503_for_one_span(headers: dict[str, str]) -> None:
    """SGP reports its internal 500s as 503 (docs/upstreams.md S1.5): neighbors are delivered."""
    async with world() as w:
        w.sgp.rule = for_ids(["bad"], Answer(503, headers=headers))
        await w.post(*map(end, [*THOUSAND[:100], span("bad"), *THOUSAND[100:200]]))
        await w.feed(300, per_s=1)
        await asyncio.sleep(300)
        assert set(w.accepted) - w.sgp.complete == {"bad"}
        w.sgp.rule = None
        await w.drained()
        assert set(w.dead()) <= {("sgp", "bad")}
        await w.finish(dead=w.dead())


@pytest.mark.parametrize("status", [400, 422])
@fast
async def test_refused_by_agentex(status: int) -> None:
    """Each span that Agentex refuses costs one request and blocks no other span."""
    poison = {f"p{number:03}" for number in range(0, 100, 20)}
    async with world() as w:
        w.agentex.rule = for_ids(poison, status)
        await w.post(*map(end, THOUSAND[:100]))
        await w.finish(dead=[("agentex", id_) for id_ in poison])
        assert len(w.agentex.requests) == 100


@fast
async def test_a_permanent_500_at_agentex() -> None:
    """A span that always gets 500 from Agentex becomes a dead letter after eight attempts."""
    async with world() as w:
        w.agentex.rule = for_ids(["bad"], 500)
        await w.post(end(span("bad")))
        await w.feed(300, per_s=1)
        await w.finish(dead=[("agentex", "bad")])
        assert w.lane("agentex")["dead_lettered_by_reason"]["failing"] == 1
        assert w.lane("agentex")["state"] == "up"


@pytest.mark.slow
@fast
async def test_permanent_500s_delay_no_other_span() -> None:
    """With ten such spans together, their neighbors do not wait for them."""
    poison = [f"bad{number}" for number in range(10)]
    async with world() as w:
        w.agentex.rule = for_ids(poison, 500)
        await w.post(*map(end, [*map(span, poison), *THOUSAND[:100]]))
        await w.until(lambda: len(w.agentex.spans) == 100)
        await w.feed(300, per_s=1)
        await w.finish(dead=[("agentex", id_) for id_ in poison])


@fast
async def test_fields_that_are_repaired() -> None:
    """NULs in names, unknown types, lists and odd errors are repaired, so nothing is refused."""
    odd = [
        span("nul", name="a\0b"),
        span("list", input=[{"a": 1}], output=[{"b": 2}], data=[{"c": 3}]),
        span("type", data={"__span_type__": "NO_SUCH", "note": "x"}),
        span("none", data={"__span_type__": None}),
        span("error", data={"__error__": {}}),
        span("slash/../id"),
        span(".", name="dot"),
        span("empty", input={}, output={}, data={}),
    ]
    async with world() as w:
        for made in odd:
            await w.post(start(made))
        await asyncio.sleep(5)  # past start_hold_s: written open
        for made in odd:
            await w.post(end(made))
        await w.drained()
        assert w.dead().total() == 0
        assert w.agentex.complete == w.sgp.complete == {made["id"] for made in odd}
        assert w.agentex.spans["nul"]["name"] == w.sgp.spans["trace", "nul"]["name"] == "a\ufffdb"
        assert w.sgp.spans["trace", "list"]["input"] == {"items": [{"a": 1}]}
        assert w.agentex.spans["list"]["output"] == [{"b": 2}]
        assert w.agentex.late_opens == w.sgp.late_opens == 0


@fast
async def test_parent_in_another_trace() -> None:
    """SGP refuses such a batch with 409: only the one span becomes a dead letter."""
    async with world() as w:
        stray = span("stray", trace_id="other", parent_id="p001")
        await w.post(*map(end, [*THOUSAND[:50], stray]))
        await w.finish(dead=[("sgp", "stray")])


@fast
async def test_unknown_task() -> None:
    """An unknown task id moves into `data`, and the span is delivered."""
    async with world(AgentexStandIn(tasks={"known"})) as w:
        await w.post(end(span("good", task_id="known")), end(span("bad", task_id="gone")))
        listed = span("listed", task_id="gone", data=[{"a": 1}])
        bare = span("bare", task_id="gone", data=None)
        await w.post(end(listed), end(bare), start(span("open", task_id="gone")))
        await asyncio.sleep(5)
        await w.post(end(span("open", task_id="gone")))
        await w.drained()
        assert w.dead().total() == 0
        rows = w.agentex.spans
        assert rows["good"]["task_id"] == "known"
        assert rows["bad"]["data"] == {"task_id": "gone", "note": "data of bad"}
        assert rows["open"]["data"] == {"task_id": "gone", "note": "data of open"}
        assert rows["listed"]["data"] == [{"a": 1}, {"task_id": "gone"}]
        assert rows["bare"]["data"] == {"task_id": "gone"}
        assert {row["task_id"] for row in rows.values()} == {"known", None}


@pytest.mark.slow
@pytest.mark.parametrize("sick", ["agentex", "sgp"])
@fast
async def test_most_refused(sick: str) -> None:
    """If everything gets 422, the lane is `braked` after about ten dead letters."""
    async with world() as w:
        upstream = w.agentex if sick == "agentex" else w.sgp
        upstream.rule = for_a_while(600, 422)
        await w.post(*map(end, THOUSAND[:500]))
        await w.until(lambda: w.lane(sick)["state"] == "braked")
        before = len(upstream.requests)
        await w.feed(10)
        assert before <= 150, "requests until it brakes"
        await asyncio.sleep(300)
        assert w.dead().total() <= 12
        assert w.lane(sick)["state"] == "braked"
        assert len(upstream.requests) - before < 100, "a braked lane only probes"
        await w.finish(dead=w.dead())


@fast
async def test_dead_letters_can_be_sent_again() -> None:
    """A dead letter holds the whole event: posted again, it arrives."""
    async with world() as w:
        w.sgp.rule = for_ids(["bad"], 422)
        await w.post(end(span("good")), end(span("bad")))
        await w.drained()
        w.sgp.rule = None
        letter = json.loads(w.letters.read_bytes())
        assert (letter["sink"], letter["reason"], letter["status"]) == ("sgp", "refused", 422)
        await w.post(letter["event"])
        await w.drained()
        w.letters.unlink()
        await w.finish()
