"""`python -m tests.load.depth`: the cost of an event by queue depth.

In one process, without HTTP: an event is decoded, joined, queued, checked out and settled, with
`depth` writes queued before it. Prints microseconds of CPU per event (START and END apart) and the
ratio to the shallowest queue. Asserts nothing.
"""

import asyncio
import statistics
import sys
import time

import orjson

from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.open_spans import OpenSpans
from sidecar.queue.span_queue import SpanQueue
from sidecar.spans.decode import decode
from sidecar.spans.span import Span
from sidecar.spool.spool import Spool
from sidecar.telemetry.accounting import IntakeAccounting, LaneAccounting

DEPTHS = (100, 1_000, 10_000, 100_000)
SPANS, ROUNDS, PAYLOAD = 2_000, 9, 1_000


def body(number: int, *, end: bool) -> bytes:
    """Return a request body with one event."""
    span = {
        "id": f"span-{number}",
        "trace_id": "trace",
        "name": "turn",
        "start_time": "2026-01-02T03:04:05Z",
        "input": {"prompt": "p" * PAYLOAD},
    }
    if end:
        span |= {"end_time": "2026-01-02T03:04:06Z", "output": {"a": 1}}
    return orjson.dumps({"event_type": "end" if end else "start", "span": span})


class Bench:
    """A queue of `depth` writes, and the parts in front of it."""

    def __init__(self, depth: int) -> None:
        self.budget = MemoryBudget(2**34)
        self.queue = SpanQueue(self.budget, LaneAccounting(), 1, spool=Spool())
        self.open_spans = OpenSpans(
            self._put, self.budget, IntakeAccounting(), Spool(), hold_s=60.0, ttl_s=3600.0
        )
        self.number = 0
        for _ in range(depth):
            self._pass(self._bodies())

    def _put(self, span: Span, _: Span | None, __: int) -> None:
        self.queue.put(span)

    def _bodies(self) -> tuple[bytes, bytes]:
        self.number += 1
        return body(self.number, end=False), body(self.number, end=True)

    def _pass(self, bodies: tuple[bytes, bytes]) -> None:
        for each in bodies:
            for span in decode(each, 0.0).spans:
                self.open_spans.take(span)

    def round(self) -> float:
        """Return CPU seconds per event: one write in, one out, so that the depth is constant."""
        bodies = [self._bodies() for _ in range(SPANS)]
        began = time.process_time()
        for pair in bodies:
            self._pass(pair)
            for span in self.queue.take(1, 2**30):
                self.queue.settle(span)
        return (time.process_time() - began) / (2 * SPANS)


def main() -> int:
    """Measure the depths alternately; return the exit code."""
    benches = {depth: Bench(depth) for depth in DEPTHS}
    rounds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth, bench in benches.items():
            rounds[depth].append(bench.round() * 1e6)
    base = statistics.median(rounds[DEPTHS[0]])
    print("depth     us/event  min    max    against 100")
    for depth, times in rounds.items():
        median = statistics.median(times)
        print(
            f"{depth:<9} {median:<9.2f} {min(times):<6.2f} {max(times):<6.2f} {median / base:.3f}"
        )
    return 0


async def _in_loop() -> int:
    return main()


if __name__ == "__main__":
    sys.exit(asyncio.run(_in_loop()))
