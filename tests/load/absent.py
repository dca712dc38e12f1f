"""`python -m tests.load.absent`: one upstream is away for the whole of a load; the other is not.

The load is ten times `queue.max_bytes`. The absent upstream answers 503 or 401, or hangs, and comes
back at the end. Prints what each of them got. Exits with 1 if the healthy one did not get
everything, if the other one did not get exactly what was taken for it, if what it misses was not
counted, or if an agent was refused.
"""

import argparse
import contextlib
import socketserver
import sys
import tempfile
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec

from .arrived import arrived
from .backlog import drained
from .driver import Result
from .loads import Plan
from .processes import (
    START_S,
    BenchError,
    Sidecar,
    StandIns,
    driver,
    line_of,
    process,
    sidecar,
    stand_ins,
)

SINKS = ("agentex", "sgp")
WAYS = ("503", "401", "hang")
QUEUE_BYTES, SPOOL_BYTES = 8 * 2**20, 32 * 2**20
DRAIN_S = 300.0
MAX_P99_MS = 25.0


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with `status`."""

    protocol_version = "HTTP/1.1"
    status = 503

    def do_POST(self) -> None:
        """Read the body, and refuse it."""
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b'{"detail":"no"}'
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_PATCH = do_GET = do_POST  # noqa: N815 (the names of http.server)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def refuse(status: int, port: int) -> None:
    """Serve until the process is stopped."""
    Refusing.status = status
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Refusing) as server:
        server.daemon_threads = True
        print(server.server_address[1], flush=True)
        server.serve_forever()


@contextlib.contextmanager
def refusing(status: str) -> Iterator[int]:
    """Run an upstream that refuses everything, on the port that is yielded."""
    with process([sys.executable, "-m", "tests.load.absent", "--refuse", status]) as running:
        line = line_of(running, START_S)
        if line is None:
            raise BenchError("the refusing upstream did not start")
        yield int(line)


def settings(urls: dict[str, str], spool: str) -> dict[str, str]:
    """The environment of a sidecar with little room."""
    spooled = {"SIDECAR_SPOOL__PATH": spool, "SIDECAR_SPOOL__MAX_BYTES": str(SPOOL_BYTES)}
    return {
        "SIDECAR_AGENTEX__BASE_URL": urls["agentex"],
        "SIDECAR_SGP__BASE_URL": urls["sgp"],
        "SIDECAR_SGP__API_KEY": "bench",
        "SIDECAR_SGP__ACCOUNT_ID": "bench",
        "SIDECAR_QUEUE__MAX_BYTES": str(QUEUE_BYTES),
        # A request that hangs must end before the load does.
        "SIDECAR_AGENTEX__TIMEOUT_S": "5",
        "SIDECAR_SGP__TIMEOUT_S": "5",
        "SIDECAR_RETRY__MAX_S": "5",
        **(spooled if spool else {}),
    }


def load(plan: Plan, watched: Sidecar) -> Result:
    """Send all of `plan`."""
    with driver(msgspec.structs.replace(plan, port=watched.port)) as sender:
        sender.begin()
        line = sender.result(plan.spans / plan.rate + 60)
    if line is None:
        raise BenchError("the driver did not end")
    return msgspec.json.decode(line, type=Result)


def wait_until_drained(watched: Sidecar) -> None:
    """Return once nothing is waiting."""
    deadline = time.monotonic() + DRAIN_S
    while not drained(watched):
        if time.monotonic() > deadline:
            raise BenchError("not drained in time")
        time.sleep(0.2)


def with_refusals(plan: Plan, absent: str, way: str, spool: str) -> list[str]:
    """The absent upstream refuses everything; then the real one takes its port."""
    with stand_ins(1.0) as upstreams:
        with refusing(way) as port:
            urls = {**upstreams.urls, absent: f"http://127.0.0.1:{port}"}
            entered = contextlib.ExitStack()
            watched = entered.enter_context(sidecar(**settings(urls, spool)))
            sent = load(plan, watched)
        with entered, stand_in_at(absent, port) as returned:
            wait_until_drained(watched)
            return faults(
                plan, sent, watched, absent, {**dict.fromkeys(SINKS, upstreams), absent: returned}
            )


@contextlib.contextmanager
def stand_in_at(sink: str, port: int) -> Iterator[StandIns]:
    """Stand-ins, that of `sink` on a given port."""
    program = ("-m", "sidecar.demo.serve", f"--{sink}-port", str(port))
    with stand_ins(1.0, program) as upstreams:
        yield upstreams


def with_a_hang(plan: Plan, absent: str, spool: str) -> list[str]:
    """The absent upstream accepts connections and never answers; then it does."""
    with stand_ins(1.0) as present, stand_ins(1.0) as hanging:
        urls = {**present.urls, absent: hanging.urls[absent]}
        with sidecar(**settings(urls, spool)) as watched:
            hanging.stop_or_go(away=True)
            sent = load(plan, watched)
            hanging.stop_or_go(away=False)
            wait_until_drained(watched)
            return faults(
                plan, sent, watched, absent, {**dict.fromkeys(SINKS, present), absent: hanging}
            )


def faults(
    plan: Plan, sent: Result, watched: Sidecar, absent: str, upstreams: dict[str, StandIns]
) -> list[str]:
    """Describe what is wrong, and print what each upstream got."""
    found = []
    sinks: dict[str, Any] = watched.status()["sinks"]
    for sink in SINKS:
        got, lane = arrived(upstreams[sink].report(sink), plan), sinks[sink]
        not_taken = lane["not_taken_by_reason"]
        print(
            f"    {sink:8} spans {got.spans}, missing {got.lost}, unfinished {got.unfinished},"
            f" offered {lane['offered']}, written {lane['written']}, not taken {not_taken}"
        )
        if got.altered or got.foreign or got.late_opens:
            found.append(f"{sink}: {got}")
        if sink != absent and (got.lost or got.unfinished):
            found.append(f"{sink} is healthy and misses {got.lost} spans")
        if got.lost + got.unfinished != sum(not_taken.values()):
            found.append(f"{sink}: {got.lost} missing, {got.unfinished} unfinished, {not_taken}")
        found += [f"{sink}: {name} {lane[name]}" for name in ("lost", "imbalance") if lane[name]]
    p99 = sent.latency_ms["p99"]
    print(f"    agents: {sent.statuses}, latency ms {sent.latency_ms}")
    if set(sent.statuses) != {"202"}:
        found.append(f"agents were refused: {sent.statuses}")
    if p99 > MAX_P99_MS:
        found.append(f"agents waited: p99 {p99} ms")
    return found


def main() -> int:
    """Run every combination that was asked for, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="spans/s")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a prompt")
    parser.add_argument("--absent", choices=SINKS, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--spool", choices=("with", "without"), action="append")
    parser.add_argument("--refuse", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.refuse:
        refuse(arguments.refuse, 0)
    plan = Plan(
        kind="incident",
        spans=10 * QUEUE_BYTES // arguments.size,
        size=arguments.size,
        rate=arguments.rate,
        connections=16,
    )
    failed = 0
    for absent in arguments.absent or SINKS:
        for way in arguments.way or WAYS:
            for spooled in arguments.spool or ("without", "with"):
                print(f"{absent} is away ({way}), {spooled} a spool", flush=True)
                with tempfile.TemporaryDirectory() as folder:
                    spool = folder if spooled == "with" else ""
                    if way == "hang":
                        found = with_a_hang(plan, absent, spool)
                    else:
                        found = with_refusals(plan, absent, way, spool)
                for fault in found:
                    print(f"    FAULT: {fault}", flush=True)
                failed += bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
