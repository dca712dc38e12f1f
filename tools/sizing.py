"""Generates the tables of docs/sizing.md from the daemon's own constants.

    python -m tools.sizing                                        # write them into the page
    python -m tools.sizing --check                                # exit with 1 if it is out of date
    python -m tools.sizing --rate 20 --size 50000 --outage-s 900  # print the sizes for one agent

`<!-- sizing: NAME -->` to `<!-- end -->` encloses a table. What no constant says was measured: see
`MEASURED`, and the commands in the page.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from math import ceil, log
from pathlib import Path
from typing import NamedTuple

import orjson
from prometheus_client import generate_latest

from sidecar.app import App
from sidecar.config import Config
from sidecar.config_load import load
from sidecar.http.client import AGE_JITTER
from sidecar.process.memory import MAX_AUTO_BYTES, MIB, SHARE
from sidecar.queue.room import SPARE
from sidecar.spans.decode import decode
from sidecar.spans.span import shared_payloads, to_row
from sidecar.spool.pages import PAGE as PAGE_BYTES
from sidecar.spool.pages import row_bytes
from sidecar.spool.room import SPARE_SHARE
from sidecar.spool.sqlite_file import LOG_SHARE, MAX_LOG_BYTES, ROW_SHARE

PAGE = Path(__file__).parents[1] / "docs/sizing.md"
BLOCK = re.compile(r"(<!-- sizing: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

RATES = (1, 10, 100, 500)  # spans/s
SIZES = (5_000, 50_000, 500_000)  # bytes of a span
OUTAGES_S = (60, 900, 7200)
PODS = (1, 100, 10_000)
NO, UNIT = "no", 1000

# The chart's defaults.
MIN_LIMIT, LETTERS, VOLUME_SHARE = 192 * MIB, 64 * MIB, 0.8
MIN_CPU_M = 25
# Steps to which results are rounded up.
LIMIT_STEP, DISK_STEP, CPU_STEP_M = 64 * MIB, 64 * MIB, 25
GIB, LARGE = 1024 * MIB, 10 * 1024 * MIB  # from LARGE on, whole GiB
MAX_CPU_M = 1000  # one process, one loop: one core
SCRAPE_S = 30
# Bytes of memory of a series in Prometheus: robustperception.io/why-does-prometheus-use-so-much-ram
SERIES_BYTES = 3000


class Measured(NamedTuple):
    """What no constant says: `python -m tests.load.one_pod`, with 50 ms of latency.

    `cpu_ms`: CPU of a span by its size and by spans/s, without and with a spool. `connections` and
    `requests` to both upstreams together, by spans/s, for spans of 50 KB: open at most, and each
    second.
    """

    cpu_ms: dict[int, dict[int, tuple[float, float]]]
    connections: dict[int, int]
    requests: dict[int, float]


MEASURED = Measured(
    cpu_ms={
        5_000: {1: (4.0, 8.0), 10: (1.8, 5.7), 100: (1.2, 4.0), 500: (0.9, 1.4)},
        50_000: {1: (4.0, 11.0), 10: (1.6, 5.8), 100: (1.4, 3.1), 500: (1.1, 1.5)},
        500_000: {1: (8.0, 15.0), 10: (4.9, 10.7)},
    },
    connections={1: 2, 10: 6, 100: 12, 500: 66},
    requests={1: 2.2, 10: 14, 100: 110, 500: 525},
)


class Bytes(NamedTuple):
    """What one span takes in a lane: in memory; on disk with a START and an END, or an END only."""

    memory: int
    disk: int
    disk_end_only: int


class Sizes(NamedTuple):
    """What a sidecar needs; bytes, and thousandths of a core. None: it can't be done that way.

    `lane_memory` and `lane_disk`: what the lane of an upstream holds at the end of the outage.
    """

    lane_memory: int
    lane_disk: int
    limit: int | None
    spool: int
    volume: int
    cpu_m: int | None
    cpu_spool_m: int | None


def span_bytes(size: int) -> Bytes:
    """The bytes of a span with `size` bytes of payloads, half input and half output."""
    start, end = (decode(event(size, ended=ended), 0.0).spans[0] for ended in (False, True))
    both = row_bytes(len(to_row(start)))
    both += row_bytes(len(to_row(end, leave_out=shared_payloads(end, start))))
    return Bytes(end.size, both, row_bytes(len(to_row(end))))


def event(size: int, *, ended: bool) -> bytes:
    """A START or END as agents post it: ids of 32 digits, a parent, an offset in its times."""
    half = "x" * (size // 2 - len('{"text":""}'))
    span = {
        "id": "a" * 32,
        "trace_id": "b" * 32,
        "parent_id": "c" * 32,
        "name": "model call",
        "start_time": "2026-01-02T03:04:05.678901+00:00",
        "input": {"text": half},
    }
    if ended:
        span |= {"end_time": "2026-01-02T03:04:07.912345+00:00", "output": {"text": half}}
    return orjson.dumps({"event_type": "end" if ended else "start", "span": span})


def queue_for(lane: int, upstreams: int) -> int:
    """`queue.max_bytes` that gives each lane so many bytes."""
    return ceil(lane * upstreams / (1 - SPARE))


def spool_for(lane: int, upstreams: int, largest_row: int = 0) -> int:
    """`spool.max_bytes` that gives each lane so many bytes, and has room for the largest row."""
    rows = lane * upstreams / (1 - 1 / SPARE_SHARE) + PAGE_BYTES  # it has whole pages
    size = max(
        min(rows / (1 - LOG_SHARE), rows + MAX_LOG_BYTES), largest_row / ROW_SHARE / LOG_SHARE
    )
    return ceil(size)


def sizes(rate: float, size: int, outage_s: float, upstreams: int = 2) -> Sizes:
    """What a sidecar needs for `rate` spans of `size` a second, and an outage of all upstreams."""
    span = span_bytes(size)
    spans = ceil(rate * outage_s)
    queue = queue_for(spans * span.memory, upstreams)
    limit = max(MIN_LIMIT, _up(queue / SHARE, LIMIT_STEP)) if queue <= MAX_AUTO_BYTES else None
    spool = _on_disk(spool_for(spans * span.disk, upstreams, span.disk_end_only))
    cpu_m, cpu_spool_m = (_cpu_m(rate, ms) for ms in _cpu_ms(rate, size))
    return Sizes(
        spans * span.memory, spans * span.disk, limit, spool,
        _on_disk((spool + LETTERS) / VOLUME_SHARE), cpu_m, cpu_spool_m,
    )  # fmt: skip


def _cpu_ms(rate: float, size: int) -> tuple[float, float]:
    """CPU of a span, without and with a spool, as at the next lower rate and larger size."""
    sizes_ = [each for each in MEASURED.cpu_ms if each >= size] or [max(MEASURED.cpu_ms)]
    by_rate = MEASURED.cpu_ms[min(sizes_)]
    without, with_ = by_rate[max((each for each in by_rate if each <= rate), default=min(by_rate))]
    larger = max(1.0, size / min(sizes_))
    return without * larger, with_ * larger


def _cpu_m(rate: float, ms: float) -> int | None:
    needed = max(MIN_CPU_M, _up(rate * ms, CPU_STEP_M))
    return needed if needed <= MAX_CPU_M else None


def _on_disk(size: float) -> int:
    return _up(size, DISK_STEP if size < LARGE else GIB)


def _up(value: float, step: int) -> int:
    return ceil(value / step) * step


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    cells = [list(head)]
    lines = [cells[0], ["---"] * len(cells[0]), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spans_table() -> str:
    """What one span takes."""
    rates = sorted({rate for by_rate in MEASURED.cpu_ms.values() for rate in by_rate})
    head = (
        "a span of", "in memory", "in the spool: START and END", "in the spool: END only",
        *(f"CPU at {rate}/s" for rate in rates),
    )  # fmt: skip
    return table(
        head,
        (
            (kilobytes(size), *(f"{value:,}" for value in span_bytes(size)),
             *(cpu_text(MEASURED.cpu_ms[size].get(rate)) for rate in rates))
            for size in SIZES
        ),
    )  # fmt: skip


def cpu_text(milliseconds: tuple[float, float] | None) -> str:
    """CPU of a span, without and with a spool."""
    return "" if milliseconds is None else "{:g} / {:g} ms".format(*milliseconds)


def examples_table() -> str:
    """Worked examples."""
    head = (
        "spans/s", "of", "outage", "memory limit, no spool", "or: `spool.maxBytes`",
        "`volume.sizeLimit`", "CPU request, no spool / spool",
    )  # fmt: skip
    rows = []
    for rate in RATES:
        for size in SIZES:
            for outage_s in OUTAGES_S:
                found = sizes(rate, size, outage_s)
                cpus = f"{cpu(found.cpu_m)} / {cpu(found.cpu_spool_m)}"
                rows.append((
                    str(rate), kilobytes(size), duration(outage_s), quantity(found.limit),
                    quantity(found.spool, "B"), quantity(found.volume), cpus,
                ))  # fmt: skip
    return table(head, rows)


def upstreams_table() -> str:
    """What pods do to both upstreams together."""
    config = Config()
    bound = config.agentex.max_concurrency + config.sgp.max_concurrency
    age_s = config.network.max_connection_age_s * (1 - AGE_JITTER / 2)
    head = (
        "pods", "spans/s of each", "connections, at most", "open", "requests/s", "opened a second"
    )  # fmt: skip
    rows = []
    for pods in PODS:
        for rate, connections in MEASURED.connections.items():
            opened = pods * connections
            rows.append((
                f"{pods:,}", str(rate), f"{pods * bound:,}", f"{opened:,}",
                f"{pods * MEASURED.requests[rate]:,.0f}", rounded(opened / age_s),
            ))  # fmt: skip
    return table(head, rows)


def prometheus_table() -> str:
    """What pods do to Prometheus."""
    head = ("pods", "upstreams", "series", "bytes of all scrapes", "samples/s", "its memory")
    rows: list[tuple[str, ...]] = []
    for upstreams in (1, 2):
        series, size = scrape(upstreams)
        rows += [
            (
                f"{pods:,}", str(upstreams), f"{pods * series:,}", decimal(pods * round(size, -3)),
                f"{pods * series / SCRAPE_S:,.0f}", decimal(pods * series * SERIES_BYTES),
            )
            for pods in PODS
        ]  # fmt: skip
    return table(head, rows)


def scrape(upstreams: int) -> tuple[int, int]:
    """The series and the bytes of a scrape of a sidecar that has just started."""
    variables = {"SGP_API_KEY": "key", "SGP_ACCOUNT_ID": "id"}
    if upstreams > 1:
        variables["AGENTEX_BASE_URL"] = "http://127.0.0.1:9"

    async def made() -> bytes:
        return generate_latest(App(load(None, variables), variables).operations.registry)

    body = asyncio.run(made())
    return sum(not line.startswith(b"#") for line in body.splitlines()), len(body)


def kilobytes(size: int) -> str:
    """Bytes of a span, as a page has them."""
    return f"{size // UNIT:,} KB"


def rounded(value: float) -> str:
    """A number with two digits, or a whole number."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"  # noqa: PLR2004


