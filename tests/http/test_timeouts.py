"""Many timeouts on one timer."""

import asyncio

from sidecar.http.timeouts import Deadlines
from tests.support.virtual_time import run_virtual


def test_items_expire() -> None:
    """Each item expires the given time after it was added, unless it was discarded."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        expired: list[tuple[str, float]] = []
        deadlines: Deadlines[str] = Deadlines(
            10.0, lambda item: expired.append((item, loop.time()))
        )
        deadlines.add("a")
        await asyncio.sleep(1)
        deadlines.add("b")
        deadlines.add("c")
        await asyncio.sleep(1)
        deadlines.add("d")
        deadlines.discard("a")
        deadlines.discard("c")
        deadlines.discard("never added")
        await asyncio.sleep(30)
        assert expired == [("b", 11.0), ("d", 12.0)]
        deadlines.add("e")
        await asyncio.sleep(30)
        assert expired[2:] == [("e", 42.0)]

    run_virtual(story())


def test_discarding_and_adding_restarts_the_timeout() -> None:
    """An item that was discarded and added again has its full time."""

    async def story() -> None:
        loop = asyncio.get_running_loop()
        expired: list[float] = []
        deadlines: Deadlines[str] = Deadlines(10.0, lambda _: expired.append(loop.time()))
        deadlines.add("a")
        await asyncio.sleep(5)
        deadlines.discard("a")
        deadlines.add("a")
        await asyncio.sleep(30)
        assert expired == [15.0]

    run_virtual(story())
