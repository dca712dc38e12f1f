"""`python -m tests.load.admin_cost`: the cost of scrapes and an open status page.

Everything is enabled: both upstreams, a spool, a dead-letter file, and values in every histogram.
Targets: `/metrics` under 20 ms, and under 1% of a core for a scrape every 15 s and an open page.
Asserts nothing.
"""

import argparse
import http.client
import statistics
import sys
import tempfile
import time

from .backlog import drained, settings
from .loads import Plan
from .processes import Sidecar, _get, driver, sidecar, stand_ins

SPANS = 2000
SIZE = 2000
SCRAPE_EACH_S = 15.0
PAGE_EACH_S = 1.0  # POLL_MS of the status page
LOAD_S = 120.0


def main() -> int:
    """Run it and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=300, help="for each path")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stand_ins(5.0) as upstreams:
        environment = settings(dict(upstreams.urls), folder, "64MiB")
        environment["SIDECAR_DEAD_LETTERS__PATH"] = f"{folder}/letters.jsonl"
        with sidecar(**environment) as watched:
            load(watched)
            print(f"{'path':34}{'bytes':>8}{'p50 ms':>8}{'p99 ms':>8}{'CPU ms':>8}")
            scrape = ask(watched, "/metrics", arguments.requests)
            # The page requests new samples only.
            after = _get(watched._admin, "/status/history?after=0")["next"] - 1
            page = ask(watched, "/status", arguments.requests)
            page += ask(watched, f"/status/history?after={after}", arguments.requests)
            share = 100 * (scrape / SCRAPE_EACH_S + page / PAGE_EACH_S)
            print(
                f"a scrape each {SCRAPE_EACH_S:g} s: {100 * scrape / SCRAPE_EACH_S:.3f} % of a core"
            )
            print(f"with an open page: {share:.3f} %")
    return 0


def load(watched: Sidecar) -> None:
    """Send some traffic, and wait until all of it is delivered."""
    plan = Plan(kind="incident", spans=SPANS, size=SIZE, port=watched.port)
    with driver(plan) as sender:
        sender.begin()
        sender.result(LOAD_S)
    deadline = time.monotonic() + LOAD_S
    while not drained(watched) and time.monotonic() < deadline:
        time.sleep(0.1)


def ask(watched: Sidecar, path: str, requests: int) -> float:
    """Print the cost of a request to `path`; return its CPU seconds at the sidecar."""
    times: list[float] = []
    size = 0
    connection = http.client.HTTPConnection("127.0.0.1", watched._admin.port, timeout=30)
    cpu_before = watched.cpu_s()
    for _ in range(requests):
        sent = time.monotonic()
        connection.request("GET", path)
        with connection.getresponse() as response:
            size = len(response.read())
        times.append(time.monotonic() - sent)
    cpu = (watched.cpu_s() - cpu_before) / requests
    connection.close()
    percentiles = statistics.quantiles(times, n=100)
    shown = (percentiles[49] * 1000, percentiles[98] * 1000, cpu * 1000)
    print(f"{path:34}{size:8d}" + "".join(f"{value:8.2f}" for value in shown))
    return cpu


if __name__ == "__main__":
    sys.exit(main())
