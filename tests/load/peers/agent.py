"""The agent process: makes spans with one way of tracing, and measures its cost on the loop.

Runs in the peer's interpreter, so it uses the standard library only: `python -m
tests.load.peers.agent JSON`, where JSON is a `Work`. It prints "warm" after the first spans, waits
for a line, makes the others, flushes, and prints its figures. Then it idles until standard input
ends, so that its memory can be read.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass

from . import payload
from .tracers import TRACERS, Tracer

# As long as a short call, so that START and END do not fall into one step of the loop.
CALL_S = 0.05
WARM_UP = 40


@dataclass(frozen=True, kw_only=True)
class Work:
    """`rate`: spans/s of an open loop; 0: as fast as the loop can, a few at a time."""

    tracer: str
    spans: int
    rate: float
    size: int = payload.LARGE
    crowd: int = 8  # concurrently open spans if `rate` is 0


class Agent:
    """One run of `work`."""

    def __init__(self, work: Work, tracer: Tracer) -> None:
        self._work = work
        self._tracer = tracer
        self.blocking: list[float] = []
        self.late: list[float] = []

    async def warm_up(self) -> None:
        """Make the first spans, which pay for imports, connections and caches."""
        await asyncio.gather(*(self._span(number, CALL_S) for number in range(WARM_UP)))
        self.blocking.clear()
        await self._tracer.hand_over(last=False)

    async def make(self) -> None:
        """Make every span of the load."""
        numbers = range(WARM_UP, WARM_UP + self._work.spans)
        if self._work.rate:
            await self._paced(numbers)
        else:
            crowd = self._work.crowd
            await asyncio.gather(*(self._row(numbers[at::crowd]) for at in range(crowd)))

    async def _paced(self, numbers: range) -> None:
        spans: list[asyncio.Task[None]] = []
        begun = time.perf_counter()
        for number in numbers:
            due = begun + len(spans) / self._work.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.late.append(time.perf_counter() - due)
            spans.append(asyncio.create_task(self._span(number, CALL_S)))
        await asyncio.gather(*spans)

    async def _row(self, numbers: range) -> None:
        for number in numbers:
            await self._span(number, 0.0)

    async def _span(self, number: int, call_s: float) -> None:
        size, clock = self._work.size, time.perf_counter
        input_ = payload.input_of(number, size)
        at = clock()
        span = await self._tracer.start(number, input_)
        blocked = clock() - at
        await asyncio.sleep(call_s)
        output = payload.output_of(number, size)
        at = clock()
        await self._tracer.end(span, output)
        self.blocking.append(blocked + clock() - at)


async def run(work: Work) -> None:
    """Warm up, wait for the start line, make the spans, report, idle."""
    loop = asyncio.get_running_loop()
    tracer = TRACERS[work.tracer]()
    agent = Agent(work, tracer)
    await agent.warm_up()
    print("warm", flush=True)
    if not await loop.run_in_executor(None, sys.stdin.readline):
        return
    begun = time.monotonic()
    await agent.make()
    made = time.monotonic()
    await tracer.hand_over(last=True)
    figures = {
        "begun": begun,
        "made_s": made - begun,
        "blocking_ms": quantiles(agent.blocking),
        "late_ms": quantiles(agent.late),
        "dropped": tracer.dropped(),
    }
    print(json.dumps(figures), flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return p50, p99 and the maximum, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: 1000 * ordered[round(share * last)] for name, share in shares.items()}


if __name__ == "__main__":
    asyncio.run(run(Work(**json.loads(sys.argv[1]))))
