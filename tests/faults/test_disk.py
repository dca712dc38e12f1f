"""A sidecar with a failing spool disk: it reports it, continues in memory, and recovers."""

import asyncio
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.config import ConfigError
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.spool.writer import SHRINK_BYTES
from tests.support.faults import end, span, start
from tests.support.spool import (
    EAGER,
    SpoolWorld,
    depths,
    down,
    files_size,
    large,
    no_file_grows_beyond,
    retry_s,
    spool_world,
    until,
    up,
)
from tests.support.world import NOWHERE, running_app

NOBODY = 65534


@pytest.fixture(autouse=True)
def _short_retry() -> Iterator[None]:
    with retry_s(0.05):
        yield


@contextmanager
def without_root() -> Iterator[None]:
    """Run as another user, because root can write anywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def metric(w: SpoolWorld, name: str) -> float:
    """A metric without labels, as Prometheus reads it."""
    async with w.running.client.get(w.running.admin_url + "/metrics") as response:
        text = await response.text()
    found = re.search(rf"^trace_sidecar_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def assert_works(w: SpoolWorld, *, on: str, id_: str = "new") -> None:
    """A new span is delivered, and /status and the metric report its durability."""
    assert on == w.app.status()["durability"]
    assert (on == "memory") == bool(await metric(w, "spool_degraded"))
    await w.post(end(span(id_)))
    await w.finish()


async def test_a_path_that_cannot_be_created(tmp_path: Path) -> None:
    """With a file in place of the directory, events stay in memory until the file is removed."""
    path = tmp_path / "spool"
    path.write_bytes(b"")
    async with spool_world(path, AgentexStandIn(), SgpStandIn()) as w:
        await assert_works(w, on="memory")
        assert await metric(w, "spool_errors_total") >= 1
        path.unlink()
        await w.until(lambda: not w.spool.degraded)
        await assert_works(w, on="disk", id_="newer")
        assert path.is_dir()


async def test_a_directory_that_is_read_only() -> None:
    """Events are kept in memory until the directory is writable, then on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spool"
        path.mkdir(mode=0o555)
        path.parent.chmod(0o755)
        if not os.geteuid():
            os.chown(path, NOBODY, NOBODY)
        with without_root():
            async with spool_world(path, AgentexStandIn(), SgpStandIn()) as w:
                await assert_works(w, on="memory")
                path.chmod(0o755)
                await w.until(lambda: not w.spool.degraded)
                await assert_works(w, on="disk", id_="newer")


async def fill(w: SpoolWorld) -> None:
    """Post spans until the spool can't store one; merging its log may free room again soon."""
    for number in range(200):
        await w.post(end(large(f"s{number}")))
        if w.spool.degraded:
            return
    raise AssertionError("the disk never filled up")


async def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """Accepted events are delivered from memory; the spool recovers when there is room."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as w:
        with no_file_grows_beyond(600_000) as make_room:
            await fill(w)
            assert w.app.status()["durability"] == "memory"
            await w.post(end(large("in memory only")))
            up(agentex, sgp)
            await w.finish()
            make_room()
        await w.until(lambda: not w.spool.degraded)
        await w.until(lambda: w.spool.file.rows == 0)
        await assert_works(w, on="disk")


async def test_a_full_disk_at_the_end_is_counted(tmp_path: Path) -> None:
    """Writes that are in memory only when the process ends are counted as lost."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    settings = EAGER | {"dead_letters__path": ""}
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        with no_file_grows_beyond(600_000):
            for number in range(30):
                await w.post(end(large(f"s{number}")))
            assert not await w.running.stop()
    up(agentex, sgp)
    lost = w.lane("agentex")["lost"]
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as again:
        await again.finish()
        assert len(w.accepted) == lost + len(agentex.complete)


async def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    """The file is moved aside and counted, and a new one is created."""
    (tmp_path / "spool.db").write_bytes(b"no database" * 9999)
    async with spool_world(tmp_path, AgentexStandIn(), SgpStandIn()) as w:
        assert await metric(w, "spool_moved_aside_total") == 1
        assert w.app.status()["spool"]["moved_aside"] == 1
        await assert_works(w, on="disk")


