"""`python -m tests.load.sizing`: does a sidecar of docs/sizing.md's size survive the outage?

For each cell of the page's examples, a sidecar with that memory or that spool gets all spans of the
outage while both upstreams are away, faster than they would come; then the upstreams come back.
Prints the bytes that each lane holds beside those that tools/sizing.py predicts. Exits with 1 if a
lane did not take a span, if it holds more than predicted, or if a span was lost or altered.
"""

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from sidecar.process.memory import MIB, automatic_max_bytes
from tools.sizing import sizes

from .backlog import drained, faults, size_on_disk
from .driver import Result
from .loads import Plan
from .processes import BenchError, Sidecar, StandIns, driver, sidecar, stand_ins

LATENCY_MS = 5.0
END_S, DRAIN_S = 300.0, 600.0
POLL_S = 0.1
# A span of the load has some 60 bytes more than its size says: `data`, and its number twice.
TOLERANCE = 1.02
# The memory that goes with a spool: the chart's default limit.
QUEUE_BYTES = 48 * MIB


class Cell(NamedTuple):
    """An example: `rate` spans of `size` bytes a second, and the seconds of the outage."""

    rate: float
    size: int
    outage_s: float


# Of the page's, those that a developer's machine has room and time for.
CELLS = "10x50000x60,100x5000x60,1x500000x900"


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=_cells, default=CELLS, help="RATExSIZExSECONDS, ...")
    parser.add_argument("--within-s", type=float, default=20.0, help="seconds to send a cell in")
    arguments = parser.parse_args()
    failed = False
    for cell in arguments.cells:
        predicted = sizes(*cell)
        name = f"{cell.rate:g} spans/s of {cell.size:,} bytes, {cell.outage_s:g} s"
        if predicted.limit is None:
            print(f"{name}, memory: needs a spool")
        else:
            queue = {"SIDECAR_QUEUE__MAX_BYTES": str(automatic_max_bytes(predicted.limit))}
            failed |= run(f"{name}, memory", cell, predicted.lane_memory, queue, arguments.within_s)
        with tempfile.TemporaryDirectory() as folder:
            spool = {
                "SIDECAR_SPOOL__PATH": folder,
                "SIDECAR_SPOOL__MAX_BYTES": str(predicted.spool),
                "SIDECAR_QUEUE__MAX_BYTES": str(QUEUE_BYTES),
            }
            failed |= run(f"{name}, spool", cell, predicted.lane_disk, spool, arguments.within_s)
    return int(failed)


def _cells(text: str) -> list[Cell]:
    cells = [each.split("x") for each in text.split(",")]
    return [Cell(float(rate), int(size), float(outage_s)) for rate, size, outage_s in cells]


def run(
    name: str, cell: Cell, predicted: int, settings: Mapping[str, str], within_s: float
) -> bool:
    """Let a sidecar with `settings` survive the cell's outage; print and return what failed."""
    spans = round(cell.rate * cell.outage_s)
    plan = Plan(
        kind="halves", spans=spans, size=cell.size, rate=max(cell.rate, spans / within_s),
        connections=32, idle_s=END_S,
    )  # fmt: skip
    with stand_ins(LATENCY_MS) as upstreams:
        addresses = {
            f"SIDECAR_{sink.upper()}__BASE_URL": url for sink, url in upstreams.urls.items()
        }
        keys = {"SIDECAR_SGP__API_KEY": "bench", "SIDECAR_SGP__ACCOUNT_ID": "bench"}
        with sidecar(**addresses, **keys, **settings) as watched:
            switch(upstreams, on=False)
            send(watched, plan)
            status = watched.status()
            held = {sink: lane["lane_bytes"] for sink, lane in status["sinks"].items()}
            limit = min(lane["lane_limit_bytes"] for lane in status["sinks"].values())
            missed = sum(lane["not_taken"] for lane in status["sinks"].values())
            spool = settings.get("SIDECAR_SPOOL__PATH")
            disk = f", on disk {size_on_disk(spool) / MIB:.1f} MiB" if spool else ""
            switch(upstreams, on=True)
            seconds = drain(watched)
            found = faults(watched, upstreams, plan)
            peak = watched.peak_rss_mib()
    most = max(held.values())
    print(
        f"{name}: a lane holds {most / MIB:.1f} MiB, predicted {predicted / MIB:.1f} MiB"
        f" ({most / predicted:.3f}), of {limit / MIB:.1f} MiB{disk}; not taken {missed};"
        f" RSS at most {peak:.0f} MiB; drained in {seconds:.0f} s",
        flush=True,
    )
    if missed:
        found.append(f"{missed} writes not taken")
    if most > predicted * TOLERANCE:
        found.append("more than predicted")
    for fault in found:
        print(f"FAULT: {fault}")
    return bool(found)


def switch(upstreams: StandIns, *, on: bool) -> None:
    """Stop or start both upstreams, and wait until they are."""
    for sink, url in upstreams.urls.items():
        upstreams.tell(f"{'start' if on else 'stop'} {sink}")
        host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
        deadline = time.monotonic() + END_S
        while listens(host, int(port)) != on:
            if time.monotonic() > deadline:
                raise BenchError(f"{sink} did not follow")
            time.sleep(POLL_S)


def listens(host: str, port: int) -> bool:
    """Whether connections are accepted there."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def send(watched: Sidecar, plan: Plan) -> None:
    """Send all of `plan`, and wait until no START is held for its END any more."""
    with driver(msgspec.structs.replace(plan, port=watched.port)) as sender:
        sender.begin()
        line = sender.result(END_S)
    if line is None:
        raise BenchError("the driver did not end")
    sent = msgspec.json.decode(line, type=Result)
    if sent.accepted != plan.events:
        raise BenchError(f"{sent.accepted} of {plan.events} events accepted: {sent}")
    while watched.status()["events"]["held"]:
        time.sleep(POLL_S)


def drain(watched: Sidecar) -> float:
    """Wait until everything is delivered; return the seconds that it took."""
    began = time.monotonic()
    while not drained(watched):
        if time.monotonic() - began > DRAIN_S:
            raise BenchError("not drained in time")
        time.sleep(POLL_S)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
