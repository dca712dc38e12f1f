"""A firewall before the upstreams that stops requests for what some spans contain."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from sidecar.demo.stand_in import Answer, Hang, Recorded, Reset, Scripted
from tests.support.faults import Json, World, end, fast, now, page, span, start, world

LANES = "agentex", "sgp"
BAD = b"DROP TABLE"
ANSWERS: dict[str, Scripted] = {
    "403": page(403),
    "401": 401,
    "404": page(404),
    "407": page(407),
    "429": 429,
    "429 later": Answer(429, headers={"Retry-After": "5"}),
    "503 later": Answer(503, headers={"Retry-After": "5"}),
    "reset": Reset(),
    "hang": Hang(),
    # Not in the table.
    "405": Answer(405, b'{"detail":"Method Not Allowed"}'),
    "302": 302,
    "503": 503,
    "a page": page(200),
    "400": page(400),
}
QUICK = {"403", "404", "503 later", "reset"}
every_answer = pytest.mark.parametrize(
    "answer",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ANSWERS],
)


def hated(id_: str) -> Json:
    """A span that the firewall stops."""
    return span(id_, input={"query": "DROP TABLE spans"})


def firewall(answer: str) -> Callable[[Recorded], Scripted]:
    """A rule: the answer to every request with a hated span."""
    return lambda request: ANSWERS[answer] if BAD in request.body else None


class Watch:
    """How deep both lanes become while a feed goes on."""

    def __init__(self, w: World) -> None:
        self._w = w
        self.deepest: Counter[str] = Counter()

    def found(self) -> bool:
        """For `feed_until`: whether both lanes have given up on the hated span."""
        for name in LANES:
            self.deepest[name] = max(self.deepest[name], self._w.lane(name)["depth"])
        return self._w.dead().total() == len(LANES) or now() > 600


@pytest.mark.parametrize("per_s", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("when", ["complete", "open"])
@every_answer
@fast
async def test_one_hated_span(answer: str, when: str, per_s: float) -> None:
    """It becomes a dead letter, with few requests and log lines; every other one is prompt."""
    with capture_logs() as logs:
        async with world(agentex__timeout_s="5", sgp__timeout_s="5") as w:
            for upstream in w.upstreams:
                upstream.rule = firewall(answer)
            watch = Watch(w)
            steady = asyncio.create_task(w.feed_until(watch.found, per_s=per_s))
            await asyncio.sleep(10)
            if when == "open":
                await w.post(start(hated("bad")))
                await asyncio.sleep(4)
            await w.post(end(hated("bad")))
            await steady
            await w.finish(dead=[(name, "bad") for name in LANES])
            for name, upstream in zip(LANES, w.upstreams, strict=True):
                assert w.lane(name)["dead_lettered_by_reason"]["failing"] == 1
                useless = sum(BAD in request.body for request in upstream.requests)
                lines = [line["event"] for line in logs if line.get("sink") == name]
                assert useless <= 60
                # Each Retry-After is believed at first: then the lane waits.
                waits = answer.endswith("later")
                assert watch.deepest[name] <= per_s * (30 if waits else 5)
                assert len(lines) <= 30
                assert sum(line.startswith("upstream_") for line in lines) <= (12 if waits else 8)


@pytest.mark.parametrize(
    ("answer", "per_s"),
    [
        ("403", 20),
        pytest.param("reset", 20, marks=pytest.mark.slow),
        pytest.param("503", 20, marks=pytest.mark.slow),
        pytest.param("403", 100, marks=pytest.mark.slow),
        pytest.param("503", 100, marks=pytest.mark.slow),
    ],
)
@fast
async def test_one_in_twenty_is_hated(answer: str, per_s: int) -> None:
    """The others keep arriving within seconds, however long it lasts."""
    chance = random.Random(1)
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = firewall(answer)
        poison: set[str] = set()
        for tick in range(10 * 60):
            ids = [f"{tick}-{number}" for number in range(per_s // 10)]
            bad = {id_ for id_ in ids if chance.random() < 0.05}
            await w.post(*(end(hated(id_) if id_ in bad else span(id_)) for id_ in ids))
            poison |= bad
            await asyncio.sleep(0.1)
        for upstream in w.upstreams:
            late = w.accepted.keys() - poison - upstream.complete
            assert len(late) <= 10 * per_s, "what was posted in the last seconds"
            upstream.rule = None
        dead = set(w.dead())
        assert {name for name, _ in dead} == set(LANES)
        assert {id_ for _, id_ in dead} <= poison
        await w.finish(dead=dead)


@pytest.mark.parametrize(
    "answer",
    [pytest.param(name, marks=[] if name == "403" else [pytest.mark.slow]) for name in ANSWERS],
)
@fast
async def test_nothing_else_to_send(answer: str) -> None:
    """Two hated spans alone prove nothing about themselves: they are held, and sent later."""
    async with world(agentex__timeout_s="5", sgp__timeout_s="5") as w:
        for upstream in w.upstreams:
            upstream.rule = firewall(answer)
        await w.post(end(hated("a")), end(hated("b")))
        await asyncio.sleep(1800)
        assert [w.lane(name)["depth"] for name in LANES] == [2, 2]
        assert w.dead().total() == 0
        for upstream in w.upstreams:
            assert len(upstream.requests) <= 400
            upstream.rule = None
        await w.finish()
