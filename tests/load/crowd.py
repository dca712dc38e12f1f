"""`python -m tests.load.crowd`: what agents notice of a crowd.

Agents post a small span ten times a second per connection while, in turn, nobody, 2,600 clients
with 64 KB of an unfinished request line, 5,000 idle clients and 64 clients that ask for /metrics
without pause use the admin port. The sidecar may have 1,024 descriptors. Targets: at most 8 MiB
more memory, agents' p99 below 10 ms (p50 at most 5 ms beside /metrics), /livez always answered.
Last, with descriptors enough, 1,000 clients of the agents' port flush about once a second each:
the agents' p99 stays as it is. Asserts nothing.
"""

import asyncio
import contextlib
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson

from .processes import Sidecar, sidecar, stand_ins

DESCRIPTORS = 1024
SECONDS = 12.0
AGENTS = 4
TIME = "2026-01-02T03:04:05Z"
LINE = b"GET /" + b"x" * 65_000
SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
FLUSH = b"POST /v1/flush HTTP/1.1\r\nHost: localhost\r\n\r\n"
FLUSHING = 1000
LIVE = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
HEAD = b"POST /v1/spans HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

Crowd = Callable[[int], Awaitable[None]]
# The crowd has a process of its own, so that the agents' latency is the sidecar's.
_process = multiprocessing.get_context("fork").Process


def post(number: int) -> bytes:
    """A post of one END."""
    span = {"id": f"s{number}", "trace_id": "t", "name": "n", "start_time": TIME, "end_time": TIME}
    body = orjson.dumps({"event_type": "end", "span": span})
    return HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def response(reader: asyncio.StreamReader) -> bytes:
    """Read one response; return its status line."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return head.partition(b"\r\n")[0]


class Observer:
    """Posts spans and asks /livez until it is cancelled, and keeps what it saw."""

    def __init__(self, port: int, admin: int) -> None:
        self.port, self.admin = port, admin
        self.seconds: list[float] = []
        self.probes = self.failures = 0
        self._number = 0

    async def agent(self, *, anew: bool) -> None:
        """Post every 0.1 s, on one connection or each time on a new one."""
        reader = writer = None
        while True:
            await asyncio.sleep(0.1)
            self._number += 1
            begun = time.perf_counter()
            try:
                if reader is None or writer is None or anew:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(post(self._number))
                line = await response(reader)
                self.failures += b" 202 " not in line
                if anew:
                    writer.close()
            except (OSError, asyncio.IncompleteReadError):
                self.failures += 1
                reader = None
            self.seconds.append(time.perf_counter() - begun)

    async def kubelet(self) -> None:
        """Ask /livez every 0.2 s on a new connection."""
        while True:
            await asyncio.sleep(0.2)
            self.probes += 1
            try:
                async with asyncio.timeout(1):  # the default of a probe
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.admin)
                    writer.write(LIVE)
                    self.failures += b" 200 " not in await response(reader)
                    writer.close()
            except (OSError, asyncio.IncompleteReadError):
                self.failures += 1


@contextlib.asynccontextmanager
async def running(*coroutines: Awaitable[None]) -> AsyncIterator[None]:
    """Run them, and cancel them at the end."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def holding(count: int, sent: bytes, admin: int) -> None:
    """Open `count` connections that send `sent` and nothing more; open closed ones again."""

    async def hold() -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", admin)
                writer.write(sent)
                await reader.read()
                writer.close()
            await asyncio.sleep(1)

    async with running(*(hold() for _ in range(count))):
        await asyncio.sleep(SECONDS)


async def scraping(count: int, admin: int) -> None:
    """Ask for /metrics on `count` connections without pause."""

    async def scrape() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", admin)
        while True:
            writer.write(SCRAPE)
            await response(reader)

    async with running(*(scrape() for _ in range(count))):
        await asyncio.sleep(SECONDS)


async def flushing(count: int, port: int) -> None:
    """Flush on `count` connections, once a second each, but not all at the same moment."""

    async def flush(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(number / count)
        while True:
            writer.write(FLUSH)
            await response(reader)
            await asyncio.sleep(1)

    async with running(*(flush(number) for number in range(count))):
        await asyncio.sleep(SECONDS)


def start(crowd: Crowd, admin: int) -> None:
    """Be the crowd."""
    asyncio.run(asyncio.wait_for(crowd(admin), 2 * SECONDS))


async def observe(watched: Sidecar, crowd: Crowd | None, name: str) -> None:
    """Print what agents and probes saw while `crowd` was there."""
    admin = watched._admin.port
    observer = Observer(watched.port, admin)
    before = watched.rss_mib()
    agents = [observer.agent(anew=number % 2 == 0) for number in range(AGENTS)]
    other = None if crowd is None else _process(target=start, args=(crowd, admin))
    if other is not None:
        other.start()
    async with running(*agents, observer.kubelet()):
        await asyncio.sleep(SECONDS - 1)
        rss = watched.rss_mib()
    if other is not None:
        other.terminate()
        other.join()
    cuts = statistics.quantiles(observer.seconds, n=100)
    print(
        f"{name:34}{cuts[49] * 1000:8.2f}{cuts[98] * 1000:8.2f}{rss - before:+8.1f}"
        f"{len(observer.seconds) + observer.probes:8d}{observer.failures:8d}"
    )


def main() -> int:
    """Run it and return the exit code."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with stand_ins(5.0) as upstreams:
        environment = {
            "SIDECAR_AGENTEX__BASE_URL": upstreams.urls["agentex"],
            "SIDECAR_SGP__BASE_URL": upstreams.urls["sgp"],
            "SIDECAR_SGP__API_KEY": "b",
            "SIDECAR_SGP__ACCOUNT_ID": "b",
        }
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
        with sidecar(**environment) as watched:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            print(f"{'crowd':34}{'p50 ms':>8}{'p99 ms':>8}{'MiB':>8}{'asked':>8}{'failed':>8}")
            for name, crowd in (
                ("nobody", None),
                ("2,600 unfinished request lines", lambda port: holding(2600, LINE, port)),
                ("5,000 idle", lambda port: holding(5000, b"", port)),
                ("64 scrapers", lambda port: scraping(64, port)),
            ):
                asyncio.run(observe(watched, crowd, name))
        with sidecar(**environment) as watched:
            port = watched.port
            for name, crowd in (
                ("nobody, many descriptors", None),
                (f"{FLUSHING:,} that flush", lambda _: flushing(FLUSHING, port)),
            ):
                asyncio.run(observe(watched, crowd, name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
