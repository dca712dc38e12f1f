"""Each alert fires for real, in its scenario on a real sidecar that Prometheus scrapes.

The rules are the chart's with shortened times. Two alerts without a test here can't be triggered
from outside within seconds (an accounting imbalance, a full container); tests/rules has them too.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from sidecar.demo.behaviours import Hang, Recorded, Scripted
from tests.e2e.prometheus_support import (
    RULES,
    Prometheus,
    address,
    exposing,
    prometheus,
    shortened,
)
from tests.support.kill import Rig, SidecarRun
from tests.support.spans import END_TIME, START_TIME

SOON = {"SIDECAR_RETRY__MAX_S": "0.5", "SIDECAR_SHUTDOWN__GRACE_S": "0"}


def hang(_: Recorded) -> Scripted:
    """Return the behavior of an upstream that accepts requests and never responds."""
    return Hang()


@pytest.fixture(scope="module")
def prom(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run one Prometheus for all scenarios."""
    with prometheus(tmp_path_factory.mktemp("prometheus"), shortened(RULES.read_text())) as running:
        yield running


@asynccontextmanager
async def working(rig: Rig) -> AsyncIterator[tuple[SidecarRun, asyncio.Task[None]]]:
    """Run a sidecar, and an agent that posts until its task is cancelled."""
    life = await rig.start()
    posting = asyncio.create_task(rig.agent(life.url, "agent"))
    try:
        yield life, posting
    finally:
        posting.cancel()
        if life.process.returncode is None:
            life.process.terminate()
        await life.ended()
        await asyncio.wait([posting])


async def posted(life: SidecarRun, kind: str, span: Mapping[str, object]) -> None:
    """Post one event, which is accepted."""
    event = {"event_type": kind, "span": span}
    async with (
        aiohttp.ClientSession() as client,
        client.post(life.url + "/v1/spans", json=event) as reply,
    ):
        assert reply.status == 202


async def test_no_sidecar_and_one_that_does_not_answer(prom: Prometheus, tmp_path: Path) -> None:
    """Absent fires until a sidecar is scraped, NotScraped once it is killed, and nothing else."""
    rig = Rig(tmp_path, seed=1, settings=SOON)
    await prom.fires("TraceSidecarAbsent", namespace=None)
    async with rig.agentex, rig.sgp, working(rig) as (life, _):
        with prom.scraping("presence", a=address(life)):
            await prom.silent("TraceSidecarAbsent", namespace=None)
            await prom.silent(namespace="presence")
            life.process.kill()
            await prom.fires("TraceSidecarNotScraped a", namespace="presence")
    await prom.fires("TraceSidecarAbsent", namespace=None)


async def test_upstreams_that_are_down_and_that_refuse_the_key(
    prom: Prometheus, tmp_path: Path
) -> None:
    """Each upstream's failure is its own alert, and ends with it."""
    rig = Rig(tmp_path, seed=2, settings=SOON)
    async with rig.agentex, rig.sgp, working(rig) as (life, _):
        with prom.scraping("upstreams", a=address(life)):
            port = rig.sgp.port
            await rig.sgp.stop()
            rig.agentex.rule = lambda _: 401
            await prom.fires(
                "TraceSidecarUpstreamDown sgp",
                "TraceSidecarUnauthorized agentex",
                "TraceSidecarDeliveryStalled sgp",
                "TraceSidecarDeliveryStalled agentex",
                namespace="upstreams",
            )
            await rig.sgp.start(port)
            rig.agentex.rule = None
            await prom.silent(
                "TraceSidecarUpstreamDown", "TraceSidecarUnauthorized", namespace="upstreams"
            )


async def test_an_upstream_that_refuses_what_is_sent(prom: Prometheus, tmp_path: Path) -> None:
    """Dead letters, their loss from a small file, and the brake fire, until writes are taken."""
    rig = Rig(tmp_path, seed=3, settings=SOON | {"SIDECAR_DEAD_LETTERS__MAX_BYTES": "4KiB"})
    async with rig.agentex, rig.sgp, working(rig) as (life, _):
        with prom.scraping("refused", a=address(life)):
            await prom.scraped("refused")
            rig.sgp.rule = lambda _: 422
            await prom.fires(
                "TraceSidecarDeadLetters sgp refused",
                "TraceSidecarDeadLettersNotKept a",
                "TraceSidecarBrakeOn sgp",
                namespace="refused",
            )
            assert ("TraceSidecarDeadLetters", "agentex", "refused") not in await prom.firing(
                "refused"
            )
            rig.sgp.rule = None
            await prom.silent("TraceSidecarBrakeOn", namespace="refused")


async def test_a_shutdown_that_lost_something(prom: Prometheus, tmp_path: Path) -> None:
    """Without a spool, room for dead letters and time, the next run reports what was lost."""
    nowhere = {"SIDECAR_SPOOL__PATH": "", "SIDECAR_DEAD_LETTERS__MAX_BYTES": "1"}
    rig = Rig(tmp_path, seed=6, settings=SOON | nowhere)
    async with rig.agentex, rig.sgp:
        rig.agentex.rule = rig.sgp.rule = hang
        async with working(rig) as (life, _):
            await rig.sgp.arrived(1)
        assert life.code == 1
        rig.agentex.rule = rig.sgp.rule = None
        async with working(rig) as (life, _):
            with prom.scraping("shutdown", a=address(life)):
                await prom.fires("TraceSidecarLostAtShutdown", namespace="shutdown")


