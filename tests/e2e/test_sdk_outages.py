"""Agents with the real SDKs during an outage of SGP, and during restarts of the sidecar."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.e2e.sdk_support import Pod, Row, comparable, lost, pod, stop

OUTAGE_S = 30.0
FIRST = 20


async def test_an_outage_of_sgp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a 30 s outage of SGP an unchanged agent loses spans, but none with the sidecar."""

    async def away(here: Pod) -> list[Row]:
        async with here.agent("async_agent", "sgp", "until_told") as agent:
            await here.more(FIRST)
            port = here.sgp.port
            await here.sgp.stop()
            await asyncio.sleep(OUTAGE_S)  # the purpose of the test
            await here.sgp.start(port)
            await here.more(FIRST)
            made = await agent.ended()
        await here.delivered()
        return made

    async with (
        pod(tmp_path / "direct", sidecar=False) as direct,
        pod(tmp_path / "sidecar", sidecar=True, SIDECAR_QUEUE__MAX_BYTES="32MiB") as ours,
        asyncio.TaskGroup() as both,
    ):
        runs = {
            "without the sidecar": (direct, both.create_task(away(direct))),
            "with the sidecar": (ours, both.create_task(away(ours))),
        }
    counts = {}
    for name, (here, run) in runs.items():
        made = run.result()
        counts[name] = lost(made, here.arrived().sgp)
        with capsys.disabled():
            print(f"\nSGP away {OUTAGE_S:.0f} s, {name}: {counts[name]} of {len(made)} spans lost")  # noqa: T201
    assert ours.life is not None
    assert "upstream_down" in {line["event"] for line in ours.life.log}
    assert counts["with the sidecar"] == 0
    assert counts["without the sidecar"] > 0
    # Spans that both runs have must be equal.
    with_, without = (comparable(here.arrived().sgp) for here in (ours, direct))
    shared = with_.keys() & without.keys()
    assert len(shared) >= FIRST
    assert {n: with_[n] for n in shared} == {n: without[n] for n in shared}


async def test_a_sidecar_that_is_killed(tmp_path: Path) -> None:
    """With a spool and our processor, SIGKILL and SIGTERM lose no span and blank no field."""
    settings = {"SIDECAR_SPOOL__PATH": str(tmp_path / "spool")}
    async with pod(tmp_path, sidecar=True, **settings) as here:
        assert here.life is not None
        port = here.life.url.rpartition(":")[2]
        async with here.agent("async_agent", "sidecar", "until_told") as agent:
            for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 0)):
                await here.more(2 * FIRST)
                assert await stop(here.life, number) == code
                here.life = await here.rig.start(SIDECAR_LISTENER__PORT=port)
            await here.more(2 * FIRST)
            made = await agent.ended()
        await here.delivered()
        arrived = here.arrived()
    assert lost(made, arrived.agentex) == lost(made, arrived.sgp) == 0
    for rows in arrived:
        for row in rows.values():
            assert (row["input"], row["output"]) == (
                {"prompt": "x" * 2000},
                {"number": int(row["name"].split()[1])},
            )
