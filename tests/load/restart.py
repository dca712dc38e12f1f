"""`python -m tests.load.restart`: what agents lose when only the sidecar is restarted.

An agent with the Agentex SDK as it is, one with `register()` and one with our client make spans at
a steady rate; each has a sidecar of its own with the SGP lane. The sidecar is ended by SIGKILL or
SIGTERM, and a new one starts on the same port, and the same spool if there is one, so many seconds
after the old one has ended. Prints a line for each run. It asserts nothing about what is lost; it
exits with 1 if more spans arrived than were made, or if a run failed.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

from tests.e2e import sdk_support

from .peers.agent import WARM_UP, Work
from .processes import BenchError, StandIns, free_port, line_of, process, sidecar, stand_ins

LATENCY_MS = 50.0  # of SGP, as in docs/sizing.md
BEFORE_S, AFTER_S = 5.0, 10.0  # seconds of load before the restart, and after it
READY_S, END_S = 600.0, 180.0
STALLED_S = 10.0
SAMPLE_S = 0.1
# An agent in words, and its tracer (peers/tracers.py).
AGENTS = {
    "the SDK, unchanged": "agentex-sdk",
    "the SDK, `register()`": "our-processor",
    "our client": "our-client",
}
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM}
HEAD = (
    "agent", "ended by", "spool", "down for", "ended after", "started after", "lost", "of",
    "errors logged", "longest call", "RSS before / peak",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """One restart. `down_s`: seconds from the end of a sidecar to the start of the next one."""

    agent: str
    ended_by: str
    down_s: float
    spool: bool
    rate: float
    size: int

    @property
    def spans(self) -> int:
        """How many spans the agent makes."""
        return round(self.rate * (BEFORE_S + self.down_s + AFTER_S))


class Seen(NamedTuple):
    """What one restart cost.

    `ended_s`: seconds from the signal to the end of the sidecar. `away_s`: from there until the
    next one had started, which takes its time, above all on a busy machine.
    """

    lost: int
    made: int
    errors: int
    ended_s: float
    away_s: float
    blocked_ms: float
    rss_mib: tuple[float, float]


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="spans/s of each agent")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a span")
    parser.add_argument("--down-s", type=_seconds, default=(0.5, 2.0, 10.0), help="such as 0.5,2")
    parser.add_argument("--signals", type=_names, default=tuple(SIGNALS), help="such as SIGKILL")
    parser.add_argument("--spool", choices=("both", "yes", "no"), default="both")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=len(AGENTS), help="restarts at a time")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    spools = {"both": (False, True), "yes": (True,), "no": (False,)}[arguments.spool]
    sdk_support.sdk_python()
    cases = [
        Case(
            agent=agent, ended_by=ended_by, down_s=down_s, spool=spool,
            rate=arguments.rate, size=arguments.size,
        )
        for ended_by in arguments.signals
        for spool in spools
        for down_s in arguments.down_s
        for agent in AGENTS
    ] * arguments.repeat  # fmt: skip
    runs: dict[Case, list[Seen]] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(arguments.at_once) as pool:
        started = {pool.submit(restart, case): case for case in cases}
        for run in as_completed(started):
            case = started[run]
            try:
                seen = run.result()
            except BenchError as error:
                failed.append(f"{case}: {error}")
                continue
            runs.setdefault(case, []).append(seen)
            print(row(case, [seen]), file=sys.stderr, flush=True)
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for case in sorted(runs, key=lambda case: (list(AGENTS).index(case.agent), cases.index(case))):
        print(row(case, runs[case]))
        failed += [f"{case}: more spans than were made" for seen in runs[case] if seen.lost < 0]
    for fault in failed:
        print(f"FAULT: {fault}")
    return 1 if failed else 0


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)  # once the runs that have begun are over


def row(case: Case, seen: Sequence[Seen]) -> str:
    """A line of the table: the least and the most of all repetitions."""
    before, peak = zip(*(each.rss_mib for each in seen), strict=True)
    cells = (
        case.agent, case.ended_by, "yes" if case.spool else "no", f"{case.down_s:g} s",
        f"{_range(each.ended_s for each in seen)} s",
        f"{_range((each.away_s for each in seen), 1)} s", _range(each.lost for each in seen),
        str(seen[0].made), _range(each.errors for each in seen),
        f"{_range(each.blocked_ms for each in seen)} ms", f"{_range(before)} / {_range(peak)} MiB",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _range(values: Iterable[float], digits: int = 0) -> str:
    texts = [f"{value:.{digits}f}" for value in sorted(values)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _seconds(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(SIGNALS):
        raise argparse.ArgumentTypeError(f"no such signal: {', '.join(sorted(unknown))}")
    return names


def restart(case: Case) -> Seen:
    """Run an agent, end its sidecar meanwhile, and start another one."""
    with tempfile.TemporaryDirectory() as folder, stand_ins(LATENCY_MS) as upstreams:
        settings = {
            "SIDECAR_LISTENER__PORT": str(free_port()),
            "SIDECAR_SGP__BASE_URL": upstreams.urls["sgp"],
            "SIDECAR_SGP__API_KEY": "bench",
            "SIDECAR_SGP__ACCOUNT_ID": "bench",
            # As with the chart's default memory limit.
            "SIDECAR_QUEUE__MAX_BYTES": "48MiB",
            "SIDECAR_SPOOL__PATH": f"{folder}/spool" if case.spool else "",
        }
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(sidecar(**settings))
            with Agent(case, first.port, upstreams, Path(folder)) as agent:
                agent.begin()
                time.sleep(BEFORE_S)
                asked = time.monotonic()
                first.end(SIGNALS[case.ended_by], END_S)
                ended_s = time.monotonic() - asked
                ended_at = time.monotonic()
                time.sleep(case.down_s)
                stack.enter_context(sidecar(**settings))
                away_s = time.monotonic() - ended_at
                blocked_ms = agent.ended()
                there = _arrived(upstreams, WARM_UP + case.spans)
                made = WARM_UP + case.spans
                return Seen(
                    made - there, made, agent.errors(), ended_s, away_s, blocked_ms, agent.rss_mib()
                )


def _arrived(upstreams: StandIns, wanted: int) -> int:
    """Wait for `wanted` complete spans, or until no more arrive; return how many did."""
    there, at = -1, time.monotonic()
    while there < wanted and time.monotonic() - at < STALLED_S:
        count = upstreams.report("sgp", digests=False)["complete"]
        if count != there:
            there, at = count, time.monotonic()
        time.sleep(SAMPLE_S)
    return there


class Agent:
    """A running agent of `case`: one of tests/load/peers, in the environment with the SDK."""

    def __init__(self, case: Case, port: int, upstreams: StandIns, folder: Path) -> None:
        url = f"http://127.0.0.1:{port}"
        work = Work(tracer=AGENTS[case.agent], spans=case.spans, rate=case.rate, size=case.size)
        self._command: Sequence[str | Path] = (
            sdk_support.sdk_python(), "-m", "tests.load.peers.agent", json.dumps(asdict(work))
        )  # fmt: skip
        self._environment = {
            "AGENT_NAME": "bench",
            "ACP_URL": "http://127.0.0.1:9",
            "AGENTEX_BASE_URL": upstreams.urls["agentex"],
            "SGP_CLIENT_BASE_URL": url,
            "SIDECAR": url,
            # Otherwise one of the SDK's dependencies fetches price lists from the Internet first.
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
        self._log = folder / "agent.log"
        self._stack = contextlib.ExitStack()
        self._rss: list[float] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        log = self._stack.enter_context(self._log.open("wb"))
        running = process(self._command, log, **self._environment)
        self._process = self._stack.enter_context(running)
        if line_of(self._process, READY_S) is None:
            raise BenchError(f"the agent did not start:\n{self._log.read_text()}")
        self._warm_log = self._log.stat().st_size
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stack.close()

    def begin(self) -> None:
        """Let it make its spans, and watch its memory."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while not self._over.wait(SAMPLE_S):
            with contextlib.suppress(OSError):  # it has ended
                for line in status.read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        self._rss.append(int(line.split()[1]) / 1024)

    def ended(self) -> float:
        """Wait until it has handed over all spans; return its longest call in milliseconds."""
        line = line_of(self._process, END_S)
        if line is None:
            raise BenchError("the agent did not end")
        figures = json.loads(line)
        return float(figures["blocking_ms"]["max"])

    def errors(self) -> int:
        """Warnings and errors in its log since it was warm."""
        return sum(1 for _ in self._complaints())

    def _complaints(self) -> Iterator[str]:
        with self._log.open(encoding="utf-8", errors="replace") as log:
            log.seek(self._warm_log)
            for line in log:
                if any(word in line for word in ("ERROR", "WARNING", "dropped")):
                    yield line

    def rss_mib(self) -> tuple[float, float]:
        """Resident memory when the load began, and its peak."""
        return self._rss[0], max(self._rss)


if __name__ == "__main__":
    sys.exit(main())
