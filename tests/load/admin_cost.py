"""`python -m tests.load.admin_cost`: what being watched costs the sidecar. Asserts nothing.

Everything is on: both upstreams, a spool, a file of dead letters, and numbers in every histogram.
Bars: `/metrics` under 20 ms, and under 1 % of a core for a scrape each 15 s and an open page.
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
    """Run it; the exit code."""
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
            # The page asks for what is new only.
            after = _get(watched._admin, "/status/history?after=0")["next"] - 1
            page = ask(watched, "/status", arguments.requests)
            page += ask(watched, f"/status/history?after={after}", arguments.requests)
            share = 100 * (scrape / SCRAPE_EACH_S + page / PAGE_EACH_S)
            print(
                f"a scrape each {SCRAPE_EACH_S:g} s: {100 * scrape / SCRAPE_EACH_S:.3f} % of a core"
            )
            print(f"with a page that is open: {share:.3f} %")
    return 0


def load(watched: Sidecar) -> None:
    """Some traffic, all of it delivered."""
    plan = Plan(kind="incident", spans=SPANS, size=SIZE, port=watched.port)
    with driver(plan) as sender:
        sender.begin()
        sender.result(LOAD_S)
    deadline = time.monotonic() + LOAD_S
    while not drained(watched) and time.monotonic() < deadline:
        time.sleep(0.1)


def ask(watched: Sidecar, path: str, requests: int) -> float:
    """Print what one request of `path` costs; its CPU time at the sidecar, in seconds."""
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
