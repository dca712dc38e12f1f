"""A sidecar with a spool: what it delivers after a restart, and how much memory it takes.

These tests run in real time: see tests/support/spool.py.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Hang
from tests.support.faults import end, span, start
from tests.support.spool import (
    EAGER,
    SpoolWorld,
    depths,
    down,
    files_size,
    large,
    spool_world,
    until,
    up,
)

MIB = 2**20


async def post_patiently(w: SpoolWorld, event: dict[str, Any]) -> None:
    """Post an event until it is accepted, as agents do."""
    async with asyncio.timeout(10):
        while (await w.send(json.dumps(event).encode())).status == 429:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert w.app.budget.used <= w.app.budget.limit


def all_bytes(directory: Path) -> bytes:
    """The content of all files in `directory`."""
    return b"".join(path.read_bytes() for path in directory.iterdir())


async def test_a_restart_delivers_to_each_lane_what_is_missing(tmp_path: Path) -> None:
    """SGP has everything, and nothing is sent again; Agentex, which was down, gets everything."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex)
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as before:
        await before.post(*(end(span(f"s{n}")) for n in range(50)))
        await before.until(lambda: depths(before) == (50, 0))
    up(agentex)
    requests = sgp.requests_total
    async with spool_world(tmp_path, agentex, sgp, **EAGER) as w:
        assert w.app.accounting.replayed == 50
        w.accepted |= before.accepted
        await w.finish()
        assert requests == sgp.requests_total
        assert {1} == set(sgp.writes.values()) == set(agentex.writes.values())
        await w.until(lambda: w.spool.file.rows == 0)


async def test_nothing_is_left_after_full_delivery(tmp_path: Path) -> None:
    """A restart finds an empty spool."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    async with spool_world(tmp_path, agentex, sgp) as before:
        await before.post(*(start(span(f"s{n}")) for n in range(50)))
        await before.drained()
        await before.post(*(end(span(f"s{n}")) for n in range(50)))
        await before.finish()
    async with spool_world(tmp_path, agentex, sgp) as w:
        assert (w.app.accounting.replayed, w.spool.file.rows) == (0, 0)
        assert len(w.app.admission.open_spans) == 0


@pytest.mark.parametrize("upstreams", [up, down])
@pytest.mark.parametrize("hold_s", [0.02, 1800])
async def test_a_thin_end_after_a_restart_is_completed(
    tmp_path: Path, hold_s: float, upstreams: Callable[..., None]
) -> None:
    """The START was on disk: held, written open, or unsettled because the upstreams were down."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    upstreams(agentex, sgp)
    made = span("s", parent_id="p")
    async with spool_world(tmp_path, agentex, sgp, queue__start_hold_s=hold_s, **EAGER) as before:
        await before.post(start(made))
        if hold_s < 1:
            await before.until(lambda: before.app.accounting.held == 0)
            await before.until(lambda: upstreams is down or depths(before) == (0, 0))
    up(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, queue__start_hold_s=hold_s, **EAGER) as w:
        assert len(w.app.admission.open_spans) == 1
        thin = {key: made[key] for key in ("id", "trace_id", "name", "start_time", "end_time")}
        await w.post(end(thin | {"output": made["output"]}))
        w.accepted["s"] = made
        await w.finish()
        await w.until(lambda: w.spool.file.rows == 0)


@pytest.mark.slow
async def test_a_backlog_on_disk_does_not_exceed_the_memory_bound(tmp_path: Path) -> None:
    """Memory is bounded with 20 times `queue.max_bytes` on disk: at intake, restart and drain."""
    agentex, sgp = AgentexStandIn(keep_bodies=False), SgpStandIn(keep_bodies=False)
    down(agentex, sgp)
    settings = {"queue__max_bytes": "1MiB", **EAGER}
    async with spool_world(tmp_path, agentex, sgp, **settings) as before:
        for number in range(400):
            await before.post(end(large(f"s{number}")))
            assert before.app.budget.used <= MIB
        assert depths(before) == (400, 400)
    up(agentex, sgp)
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        used: list[int] = []

        def done() -> bool:
            used.append(w.app.budget.used)
            return depths(w) == (0, 0)

        await w.until(done)
        assert max(used) <= MIB
        w.accepted |= before.accepted
        await w.finish()
        assert w.app.budget.used == 0


@pytest.mark.slow
async def test_open_spans_on_disk_do_not_exceed_the_memory_bound(tmp_path: Path) -> None:
    """Memory is bounded with 20 times `queue.max_bytes` of STARTs, ended after a restart."""
    agentex, sgp = AgentexStandIn(keep_bodies=False), SgpStandIn(keep_bodies=False)
    settings = {"queue__max_bytes": "1MiB", **EAGER}
    spans = [large(f"s{number}") for number in range(400)]
    async with spool_world(tmp_path, agentex, sgp, **settings) as before:
        for made in spans:
            await post_patiently(before, start(made))
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        assert len(spans) == len(w.app.admission.open_spans)
        for made in spans:
            await post_patiently(w, end(made | {"input": None}))
            w.accepted[made["id"]] = made
        await w.finish()


