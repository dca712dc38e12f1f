"""The alarm, in virtual time."""

import asyncio
from math import inf

from sidecar.process.alarm import Alarm
from tests.support.virtual_time import run_virtual


def rung(*times: float, cancel: bool = False) -> list[float]:
    """When an alarm rings that is set to `times` at once."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        alarm = Alarm(lambda: seen.append(loop.time()))
        for when in times:
            alarm.set(when)
        assert alarm.due == min(times, default=inf)
        if cancel:
            alarm.cancel()
            assert alarm.due == inf
        await asyncio.sleep(100)
        return seen

    return run_virtual(run())


def test_it_rings_once_at_the_earliest_time() -> None:
    """Later times are dropped, in whatever order they are set."""
    assert rung(3.0, 1.0, 2.0) == rung(1.0, 2.0, 3.0) == [1.0]


def test_a_time_that_is_over_rings_at_once() -> None:
    """It never waits for the past."""
    assert rung(-5.0) == [0.0]


def test_a_cancelled_alarm_does_not_ring() -> None:
    """Nor does one that was never set."""
    assert rung(1.0, 2.0, cancel=True) == rung() == []


def test_it_can_be_set_again_while_it_rings() -> None:
    """What it calls may set it: this is how every user of it goes on."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        seen: list[float] = []

        def ring() -> None:
            seen.append(loop.time())
            alarm.set(loop.time() + 10)

        alarm = Alarm(ring)
        alarm.set(1.0)
        await asyncio.sleep(25)
        alarm.cancel()
        return seen

    assert run_virtual(run()) == [1.0, 11.0, 21.0]