def decimal(size: float) -> str:
    """Bytes in units of 1000, with three digits."""
    units = ["KB", "MB", "GB"]
    power = min(len(units), int(log(size, UNIT)))
    return f"{size / UNIT**power:.3g} {units[power - 1]}"


def quantity(size: int | None, suffix: str = "") -> str:
    """Bytes as a quantity of Kubernetes; with the suffix B, as the sidecar's settings have them."""
    if size is None:
        return NO
    return f"{size // MIB}Mi{suffix}" if size < LARGE else f"{size // GIB}Gi{suffix}"


def duration(seconds: int) -> str:
    """An outage, in words."""
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h" if hours else f"{minutes} min"


TABLES: dict[str, Callable[[], str]] = {
    "spans": spans_table,
    "examples": examples_table,
    "upstreams": upstreams_table,
    "prometheus": prometheus_table,
}


def page(text: str) -> str:
    """The page with its tables as they should be."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def lines(rate: float, size: int, outage_s: float, upstreams: int) -> Iterator[str]:
    """The sizes for one agent, in words."""
    found = sizes(rate, size, outage_s, upstreams)
    memory, disk = (f"{lane / MIB:,.1f} MiB" for lane in (found.lane_memory, found.lane_disk))
    yield f"{rate * outage_s:,.0f} spans wait for each of {upstreams} upstreams in the end"
    yield f"in memory {memory} each: memory limit {quantity(found.limit)}"
    yield f"in a spool {disk} each: memory limit {quantity(MIN_LIMIT)},"
    yield f"  spool.maxBytes {quantity(found.spool, 'B')},"
    yield f"  volume.sizeLimit {quantity(found.volume)}"
    yield f"CPU request {cpu(found.cpu_m)}, with a spool {cpu(found.cpu_spool_m)}"


def cpu(thousandths: int | None) -> str:
    """CPU as a quantity of Kubernetes."""
    return NO if thousandths is None else f"{thousandths}m"


def main() -> int:
    """Write, check or print; return the exit code."""
    parser = argparse.ArgumentParser(description="Sizes of a sidecar.")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page is old")
    parser.add_argument("--rate", type=float, help="spans/s")
    parser.add_argument("--size", type=int, default=50_000, help="bytes of a span")
    parser.add_argument("--outage-s", type=float, default=900.0, help="seconds to survive")
    parser.add_argument("--upstreams", type=int, default=2, choices=(1, 2))
    arguments = parser.parse_args()
    if arguments.rate is not None:
        given = arguments.rate, arguments.size, arguments.outage_s, arguments.upstreams
        sys.stdout.write("".join(f"{line}\n" for line in lines(*given)))
        return 0
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if not arguments.check:
        PAGE.write_text(after, encoding="utf-8")
    return int(arguments.check and before != after)


if __name__ == "__main__":
    sys.exit(main())
