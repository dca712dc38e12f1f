"""A gateway before an upstream that takes no large request, whatever it answers instead of 413."""

import asyncio
import functools
import json
from collections.abc import Callable

import pytest

from sidecar.demo.stand_in import Answer, Hang, Recorded, Reset, Scripted
from tests.support.faults import Json, World, end, fast, now, page, span, world

LIMIT = 256 * 1024
# The API's own 413 is in test_manners.py.
FAULTS: dict[str, Scripted] = {
    "reset": Reset(),
    "502": 502,
    "504": 504,
    "hang": Hang(),
    "500": 500,
    "a page": page(200),
    "403": page(403),
    # Not in the table.
    "stored and reset": Reset(after_apply=True),
    "404": page(404),
    "400": page(400),
    "503 later": Answer(503, headers={"Retry-After": "5"}),
}
SLOW = {"a page", "502", "504", "500", "404", "400", "stored and reset", "503 later"}
every_fault = pytest.mark.parametrize(
    "fault",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAULTS],
)
impatient = functools.partial(world, agentex__timeout_s="5", sgp__timeout_s="5")


def above(limit: int, fault: str) -> Callable[[Recorded], Scripted]:
    """A rule: the fault for each request that is larger than `limit`."""
    return lambda request: FAULTS[fault] if len(request.body) > limit else None


def large(id_: str, size: int = 20_000) -> Json:
    """A span with a prompt of `size` bytes."""
    return span(id_, input={"prompt": id_ + "x" * size})


async def post_large(w: World, prefix: str, count: int) -> None:
    """Post `count` spans of 20 KB."""
    for first in range(0, count, 50):
        ids = [f"{prefix}{first + number}" for number in range(min(50, count - first))]
        await w.post(*(end(large(id_)) for id_ in ids))


def has(w: World, prefix: str, count: int) -> bool:
    """Whether SGP has these spans."""
    return {f"{prefix}{number}" for number in range(count)} <= w.sgp.complete


@every_fault
@fast
async def test_large_requests_never_arrive(fault: str) -> None:
    """A hundred spans of 20 KB at once arrive within two minutes, ten if requests time out."""
    async with impatient() as w:
        w.sgp.rule = above(LIMIT, fault)
        await post_large(w, "b", 100)
        await w.until(lambda: has(w, "b", 100))
        assert now() < (600 if fault == "hang" else 120)
        await w.finish()
        assert sum(len(request.body) > LIMIT for request in w.sgp.requests) <= 20


@every_fault
@fast
async def test_large_requests_among_small_ones(fault: str) -> None:
    """Three hundred such spans arrive in that time while a feed goes on."""
    async with impatient() as w:
        w.sgp.rule = above(LIMIT, fault)
        feeding = asyncio.create_task(w.feed(20))
        await asyncio.sleep(3)
        await post_large(w, "b", 300)
        await w.until(lambda: has(w, "b", 300))
        assert now() < (600 if fault == "hang" else 120)
        await feeding
        await w.finish()
        assert sum(len(request.body) > LIMIT for request in w.sgp.requests) <= 30


@every_fault
@fast
async def test_the_size_is_learned(fault: str) -> None:
    """After a minute, few requests are too large; without the limit, batches grow back."""
    async with impatient() as w:
        w.sgp.rule = above(LIMIT, fault)
        first = 0
        for number in range(30):
            if number == 15:
                first = len(w.sgp.requests)
            await post_large(w, f"{number}-", 40)
            await asyncio.sleep(4)
        await w.drained()
        later = [len(request.body) > LIMIT for request in w.sgp.requests[first:]]
        # While one large request hangs, others of its size are sent.
        assert sum(later) <= (0.2 if fault == "hang" else 0.1) * len(later)
        w.sgp.rule = None
        number = 0
        while max(len(request.body) for request in w.sgp.requests[-3:]) < 2 * LIMIT:
            assert number < 200, "batches grow back"
            await post_large(w, f"again{number}-", 40)
            await asyncio.sleep(1)
            number += 1
        await w.finish()


@pytest.mark.parametrize("sick", ["agentex", "sgp"])
@every_fault
@fast
async def test_one_span_is_too_large(fault: str, sick: str) -> None:
    """It becomes a dead letter; those posted with it do not wait for that."""
    async with impatient() as w:
        upstream = w.agentex if sick == "agentex" else w.sgp
        upstream.rule = above(LIMIT, fault)
        feeding = asyncio.create_task(w.feed_until(w.dead))
        await asyncio.sleep(3)
        before = [end(span(f"before{number}")) for number in range(20)]
        after = [end(span(f"after{number}")) for number in range(20)]
        await w.post(*before, end(large("huge", LIMIT)), *after)
        others = {event["span"]["id"] for event in before + after}
        await w.until(lambda: others <= upstream.complete)
        assert now() < 30
        await feeding
        assert now() < 180
        await w.finish(dead=[(sick, "huge")])
        assert w.lane(sick)["dead_lettered_by_reason"]["failing"] == 1
        assert sum(len(request.body) > LIMIT for request in upstream.requests) <= 30


@pytest.mark.parametrize("fault", ["hang", "504", pytest.param("403", marks=pytest.mark.slow)])
@fast
async def test_the_limit_falls_and_counts_spans(fault: str) -> None:
    """A slow SGP fails for 100 spans in a request, and later for 20: all arrive all the same."""

    def above_count(limit: int) -> Callable[[Recorded], Scripted]:
        return lambda r: FAULTS[fault] if len(json.loads(r.body)["items"]) > limit else None

    async with impatient() as w:
        for limit in (100, 20):
            w.sgp.rule = above_count(limit)
            await w.post(*(end(span(f"{limit}-{number}")) for number in range(1000)))
            since = now()
            await w.drained()
            assert now() - since < (600 if fault == "hang" else 120)
        await w.finish()
