"""`python -m tests.load.soak`: half an hour of steady load while all around the sidecar fails.

At random, upstreams fail; the disk, the resolver, connections and the reader of the log hang;
signals and crowds of idle connections come. The sidecar is stopped and started again ten times,
half of the times while something hangs. Needs a C compiler.

Prints memory once a minute. Exits with 1 when a span was lost, the accounting did not balance, the
process died, or a stop took longer than the grace period and a second.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import orjson

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.behaviours import Answer, Delay, Hang, Reset, Scripted
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import StandIn
from tests.support.stalls import LOG, Slots, build, deaf_port

from .processes import BenchError
from .troubles import GRACE_S, Ending, Troubles, Watched

# A stop may take a second longer than the grace period; this process is busy, too.
OVER_S, BUSY_S = 1.0, 0.5
# A process has its full size when it is this old, or half as old as processes get here.
AGE_S = 40.0
SAMPLE_S = 2.0
# While these hung, a process need not have written its last line.
SILENT = (LOG, "died")
ANSWER_S = 10.0
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
        # Those of which an upstream that had no room did not get an event (D22).
        self.not_taken: dict[str, set[str]] = {"agentex": set(), "sgp": set()}
        self.again = 0
        self.unanswered = 0
        self.slowest_s = 0.0

    async def run(self, rate: float, seconds: float) -> None:
        """Send for the given time."""
        loop = asyncio.get_running_loop()
        began, numbers = loop.time(), iter(range(int(rate * seconds)))

        async def one(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
                await self._span(session, f"soak-{number}")

        timeout = aiohttp.ClientTimeout(ANSWER_S)
        async with (
            aiohttp.ClientSession(self._url, timeout=timeout) as session,
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
        await self._post(session, id_, {"event_type": "start", "span": span})
        end = {"end_time": "2026-01-02T03:04:06Z", "output": {"answer": "a" * 500}}
        await self._post(session, id_, {"event_type": "end", "span": span | end})
        self.spans.add(id_)

    async def _post(self, session: aiohttp.ClientSession, id_: str, event: object) -> None:
        body = orjson.dumps(event)
        headers = {"Content-Type": "application/json"}
        while True:
            began = time.monotonic()
            try:
                async with session.post("/v1/spans", data=body, headers=headers) as response:
                    if response.status == 202:
                        for name in orjson.loads(await response.read()).get("not_taken_for", ()):
                            self.not_taken[name].add(id_)
                        return
            except TimeoutError:
                self.unanswered += 1
            except aiohttp.ClientError:
                pass  # it is being started again
            finally:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.again += 1
            await asyncio.sleep(RETRY_S)


def slope_mb_per_h(samples: Sequence[tuple[float, float]]) -> float:
    """Fit a line; return its slope in MB (10^6 bytes) per hour. Samples are (seconds, MiB)."""
    mean_t = sum(t for t, _ in samples) / len(samples)
    mean_m = sum(m for _, m in samples) / len(samples)
    above = sum((t - mean_t) * (m - mean_m) for t, m in samples)
    below = sum((t - mean_t) ** 2 for t, _ in samples)
    return above / below * 3600 * 1.048576


@dataclass
class Memory:
    """Samples of resident memory: (seconds, age of the process, MiB, whether it was quiet).

    A process is compared with others at an age of `age_s`, and has its full size from then on.
    """

    age_s: float
    samples: list[tuple[float, float, float, bool]] = field(default_factory=list)

    def report(self) -> None:
        """Print how it developed, also across processes."""
        grown = [each for each in self.samples if each[1] >= self.age_s]
        at_age: dict[int, float] = {}  # by the time that the process began
        for seconds, age, mib, _ in grown:
            at_age.setdefault(round(seconds - age), mib)
        print(
            f"RSS at an age of {self.age_s:.0f} s: {[round(mib, 1) for mib in at_age.values()]} MiB"
        )
        for name, chosen in (
            ("", grown),
            (" without backlog", [each for each in grown if each[3]]),
        ):
            if len(chosen) > 1:
                slope = slope_mb_per_h([(seconds, mib) for seconds, _, mib, _ in chosen])
                print(
                    f"RSS of grown processes{name}: {min(c[2] for c in chosen):.1f} to "
                    f"{max(c[2] for c in chosen):.1f} MiB, slope {slope:+.2f} MB/h "
                    f"({len(chosen)} samples)"
                )


async def status_of(watched: Watched) -> Mapping[str, Mapping[str, Mapping[str, int]]] | None:
    """What `/status` says; None if it does not answer."""
    url = f"http://127.0.0.1:{watched.ports[1]}/status"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_S)) as session,
            session.get(url) as reply,
        ):
            found: Mapping[str, Mapping[str, Mapping[str, int]]] = await reply.json()
            return found
    except (TimeoutError, aiohttp.ClientError):
        return None


async def watch(watched: Watched, troubles: Troubles, memory: Memory) -> None:
    """Take samples until cancelled, and start a process that died again."""
    began = time.monotonic()
    busy_at = 0.0
    while True:
        await asyncio.sleep(SAMPLE_S)
        if troubles.stopping.locked() and not watched.is_alive:
            continue
        if not watched.is_alive:
            async with troubles.stopping:
                print(f"it died: {(await watched.stop('died')).code}", flush=True)
                await watched.start()
        status = await status_of(watched)
        now = time.monotonic() - began
        depth = max(lane["depth"] for lane in status["sinks"].values()) if status else 0
        if status is None or depth > QUIET_DEPTH:
            busy_at = now
        sample = (now, time.monotonic() - watched.began, watched.rss_mib(), now - busy_at > QUIET_S)
        memory.samples.append(sample)
        if len(memory.samples) % 30 == 0:
            print(f"{now:6.0f} s  RSS {sample[2]:6.1f} MiB  depth {depth}", flush=True)


async def restarts(troubles: Troubles, seconds: float, count: int) -> None:
    """Stop it and start it again, at even intervals."""
    for _ in range(count):
        await asyncio.sleep(seconds / (count + 1))
        ending = await troubles.restart()
        print(f"stopped while {ending.hung or 'nothing'} hung: {ending.over_s:+.2f} s", flush=True)


async def soak(
    watched: Watched, troubles: Troubles, upstreams: Sequence[StandIn], letters: Path,
    arguments: argparse.Namespace,
) -> int:  # fmt: skip
    """Run load and faults, take samples, and return the exit code."""
    chance = random.Random(arguments.seed)
    agents = Agents(f"http://127.0.0.1:{watched.ports[0]}", arguments.size)
    seconds = arguments.minutes * 60
    memory = Memory(min(AGE_S, seconds / (arguments.stops + 1) / 2))
    load = asyncio.create_task(agents.run(arguments.rate, seconds))
    # A restart waits until the trouble of the moment is over.
    stops = asyncio.create_task(restarts(troubles, 0.9 * seconds, arguments.stops))
    beside = [
        *(asyncio.create_task(Trouble(upstream, chance).go_on()) for upstream in upstreams),
        asyncio.create_task(troubles.go_on()),
        asyncio.create_task(watch(watched, troubles, memory)),
    ]
    done, _ = await asyncio.wait(
        [load, *beside], timeout=seconds + DRAIN_S, return_when=asyncio.FIRST_COMPLETED
    )
    for task in done:
        task.result()
    if not done:
        raise BenchError("the agents could not send everything in time")
    await stops
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    watched.slots.release()
    watched.reads_log(True)
    for upstream in upstreams:
        upstream.rule = None
    await _drained(watched)
    await watched.stop()
    print(f"spans {len(agents.spans)}, retried posts {agents.again}, without an answer in "
          f"{ANSWER_S:.0f} s {agents.unanswered}, slowest {agents.slowest_s:.1f} s")  # fmt: skip
    print(f"troubles {troubles.counts}, log lines {watched.events}")
    memory.report()
    return verdict(agents, upstreams, kept(letters), watched.endings)


def kept(letters: Path) -> Mapping[str, set[str]]:
    """The ids of the dead letters of each upstream."""
    found: dict[str, set[str]] = {"agentex": set(), "sgp": set()}
    for path in (letters, letters.with_name(letters.name + ".1")):
        if path.exists():
            with path.open("rb") as lines:
                for line in lines:
                    letter = orjson.loads(line)
                    found[letter["sink"]].add(letter["event"]["span"]["id"])
    return found


def verdict(
    agents: Agents,
    upstreams: Sequence[StandIn],
    letters: Mapping[str, set[str]],
    endings: Sequence[Ending],
) -> int:
    """Print what was lost, and how the stops went; return the exit code."""
    failures = []
    for name, upstream in zip(("agentex", "sgp"), upstreams, strict=True):
        missing = agents.spans - upstream.complete
        lost = missing - letters[name] - agents.not_taken[name]
        print(
            f"{name}: lost {len(lost)}, only in the dead letters "
            f"{len(missing & letters[name])} of {len(letters[name])}, not taken "
            f"{len(agents.not_taken[name])}, late opens {upstream.late_opens}"
        )
        if lost:
            failures.append(f"{len(lost)} spans never reached {name}")
    for ending in endings:
        print(
            f"  stop: {ending.over_s:+.2f} s beyond the grace period, exit code {ending.code}, "
            f"lost {ending.lost}, imbalance {ending.imbalance}, hung: {ending.hung or '-'}"
        )
    over = [e for e in endings if e.over_s > OVER_S + BUSY_S]
    died = [e for e in endings if e.hung == "died"]
    wrong = [e for e in endings if e.code != int(e.lost > 0) and e.last]
    checks = {
        "stops took too long": over,
        "times it died": died,
        "exit codes were wrong": wrong,
        "stops had no last line": [e for e in endings if not e.last and e.hung not in SILENT],
        "times the accounting did not balance": [e for e in endings if e.imbalance],
        "times writes were lost": [e for e in endings if e.lost],
    }
    failures += [f"{len(found)} {what}" for what, found in checks.items() if found]
    print("\n".join(["MISSED:", *failures] if failures else ["all bars are met"]))
    return 1 if failures else 0


async def _drained(watched: Watched) -> None:
    async with asyncio.timeout(DRAIN_S):
        while True:
            status = await status_of(watched)
            if status is not None:
                depth = sum(lane["depth"] for lane in status["sinks"].values())
                # STARTs stay open whose END one upstream had no room for (D22).
                if not depth and not status["events"]["held"]:
                    return
            await asyncio.sleep(0.5)


async def with_upstreams(arguments: argparse.Namespace, folder: Path) -> int:
    """Run the stand-ins in this process, the sidecar in its own."""
    options = {"digest": True, "echo": False, "keep_bodies": False}
    async with AgentexStandIn(**options) as agentex, SgpStandIn(**options) as sgp:  # type: ignore[arg-type]
        hosts = {"agentex": f"agentex.test:{agentex.port}", "sgp": f"sgp.test:{sgp.port}"}
        places = {name: str(folder / name) for name in ("spool", "letters")}
        slots = Slots.create(build(folder), folder, places | hosts)
        letters = folder / "letters" / "letters.jsonl"
        settings = {
            **slots.environ,
            "LD_PRELOAD": f"{slots.environ['LD_PRELOAD']} {arguments.preload}",
            "SIDECAR_LISTENER__HOSTS": "127.0.0.1",
            "SIDECAR_ADMIN__HOST": "127.0.0.1",
            "SIDECAR_AGENTEX__BASE_URL": f"http://{hosts['agentex']}",
            "SIDECAR_AGENTEX__TIMEOUT_S": "5",
            "SIDECAR_SGP__TIMEOUT_S": "5",
            "SIDECAR_SGP__BASE_URL": f"http://{hosts['sgp']}",
            "SIDECAR_SGP__API_KEY": "bench",
            "SIDECAR_SGP__ACCOUNT_ID": "bench",
            "SIDECAR_QUEUE__MAX_BYTES": arguments.queue_bytes,
            "SIDECAR_SPOOL__PATH": places["spool"] if arguments.spool else "",
            "SIDECAR_DEAD_LETTERS__PATH": str(letters),
            "SIDECAR_DEAD_LETTERS__MAX_BYTES": "8GiB",
            "SIDECAR_SHUTDOWN__GRACE_S": str(GRACE_S),
            "SIDECAR_SHUTDOWN__QUIET_S": "0.2",
        }
        watched = Watched(settings, slots)
        await watched.start()
        try:
            with deaf_port() as deaf:
                troubles = Troubles(watched, random.Random(arguments.seed + 1), deaf)
                return await soak(watched, troubles, (agentex, sgp), letters, arguments)
        finally:
            watched.kill()


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0, help="spans/s")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a prompt")
    parser.add_argument("--queue-bytes", default="64MiB", help="queue.max_bytes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--preload", default="", help="one more LD_PRELOAD, for jemalloc")
    parser.add_argument("--stops", type=int, default=10, help="how often it is started again")
    parser.add_argument("--spool", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "letters").mkdir()
        return asyncio.run(with_upstreams(arguments, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
