"""Hangs each system call of a sidecar in turn: delivery goes on, and stopping ends."""

import asyncio
import shutil
from errno import EIO
from pathlib import Path
from signal import SIGTERM
from subprocess import CalledProcessError

import pytest

from tests.e2e import parts
from tests.support.kill import AGENTS
from tests.support.lives import (
    DISK,
    GRACE_S,
    LOOP,
    START_S,
    STOP_S,
    StalledRig,
    shows,
    stalled_rig,
    within,
)
from tests.support.stalls import LOG, Call, build

# Lives at a time: mostly they wait.
CONCURRENT = 6
# The disk as a whole, which is how disks hang.
WHOLE = [("*", "spool"), ("*", "disk"), ("*", LOG)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        parts.debian("gcc", "libc6-dev")
    try:
        return build(tmp_path_factory.mktemp("shim"))
    except (OSError, CalledProcessError) as error:
        parts.missing(f"cc: {error}")


def report(failures: dict[str, list[str]]) -> str:
    """Which calls broke what."""
    lines = [f"{call}: {'; '.join(wrong)}" for call, wrong in sorted(failures.items())]
    return "\n".join(["hung:", *lines])


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 6))]
)
async def test_any_call_may_hang(tmp_path: Path, library: Path, seed: int) -> None:
    """Whichever call hangs, posts are answered and delivered, and SIGTERM ends the process.

    A first life finds the calls. The process after each life delivers what it left on disk.
    """
    turns = asyncio.Semaphore(CONCURRENT)
    failures: dict[str, list[str]] = {}
    async with stalled_rig(tmp_path / "first", library) as first:
        await first.leave_backlog()
        backlog = tmp_path / "backlog"
        shutil.copytree(first.folder / "spool", backlog / "spool")
        seeded = StalledRig(backlog, 1, sent=dict(first.sent))
        calls = await first.life(None)
        found = {call: n for call, n in calls.items() if n and call[1] != LOOP}
        await first.recover(hung="")
        assert first.problems == []
    assert {place for _, place in found} == {LOG, "agentex", "sgp", *DISK}

    async def one(number: int, call: Call) -> None:
        name = ":".join(call).replace("*", "all")
        async with turns, stalled_rig(tmp_path / name, library, 1000 * seed + number) as r:
            r.inherit(seeded)
            await r.life(call, skip=r.random.randrange(found.get(call, 1) // 2 + 1))
            if not r.slots.hanging:
                r.problems.append("it was never made")
            await r.recover(hung=call[1])
            if r.problems:
                failures[name] = list(dict.fromkeys(r.problems))

    turn = enumerate([*WHOLE, *sorted(found)])
    await asyncio.gather(*(one(number, call) for number, call in turn))
    assert not failures, report(failures)


@pytest.mark.parametrize("fails", [False, True])
async def test_the_spool_comes_back(tmp_path: Path, library: Path, fails: bool) -> None:
    """After a stall the spool is used again: nothing is lost to a kill, nothing settled returns.

    With `fails`, the calls that hang end with an error first, as on a network disk that is away.
    """
    async with stalled_rig(tmp_path, library) as r:
        life = await r.begin()
        r.slots.hang("*", "spool")
        during = {f"during-{number}" for number in range(20)}
        await r.post(life, sorted(during))
        assert await r.arrived(during)
        assert await r.logs(life, "spool_degraded")
        known = len(life.log)
        if fails:
            r.slots.fail("*", "spool", EIO)
            # The stall itself was the first error; the next one comes when it is tried again.
            assert await shows(life, lambda status: status["spool"]["errors"] > 1)
        r.slots.release()
        assert await r.logs(life, "spool_recovered", since=known)
        r.away = True
        await r.post(life, [f"after-{number}" for number in range(20)])
        life.process.kill()
        await life.ended()
        r.away = False
        writes = [{id_: up.writes[id_] for id_ in during} for up in (r.agentex, r.sgp)]
        await r.recover(hung="")
        assert r.problems == []
        assert writes == [{id_: up.writes[id_] for id_ in during} for up in (r.agentex, r.sgp)]


async def test_a_start_may_hang(tmp_path: Path, library: Path) -> None:
    """SIGTERM also ends a process whose start hangs on the disk, and leaves the backlog there."""
    turns = asyncio.Semaphore(CONCURRENT)
    failures: dict[str, list[str]] = {}
    async with stalled_rig(tmp_path / "first", library) as first:
        await first.leave_backlog()
        backlog = tmp_path / "backlog"
        shutil.copytree(first.folder / "spool", backlog / "spool")
        seeded = StalledRig(backlog, 1, sent=dict(first.sent))
        life = await first.begin()
        found = [call for call in first.slots.counts() if call[1] in DISK]
        await first.stop(life)

    async def one(number: int, call: Call) -> None:
        name = ":".join(call)
        async with turns, stalled_rig(tmp_path / name, library, seed=number) as r:
            r.inherit(seeded)
            await r.start_hanging(*call)
            await r.recover(hung="")
            if r.problems:
                failures[name] = list(dict.fromkeys(r.problems))

    await asyncio.gather(*(one(number, call) for number, call in enumerate(sorted(found))))
    assert not failures, report(failures)


@pytest.mark.parametrize("place", [*DISK, "disk", LOG, "agentex"])
async def test_stopping_with_writes_left(tmp_path: Path, library: Path, place: str) -> None:
    """What is on disk stays there, what is in memory becomes dead letters, or is counted as lost.

    Both upstreams are away, and something hangs for good shortly before SIGTERM.
    """
    async with stalled_rig(tmp_path, library) as r:
        life = await r.begin()
        r.away = True
        await r.post(life, [f"before-{number}" for number in range(20)])
        r.hang("*", place)
        during = {f"during-{number}" for number in range(10)}
        await r.post(life, sorted(during))
        life.process.send_signal(SIGTERM)
        async with asyncio.timeout(STOP_S):
            await life.process.wait()
        code = await life.ended()
        lost = len(during) * 2 if place == "disk" else 0
        assert code == int(lost > 0)
        if place != LOG:
            assert (life.log[-1]["event"], life.log[-1]["lost"]) == ("stopped", lost)
        if lost:
            r.sent = {id_: sent for id_, sent in r.sent.items() if id_ not in during}
        r.away = False
        await r.recover(hung=place)
        assert r.problems == []


@pytest.mark.parametrize("place", [*DISK, "disk", LOG, LOOP])
async def test_a_second_stop(tmp_path: Path, library: Path, place: str) -> None:
    """The second signal ends the process at once, whatever hangs."""
    async with stalled_rig(tmp_path, library) as r:
        r.settings["SIDECAR_SHUTDOWN__GRACE_S"] = "3600"
        life = await r.begin()
        r.away = True
        await r.post(life, [f"s-{number}" for number in range(20)])
        life.process.send_signal(SIGTERM)
        assert await r.logs(life, "stopping")
        r.hang("*", place)
        await r.stop(life, hung=place)
        r.away = False
        r.settings["SIDECAR_SHUTDOWN__GRACE_S"] = str(GRACE_S)
        await r.recover(hung=place)
        assert r.problems == []


async def test_a_loop_that_is_stuck(tmp_path: Path, library: Path) -> None:
    """SIGTERM ends a process that does nothing any more; what is on disk stays there."""
    async with stalled_rig(tmp_path, library) as r:
        life = await r.begin()
        r.away = True
        await r.post(life, [f"s-{number}" for number in range(20)])
        r.hang("*", LOOP)
        assert await within(START_S, lambda: r.slots.hanging > 0)
        await r.stop(life)
        r.away = False
        await r.recover(hung="")
        assert r.problems == []


async def test_a_slow_disk(tmp_path: Path, library: Path) -> None:
    """A disk that takes 10 ms for everything, as a busy one on a network does, is used."""
    async with stalled_rig(tmp_path, library) as r:
        life = await r.begin()
        for place in DISK:
            r.slots.slow("*", place, 10)
        spans = {f"s-{number}" for number in range(50)}
        await r.post(life, sorted(spans))
        assert await r.arrived(spans)
        await r.look(life)
        await r.stop(life)
        assert "spool_degraded" not in {line["event"] for line in life.log}
        await r.recover(hung="")
        assert r.problems == []


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.nightly) for n in range(1, 4)])
async def test_stalls_that_come_and_go(tmp_path: Path, library: Path, seed: int) -> None:
    """Under load, with one stall after the other and many restarts, nothing is lost."""
    async with stalled_rig(tmp_path, library, seed) as r:
        r.agentex.rule = r.sgp.rule = None
        for _ in range(10):
            life = await r.begin()
            agents = [
                asyncio.create_task(r.agent(life.url, f"{life.process.pid}-{number}"))
                for number in range(AGENTS)
            ]
            for _ in range(r.random.randint(1, 3)):
                await asyncio.sleep(r.random.uniform(0.1, 1.0))
                r.hang("*", r.random.choice([*DISK, "disk", LOG, "agentex", "sgp"]))
                await asyncio.sleep(r.random.uniform(0.1, 6.0))
                r.slots.release()
            await r.stop(life)
            await asyncio.gather(*agents)
            assert r.problems == []
        await r.finish()
        assert len(r.ended) > 100
