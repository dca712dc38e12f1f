"""`python -m tests.load.tracers`: what tracing a span costs an agent, for each of the tracers.

Each way of tracing runs in its own environment and process, in turns, against one stand-in for all
servers in another process. CPU is that of the agent's process with all of its threads, minus that
of the same agent without tracing. Blocking is the time in the tracer's own calls on the agent's
loop, START and END together. Asserts nothing. Environments are made on first use, in the cache.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.e2e import parts as environments

from .peers import parts
from .processes import ROOT, BenchError, line_of, process
from .traced import SHAPES

READY_S, RUN_S = 120.0, 300.0
# Nothing leaves the machine: no proxy, no telemetry of the SDKs themselves.
_QUIET = {
    "NO_PROXY": "*", "DO_NOT_TRACK": "1", "OTEL_SDK_DISABLED": "false", "DD_TRACE_ENABLED": "false",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "LANGSMITH_TRACING": "true",
    "LANGSMITH_API_KEY": "bench", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "AGENT_NAME": "bench", "ACP_URL": "http://127.0.0.1",
}  # fmt: skip
CONTROL = "untraced"


def _venv(name: str, *requirements: str) -> Callable[[], Path]:
    return lambda: environments.venv(name, *requirements)


# In words; the tracer (traced.py, peers/tracers.py) and its interpreter.
WAYS: dict[str, tuple[str, Callable[[], Path]]] = {
    "untraced": (CONTROL, _venv("orjson", "orjson")),
    "ours, orjson": ("our-client", _venv("orjson", "orjson")),
    "ours, json": ("our-client", _venv("pydantic-core", "pydantic")),
    "opentelemetry": ("opentelemetry-sdk", parts.opentelemetry_sdk),
    "langsmith": ("langsmith", _venv("langsmith", "langsmith")),
    "langfuse": ("langfuse", _venv("langfuse", "langfuse")),
    "agentex-sdk": ("agentex-sdk", parts.agentex_sdk),
    "agentex-sdk, register()": ("our-processor", parts.agentex_sdk),
}
# These pay for the same imports and loop; what they use beyond it is tracing.
_SDK_CONTROL = "agentex-sdk, untraced"
WAYS[_SDK_CONTROL] = (CONTROL, parts.agentex_sdk)


def main() -> int:
    """Run every way in turns and print a table per shape."""
    arguments = _parser().parse_args()
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    names = [name for name in WAYS if not arguments.only or name in arguments.only]
    with process((sys.executable, "-m", "tests.load.collecting")) as stand_in:
        port = line_of(stand_in, READY_S)
        if port is None:
            raise BenchError("the stand-in did not start")
        for shape, name, figures in _turns(arguments, names, int(port)):
            results.setdefault(shape, {}).setdefault(name, []).append(figures)
            print(f"{shape}: {name}: {_line(figures)}", flush=True)
    for shape, ways in results.items():
        print(f"\n{shape}: median of {arguments.rounds} rounds of {arguments.spans} spans")
        for name, rounds in ways.items():
            middle = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
            print(f"  {name:26}{_line(middle)}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1), encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.load.tracers", description=__doc__)
    parser.add_argument("--spans", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", action="append", choices=SHAPES, help="prompt, if none is given")
    parser.add_argument("--only", action="append", choices=WAYS, metavar="WAY")
    parser.add_argument("--client", default=str(ROOT / "client"), help="another checkout's client")
    parser.add_argument("--json", default="", metavar="PATH", help="write every figure there")
    return parser


def _turns(
    arguments: argparse.Namespace, names: list[str], port: int
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Run everything once, then everything again, so that drift affects all alike."""
    for shape in arguments.shape or ["prompt"]:
        for _ in range(arguments.rounds):
            idle: dict[str, float] = {}
            ways = sorted(names, key=lambda name: WAYS[name][0] != CONTROL)
            for name in ways:
                tracer, interpreter = WAYS[name]
                control = _SDK_CONTROL if "sdk" in name else CONTROL
                figures = _run(interpreter(), tracer, shape, arguments, port)
                if tracer == CONTROL:
                    idle[control] = figures["cpu_ms"]
                figures["cpu_ms"] -= idle.get(control, 0.0) if tracer != CONTROL else 0.0
                yield shape, name, figures


def _run(
    interpreter: Path, tracer: str, shape: str, arguments: argparse.Namespace, port: int
) -> dict[str, float]:
    url = f"http://127.0.0.1:{port}"
    addresses = {
        "SIDECAR": url, "OTLP": url + "/v1/traces", "AGENTEX_BASE_URL": url,
        "SGP_CLIENT_BASE_URL": url, "LANGSMITH_ENDPOINT": url,
        "PYTHONPATH": f"{ROOT}:{arguments.client}",
    }  # fmt: skip
    command = (interpreter, "-m", "tests.load.traced", tracer, shape, str(arguments.spans))
    with process(command, None, **_QUIET, **addresses) as agent:
        if line_of(agent, READY_S) != b"ready\n" or agent.stdin is None:
            raise BenchError(f"{tracer} did not start")
        agent.stdin.write(b"go\n")
        agent.stdin.flush()
        line = line_of(agent, RUN_S)
    if line is None:
        raise BenchError(f"{tracer} did not end")
    report = json.loads(line)
    blocked = sorted(1000 * each for each in report["blocked_s"])
    return {
        "cpu_ms": 1000 * report["cpu_s"] / len(blocked),
        "mean_ms": statistics.fmean(blocked),
        "p50_ms": statistics.median(blocked),
        "p99_ms": blocked[len(blocked) * 99 // 100],
    }


def _line(figures: dict[str, float]) -> str:
    cpu, mean, p50, p99 = (figures[f"{key}_ms"] for key in ("cpu", "mean", "p50", "p99"))
    return f"CPU {cpu:6.3f} ms a span, blocking mean {mean:6.3f} p50 {p50:6.3f} p99 {p99:6.3f} ms"


if __name__ == "__main__":
    sys.exit(main())
