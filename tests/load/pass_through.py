"""`python -m tests.load.pass_through`: what pass-through adds to a streamed response.

Sends the same requests directly and through the sidecar, alternately, and measures the time to the
first byte; then one large response to a client that reads slowly, and the sidecar's memory
meanwhile. Asserts nothing.
"""

import argparse
import asyncio
import statistics
import sys
import time

import aiohttp
from aiohttp import web

from .processes import Sidecar, sidecar

WARM_UP = 50
CHUNK, CHUNKS = 64 * 1024, 1600


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    """Respond with server-sent events, one immediately and one at the end; or a large body."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    if request.path.endswith("/large"):
        for _ in range(CHUNKS):
            await response.write(b"x" * CHUNK)
    else:
        await response.write(b"data: 1\n\n")
        await response.write(b"data: 2\n\n")
    return response


async def first_byte_ms(session: aiohttp.ClientSession, url: str) -> float:
    """Return milliseconds from the request to the first byte of the body."""
    began = time.perf_counter()
    async with session.get(f"{url}/v5/chat") as response:
        await response.content.readany()
        took = time.perf_counter() - began
        await response.read()
    return took * 1000


async def large_mib(session: aiohttp.ClientSession, url: str, watched: Sidecar) -> float:
    """Return how many MiB the sidecar grows while a slow client reads 100 MiB."""
    before, peak = watched.rss_mib(), 0.0
    async with session.get(f"{url}/v5/large") as response:
        count = 0
        while await response.content.readany():
            count += 1
            if count % 20 == 0:
                peak = max(peak, watched.rss_mib())
                await asyncio.sleep(0.005)
    return peak - before


async def measure(requests: int) -> None:
    """Print the figures."""
    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        direct = f"http://127.0.0.1:{runner.addresses[0][1]}"
        settings = {"SIDECAR_SGP__BASE_URL": direct, "SIDECAR_SGP__RELAY": "true"}
        with sidecar(**settings, SIDECAR_LISTENER__PASS_THROUGH="true") as watched:
            through = f"http://127.0.0.1:{watched.port}"
            times: dict[str, list[float]] = {direct: [], through: []}
            async with aiohttp.ClientSession(read_bufsize=CHUNK) as session:
                for number in range(WARM_UP + requests):
                    for url, taken in times.items():
                        took = await first_byte_ms(session, url)
                        if number >= WARM_UP:
                            taken.append(took)
                for name, url in (("direct", direct), ("through", through)):
                    cuts = statistics.quantiles(times[url], n=100)
                    print(f"{name:8} first byte ms: p50 {cuts[49]:.2f}  p99 {cuts[98]:.2f}")
                added = statistics.median(times[through]) - statistics.median(times[direct])
                print(f"added: {added:.2f} ms at the median")
                grown = await large_mib(session, through, watched)
                print(f"100 MiB to a slow reader: RSS grew by {grown:.2f} MiB")
                grown = await large_mib(session, through, watched)
                print(f"once more: RSS grew by {grown:.2f} MiB")
    finally:
        await runner.cleanup()


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    asyncio.run(measure(parser.parse_args().requests))
    return 0


if __name__ == "__main__":
    sys.exit(main())
