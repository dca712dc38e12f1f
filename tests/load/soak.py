"""`python -m tests.load.soak`: half an hour of steady load while upstreams fail at random.

Prints memory once a minute, and at the end its slope after the warm-up. Exits with 1 when a span
was lost or the accounting did not balance.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence

import aiohttp
import orjson

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.behaviours import Answer, Delay, Hang, Reset, Scripted
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import StandIn

from .processes import Sidecar, sidecar

WARM_UP_SHARE = 0.2
SAMPLE_S = 2.0
# Quiet: no lane has held more writes than this for this long, so that no fault's backlog is left in
# memory. At 200 spans/s some tens of writes are always in flight.
QUIET_DEPTH = 200
QUIET_S = 10.0
DRAIN_S = 300.0
RETRY_S = 0.2
CONNECTIONS = 64
_UNAVAILABLE = Answer(503, b"{}", {"Retry-After": "1"})
# The faults, and the share of requests that each affects while it lasts.
FAULTS: Sequence[tuple[Scripted, float]] = (
    (_UNAVAILABLE, 1.0),
    (Answer(500, b"{}", closes=True), 0.3),
    (Answer(401, b"{}"), 1.0),
    (Answer(429, b"{}"), 0.5),
    (Reset(), 0.3),
    (Reset(after_apply=True), 0.3),
    (Hang(), 0.2),
    (Delay(2.0), 0.5),
)


class Trouble:
    """Makes one upstream fail for some seconds, from time to time."""

    def __init__(self, upstream: StandIn, chance: random.Random) -> None:
        self._chance = chance
        self._fault: tuple[Scripted, float] | None = None
        upstream.rule = lambda _: self._next()

    def _next(self) -> Scripted:
        if self._fault is None or self._chance.random() > self._fault[1]:
            return None
        return self._fault[0]

    async def go_on(self) -> None:
        """Run until cancelled."""
        while True:
            await asyncio.sleep(self._chance.uniform(10, 40))
            self._fault = self._chance.choice(FAULTS)
            await asyncio.sleep(self._chance.uniform(1, 8))
            self._fault = None


class Agents:
    """Posts START and END of spans at a steady rate; `spans` were accepted."""

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._prompt = "p" * size
        self.spans: set[str] = set()
        self.again = 0

    async def run(self, rate: float, seconds: float) -> None:
        """Send for the given time."""
        loop = asyncio.get_running_loop()
        began, numbers = loop.time(), iter(range(int(rate * seconds)))

        async def one(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
                await self._span(session, f"soak-{number}")

        async with (
            aiohttp.ClientSession(self._url) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(CONNECTIONS):
                tasks.create_task(one(session))

    async def _span(self, session: aiohttp.ClientSession, id_: str) -> None:
        span = {
            "id": id_,
            "trace_id": id_,
            "name": "turn",
            "start_time": "2026-01-02T03:04:05Z",
            "input": {"prompt": self._prompt},
        }
        await self._post(session, {"event_type": "start", "span": span})
        end = {"end_time": "2026-01-02T03:04:06Z", "output": {"answer": "a" * 500}}
        await self._post(session, {"event_type": "end", "span": span | end})
        self.spans.add(id_)

    async def _post(self, session: aiohttp.ClientSession, event: object) -> None:
        body = orjson.dumps(event)
        headers = {"Content-Type": "application/json"}
        while True:
            async with session.post("/v1/spans", data=body, headers=headers) as response:
                if response.status == 202:
                    return
            self.again += 1
            await asyncio.sleep(RETRY_S)


def slope_mb_per_h(samples: Sequence[tuple[float, float]]) -> float:
    """Fit a line; return its slope in MB (10^6 bytes) per hour. Samples are (seconds, MiB)."""
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_m = sum(m for _, m in samples) / len(samples)
    above = sum((t - mean_t) * (m - mean_m) for t, m in samples)
    below = sum((t - mean_t) ** 2 for t, _ in samples)
    return above / below * 3600 * 1.048576


async def soak(
    watched: Sidecar, agentex: StandIn, sgp: StandIn, arguments: argparse.Namespace
) -> int:
    """Run load and faults, take samples, and return the exit code."""
    chance = random.Random(arguments.seed)
    agents = Agents(f"http://127.0.0.1:{watched.port}", arguments.size)
    seconds = arguments.minutes * 60
    began = time.monotonic()
    trouble = [
        asyncio.create_task(Trouble(upstream, chance).go_on()) for upstream in (agentex, sgp)
    ]
    load = asyncio.create_task(agents.run(arguments.rate, seconds))
    samples: list[tuple[float, float]] = []
    quiet: list[tuple[float, float]] = []
    busy_at = 0.0
    while not load.done():
        await asyncio.sleep(SAMPLE_S)
        status = await asyncio.to_thread(watched.status)
        now = time.monotonic() - began
        samples.append((now, watched.rss_mib()))
        depth = max(lane["depth"] for lane in status["sinks"].values())
        if depth > QUIET_DEPTH:
            busy_at = now
        elif now - busy_at > QUIET_S:
            quiet.append(samples[-1])
        if len(samples) % 30 == 0:
            print(f"{now:6.0f} s  RSS {samples[-1][1]:6.1f} MiB  depth {depth}", flush=True)
    load.result()
    for task in trouble:
        task.cancel()
    agentex.rule = sgp.rule = None
    status = await _drained(watched)
    late = [sample for sample in samples if sample[0] > WARM_UP_SHARE * seconds]
    lost = {up: len(agents.spans - names.complete) for up, names in
            (("agentex", agentex), ("sgp", sgp))}  # fmt: skip
    accounting = (
        status["events"]["imbalance"],
        *(status["sinks"][sink]["imbalance"] for sink in ("agentex", "sgp")),
    )
    print(f"spans {len(agents.spans)}, retried posts {agents.again}, lost {lost}")
    print(f"imbalance {accounting}, dead letters and losses "
          f"{[(s['dead_lettered'], s['lost']) for s in status['sinks'].values()]}")  # fmt: skip
    print(f"CPU {1000 * watched.cpu_s() / len(agents.spans):.3f} ms per span")
    print(f"RSS min {min(m for _, m in late):.1f} max {max(m for _, m in late):.1f} MiB")
    print(
        f"RSS slope {slope_mb_per_h(late):+.2f} MB/h after the warm-up, backlogs of faults included"
    )
    still = [sample for sample in quiet if sample[0] > WARM_UP_SHARE * seconds]
    if len(still) > 1:
        print(
            f"RSS slope {slope_mb_per_h(still):+.2f} MB/h of {len(still)} samples without backlog,"
            f" from {min(m for _, m in still):.1f} to {max(m for _, m in still):.1f} MiB"
        )
    return 1 if any(lost.values()) or any(accounting) else 0


async def _drained(watched: Sidecar) -> dict[str, dict[str, dict[str, int]]]:
    async with asyncio.timeout(DRAIN_S):
        while True:
            status = await asyncio.to_thread(watched.status)
            if not status["open_spans"] and not any(s["depth"] for s in status["sinks"].values()):
                return status
            await asyncio.sleep(0.5)


async def with_upstreams(arguments: argparse.Namespace) -> int:
    """Run the stand-ins in this process, the sidecar in its own."""
    options = {"digest": True, "echo": False, "keep_bodies": False}
    async with AgentexStandIn(**options) as agentex, SgpStandIn(**options) as sgp:  # type: ignore[arg-type]
        settings = {
            "SIDECAR_AGENTEX__BASE_URL": agentex.url,
            "SIDECAR_AGENTEX__TIMEOUT_S": "5",
            "SIDECAR_SGP__TIMEOUT_S": "5",
            "SIDECAR_SGP__BASE_URL": sgp.url,
            "SIDECAR_SGP__API_KEY": "bench",
            "SIDECAR_SGP__ACCOUNT_ID": "bench",
            "SIDECAR_QUEUE__MAX_BYTES": arguments.queue_bytes,
            "LD_PRELOAD": arguments.preload,
        }
        with sidecar(**settings) as watched:
            return await soak(watched, agentex, sgp, arguments)


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0, help="spans/s")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a prompt")
    parser.add_argument("--queue-bytes", default="64MiB", help="queue.max_bytes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preload", default="", help="LD_PRELOAD of the sidecar, for jemalloc")
    return asyncio.run(with_upstreams(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
