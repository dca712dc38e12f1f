"""What waited during a short outage is sent in few requests, and soon."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sidecar.demo.stand_in import Answer, Hang, Scripted
from tests.support.faults import World, end, fast, now, page, span, world

AWAY: dict[str, Scripted] = {
    "503": 503,
    "hangs": Hang(),
    "401": 401,
    "a page": page(200),
    "503 later": Answer(503, headers={"Retry-After": "2"}),
}


@asynccontextmanager
async def away(w: World, how: str) -> AsyncIterator[None]:
    """SGP is away."""
    if how != "refuses":
        w.sgp.rule = lambda _: AWAY[how]
        yield
        w.sgp.rule = None
        return
    await w.sgp.stop()
    yield
    await w.sgp.start(w.sgp.port)


@pytest.mark.parametrize(
    ("max_batch", "steady_s"),
    [
        (500, 0),
        (50, 30),
        pytest.param(500, 30, marks=pytest.mark.slow),
        pytest.param(50, 0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "how",
    [
        "refuses",
        "503",
        "hangs",
        *(pytest.param(how, marks=pytest.mark.slow) for how in ("401", "a page", "503 later")),
    ],
)
@fast
async def test_two_thousand_spans_wait(how: str, steady_s: float, max_batch: int) -> None:
    """SGP was away for 8 s: 2,000 spans of 1 KB take 60 requests and 15 s at most."""
    async with world(sgp__max_batch=max_batch, sgp__timeout_s="5") as w:
        await w.feed(steady_s, per_s=3)
        async with away(w, how):
            for first in range(0, 2000, 100):
                made = [span(f"b{first + n}", input={"p": "x" * 700}) for n in range(100)]
                await w.post(*map(end, made))
                await asyncio.sleep(8 / 20)
        back, before = now(), len(w.sgp.requests)
        await w.until(lambda: not w.lane("sgp")["depth"])
        assert len(w.sgp.requests) - before <= 60
        assert now() - back <= 15
        await w.finish()
