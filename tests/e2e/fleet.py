"""A fleet of sidecars for the dashboard: most are well, and each of the others has one trouble.

The pods in trouble are real processes. The healthy ones are copies of one real sidecar's scrape.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from sidecar.demo.behaviours import Hang, Recorded, Scripted
from tests.e2e.prometheus_support import Prometheus, address, exposing, until
from tests.support.kill import Json, Rig, SidecarRun
from tests.support.otlp import OtlpStandIn
from tests.support.spans import END_TIME, START_TIME

NAMESPACE = "agents"
CROWD = 36
# One span in a pause is slow enough for all of them on two cores.
PAUSE_S = 0.1
COPY_S = 1.0
INVALID_EVERY = 20
MEMORY_LIMIT = 128 << 20
Rule = Callable[[Recorded], Scripted]

_NO_SPOOL = {"SIDECAR_SPOOL__PATH": ""}
_SMALL = {"SIDECAR_QUEUE__MAX_BYTES": "1MiB", "SIDECAR_SGP__TIMEOUT_S": "1"}
_SOON = {"SIDECAR_RETRY__MAX_S": "1", "SIDECAR_SHUTDOWN__GRACE_S": "0"}
_LOSING = {"SIDECAR_DEAD_LETTERS__MAX_BYTES": "1"}


def _sometimes(status: int, every: int) -> Rule:
    turns = itertools.count(1)
    return lambda _: status if next(turns) % every == 0 else None


@dataclass(frozen=True)
class Trouble:
    """What is wrong with a pod: its settings, and how its upstreams behave."""

    settings: dict[str, str] = field(default_factory=dict)
    agentex: Rule | None = None
    sgp: Rule | None = None
    otlp: Rule | None = None


# By pod. The names are as long as those of a Deployment are.
TROUBLES = {
    "billing-agent-7d9c5b6f4-x2x4q": Trouble(sgp=_sometimes(503, 25), otlp=_sometimes(503, 40)),
    "search-agent-5f7b8c9d6-8kqzt": Trouble(_NO_SPOOL | _SMALL, sgp=lambda _: Hang()),
    "support-agent-6c8d7f5b9-mm7wr": Trouble(sgp=_sometimes(422, 2)),
    "planner-agent-84b6d5c7f-zp5nd": Trouble(agentex=lambda _: 401),
    "writer-agent-7bd5f9c86-tq9hs": Trouble(
        _NO_SPOOL | _LOSING, agentex=lambda _: Hang(), sgp=lambda _: Hang()
    ),
}
WELL = "billing-agent-7d9c5b6f4-x2x4q"
RESTARTS = "writer-agent-7bd5f9c86-tq9hs"


@dataclass
class Pod:
    """A real sidecar with its upstreams and an agent."""

    rig: Rig
    life: SidecarRun

    async def agent(self) -> None:
        """Post spans, some of them invalid, until cancelled."""
        async with aiohttp.ClientSession() as session:
            for number in itertools.count():
                await asyncio.sleep(PAUSE_S)
                await self._post(session, f"{self.life.process.pid}-{number}", number)

    async def _post(self, session: aiohttp.ClientSession, id_: str, number: int) -> None:
        span: Json = {"id": id_, "trace_id": "t", "name": "n", "start_time": START_TIME}
        span["input"] = {"prompt": "x" * 3000}
        done = {**span, "end_time": END_TIME, "output": {"text": id_}}
        events = [{"event_type": "start", "span": span}, {"event_type": "end", "span": done}]
        if number % INVALID_EVERY == 0:
            events = [{"event_type": "?"}]
        for event in events:
            try:
                async with session.post(self.life.url + "/v1/spans", json=event) as reply:
                    await reply.read()
            except aiohttp.ClientError:
                await asyncio.sleep(PAUSE_S)  # it restarts

    async def scrape(self) -> str:
        """Return the text of one scrape."""
        address = self.life.admin_url + "/metrics"
        async with aiohttp.ClientSession() as client, client.get(address) as reply:
            return await reply.text()


def copied(text: str, pods: list[str]) -> str:
    """Copy a scrape of one sidecar as the scrapes of `pods`, whose containers have a limit."""
    own = [line for line in text.splitlines() if not line.startswith("#")]
    own = [line for line in own if not line.startswith("trace_sidecar_memory_limit_bytes")]
    own.append(f"trace_sidecar_memory_limit_bytes {MEMORY_LIMIT}")
    lines = []
    for pod in pods:
        labels = f'namespace="{NAMESPACE}",pod="{pod}",instance="{pod}"'
        for line in own:
            name, _, rest = line.partition("{") if "{" in line else line.partition(" ")
            inner = f"{labels},{rest}" if "{" in line else f"{labels}}} {rest}"
            lines.append(f"{name}{{{inner}")
    return "\n".join(lines) + "\n"


def kubernetes(pods: list[str], restarts: dict[str, int], without: str) -> str:
    """Return kube-state-metrics' series: every pod has a native sidecar, except `without`."""
    place = f'namespace="{NAMESPACE}"'
    lines = [f'kube_namespace_labels{{{place},label_trace_sidecar_injection="enabled"}} 1']
    lines += [
        f'kube_pod_status_phase{{{place},pod="{pod}",phase="Running"}} 1'
        for pod in (*pods, without)
    ]
    for pod in pods:
        labels = f'{place},pod="{pod}",container="trace-sidecar"'
        count = restarts.get(pod, 0)
        lines += [
            f"kube_pod_init_container_info{{{labels}}} 1",
            f"kube_pod_init_container_status_restarts_total{{{labels}}} {count}",
        ]
    return "\n".join(lines) + "\n"


