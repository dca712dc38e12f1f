"""The kill test: 50 runs of a sidecar with a spool, under load, with slow upstreams."""

import signal
from pathlib import Path

import pytest

from tests.support.kill import Rig
from tests.support.kill_accounts import KEYS, AccountsRig, check_books, errors

ROUNDS = 50


@pytest.mark.parametrize("sync", [pytest.param("normal", marks=pytest.mark.nightly), "full"])
async def test_what_was_answered_202_outlives_kills(tmp_path: Path, sync: str) -> None:
    """All that got a 202 arrives, despite SIGKILL at random moments, even during commits."""
    rig = Rig(tmp_path, seed=50, settings={"SIDECAR_SPOOL__SYNC": sync})
    async with rig.agentex, rig.sgp:
        for _ in range(ROUNDS // 2):
            life = await rig.live(rig.random.uniform(0.1, 2.0), kill=True)
            assert life.code == -signal.SIGKILL
            assert not [line for line in life.log if line["level"] == "error"]
        await rig.finish()
        assert len(rig.ended) > 10 * ROUNDS


async def test_kills_and_short_graces_by_turns(tmp_path: Path) -> None:
    """With a small spool that fills up, kills and short graces lose nothing, and report so."""
    rig = Rig(tmp_path, seed=12, settings={"SIDECAR_SPOOL__MAX_BYTES": "8MiB"})
    kept = 0
    async with rig.agentex, rig.sgp:
        for number in range(ROUNDS // 5):
            kill = number % 2 == 0
            life = await rig.live(
                rig.random.uniform(0.5, 2.0), kill=kill, SIDECAR_SHUTDOWN__GRACE_S="0.2"
            )
            assert not [line for line in life.log if line["level"] == "error"]
            if not kill:
                last = life.log[-1]
                assert (life.code, last["event"], last["lost"]) == (0, "stopped", 0)
                kept += sum(totals["depth"] for totals in last["writes"].values())
        await rig.finish()
        assert kept > 0


@pytest.mark.parametrize(
    ("seed", "longest_s", "spool"),
    [
        (1, 0.7, "2MiB"),
        pytest.param(2, 2.0, "2MiB", marks=pytest.mark.nightly),
        pytest.param(3, 2.0, "64MiB", marks=pytest.mark.nightly),
    ],
)
async def test_kills_while_lanes_are_full_and_keys_are_refused(
    tmp_path: Path, seed: int, longest_s: float, spool: str
) -> None:
    """What was taken of three accounts arrives, whole, and only ever under its own account's key.

    Whatever happens to the sidecar, to the upstreams, to a key and to the room on disk.
    """
    settings = {"SIDECAR_SPOOL__MAX_BYTES": spool}
    rig = AccountsRig(tmp_path, seed=seed, settings=settings, whole_ends=spool == "2MiB")
    async with rig.agentex, rig.sgp:
        for _ in range(ROUNDS):
            rig.change_the_weather()
            kill = rig.random.random() < 0.8
            life = await rig.live(
                rig.random.uniform(0.1, longest_s), kill=kill, SIDECAR_SHUTDOWN__GRACE_S="0.2"
            )
            assert not errors(life)
            if kill:
                assert life.code == -signal.SIGKILL
            else:
                assert life.code == 0
                check_books(life)
        await rig.finish()
        ids = [sent.id for sent in rig.taken()]
        assert len(ids) > 10 * ROUNDS
        assert len(ids) > len(set(ids))  # some were used by two accounts
        assert {sent.owner for sent in rig.taken()} >= {*KEYS}
        assert rig.not_taken > 0 or spool != "2MiB"
