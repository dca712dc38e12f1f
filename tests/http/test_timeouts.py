"""One timer for many deadlines."""

import asyncio

from sidecar.http.timeouts import Deadlines
from tests.support.world import run_virtual


def test_each_expires_in_its_time() -> None:
    """An item expires so long after it was added, unless it was done before."""

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
        deadlines.discard("never there")
        await asyncio.sleep(30)
        assert expired == [("b", 11.0), ("d", 12.0)]
        deadlines.add("e")
        await asyncio.sleep(30)
        assert expired[2:] == [("e", 42.0)]

    run_virtual(story())


def test_an_item_that_comes_again_begins_anew() -> None:
    """Done and added again, it has its whole time again."""

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


def test_nothing_expires_after_the_end() -> None:
    """Closed, it has no timer and no items."""

    async def story() -> None:
        expired: list[str] = []
        deadlines: Deadlines[str] = Deadlines(10.0, expired.append)
        deadlines.add("a")
        deadlines.close()
        await asyncio.sleep(30)
        assert expired == []

    run_virtual(story())