@asynccontextmanager
async def pod(folder: Path, trouble: Trouble, seed: int) -> AsyncIterator[Pod]:
    """Run one sidecar and its agent until the test ends."""
    await asyncio.to_thread(folder.mkdir)
    async with OtlpStandIn(keep_bodies=False) as otlp:
        otlp.rule = trouble.otlp
        own = _SOON | {"SIDECAR_OTLP__ENDPOINT": otlp.url} | trouble.settings
        rig = Rig(folder, seed=seed, settings=own)
        async with _of(rig, trouble) as made:
            yield made


@asynccontextmanager
async def _of(rig: Rig, trouble: Trouble) -> AsyncIterator[Pod]:
    rig.agentex.keep_bodies = rig.sgp.keep_bodies = False
    async with rig.agentex, rig.sgp:
        rig.agentex.rule, rig.sgp.rule = trouble.agentex, trouble.sgp
        made = Pod(rig, await rig.start())
        posting = asyncio.create_task(made.agent())
        try:
            yield made
        finally:
            posting.cancel()
            await asyncio.wait([posting])
            await rig.kill_all()


@asynccontextmanager
async def fleet(folder: Path, prom: Prometheus) -> AsyncIterator[dict[str, Pod]]:
    """Run the fleet and have it scraped; yield the real pods."""
    async with AsyncExitStack() as stack:
        pods = {
            name: await stack.enter_async_context(pod(folder / name, trouble, seed))
            for seed, (name, trouble) in enumerate(TROUBLES.items())
        }
        crowd = [f"billing-agent-7d9c5b6f4-c{number:04}" for number in range(CROWD)]
        restarts: dict[str, int] = {}
        text = ""

        async def copy() -> None:
            nonlocal text
            while True:
                text = copied(await pods[WELL].scrape(), crowd)
                await asyncio.sleep(COPY_S)

        copying = asyncio.create_task(copy())
        stack.callback(copying.cancel)
        everyone = [*crowd, *pods]
        copies = await stack.enter_async_context(exposing(lambda: text))
        cluster = await stack.enter_async_context(
            exposing(lambda: kubernetes(everyone, restarts, "importer-6b9c7d-2xk4n"))
        )
        addresses = {name: address(each.life) for name, each in pods.items()}
        stack.enter_context(prom.scraping(NAMESPACE, **addresses))
        stack.enter_context(prom.scraping("crowd", honest=copies))
        stack.enter_context(prom.scraping("cluster", honest=cluster))
        await until(lambda: _scraped(prom, len(everyone)))
        await _restart(pods[RESTARTS])
        restarts[RESTARTS] = 1
        yield pods


async def _scraped(prom: Prometheus, pods: int) -> bool:
    counted = await prom.query("count_over_time(trace_sidecar_build_info[10s]) > 2")
    return len(counted) == pods


async def _restart(here: Pod) -> None:
    """Stop a sidecar whose upstreams hang, so that it loses what it holds, and start it again."""
    await here.rig.sgp.arrived(1)
    port = here.life.admin_url.rpartition(":")[2]
    here.life.process.terminate()
    await here.life.ended()
    here.rig.agentex.rule = here.rig.sgp.rule = None
    here.life = await here.rig.start(SIDECAR_ADMIN__PORT=port)
