"""`make bench-peers`: every peer in turn under the same loads; then tables, chart and bars.

Exits with 0 whatever was measured, and with 2 when nothing could be.
"""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import msgspec

from tests.load.processes import ROOT

from . import parts, picture, report
from .bars import bars
from .plan import CONTROL, FULL, PEERS, QUICK, Subject, subjects
from .runs import Figures, Turn, in_turns
from .summary import Summary

PAGE, PICTURE = ROOT / "docs/benchmarks.md", ROOT / "docs/benchmarks.svg"


def main() -> int:
    """Run what was requested and return the exit code."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, _stop)
    wanted = {CONTROL, *(arguments.only or PEERS)}
    scale = QUICK if arguments.quick else FULL
    there = [subject for subject in subjects(scale) if subject.peer in wanted and _had(subject)]
    repetitions = arguments.repeat or (1 if arguments.quick else 3)
    summary = Summary()
    try:
        for subject, figures in _measured(there, repetitions, settled=not arguments.quick):
            summary.add(subject, figures)
            _say(subject, figures)
    finally:
        if arguments.json:
            Path(arguments.json).write_bytes(
                msgspec.json.format(msgspec.json.encode(summary.runs), indent=1)
            )
    if not summary.runs:
        print("bench-peers: nothing could be measured", file=sys.stderr)
        return 2
    measured = report.markdown(summary, _command(arguments), _machine(), _versions(there))
    print(f"\n{measured}\n")
    if arguments.write:
        report.insert(PAGE, measured)
        picture.draw(summary, PICTURE)
    for bar in bars(summary):
        print(bar.line)
    return 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-peers", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="short loads, once, no floods: a minute"
    )
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="3; 1 with --quick")
    parser.add_argument("--only", action="append", choices=PEERS, metavar="PEER",
                        help=f"may be given again; of {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--json", default="", metavar="PATH", help="write every figure there")
    parser.add_argument("--write", action="store_true",
                        help="write docs/benchmarks.md and docs/benchmarks.svg")  # fmt: skip
    return parser


def _had(subject: Subject) -> bool:
    try:
        subject.prepare()
    except parts.Absent as absent:
        print(f"{subject.key}: skipped: {absent}", flush=True)
        return False
    return True


def _measured(
    there: list[Subject], repetitions: int, *, settled: bool
) -> Iterator[tuple[Subject, Figures]]:
    """Measure every subject once, then every subject again, so that drift affects all alike."""
    known = {subject.key: subject for subject in there}
    runs = (
        Turn(subject.key, subject.run, settled and left == 1)
        for left in range(repetitions, 0, -1)
        for subject in there
    )
    for key, figures in in_turns(runs):
        yield known[key], figures


def _say(subject: Subject, figures: Figures) -> None:
    cpu = (("agent", figures.agent_cpu_ms), ("forwarder", figures.forwarder_cpu_ms))
    shown = [f"{who} {ms:.3f} ms/span" for who, ms in cpu if ms is not None]
    shown.append(f"{figures.rate:.0f} spans/s")
    shown += [f"{figures.lost} lost"] if figures.lost else []
    shown += [figures.note] if figures.note else []
    print(f"{subject.key}: {', '.join(shown)}", flush=True)


def _command(arguments: argparse.Namespace) -> str:
    """Return the command that reproduces the figures, without options for output files."""
    given = ["--quick"] if arguments.quick else []
    given += [f"--repeat {arguments.repeat}"] if arguments.repeat else []
    given += [f"--only {peer}" for peer in arguments.only or ()]
    given += ["--write"] if arguments.write else []
    return f'make bench-peers ARGS="{" ".join(given)}"' if given else "make bench-peers"


def _machine() -> str:
    return f"{platform.system()} on {platform.machine()} with {len(os.sched_getaffinity(0))} cores"


def _versions(there: list[Subject]) -> str:
    found = {"Python": platform.python_version()}
    peers = {subject.peer for subject in there}
    if "agentex-sdk" in peers:
        found |= parts.versions(parts.agentex_sdk(), ("agentex-sdk",))
    if "opentelemetry-sdk" in peers:
        found |= parts.versions(parts.opentelemetry_sdk(), ("opentelemetry-sdk",))
    if "collector" in peers:
        found["Collector"] = parts.collector_version()
    return ", ".join(f"{name} {version}" for name, version in found.items())


if __name__ == "__main__":
    sys.exit(main())
