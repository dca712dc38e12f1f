"""`python -m sidecar.demo.serve`: both stand-ins in one process, for benchmarks and experiments.

Prints one line of JSON with their URLs once both are up. Ends on SIGTERM or SIGINT, or when its
stdin is a pipe that is closed, so that it never outlives its parent.
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
from sidecar.demo.stand_in import Options


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
    uvloop.run(_serve(parser.parse_args()))


async def _serve(arguments: argparse.Namespace) -> None:
    light = arguments.light
    options = Options(
        latency_s=arguments.latency_ms / 1000, keep_bodies=not light, digest=light, echo=not light
    )
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stdin = sys.stdin.fileno()

    def stop_at_eof() -> None:
        if not os.read(stdin, 4096):
            stop.set()

    if stat.S_ISFIFO(os.fstat(stdin).st_mode) or stat.S_ISSOCK(os.fstat(stdin).st_mode):
        loop.add_reader(stdin, stop_at_eof)
    async with AsyncExitStack() as stack:
        agentex, sgp = AgentexStandIn(**options), SgpStandIn(**options)
        for stand_in, port in ((agentex, arguments.agentex_port), (sgp, arguments.sgp_port)):
            await stand_in.start(port)
            stack.push_async_callback(stand_in.stop)
        ready = msgspec.json.encode({"agentex": agentex.url, "sgp": sgp.url})
        sys.stdout.write(ready.decode() + "\n")
        sys.stdout.flush()
        await stop.wait()
        loop.remove_reader(stdin)


if __name__ == "__main__":
    main()
