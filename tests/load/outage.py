"""`python -m tests.load.outage`: a minute without upstreams, under load, with a spool.

Prints memory and disk over time. Exits with 1 when a span was lost or altered.
"""

import argparse
import sys
import tempfile
import time

import msgspec

from .arrived import arrived
from .backlog import drained, faults, memory, settings
from .driver import Result
from .loads import Plan
from .processes import BenchError, driver, sidecar, stand_ins

EVERY_S = 5.0
DRAIN_S = 900.0
SETTLE_S = 10.0


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outage-s", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=500.0, help="spans/s")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a prompt")
    parser.add_argument("--queue-bytes", default="64MiB", help="queue.max_bytes")
    parser.add_argument("--latency-ms", type=float, default=5.0, help="of the upstreams")
    arguments = parser.parse_args()
    spans = int(arguments.rate * (arguments.outage_s + 20))  # 10 s before the outage, 10 s after it
    plan = Plan(
        kind="incident", spans=spans, size=arguments.size, rate=arguments.rate, connections=32
    )
    with tempfile.TemporaryDirectory() as folder:
        return run(plan, arguments.outage_s, arguments.queue_bytes, arguments.latency_ms, folder)


def run(plan: Plan, outage_s: float, queue: str, latency_ms: float, spool: str) -> int:
    """Load for 10 s, through the outage and 10 s more; then wait until all is delivered."""
    with (
        stand_ins(latency_ms) as upstreams,
        sidecar(**settings(dict(upstreams.urls), spool, queue)) as watched,
        driver(msgspec.structs.replace(plan, port=watched.port)) as sender,
    ):
        memory("before", watched, spool)
        sender.begin()
        began = time.monotonic()
        shown = EVERY_S
        line: bytes | None = None
        away = False
        while line is None or not drained(watched):
            line = line or sender.result(0.1)
            elapsed = time.monotonic() - began
            if elapsed > DRAIN_S:
                raise BenchError("not drained in time")
            if away != (10 <= elapsed < 10 + outage_s):
                away = not away
                upstreams.stop_or_go(away=away)
            if elapsed >= shown:
                memory(f"{elapsed:4.0f} s{', outage' if away else ''}", watched, spool)
                shown += EVERY_S
            if line is not None:
                time.sleep(0.1)
        memory(f"drained after {time.monotonic() - began:.1f} s", watched, spool)
        time.sleep(SETTLE_S)
        memory("a little later", watched, spool)
        sent = msgspec.json.decode(line, type=Result)
        found = faults(watched, upstreams, plan)
        lost = sum(arrived(upstreams.report(sink), plan).lost for sink in upstreams.urls)
    print(f"responses {sent.statuses}, latency ms {sent.latency_ms}, lost {lost}")
    for fault in found:
        print(f"FAULT: {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
