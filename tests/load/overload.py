"""`python -m tests.load.overload`: five times the upstreams' capacity, in a memory limit.

The sidecar runs in a cgroup of its own with `queue.max_bytes = "auto"`. Agents never slow down, so
most requests must get 429. Needs root and a writable cgroup file system. Exits with 1 when the
sidecar was killed, or lost or altered what it had accepted.
"""

import argparse
import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson

from sidecar.demo.sgp import SgpStandIn

from .processes import BenchError, Sidecar, sidecar

MIB = 2**20
# The upstream's capacity: spans per request, concurrent requests, and the duration of each.
BATCH, AT_ONCE, LATENCY_S = 5, 4, 0.2
UPSTREAM_PER_S = BATCH * AT_ONCE / LATENCY_S
TOO_MUCH = 5.0
CONNECTIONS = 16
EVERY_S = 15.0
DRAIN_S = 120.0
_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """Create a cgroup with this memory limit, and remove it at the end."""
    v1 = (_ROOT / "memory").is_dir()
    folder = (_ROOT / "memory" if v1 else _ROOT) / f"trace-sidecar-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))
    except OSError as error:
        raise BenchError(f"no cgroup of our own: {error.strerror}") from None
    try:
        yield folder
    finally:
        folder.rmdir()


def peak_mib(folder: Path) -> float:
    """Return the cgroup's peak memory in MiB, including page cache."""
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if (folder / name).exists():
            return int((folder / name).read_text()) / MIB
    return float("nan")


async def agents(watched: Sidecar, seconds: float, size: int) -> tuple[Counter[int], set[str]]:
    """Post without pause; count responses by status, and collect the accepted ids."""
    answers: Counter[int] = Counter()
    accepted: set[str] = set()
    prompt = "p" * size
    rate = TOO_MUCH * UPSTREAM_PER_S
    loop = asyncio.get_running_loop()
    began, numbers = loop.time(), iter(range(int(rate * seconds)))
    headers = {"Content-Type": "application/json"}

    async def one(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
            span = {
                "id": f"s{number}", "trace_id": "t", "name": "turn",
                "start_time": "2026-01-02T03:04:05Z", "end_time": "2026-01-02T03:04:06Z",
                "input": {"prompt": prompt},
            }  # fmt: skip
            body = orjson.dumps({"event_type": "end", "span": span})
            async with session.post("/v1/spans", data=body, headers=headers) as response:
                answers[response.status] += 1
                if response.status == 202:
                    accepted.add(f"s{number}")

    url = f"http://127.0.0.1:{watched.port}"
    async with aiohttp.ClientSession(url) as session, asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(one(session))
    return answers, accepted


async def overload(watched: Sidecar, sgp: SgpStandIn, seconds: float, size: int) -> int:
    """Run the load, print memory meanwhile, check what arrived; return the exit code."""
    load = asyncio.create_task(agents(watched, seconds, size))
    began = time.monotonic()
    while not load.done():
        await asyncio.wait([load], timeout=EVERY_S)
        print(f"{time.monotonic() - began:6.0f} s  RSS {watched.rss_mib():6.1f} MiB", flush=True)
    answers, accepted = load.result()
    async with asyncio.timeout(DRAIN_S):
        status = await asyncio.to_thread(watched.status)
        while status["sinks"]["sgp"]["depth"]:
            await asyncio.sleep(0.2)
            status = await asyncio.to_thread(watched.status)
    lost = len(accepted - sgp.complete)
    print(f"responses {dict(answers)}, accepted {len(accepted)}, lost {lost}")
    print(f"queue.max_bytes auto: {status['queue']['limit_bytes'] / MIB:.0f} MiB, peak RSS "
          f"{watched.peak_rss_mib():.1f} MiB")  # fmt: skip
    return 1 if lost or status["events"]["imbalance"] else 0


async def with_upstream(arguments: argparse.Namespace) -> int:
    """Run a slow SGP in this process, and the sidecar in its cgroup."""
    async with SgpStandIn(digest=True, echo=False, latency_s=LATENCY_S) as sgp:
        settings = {
            "SIDECAR_SGP__BASE_URL": sgp.url,
            "SIDECAR_SGP__API_KEY": "bench",
            "SIDECAR_SGP__ACCOUNT_ID": "bench",
            "SIDECAR_SGP__MAX_BATCH": str(BATCH),
            "SIDECAR_SGP__MAX_CONCURRENCY": str(AT_ONCE),
            "LD_PRELOAD": arguments.preload,
        }
        with (
            cgroup(arguments.limit_mib * MIB) as folder,
            sidecar(cgroup=str(folder), **settings) as watched,
        ):
            code = await overload(watched, sgp, arguments.minutes * 60, arguments.size)
            peak = peak_mib(folder)
            print(f"cgroup: peak {peak:.1f} of {arguments.limit_mib} MiB; the sidecar is alive")
            return code


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--limit-mib", type=int, default=128)
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a prompt")
    parser.add_argument("--preload", default="", help="LD_PRELOAD of the sidecar, for jemalloc")
    try:
        return asyncio.run(with_upstream(parser.parse_args()))
    except BenchError as error:
        print(f"overload: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
