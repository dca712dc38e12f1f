"""`python -m tests.load.backlog`: the memory of a sidecar with a full spool.

Fills a spool while no upstream responds, starts a sidecar on it, and prints its memory next to that
of one with an empty spool; then lets it drain. Exits with 1 when a span was lost or altered.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from .arrived import arrived
from .driver import Result
from .loads import Plan
from .measure import NOWHERE
from .processes import BenchError, Sidecar, StandIns, driver, sidecar, stand_ins

MIB = 2**20
SETTLE_S = 10.0
DRAIN_S = 1200.0


def settings(urls: dict[str, str], spool: str, queue: str) -> dict[str, str]:
    """Return the environment of a sidecar with a large enough spool."""
    return {
        "SIDECAR_AGENTEX__BASE_URL": urls["agentex"],
        "SIDECAR_SGP__BASE_URL": urls["sgp"],
        "SIDECAR_SGP__API_KEY": "bench",
        "SIDECAR_SGP__ACCOUNT_ID": "bench",
        "SIDECAR_SPOOL__PATH": spool,
        "SIDECAR_SPOOL__MAX_BYTES": "4GiB",
        "SIDECAR_QUEUE__MAX_BYTES": queue,
    }


def size_on_disk(spool: str) -> int:
    """Return the bytes of the spool's files."""
    return sum(path.stat().st_size for path in Path(spool).iterdir())


def send(watched: Sidecar, plan: Plan) -> Result:
    """Send all of `plan`, as fast as the sidecar accepts it."""
    with driver(msgspec.structs.replace(plan, port=watched.port)) as sender:
        sender.begin()
        line = sender.result(DRAIN_S)
    if line is None:
        raise BenchError("the driver did not end")
    result = msgspec.json.decode(line, type=Result)
    if result.accepted != plan.events:
        raise BenchError(f"{result.accepted} of {plan.events} events accepted: {result}")
    return result


def memory(label: str, watched: Sidecar, spool: str) -> float:
    """Print what is in memory and on disk; return resident memory in MiB."""
    status = watched.status()
    lanes = {sink: lane["depth"] for sink, lane in status["sinks"].items()}
    rss = watched.rss_mib()
    print(
        f"{label:32} RSS {rss:6.1f} MiB (peak {watched.peak_rss_mib():6.1f}), queue"
        f" {status['queue']['bytes'] / MIB:5.1f} MiB, disk {size_on_disk(spool) / MIB:7.1f} MiB,"
        f" depth {lanes}",
        flush=True,
    )
    return rss


def drained(watched: Sidecar) -> bool:
    """Whether nothing is waiting."""
    status = watched.status()
    waiting = sum(lane["depth"] for lane in status["sinks"].values())
    return not waiting and not status["events"]["held"]


def faults(watched: Sidecar, upstreams: StandIns, plan: Plan) -> list[str]:
    """Describe what is wrong after everything should have been delivered."""
    found: list[str] = []
    status: dict[str, Any] = watched.status()
    for sink, lane in status["sinks"].items():
        found += [
            f"{sink}: {lane[end]} {end}"
            for end in ("lost", "dead_lettered", "imbalance")
            if lane[end]
        ]
        found += [f"{sink}: {fault}" for fault in arrived(upstreams.report(sink), plan).faults()]
    return found


def main() -> int:
    """Fill, start and drain; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="of payload in the spool")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a prompt")
    parser.add_argument("--queue-bytes", default="64MiB", help="queue.max_bytes")
    parser.add_argument("--latency-ms", type=float, default=5.0, help="of the upstreams")
    arguments = parser.parse_args()
    plan = Plan(kind="incident", spans=arguments.mib * MIB // arguments.size, size=arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        return run(plan, arguments.queue_bytes, arguments.latency_ms, folder)


def run(plan: Plan, queue: str, latency_ms: float, folder: str) -> int:
    """Run sidecars on an empty, a filling and a full spool; return the exit code."""
    spool, empty = f"{folder}/spool", f"{folder}/empty"
    nowhere = dict.fromkeys(("agentex", "sgp"), NOWHERE)
    with sidecar(**settings(nowhere, empty, queue)) as watched:
        time.sleep(SETTLE_S)
        idle = memory("idle, empty spool", watched, empty)
    with sidecar(**settings(nowhere, spool, queue)) as watched:
        sent = send(watched, plan)
        memory("filled", watched, spool)
        print(
            f"  {plan.events} events accepted in {sent.last_202 - sent.started:.1f} s", flush=True
        )
        time.sleep(SETTLE_S)
        memory("filled, a little later", watched, spool)
    with sidecar(**settings(nowhere, spool, queue)) as watched:
        at_start = memory("started on the backlog", watched, spool)
        time.sleep(SETTLE_S)
        later = memory("a little later, still no upstream", watched, spool)
        peak = watched.peak_rss_mib()
    print(
        f"the backlog adds {at_start - idle:.1f} MiB at the start, {later - idle:.1f} MiB later,"
        f" {peak - idle:.1f} MiB at its peak",
        flush=True,
    )
    with (
        stand_ins(latency_ms) as upstreams,
        sidecar(**settings(dict(upstreams.urls), spool, queue)) as watched,
    ):
        began = time.monotonic()
        shown = 0.0
        while not drained(watched):
            elapsed = time.monotonic() - began
            if elapsed > DRAIN_S:
                raise BenchError("not drained in time")
            if elapsed >= shown:
                memory(f"draining, {elapsed:.0f} s", watched, spool)
                shown += 10
            time.sleep(0.1)
        memory(f"drained in {time.monotonic() - began:.1f} s", watched, spool)
        time.sleep(SETTLE_S)
        memory("a little later", watched, spool)
        found = faults(watched, upstreams, plan)
    for fault in found:
        print(f"FAULT: {fault}")
    print(f"lost: {'see above' if found else 0}; on disk at the end {size_on_disk(spool)} bytes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
