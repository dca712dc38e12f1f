"""`make bench`: figures of the sidecar under load. Asserts nothing about time.

Driver, sidecar and stand-ins are processes on loopback. Exits with 1 when a span was lost or
altered, or when the sidecar's accounting did not balance.
"""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

import msgspec

from .loads import PER_ARRAY, TURNS, Plan
from .measure import Limits, Load, Outcome, measure
from .processes import BenchError

NAMES = ("incident", "chatbot", "intake")
CONVERSATIONS = 50
SMALL = 650  # about 1 KB with the rest of the event
ROOMY = {"SIDECAR_QUEUE__MAX_BYTES": "8GiB"}
DRAIN_S = 300.0
_UNITS = {"KB": 1000, "KiB": 1024, "MB": 1000_000, "MiB": 2**20, "B": 1}


def main() -> int:
    """Run the requested loads and return the exit code."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _stop)
    limits = Limits(
        latency_ms=arguments.latency_ms,
        drain_s=DRAIN_S,
        settle_s=arguments.settle_s,
        profile=str(Path(arguments.profile).resolve()) if arguments.profile else "",
        spool=str(Path(arguments.spool).resolve()) if arguments.spool else "",
    )
    outcomes: list[Outcome] = []
    try:
        for load in _loads(arguments):
            print(f"{load.name}: {load.plan.events} events ...", flush=True)
            outcomes.append(measure(load, limits))
            _say(outcomes[-1])
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    finally:
        if arguments.json and outcomes:
            Path(arguments.json).write_bytes(msgspec.json.format(msgspec.json.encode(outcomes)))
    _table(outcomes)
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--spans", type=int, default=10_000, help="of the incident load")
    parser.add_argument("--size", type=_size, default=50_000, help="of a prompt, such as 50KB")
    parser.add_argument("--latency-ms", type=float, default=5.0, help="of the upstreams")
    parser.add_argument("--connections", type=int, default=8, help="of the incident load")
    parser.add_argument("--rate", type=float, default=0.0, help="spans/s of it; 0: all it takes")
    parser.add_argument("--only", type=_names, default=NAMES, help="of " + ",".join(NAMES))
    parser.add_argument("--queue-bytes", default="", help="queue.max_bytes, such as 1GiB")
    parser.add_argument("--settle-s", type=float, default=10.0, help="until RSS is read again")
    parser.add_argument("--json", default="", metavar="PATH", help="write every figure there")
    parser.add_argument("--spool", default="", metavar="DIR", help="spool.path: with a spool")
    parser.add_argument("--profile", default="", metavar="PATH", help="cProfile of the sidecar")
    return parser


def _size(text: str) -> int:
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if unknown := set(names) - set(NAMES):
        raise argparse.ArgumentTypeError(f"no such load: {', '.join(sorted(unknown))}")
    return names


def _loads(arguments: argparse.Namespace) -> list[Load]:
    spans, size, rate = arguments.spans, arguments.size, arguments.rate
    queue = {"SIDECAR_QUEUE__MAX_BYTES": arguments.queue_bytes} if arguments.queue_bytes else {}
    paced = f"@{rate:g}/s" if rate else ""
    incident = Load(
        name=f"incident{paced}",
        plan=Plan(
            kind="incident", spans=spans, size=size, connections=arguments.connections, rate=rate
        ),
        environment=queue,
    )
    turns = CONVERSATIONS * TURNS
    chatbot = Load(
        name="chatbot",
        plan=Plan(kind="chatbot", spans=turns, size=size, connections=CONVERSATIONS),
        environment=queue,
    )
    single = Plan(kind="single", spans=spans, size=SMALL, connections=8, depth=4)
    many = 10 * spans // PER_ARRAY * PER_ARRAY
    arrays = Plan(kind="arrays", spans=many, size=SMALL, connections=4)
    intake = [
        Load(name=f"{plan.kind}{note}", plan=plan, sinks=("sgp",), drains=drains, environment=ROOMY)
        for plan in (single, arrays)
        for note, drains in (("", True), (", no upstream", False))
    ]
    known = {"incident": [incident], "chatbot": [chatbot], "intake": intake}
    return [load for name in arguments.only for load in known[name]]


def _say(outcome: Outcome) -> None:
    latency = outcome.latency_ms
    print(
        f"  answers {outcome.statuses}, latency ms p50 {latency['p50']} p99 {latency['p99']} max"
        f" {latency['max']}, CPU s of driver {outcome.driver_cpu_s:.1f}"
        f" and stand-ins {outcome.stand_ins_cpu_s:.1f}, {outcome.reconnects} reconnects"
    )
    for sink, seen in outcome.arrived.items():
        print(
            f"  {sink}: {seen.spans} spans, {seen.lost} lost, {seen.altered} altered, writes a"
            f" span {seen.writes_mean:.3f} (max {seen.writes_max})"
        )
    for fault in outcome.faults:
        print(f"  FAULT: {fault}")


def _table(outcomes: list[Outcome]) -> None:
    head = ("load", "events/s", "events/CPU s", "CPU ms/span", "p50 ms", "p99 ms", "peak depth",
            "drain s", "total s", "RSS idle/peak/after MiB", "lost", "imbalance")  # fmt: skip
    rows = [head]
    for outcome in outcomes:
        drain, rss = outcome.drain_s, outcome.rss_mib
        rows.append((
            outcome.load,
            f"{outcome.events_per_s:.0f}",
            f"{outcome.events_per_cpu_s:.0f}",
            f"{outcome.cpu_ms_per_span:.3f}",
            f"{outcome.latency_ms['p50']:.2f}",
            f"{outcome.latency_ms['p99']:.2f}",
            " ".join(f"{sink} {depth}" for sink, depth in outcome.peak_depth.items()),
            "-" if drain is None else f"{drain:.2f}",
            f"{outcome.total_s:.2f}",
            f"{rss['idle']:.0f}/{rss['peak']:.0f}/{rss['after']:.0f}",
            str(sum(seen.lost + seen.altered for seen in outcome.arrived.values())),
            str(sum(map(abs, outcome.imbalance.values()))),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
