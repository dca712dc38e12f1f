"""`python -m sidecar.demo.serve`: both stand-ins in one process, for the demo and benchmarks.

Prints one line of JSON with their URLs once both are up. Ends on SIGTERM or SIGINT, or when its
stdin is a pipe that is closed, so that it never outlives its parent.

Takes commands from such a pipe, one a line: `stop sgp` (as if killed), `start sgp` (on the same
port), or the same for agentex; `end PID` ends that sidecar too, should the pipe be closed, and
serves until it has delivered what it holds.
"""

import argparse
import asyncio
import os
import signal
import stat
import sys
from contextlib import AsyncExitStack

import msgspec
import uvloop

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Options, StandIn

# A sidecar ends within its grace period and a second (D28).
SIDECAR_ENDS_S = 30.0
POLL_S = 0.1


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="Stand-ins for Agentex and SGP.")
    parser.add_argument("--agentex-port", type=int, default=0, metavar="PORT", help="0: any")
    parser.add_argument("--sgp-port", type=int, default=0, metavar="PORT", help="0: any")
    parser.add_argument("--latency-ms", type=float, default=0.0, metavar="MS")
    parser.add_argument(
        "--light",
        action="store_true",
        help="only count writes and digest inputs: no checks, no rows, no echo",
    )
    parser.add_argument(
        "--max-spans", type=int, metavar="N", help="with --light: forget all but the newest N spans"
    )
    uvloop.run(_serve(parser.parse_args()))


async def _serve(arguments: argparse.Namespace) -> None:
    light = arguments.light
    options = Options(
        latency_s=arguments.latency_ms / 1000,
        keep_bodies=not light,
        digest=light,
        echo=not light,
        max_spans=arguments.max_spans,
    )
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        agentex, sgp = AgentexStandIn(**options), SgpStandIn(**options)
        for stand_in, port in ((agentex, arguments.agentex_port), (sgp, arguments.sgp_port)):
            await stand_in.start(port)
            stack.push_async_callback(stand_in.stop)
        ready = msgspec.json.encode({"agentex": agentex.url, "sgp": sgp.url})
        sys.stdout.write(ready.decode() + "\n")
        sys.stdout.flush()
        waits: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            waits.append(asyncio.create_task(_obey({"agentex": agentex, "sgp": sgp})))
        done, left = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in left:
            each.cancel()
        await asyncio.gather(*done)  # raises what went wrong


async def _obey(stand_ins: dict[str, StandIn]) -> None:
    """Follow the commands on stdin until it is closed."""
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    sidecar = 0
    while line := await commands.readline():
        match line.decode().split():
            case ["stop", name]:
                await stand_ins[name].stop()
            case ["start", name]:
                await stand_ins[name].start(stand_ins[name].port)
            case ["end", pid]:
                sidecar = int(pid)
    if sidecar:
        await _end(sidecar)


async def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(SIDECAR_ENDS_S):
            while True:
                await asyncio.sleep(POLL_S)
                os.kill(pid, 0)
    except (ProcessLookupError, TimeoutError):
        pass


if __name__ == "__main__":
    main()
