"""`POST /v1/flush` of a sidecar with a spool: what is only on disk is left, unless that is enough.

These tests run in real time: see tests/support/spool.py.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.spool.rows import Backlog
from tests.support.faults import end, for_ids, span, start
from tests.support.spool import (
    EAGER,
    SpoolWorld,
    down,
    large,
    retry_s,
    spool_world,
    until,
    up,
)
from tests.support.world import Reply

HELD: dict[str, Any] = {**EAGER, "queue__start_hold_s": 1800}


async def flushed(w: SpoolWorld, query: str) -> Reply:
    """The response to a flush."""
    return await w.running.request("POST", f"/v1/flush?{query}")


async def test_a_backlog_on_disk_is_left(tmp_path: Path) -> None:
    """Writes that are only on disk are waited for, and are in the rows when a 200 comes."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(sgp)
    settings = {"queue__max_bytes": "1MiB", **HELD}
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        for number in range(40):
            await w.post(end(large(f"s{number}")))
        await w.post(start(span("held")))
        await w.until(lambda: w.app.lanes[0].depth == 0)
        assert w.app.lanes[1].on_disk > 10
        assert (await flushed(w, "wait_s=0.5")).body == {"left": {"sgp": 41}}
        assert "held" in agentex.spans
        for wait_s in (30, 0):
            assert (await flushed(w, f"wait_s={wait_s}&until=disk")).body == {"left": {}}
        up(sgp)
        assert (await flushed(w, "wait_s=30")).body == {"left": {}}
        assert {id_ for _, id_ in sgp.spans} == {*w.accepted, *w.opened}
        await w.finish()


async def test_what_an_earlier_process_left_is_left(tmp_path: Path) -> None:
    """After a restart, a flush waits for writes and STARTs that were accepted before it."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, **HELD) as before:
        await before.post(*(end(span(f"s{number}")) for number in range(5)))
        await before.post(start(span("held")))
    async with spool_world(tmp_path, agentex, sgp, **HELD) as w:
        await until(lambda: w.app.accounting.replayed == 6)
        assert (await flushed(w, "wait_s=0.3")).body == {"left": {"agentex": 6, "sgp": 6}}
        up(agentex, sgp)
        assert (await flushed(w, "wait_s=30")).body == {"left": {}}
        assert set(agentex.spans) == {*before.accepted, *before.opened}


async def test_a_disk_that_fails_is_not_enough(tmp_path: Path) -> None:
    """While the disk fails, `until=disk` waits for the delivery of what is in memory only."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    path = tmp_path / "spool"
    path.write_bytes(b"")
    with retry_s(0.05):
        async with spool_world(path, agentex, sgp, **HELD) as w:
            await w.post(end(span("s")))
            reply = await flushed(w, "wait_s=0.3&until=disk")
            assert reply.body == {"left": {"agentex": 1, "sgp": 1}}
            up(agentex)
            reply = await flushed(w, "wait_s=1&until=disk")
            assert (reply.body, set(agentex.spans)) == ({"left": {"sgp": 1}}, {"s"})
            path.unlink()
            await w.until(lambda: not w.spool.degraded)
            # It was accepted while the disk failed, and is still in memory only.
            reply = await flushed(w, "wait_s=0.3&until=disk")
            assert reply.body == {"left": {"sgp": 1}}
            up(sgp)
            assert (await flushed(w, "wait_s=30&until=disk")).body == {"left": {}}
            down(sgp)
            await w.post(end(span("on disk")))
            assert (await flushed(w, "wait_s=30&until=disk")).body == {"left": {}}
            assert len(sgp.spans) == 1
            up(sgp)
            await w.finish()


async def test_an_end_behind_its_start_on_disk(tmp_path: Path) -> None:
    """If an open write on disk is replaced, a 200 means that what replaces it is in the rows."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(sgp)
    settings = {"queue__max_bytes": "1MiB", **EAGER, "queue__start_hold_s": 0.1}
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        for number in range(40):
            await w.post(end(large(f"s{number}")))
        made = span("x")
        await w.post(start(made))
        await w.until(lambda: w.app.accounting.held == 0)
        waiting = asyncio.create_task(flushed(w, "wait_s=30"))
        await w.until(lambda: w.app.lanes[1].branches[0].queue.marked.is_set)
        await w.post(end(made))
        sgp.rule = for_ids({"x"}, 503)
        await w.until(lambda: w.app.lanes[1].depth == 1)
        assert not waiting.done()
        up(sgp)
        assert (await waiting).body == {"left": {}}
        assert ("trace", "x") in sgp.spans
        await w.finish()


async def test_a_disk_that_answers_late(tmp_path: Path) -> None:
    """What an earlier process left is left as soon as it is found, before it is recovered."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    async with spool_world(tmp_path / "spool", agentex, sgp, **HELD) as before:
        await before.post(*(end(span(f"s{number}")) for number in range(5)))
        await before.post(start(span("held")))
    (tmp_path / "spool").rename(tmp_path / "moved")
    (tmp_path / "spool").write_bytes(b"")
    with retry_s(0.05):
        async with spool_world(tmp_path / "spool", agentex, sgp, **HELD) as w:
            assert (await flushed(w, "wait_s=0")).body == {"left": {}}
            w.app._recovery._found = partial(found, w, w.app._recovery._found)  # type: ignore[method-assign]
            w.spool._on_backlog = w.app._recovery._found
            (tmp_path / "spool").unlink()
            (tmp_path / "moved").rename(tmp_path / "spool")
            await until(lambda: w.app.accounting.replayed == 6)
            up(agentex, sgp)
            assert (await flushed(w, "wait_s=30")).body == {"left": {}}
            assert set(agentex.spans) == {*before.accepted, *before.opened}


def found(w: SpoolWorld, take: Callable[[Backlog], None], backlog: Backlog) -> None:
    """Take a backlog, and look at once whether a flush knows of it."""
    take(backlog)
    assert w.app.listener._flush._left(None) == {"agentex": 6, "sgp": 6}