async def test_an_outage_of_one_upstream_does_not_delay_the_other(tmp_path: Path) -> None:
    """While Agentex's backlog is larger than memory, SGP is kept up to date."""
    agentex, sgp = AgentexStandIn(keep_bodies=False), SgpStandIn(keep_bodies=False)
    agentex.rule = lambda _: Hang()
    settings = {"queue__max_bytes": "1MiB", "sgp__linger_s": 0}
    async with spool_world(tmp_path, agentex, sgp, **settings) as w:
        for number in range(200):
            await w.post(end(large(f"s{number}")))
            if number % 20 == 19:
                await w.until(lambda: len(sgp.complete) == len(w.accepted))
        assert depths(w) == (200, 0)


async def test_a_full_spool_responds_with_429(tmp_path: Path) -> None:
    """What does not fit is refused, the files stay below the limit, and no error is counted."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    limit = 4 * MIB
    sizes: list[int] = []
    async with spool_world(tmp_path, agentex, sgp, spool__max_bytes=f"{limit}B", **EAGER) as w:

        async def agent(name: str) -> None:
            for number in range(60):
                made = large(f"{name}-{number}", 20_000)
                response = await w.send(json.dumps(end(made)).encode())
                sizes.append(files_size(tmp_path))
                if response.status == 429:
                    assert response.headers["Retry-After"]
                    return
                w.accepted[made["id"]] = made
            raise AssertionError("the spool never was full")

        await asyncio.gather(*(agent(f"a{n}") for n in range(8)))
        assert (w.spool.degraded, w.spool.status().errors) == (False, 0)
        assert len(w.accepted) > 60
        up(agentex, sgp)
        await w.finish()
        await w.until(lambda: w.spool.file.rows == 0)
        await w.post(end(large("after")))
        await w.finish()
        assert max(sizes) <= limit
        assert (w.spool.degraded, w.spool.status().errors) == (False, 0)


async def test_a_repeated_start_leaves_the_spool(tmp_path: Path) -> None:
    """A second START arrived while the first was in flight; neither stays on disk forever."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    ttl = {"queue__open_span_ttl_s": 0.5}
    async with spool_world(tmp_path, agentex, sgp, **ttl, **EAGER) as w:
        await w.post(start(span("s")))
        await w.until(lambda: w.app.accounting.held == 0)
        await w.post(start(span("s")))
        up(agentex, sgp)
        await w.finish()
        await w.until(lambda: len(w.app.admission.open_spans) == 0)
        await w.until(lambda: w.spool.file.rows == 0)


async def test_the_last_log_line_reports_what_is_kept(tmp_path: Path) -> None:
    """The line says that nothing was lost, and gives the depth of each lane, all on disk."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex)
    with structlog.testing.capture_logs() as logs:
        async with spool_world(tmp_path, agentex, sgp, **EAGER) as w:
            await w.post(*(end(span(f"s{n}")) for n in range(7)))
            await w.until(lambda: depths(w) == (7, 0))
            assert await w.running.stop()
    assert (logs[-1]["event"], logs[-1]["lost"]) == ("stopped", 0)
    assert [logs[-1]["writes"][sink]["depth"] for sink in ("agentex", "sgp")] == [7, 0]
    assert logs[-1]["text"] == (
        "stopped: nothing was lost; 7 events received; "
        "agentex: 0 writes forwarded, 7 waiting on disk; sgp: 7 writes forwarded"
    )


async def test_no_credential_is_written_to_disk(tmp_path: Path) -> None:
    """Prompts are on disk, but no credential is, configured or sent by an agent."""
    agentex, sgp = AgentexStandIn(), SgpStandIn()
    down(agentex, sgp)
    secrets = ["secret-of-agent", "secret-of-sgp", "secret-account", "secret-configured"]
    names = ("x_agent_api_key", "x_api_key", "x_selected_account_id")
    headers = dict(zip(names, secrets, strict=False))
    async with spool_world(tmp_path, agentex, sgp, sgp__api_key=secrets[3], sgp__relay=True) as w:
        await w.post(end(span("s")), start(span("t")), **headers)
        await until(lambda: any(r.headers.get("x-agent-api-key") for r in agentex.requests))
    files = await asyncio.to_thread(all_bytes, tmp_path)
    assert b"input of s" in files
    assert not [secret for secret in secrets if secret.encode() in files]