async def test_a_spool_that_is_damaged(prom: Prometheus, tmp_path: Path) -> None:
    """Rows that a new process can't read fire, although it finds them before the first scrape."""
    rig = Rig(tmp_path, seed=8, settings=SOON)
    async with rig.agentex, rig.sgp:
        rig.agentex.rule = rig.sgp.rule = hang
        async with working(rig) as (life, _):
            await rig.agentex.arrived(1)
            await rig.sgp.arrived(1)
            life.process.kill()
        damage = sqlite3.connect(tmp_path / "spool/spool.db")
        with damage:
            damage.execute("UPDATE bodies SET body = '{'")
        damage.close()
        async with working(rig) as (life, _):
            with prom.scraping("damage", a=address(life)):
                await prom.fires(
                    "TraceSidecarWritesLost agentex",
                    "TraceSidecarWritesLost sgp",
                    namespace="damage",
                )


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
async def test_a_full_sidecar(prom: Prometheus, tmp_path: Path, spool: bool) -> None:
    """Hanging upstreams fill their rooms and agents are refused, until there is room again."""
    namespace = f"full-{spool}".lower()
    room = {"SIDECAR_QUEUE__MAX_BYTES": "1MiB", "SIDECAR_AGENTEX__TIMEOUT_S": "1"}
    room |= {"SIDECAR_SGP__TIMEOUT_S": "1", "SIDECAR_SPOOL__PATH": ""}
    if spool:
        room |= {"SIDECAR_QUEUE__MAX_BYTES": "8MiB", "SIDECAR_SPOOL__MAX_BYTES": "2MiB"}
        room["SIDECAR_SPOOL__PATH"] = str(tmp_path / "spool")
    rig = Rig(tmp_path, seed=4, settings=SOON | room)
    full = "TraceSidecarLaneNearlyFull"
    async with rig.agentex, rig.sgp, working(rig) as (life, posting):
        rig.agentex.rule = rig.sgp.rule = hang
        with prom.scraping(namespace, a=address(life)):
            refusing = "TraceSidecarIntakeRefusing"
            await prom.fires(refusing, f"{full} agentex", f"{full} sgp", namespace=namespace)
            posting.cancel()
            rig.agentex.rule = rig.sgp.rule = None
            await prom.silent(refusing, full, namespace=namespace)


async def test_an_upstream_without_room(prom: Prometheus, tmp_path: Path) -> None:
    """Only the upstream that hangs fills its room, and gets neither new spans nor a large END."""
    room = {"SIDECAR_QUEUE__MAX_BYTES": "1MiB", "SIDECAR_SGP__TIMEOUT_S": "1"}
    rig = Rig(tmp_path, seed=7, settings=SOON | room | {"SIDECAR_SPOOL__PATH": ""})
    async with rig.agentex, rig.sgp, working(rig) as (life, _):
        with prom.scraping("room", a=address(life)):
            await prom.scraped("room")
            rig.sgp.rule = hang
            span = {"id": "left", "trace_id": "t", "name": "n", "start_time": START_TIME}
            await posted(life, "start", span)
            full = ("TraceSidecarLaneNearlyFull", "TraceSidecarWritesNotTaken")
            await prom.fires(*(f"{name} sgp" for name in full), namespace="room")
            firing = await prom.firing("room")
            assert not firing & {("TraceSidecarIntakeRefusing",), *((n, "agentex") for n in full)}
            await posted(
                life, "end", span | {"end_time": END_TIME, "output": {"text": "x" * 200_000}}
            )
            await prom.fires("TraceSidecarSpansLeftRunning sgp", namespace="room")
            rig.sgp.rule = None
            await prom.silent("TraceSidecarLaneNearlyFull", namespace="room")


async def test_a_disk_that_is_away_and_an_agent_that_posts_nonsense(
    prom: Prometheus, tmp_path: Path
) -> None:
    """A failing disk and invalid events each fire, until the disk works and events are valid."""
    disk = tmp_path / "disk"
    rig = Rig(tmp_path, seed=5, settings=SOON | {"SIDECAR_SPOOL__PATH": str(disk / "spool")})
    disk.write_text("not a directory")
    async with rig.agentex, rig.sgp, working(rig) as (life, _), aiohttp.ClientSession() as client:

        async def post() -> None:
            while life.process.returncode is None:
                async with client.post(life.url + "/v1/spans", json=[{"event_type": "?"}]) as reply:
                    assert reply.status == 400
                await asyncio.sleep(0.2)

        nonsense = asyncio.create_task(post())
        with prom.scraping("disk", a=address(life)):
            await prom.fires(
                "TraceSidecarSpoolDegraded a",
                "TraceSidecarEventsRejected invalid",
                namespace="disk",
            )
            disk.unlink()
            disk.mkdir()
            await prom.silent("TraceSidecarSpoolDegraded", namespace="disk")
        nonsense.cancel()


@pytest.mark.parametrize("kind", ["", "init_"])
async def test_restarts_as_kubernetes_counts_them(prom: Prometheus, kind: str) -> None:
    """Restarts of ordinary containers and native sidecars fire, by kube-state-metrics' series."""
    namespace = f"restarts{kind}".strip("_")
    name = f"kube_pod_{kind}container_status_restarts_total"
    scrapes = iter(range(10_000))

    def text() -> str:
        labels = f'namespace="{namespace}",pod="a",container="trace-sidecar"'
        return f"# TYPE {name} counter\n{name}{{{labels}}} {next(scrapes)}\n"

    async with exposing(text) as stand_in:
        with prom.scraping(namespace, honest=stand_in):
            await prom.fires("TraceSidecarRestarting a", namespace=namespace)
