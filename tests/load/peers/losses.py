"""Counts what forwarders lose, in the same troubles: `python -m tests.load.peers.losses`.

Each forwarder gets the same spans, and what it accepted must reach an OTLP upstream (otlp_sink.py)
that has one of its `TROUBLES`. Each has its disk where it has one: the sidecar its spool, the
Collector a queue in a file. Prints a table; exits with 2 if nothing could be measured.
"""

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.load.driver import Result
from tests.load.loads import Plan
from tests.load.processes import BenchError, StandIns, driver, free_port, process, stand_ins

from . import parts
from .forwarders import OTLP_SINK, collector_config, collector_with, listening, sidecar_to

SPANS, SIZE = 200, 5_000
POLL_S = 0.1
STOP_S = 60.0
SENT_S = 60.0
# Longer than any of them waits between two attempts of a request that is not refused.
PATIENCE_S = 45.0
BAD, STOPPED = "one bad span", "503 until told"


@dataclass(frozen=True)
class Accepting:
    """A forwarder that runs: where it accepts spans, and how to end it with SIGTERM."""

    port: int
    end: Callable[[], object]


@dataclass(frozen=True)
class Peer:
    """A forwarder. `kind`: its requests (sender.py). `open`: runs it, given URL and folder."""

    name: str
    kind: str
    open: Callable[[str, Path], AbstractContextManager[Accepting]]


@contextlib.contextmanager
def _sidecar(url: str, folder: Path) -> Iterator[Accepting]:
    settings = {
        "SIDECAR_SPOOL__PATH": str(folder / "spool"),
        "SIDECAR_DEAD_LETTERS__PATH": str(folder / "letters.jsonl"),
        "SIDECAR_SHUTDOWN__GRACE_S": "2",
    }
    with sidecar_to({"otlp": url}, **settings) as running:
        yield Accepting(running.port, lambda: running.end(signal.SIGTERM, STOP_S))


@contextlib.contextmanager
def _collector(url: str, folder: Path) -> Iterator[Accepting]:
    program, port = parts.collector("file"), free_port()
    config = collector_config(port, [url])
    queue = folder / "queue"
    queue.mkdir(exist_ok=True)
    config["extensions"] = {"file_storage": {"directory": str(queue)}}
    config["service"]["extensions"] = ["file_storage"]
    for exporter in config["exporters"].values():
        exporter["sending_queue"]["storage"] = "file_storage"
    with collector_with(config, port, program) as running:
        yield Accepting(port, lambda: _ended(running))


@contextlib.contextmanager
def _rotel(url: str, folder: Path) -> Iterator[Accepting]:
    port, other = free_port(), free_port()
    options = {
        "--otlp-http-endpoint": f"127.0.0.1:{port}",
        "--otlp-grpc-endpoint": f"127.0.0.1:{other}",
        "--otlp-exporter-endpoint": url,
        "--otlp-exporter-protocol": "http",
    }
    program, libraries = parts.rotel()
    # It writes its log to standard output, which nobody reads here.
    command: list[str | Path] = ["sh", "-c", 'exec "$@" >/dev/null 2>&1', "sh", program, "start"]
    command += [word for pair in options.items() for word in pair]
    with process(command, LD_LIBRARY_PATH=str(libraries)) as running:
        listening(port, running)
        yield Accepting(port, lambda: _ended(running))


def _ended(running: subprocess.Popen[bytes]) -> int:
    running.terminate()
    return running.wait(STOP_S)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("sidecar", "pairs", _sidecar),
        Peer("Collector", "single", _collector),
        Peer("Rotel", "single", _rotel),
    )
}
TROUBLES: Mapping[str, str] = {
    BAD: f"one bad span in {SPANS}",
    "413 above 200 KB": "413 above 200 KB",
    "503 for 8 s": "503 for 8 s",
    STOPPED: "SIGTERM in an outage",
}


def lost(peer: Peer, trouble: str) -> int:
    """Return how many of `SPANS` accepted spans did not arrive; raises `BenchError`."""
    sink = (*OTLP_SINK, "--trouble", trouble)
    wanted = SPANS - (trouble == BAD)
    with stand_ins(0.0, sink) as upstream, tempfile.TemporaryDirectory() as folder:
        url = upstream.urls["otlp"]
        with peer.open(url, Path(folder)) as running:
            _send(peer, running.port)
            if trouble != STOPPED:
                return SPANS - _arrived(upstream, wanted)
            running.end()
        upstream.tell("recover")
        with peer.open(url, Path(folder)):
            return SPANS - _arrived(upstream, wanted)


def _send(peer: Peer, port: int) -> None:
    plan = Plan(kind=peer.kind, spans=SPANS, size=SIZE, connections=4, port=port)
    with driver(plan, f"{__package__}.sender") as sender:
        sender.begin()
        line = sender.result(SENT_S)
        if line is None:
            raise BenchError("the sender did not end")
    sent = msgspec.json.decode(line, type=Result)
    refused = {status: n for status, n in sent.statuses.items() if not status.startswith("2")}
    if refused or sent.gave_up:
        raise BenchError(f"{peer.name} did not accept every span: {refused} {sent.gave_up}")


def _arrived(upstream: StandIns, wanted: int) -> int:
    """Return how many spans arrive, once those `wanted` have, or none has for `PATIENCE_S`."""
    there, changed = -1, time.monotonic()
    while there < wanted and time.monotonic() < changed + PATIENCE_S:
        if (now := int(upstream.report("otlp", digests=False)["complete"])) != there:
            there, changed = now, time.monotonic()
        time.sleep(POLL_S)
    return there


def main() -> int:
    """Print the table of what was requested; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--only", action="append", choices=PEERS, metavar="PEER",
                        help=f"may be given again; of {', '.join(PEERS)}")  # fmt: skip
    wanted = parser.parse_args().only or [*PEERS]
    rows = {}
    for name in wanted:
        try:
            rows[name] = [str(lost(PEERS[name], trouble)) for trouble in TROUBLES]
        except (parts.Absent, BenchError) as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
    if not rows:
        return 2
    print(f"Spans lost, of {SPANS}:\n")
    print(f"| forwarder | {' | '.join(TROUBLES.values())} |")
    print("|---|" + "---|" * len(TROUBLES))
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
