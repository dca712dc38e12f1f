"""`sidecar demo`: a sample agent, a real sidecar, and stand-ins for both upstreams, in one process.

All parts communicate over real HTTP on loopback. Prints a line twice a second while spans flow,
then a summary of the accounting. Exits with 0 if every span reached both stand-ins and the
accounting balances.
"""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from sidecar import logs
from sidecar.app import App
from sidecar.config import Config
from sidecar.config_load import load
from sidecar.demo.agent import SampleAgent
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.operate.top_frame import UNKNOWN, size
from sidecar.process.terminal import show

CONVERSATIONS = 20
CONCURRENT = 5
UPSTREAM_LATENCY_S = 0.03
LINE_EVERY_S = 0.5
AGENT = {"AGENT_NAME": "demo-agent", "AGENT_ID": "demo-1", "AGENT_VERSION": "demo"}


async def run_demo(*, forever: bool) -> int:
    """Run the demo and return its exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        agentex = await stack.enter_async_context(AgentexStandIn(latency_s=UPSTREAM_LATENCY_S))
        sgp = await stack.enter_async_context(
            SgpStandIn(latency_s=UPSTREAM_LATENCY_S, api_key="demo-key", account_id="demo-account")
        )
        app = App(_config(agentex.url, sgp.url), AGENT)
        ready = asyncio.Event()
        running = asyncio.create_task(app.run(ready))
        await asyncio.wait(
            [running, asyncio.ensure_future(ready.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        if running.done():
            running.result()
        listener = f"http://127.0.0.1:{app.ports['listener']}"
        admin = f"http://127.0.0.1:{app.ports['admin']}"
        show(f"agents post to {listener}/v1/spans; open {admin}/ or {admin}/metrics")
        session = await stack.enter_async_context(aiohttp.ClientSession())
        agent = SampleAgent(session, listener)
        lines = asyncio.create_task(_lines(session, admin))
        await _work(agent, stop, forever=forever)
        app.stop()
        nothing_lost = await running
        lines.cancel()
        return _summary(app, agent, agentex, sgp, nothing_lost=nothing_lost)


def _config(agentex_url: str, sgp_url: str) -> Config:
    config = load(
        None,
        {
            "SIDECAR_LISTENER__PORT": "0",
            "SIDECAR_ADMIN__PORT": "0",
            "SIDECAR_ADMIN__HOST": "127.0.0.1",
            "SIDECAR_SHUTDOWN__QUIET_S": "0.1",
            "SIDECAR_LOG__LEVEL": "warning",
            "SIDECAR_LOG__FORMAT": "console",
            "AGENTEX_BASE_URL": agentex_url,
            "SGP_CLIENT_BASE_URL": sgp_url,
            "SGP_API_KEY": "demo-key",
            "SGP_ACCOUNT_ID": "demo-account",
        },
    )
    logs.configure(config.log)
    return config


async def _work(agent: SampleAgent, stop: asyncio.Event, *, forever: bool) -> None:
    async def worker(conversations: int) -> None:
        while not stop.is_set() and (forever or conversations):
            await agent.converse()
            conversations -= 1

    async with asyncio.TaskGroup() as workers:
        for _ in range(CONCURRENT):
            workers.create_task(worker(CONVERSATIONS // CONCURRENT))


async def _lines(session: aiohttp.ClientSession, admin: str) -> None:
    while True:
        async with session.get(f"{admin}/status") as response:
            show(_line(await response.json()))
        await asyncio.sleep(LINE_EVERY_S)


def _line(status: Mapping[str, Any]) -> str:
    lanes = "   ".join(
        f"{name}: forwarded {lane['forwarded']:5} queued {lane['depth']:4}"
        for name, lane in status["sinks"].items()
    )
    rss = status["memory"]["rss_bytes"]
    return (
        f"received {status['events']['received']:6} events   {lanes}   "
        f"RSS of this process {UNKNOWN if rss is None else size(rss)}"
    )


def _summary(
    app: App, agent: SampleAgent, agentex: AgentexStandIn, sgp: SgpStandIn, *, nothing_lost: bool
) -> int:
    status = app.status()
    events = status["events"]
    show("")
    show(f"the agent created {agent.spans} spans; {agent.refused} posts were refused")
    show(
        f"events: received {events['received']} = joined {events['joined']} + held "
        f"{events['held']} + written {events['written']}"
    )
    imbalance = events["imbalance"]
    for name, lane in status["sinks"].items():
        imbalance += abs(lane["imbalance"])
        show(
            f"{name}: written {lane['written']} = forwarded {lane['forwarded']} + superseded "
            f"{lane['superseded']} + skipped {lane['skipped']} + dead-lettered "
            f"{lane['dead_lettered']} + lost {lane['lost']} + depth {lane['depth']}"
        )
    arrived = {"agentex": len(agentex.spans), "sgp": len(sgp.spans)}
    show(f"spans that reached the stand-ins: {arrived}")
    good = nothing_lost and not imbalance and set(arrived.values()) == {agent.spans}
    show("the accounting balances; nothing was lost" if good else "SOMETHING IS WRONG: see above")
    return 0 if good else 1
