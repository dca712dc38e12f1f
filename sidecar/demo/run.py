"""`sidecar demo`: a sample agent, a real `sidecar run`, and stand-ins for both upstreams.

The agent is this process, the others are processes of their own (children.py). They communicate
over real HTTP on loopback. Shows how far it is while spans flow, then a summary of the accounting.
Exits with 0 if every span that the agent finished reached both stand-ins and the accounting
balances, whatever others post to the sidecar meanwhile.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aiohttp

from sidecar.config import AdminConfig, ListenerConfig
from sidecar.demo.agent import SampleAgent
from sidecar.demo.children import Child, DemoError, Ports, Sidecar, StandIns, port_or_any
from sidecar.demo.commands import explain_command, what_to_copy
from sidecar.demo.outage import Outage
from sidecar.demo.screen import Screen
from sidecar.demo.stand_in import REPORT
from sidecar.operate.top_line import UNKNOWN, size
from sidecar.process.signals import STOPS, taken

CONVERSATIONS = 20
CONCURRENT = 5
# With --forever, between two conversations: `explain` then knows the spans of the last minutes.
PAUSE_S = 5.0
UPSTREAM_LATENCY_MS = 30
# How many spans each stand-in remembers. The demo asks for its own within `LINE_EVERY_S`.
MAX_SPANS = 10_000
LINE_EVERY_S = 0.5
# With --forever, how often there is a new id to explain.
ID_EVERY_S = 60.0
HOST = "127.0.0.1"


async def run_demo(*, forever: bool, outage: bool) -> int:
    """Run the demo and return its exit code."""
    screen = Screen()
    stop = asyncio.Event()
    children: list[Child] = []

    def on_signal() -> None:
        if stop.is_set():
            screen.say("a second signal: the sidecar loses what it has not delivered yet")
            for sidecar in children[1:]:
                sidecar.terminate()
        stop.set()

    for number in STOPS & taken():
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    try:
        stand_ins = await StandIns.spawn(UPSTREAM_LATENCY_MS, MAX_SPANS)
        children.append(stand_ins)
        await stand_ins.ready()
        sidecar = await Sidecar.spawn(_settings(stand_ins.urls), screen.say)
        children.append(sidecar)
        stand_ins.tell(f"end {sidecar.process.pid}")
        ports = await sidecar.ready()
        async with aiohttp.ClientSession() as session:
            demo = Demo(screen, session, stand_ins, sidecar, ports, stop, forever=forever)
            return await demo.run(outage=outage)
    except DemoError as error:
        screen.say(f"SOMETHING IS WRONG: {error}")
        return 1
    finally:
        for child in children:
            await child.kill()


def _settings(urls: Mapping[str, str]) -> dict[str, str]:
    """All that the sidecar is configured by. Its ports are the usual ones where they are free."""
    listener = ListenerConfig()
    return {
        "SIDECAR_LISTENER__PORT": str(port_or_any(listener.port, listener.hosts)),
        "SIDECAR_ADMIN__PORT": str(port_or_any(AdminConfig().port, [HOST])),
        "SIDECAR_ADMIN__HOST": HOST,
        "SIDECAR_SHUTDOWN__QUIET_S": "0.1",
        "SIDECAR_LOG__FORMAT": "json",
        "AGENTEX_BASE_URL": urls["agentex"],
        "SGP_CLIENT_BASE_URL": urls["sgp"],
        "SGP_API_KEY": "demo-key",
        "SGP_ACCOUNT_ID": "demo-account",
        "AGENT_NAME": "demo-agent",
        "AGENT_ID": "demo-1",
        "AGENT_VERSION": "demo",
    }


class Demo:
    """The agent at work, and what is shown of it, until it is done or `stop` is set."""

    def __init__(
        self,
        screen: Screen,
        session: aiohttp.ClientSession,
        stand_ins: StandIns,
        sidecar: Sidecar,
        ports: Ports,
        stop: asyncio.Event,
        *,
        forever: bool,
    ) -> None:
        self._screen = screen
        self._session = session
        self._stand_ins = stand_ins
        self._sidecar = sidecar
        self._ports = ports
        self._stop = stop
        self._forever = forever
        self._agent = SampleAgent(session, f"http://{HOST}:{ports.listener}")
        self._outage = Outage(self._status, stand_ins.tell, screen.say, stop)
        # For each stand-in, the digests of the agent's finished spans that it does not have yet.
        self._missing: dict[str, dict[str, str]] = {name: {} for name in stand_ins.urls}

    async def run(self, *, outage: bool) -> int:
        """Run it, stop the sidecar, and return the exit code; raises `DemoError`."""
        if not self._forever:
            self._screen.say(
                "This ends by itself. With --forever, it keeps running for what you post:"
            )
        for line in what_to_copy(self._ports):
            self._screen.say(line)
        self._outage.is_over = not outage
        children = self._stand_ins, self._sidecar
        ends = [asyncio.create_task(child.ended()) for child in children]
        working = [asyncio.create_task(self._work()), asyncio.create_task(self._show())]
        try:
            await asyncio.wait([*ends, *working], return_when=asyncio.FIRST_COMPLETED)
            for child, end in zip(children, ends, strict=True):
                if end.done():
                    raise DemoError(f"{child.title} ended by itself, with exit code {end.result()}")
            await next(task for task in working if task.done())  # raises what went wrong
            code = await self._sidecar.stop()
        finally:
            for task in (*ends, *working):
                task.cancel()
        await self._check_off()
        return self._summarize(code)

    async def _work(self) -> None:
        outage = () if self._outage.is_over else (self._outage.run(),)
        await asyncio.gather(*map(self._worker, range(CONCURRENT)), *outage)

    async def _worker(self, number: int) -> None:
        pause_s = PAUSE_S if self._forever else 0.0
        await self._pause(pause_s * number / CONCURRENT)
        left = CONVERSATIONS // CONCURRENT
        while not self._stop.is_set() and (self._forever or left > 0 or not self._outage.is_over):
            await self._agent.converse()
            await self._pause(pause_s)
            left -= 1

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    async def _show(self) -> None:
        """Show ids to explain, and how far it is."""
        time = asyncio.get_running_loop().time
        next_id_at = time()
        while True:
            if self._agent.latest and next_id_at <= time():
                self._screen.say(explain_command(self._ports, self._agent.latest))
                next_id_at = time() + (ID_EVERY_S if self._forever else float("inf"))
            with suppress(aiohttp.ClientError):  # it is stopping, or gone
                self._screen.progress(progress(await self._status()))
            await self._check_off()
            await asyncio.sleep(LINE_EVERY_S)

    async def _status(self) -> dict[str, Any]:
        async with self._session.get(f"http://{HOST}:{self._ports.admin}/status") as response:
            status: dict[str, Any] = await response.json()
            return status

    async def _check_off(self) -> None:
        """Ask the stand-ins for the agent's finished spans that were not known to be there."""
        for missing in self._missing.values():
            missing.update(self._agent.unchecked)
        self._agent.unchecked = {}
        for name, missing in self._missing.items():
            with suppress(aiohttp.ClientError):  # there is an outage
                url = f"{self._stand_ins.urls[name]}{REPORT}"
                async with self._session.post(url, json=list(missing)) as response:
                    for id_, digest in (await response.json()).items():
                        if missing[id_] == digest:
                            del missing[id_]

    def _summarize(self, code: int) -> int:
        agent, stopped, say = self._agent, self._sidecar.stopped, self._screen.say
        if stopped is None:
            raise DemoError(f"the sidecar said nothing at its end; its exit code is {code}")
        events = stopped["events"]
        others = events["received"] - agent.accepted
        say()
        arrived = ", ".join(
            f"{agent.finished - len(missing):,} are complete at {name}"
            for name, missing in self._missing.items()
        )
        say(f"the agent finished {agent.finished:,} spans: {arrived}")
        for line in accounting(stopped):
            say(line)
        if self._outage.summary:
            say(self._outage.summary)
        if agent.refused:
            say(f"{agent.refused:,} posts of the agent were refused")
        if others:
            say(f"{others:,} events were posted by others")
        imbalance = sum(abs(each["imbalance"]) for each in (events, *stopped["writes"].values()))
        good = not (code or imbalance or any(self._missing.values()))
        # What others post may fill the sidecar's memory, and then it refuses the agent's, too.
        if not good or (agent.refused and not others):
            say("SOMETHING IS WRONG: see above")
            return 1
        say("the accounting balances; nothing was lost")
        return 0


def accounting(stopped: Mapping[str, Any]) -> list[str]:
    """The sidecar's last log line, for people."""
    events = stopped["events"]
    parts = " + ".join(f"{part} {events[part]}" for part in ("joined", "held", "written"))
    lines = [f"events: received {events['received']} = {parts}"]
    terms = "forwarded", "superseded", "skipped", "dead_lettered", "lost", "depth"
    for name, lane in stopped["writes"].items():
        shown = " + ".join(f"{term.replace('_', '-')} {lane[term]}" for term in terms)
        lines.append(f"{name}: written {lane['written']} = {shown}")
    return lines


def progress(status: Mapping[str, Any]) -> str:
    """How far it is, in one line."""
    rss = status["memory"]["rss_bytes"]
    parts = [f"sidecar's RSS {UNKNOWN if rss is None else size(rss)}"]
    for name, lane in status["sinks"].items():
        parts.append(f"{name} {lane['forwarded']:4} sent {lane['depth']:3} queued")
    return "  ".join([*parts, f"{status['events']['received']:4} events received"])
