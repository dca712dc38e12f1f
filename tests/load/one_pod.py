"""`python -m tests.load.one_pod`: what one sidecar does to its upstreams, to a core, to Prometheus.

Sends spans of each size at each rate to a sidecar with both lanes, with and without a spool; START
and END have a POST each. Prints how many connections to each upstream were open at once, how many
were opened, requests/s, and CPU per span; then the size of a scrape, by lanes and spool. It asserts
nothing about these; it exits with 1 if a span was lost or altered.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from .backlog import drained, faults
from .driver import Result
from .loads import Plan
from .processes import BenchError, Sidecar, StandIns, driver, sidecar, stand_ins

SINKS = ("agentex", "sgp")
SAMPLE_S = 0.05
MAX_BYTES_S = 25e6  # what driver, sidecar and upstreams can do together on two cores
END_S = 300.0
_ESTABLISHED = "01"


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=_numbers, default=(1, 10, 100, 500), help="spans/s")
    parser.add_argument("--sizes", type=_numbers, default=(5_000, 50_000, 500_000), help="bytes")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of the upstreams")
    parser.add_argument("--spool", choices=("both", "yes", "no"), default="both")
    arguments = parser.parse_args()
    spools = {"both": (False, True), "yes": (True,), "no": (False,)}[arguments.spool]
    print("rate  size    spool  CPU ms/span  " + "  ".join(f"{sink:28}" for sink in SINKS))
    failed = False
    for size, spool, rate in itertools.product(arguments.sizes, spools, arguments.rates):
        if rate * size > MAX_BYTES_S:
            continue
        plan = Plan(
            kind="halves", spans=round(rate * arguments.seconds), size=size, rate=rate,
            connections=32,
        )  # fmt: skip
        with running(SINKS, arguments.latency_ms, spool=spool) as (watched, upstreams):
            print(f"{rate:<5} {size:<7} {'yes' if spool else 'no':5}  ", end="")
            found = load(watched, upstreams, plan)
        for fault in found:
            print(f"FAULT: {fault}")
        failed |= bool(found)
    print("\nlanes  spool  series  bytes")
    for lanes, spool in itertools.product((SINKS, SINKS[1:]), (False, True)):
        with running(lanes, arguments.latency_ms, spool=spool) as (watched, _):
            body = watched.metrics()
            series = sum(not line.startswith(b"#") for line in body.splitlines())
        print(f"{len(lanes)}      {'yes' if spool else 'no':5}  {series:<6}  {len(body)}")
    return 1 if failed else 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


@contextlib.contextmanager
def running(
    lanes: tuple[str, ...], latency_ms: float, *, spool: bool
) -> Iterator[tuple[Sidecar, StandIns]]:
    """Run the upstreams, and a sidecar with these lanes."""
    with tempfile.TemporaryDirectory() as folder, stand_ins(latency_ms) as upstreams:
        settings = {f"SIDECAR_{name.upper()}__BASE_URL": upstreams.urls[name] for name in lanes}
        settings |= {
            "SIDECAR_SGP__API_KEY": "bench",
            "SIDECAR_SGP__ACCOUNT_ID": "bench",
            "SIDECAR_QUEUE__MAX_BYTES": "256MiB",
            "SIDECAR_SPOOL__PATH": f"{folder}/spool" if spool else "",
        }
        with sidecar(**settings) as watched:
            yield watched, upstreams


class Connections:
    """The connections of a process to each upstream, as samples show them."""

    def __init__(self, pid: int, upstreams: StandIns) -> None:
        self._pid = pid
        self._sinks = {int(url.rpartition(":")[2]): name for name, url in upstreams.urls.items()}
        self.most: Counter[str] = Counter()
        self.opened: dict[str, set[int]] = {name: set() for name in upstreams.urls}

    def sample(self) -> None:
        """Look at the open connections once."""
        table = Path(f"/proc/{self._pid}/net/tcp").read_text().splitlines()[1:]
        now: Counter[str] = Counter()
        for line in table:
            _, local, remote, state, *_ = line.split()
            sink = self._sinks.get(int(remote.rpartition(":")[2], 16))
            if sink is not None and state == _ESTABLISHED:
                now[sink] += 1
                self.opened[sink].add(int(local.rpartition(":")[2], 16))
        self.most |= now


def load(watched: Sidecar, upstreams: StandIns, plan: Plan) -> list[str]:
    """Send `plan`, and print what it cost; return what is wrong."""
    connections = Connections(watched.pid, upstreams)
    before, cpu_s = watched.status()["sinks"], watched.cpu_s()
    with driver(msgspec.structs.replace(plan, port=watched.port)) as sender:
        sender.begin()
        deadline = time.monotonic() + END_S
        while (line := sender.result(SAMPLE_S)) is None:
            connections.sample()
            if time.monotonic() > deadline:
                raise BenchError("the driver did not end")
    sent = msgspec.json.decode(line, type=Result)
    while not drained(watched):
        if time.monotonic() > deadline:
            raise BenchError("not drained in time")
        time.sleep(SAMPLE_S)
    cpu_s = watched.cpu_s() - cpu_s
    seconds = sent.last_202 - sent.started
    after = watched.status()["sinks"]
    cells = []
    for sink in SINKS:
        requests = sum(after[sink]["requests_by_outcome"].values())
        requests -= sum(before[sink]["requests_by_outcome"].values())
        cells.append(
            f"{connections.most[sink]:2} open, {len(connections.opened[sink]):3} opened,"
            f" {requests / seconds:6.1f}/s"
        )
    print(f"{1000 * cpu_s / plan.spans:11.3f}  {'  '.join(cells)}", flush=True)
    return faults(watched, upstreams, plan)


if __name__ == "__main__":
    sys.exit(main())
