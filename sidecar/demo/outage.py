"""The outage of `sidecar demo --outage`: SGP's stand-in dies, and comes back.

Every step waits for what the sidecar's `/status` says, as a person would at the status page.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import aiohttp

from sidecar.demo.children import DemoError
from sidecar.operate.words import duration

# Traffic before the outage, and how long the oldest span has waited when it ends: the status page
# calls that late.
BEFORE_S, LATE_S = 4.0, 6.0
# The most that a step may take.
STEP_S = 30.0
POLL_S = 0.1

Status = Mapping[str, Any]


class Outage:
    """One outage. `status` reads `/status`, `tell` commands the stand-ins, `say` tells people.

    Once `stop` is set, it ends as soon as the stand-in is back.
    """

    def __init__(
        self,
        status: Callable[[], Awaitable[Status]],
        tell: Callable[[str], None],
        say: Callable[[str], None],
        stop: asyncio.Event,
    ) -> None:
        self._status, self._tell, self._say, self._stop = status, tell, say, stop
        self.is_over = False
        self.summary = ""

    async def run(self) -> None:
        """Play it; raises `DemoError` if a step takes too long."""
        time = asyncio.get_running_loop().time
        traffic = "any span reached SGP"
        await self._until(lambda s: s["uptime_s"] >= BEFORE_S and _sgp(s)["forwarded"], traffic)
        if not self._stop.is_set():
            self._say("")
            self._say("An outage: SGP's stand-in dies. Connections are reset, its port is closed.")
            self._tell("stop sgp")
            began = time()
            status = await self._until(lambda s: _sgp(s)["state"] == "down", "SGP was down")
            self._say(f"The status page says: {_answer(status, 'Why?')}.")
            self._say("The agent goes on. Its spans reach Agentex as before, and wait for SGP.")
            status = await self._until(lambda s: _age(s) >= LATE_S, "SGP was late")
            waiting = f"{_sgp(status)['depth']:,} spans"
            if not self._stop.is_set():
                self._say(f"The status page says: {_answer(status, 'Is it late?')}.")
            self._say(f"SGP's stand-in comes back, on the same port; {waiting} wait for it.")
            self._tell("start sgp")
            back = time()
            self.summary = f"SGP was away for {duration(back - began)}; {waiting} waited for it"
            await self._until(lambda s: _age(s) < time() - back, "what waited for SGP arrived")
            if not self._stop.is_set():
                self._say(f"All of them have arrived, {duration(time() - back)} later.")
                self._say("")
        self.is_over = True

    async def _until(self, reached: Callable[[Status], object], what: str) -> Status:
        try:
            async with asyncio.timeout(STEP_S):
                while True:
                    with suppress(aiohttp.ClientError):  # the sidecar is gone: the demo says so
                        status = await self._status()
                        if reached(status) or self._stop.is_set():
                            return status
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise DemoError(f"it took more than {STEP_S:.0f} s until {what}") from None


def _sgp(status: Status) -> Mapping[str, Any]:
    sink: Mapping[str, Any] = status["sinks"]["sgp"]
    return sink


def _age(status: Status) -> float:
    """The age of the oldest write that waits for SGP, in seconds."""
    return float(_sgp(status)["oldest_write_age_s"])


def _answer(status: Status, question: str) -> str:
    """What the page answers to one of its questions."""
    [found] = [each for each in status["answers"] if each["question"] == question]
    return f"{found['answer']} ({found['detail']})"
