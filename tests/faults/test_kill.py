"""The short kill test; tests/e2e/test_kill.py has the long one."""

import signal
from pathlib import Path

import pytest

from sidecar.demo.stand_in import Hang
from tests.support.kill import Rig


@pytest.mark.slow
async def test_accepted_events_outlive_kills(tmp_path: Path) -> None:
    """Three kills under load: every accepted event arrives, complete and in order."""
    rig = Rig(tmp_path, seed=1)
    async with rig.agentex, rig.sgp:
        for _ in range(3):
            life = await rig.live(rig.random.uniform(0.3, 1.2), kill=True)
            assert life.code == -signal.SIGKILL
        await rig.finish()
        assert len(rig.ended) > 20


@pytest.mark.slow
async def test_a_grace_too_short_to_drain_loses_nothing(tmp_path: Path) -> None:
    """SIGTERM while the upstreams hang: the rest stays in the spool and is sent later."""
    rig = Rig(tmp_path, seed=2)
    async with rig.agentex, rig.sgp:
        rig.agentex.rule = rig.sgp.rule = lambda _: Hang()
        life = await rig.live(0.7, kill=False, SIDECAR_SHUTDOWN__GRACE_S="0.3")
        assert life.code == 0
        last = life.log[-1]
        assert (last["event"], last["lost"]) == ("stopped", 0)
        for totals in last["writes"].values():
            assert len(rig.started) <= totals["depth"] + totals["superseded"]
        rig.agentex.rule = rig.sgp.rule = None
        await rig.finish()
        assert len(rig.ended) > 5