async def test_another_format_version(tmp_path: Path) -> None:
    """A file of another format version is moved aside as well."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    async with spool_world(tmp_path, agentex, sgp) as w:
        await assert_works(w, on="disk")
        await w.post(start(span("open")))
    connection = sqlite3.connect(tmp_path / "spool.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    async with spool_world(tmp_path, agentex, sgp) as w:
        assert await metric(w, "spool_moved_aside_total") == 1
        await assert_works(w, on="disk", id_="newer")


async def test_files_removed_under_a_running_sidecar(tmp_path: Path) -> None:
    """It is noticed within a tick, before anything is posted, and a kill then loses nothing."""
    path, copy = tmp_path / "a", tmp_path / "b"
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    async with spool_world(path, agentex, sgp, **EAGER) as before:
        await before.post(*(end(span(f"s{n}")) for n in range(10)))
        await asyncio.to_thread(shutil.rmtree, path)
        await before.until(lambda: before.spool.status().errors and not before.spool.degraded)
        assert await metric(before, "spool_errors_total") == 1
        await before.post(*(end(span(f"t{n}")) for n in range(5)))
        assert before.app.status()["durability"] == "disk"
        await asyncio.to_thread(shutil.copytree, path, copy)  # what a kill would leave
    up(agentex, sgp)
    async with spool_world(copy, agentex, sgp, **EAGER) as w:
        w.accepted |= before.accepted
        assert w.app.accounting.replayed == 15
        await w.finish()


@pytest.mark.parametrize("seed", range(6))
async def test_damaged_pages(tmp_path: Path, seed: int) -> None:
    """With damage anywhere but in the first pages, a sidecar runs and delivers what is readable."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, queue__start_hold_s=1800, **EAGER) as before:
        await before.post(*(end(large(f"s{n}", 20_000)) for n in range(50)))
        await before.post(*(start(large(f"o{n}", 20_000)) for n in range(50)))
    up(agentex, sgp)
    generator = random.Random(seed)
    with (tmp_path / "spool.db").open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for _ in range(5):
            file.seek(generator.randrange(4 * 16384, size))
            file.write(generator.randbytes(3000))
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as w:
        await w.until(
            lambda: not (depths(w) != (0, 0) or w.app.accounting.held or w.spool.degraded)
        )
        await w.post(end(span("new")))
        await w.until(lambda: "new" in agentex.complete and "new" in sgp.complete)
        assert len(agentex.complete) > 25 or w.spool.file.moved_aside


async def test_two_sidecars_on_one_directory(tmp_path: Path) -> None:
    """The second sidecar does not start; the first one is not affected."""
    async with spool_world(tmp_path, AgentexStandIn(), SgpStandIn()) as w:
        with pytest.raises(ConfigError, match=str(tmp_path)):
            async with running_app(spool__path=tmp_path):
                pass
        environ = {
            **os.environ,
            "AGENTEX_BASE_URL": NOWHERE,
            "SIDECAR_LISTENER__PORT": "0",
            "SIDECAR_ADMIN__PORT": "0",
            "SIDECAR_SPOOL__PATH": str(tmp_path),
        }
        command = (sys.executable, "-m", "sidecar", "run")
        second = await asyncio.create_subprocess_exec(*command, env=environ, stderr=-1)
        _, errors = await second.communicate()
        assert second.returncode == 2
        assert str(tmp_path) in errors.decode().splitlines()[-1]
        await assert_works(w, on="disk")


@pytest.mark.slow
async def test_a_backlog_on_a_disk_that_is_mounted_late(tmp_path: Path) -> None:
    """The backlog is delivered once the disk is there; no START is written after its END."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    path, away = tmp_path / "spool", tmp_path / "away"
    async with spool_world(path, agentex, sgp, **EAGER) as before:
        await before.post(end(span("left")), start(span("long")), start(span("again")))
        await before.until(lambda: before.app.accounting.held == 0)
    path.rename(away)
    path.write_bytes(b"")
    up(agentex, sgp)
    async with spool_world(path, agentex, sgp, **EAGER) as w:
        await w.post(end(span("long")), start(span("again")))
        await w.until(lambda: "long" in agentex.complete and "long" in sgp.complete)
        path.unlink()
        away.rename(path)
        await w.until(lambda: {"left", "long"} <= agentex.complete & sgp.complete)
        await w.post(end(span("again")))
        w.accepted |= before.accepted
        await w.finish()
        await w.until(lambda: w.spool.file.rows == 0)


@pytest.mark.slow
async def test_space_is_freed_after_an_outage(tmp_path: Path) -> None:
    """The files shrink while the sidecar runs, without a restart."""
    agentex, sgp = AgentexStandIn(keep_bodies=False), SgpStandIn(keep_bodies=False)
    down(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, queue__max_bytes="4MiB", **EAGER) as w:
        for number in range(80):
            await w.post(*(end(large(f"s{number}-{n}")) for n in range(10)))
        assert files_size(tmp_path) > 30 * 2**20
        up(agentex, sgp)
        await w.finish()
        await until(lambda: files_size(tmp_path) <= SHRINK_BYTES + 2**20)
