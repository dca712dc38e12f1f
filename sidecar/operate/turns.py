"""Work for operators on the event loop, in small pieces: the agents have the loop in between."""

import asyncio
from time import perf_counter

# After a piece of work, the loop is left to the agents for so many times as long.
AGENTS_SHARE = 3


class Turns:
    """One piece of work after the other. Create it when the first one begins."""

    def __init__(self) -> None:
        self._began = perf_counter()

    async def next(self) -> None:
        """End a piece of work, and return when the next one may begin."""
        await asyncio.sleep(AGENTS_SHARE * (perf_counter() - self._began))
        self._began = perf_counter()
