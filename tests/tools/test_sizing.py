"""docs/sizing.md and docs/upgrade.md agree with the daemon, the charts and tools/sizing.py."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.process.memory import MIB, automatic_max_bytes
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.queue.room import Rooms
from sidecar.spool import schema
from sidecar.spool.room import LaneRoom
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.docs import ROOT, blocks, section
from tests.support.spans import make_event
from tests.support.spool import until
from tests.support.world import NOWHERE, running_app
from tools import sizing

LIBRARY = ROOT / "helm/trace-sidecar-lib"
BOTH = {
    "AGENTEX_BASE_URL": NOWHERE,
    "SGP_CLIENT_BASE_URL": NOWHERE,
    "SGP_API_KEY": "key",
    "SGP_ACCOUNT_ID": "account",
}
ONE = {name: value for name, value in BOTH.items() if not name.startswith("AGENTEX")}
BITS = {1: 2, 2: 3}  # of the lanes, by their number
# Spans that nobody named: small, near a page, near two, large.
SIZES = [*sizing.SIZES, 300, 16_384, 32_000, 33_333, 65_536, 900_000]


def rooms(queue: int, lanes: int) -> int:
    """The limit of each lane in memory."""
    budget = MemoryBudget(queue)
    return Rooms([object()] * lanes, budget, Spool(), lambda _: None).limit  # type: ignore[list-item]


def spool_file(size: int) -> SpoolFile:
    """A spool of this size, which is not opened."""
    return SpoolFile("/nowhere", size, sync_full=False)


def test_the_page_is_up_to_date() -> None:
    """The tables of docs/sizing.md are those of `python -m tools.sizing`."""
    text = sizing.PAGE.read_text(encoding="utf-8")
    assert sizing.page(text) == text
    assert [name for _, name, _ in sizing.BLOCK.findall(text)] == list(sizing.TABLES)


@pytest.mark.parametrize("upstreams", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rate", [0.2, 3, 40])
def test_a_lane_has_the_room_that_is_needed(rate: float, size: int, upstreams: int) -> None:
    """The rooms of the daemon hold all spans of an outage, and with one step less do not."""
    outage_s = 777
    found = sizing.sizes(rate, size, outage_s, upstreams)
    if found.limit is not None:
        held = rooms(automatic_max_bytes(found.limit), upstreams)
        assert held >= found.lane_memory
        if found.limit > sizing.MIN_LIMIT:
            less = automatic_max_bytes(found.limit - sizing.LIMIT_STEP)
            assert rooms(less, upstreams) < found.lane_memory
    file = spool_file(found.spool)
    assert LaneRoom(BITS[upstreams], file.capacity).limit >= found.lane_disk
    assert file.max_row_bytes >= size
    step = sizing.DISK_STEP if found.spool <= sizing.LARGE else sizing.GIB
    if found.spool > step:
        less = LaneRoom(BITS[upstreams], spool_file(found.spool - step).capacity).limit
        assert less < found.lane_disk or spool_file(found.spool - step).max_row_bytes < 2 * size


def test_a_queue_of_exactly_that_size() -> None:
    """No cell is too small by a byte, where nothing is rounded up."""
    for lane in (1, 1000, 21_743_280, 400_000_000):
        for upstreams, bits in BITS.items():
            assert rooms(sizing.queue_for(lane, upstreams), upstreams) >= lane
            capacity = spool_file(max(2**20, sizing.spool_for(lane, upstreams))).capacity
            assert LaneRoom(bits, capacity).limit >= lane


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("size", SIZES)
async def test_what_a_lane_is_charged(tmp_path: Path, size: int, *, spool: bool) -> None:
    """A span whose upstreams are away costs each lane what the page says: START and END, or END."""
    options = {"spool__path": str(tmp_path / "spool"), "spool__max_bytes": "1GiB"} if spool else {}
    expected = sizing.span_bytes(size)
    for events, bytes_ in (
        ((False, True), expected.disk if spool else expected.memory),
        ((True,), expected.disk_end_only if spool else expected.memory),
    ):
        async with running_app(BOTH, shutdown__grace_s=0, **options) as app:
            before = held(app.app.status())
            for ended in events:
                reply = await app.post(sizing.event(size, ended=ended))
                assert reply.status == 202
            await until(lambda: not app.app.status()["events"]["held"])
            after = held(app.app.status())
        assert [now - then for now, then in zip(after, before, strict=True)] == [bytes_] * 2
        options = {key: value.replace("spool", "other") for key, value in options.items()}


def held(status: dict[str, object]) -> list[int]:
    """The bytes of both lanes."""
    sinks = status["sinks"]
    assert isinstance(sinks, dict)
    return [lane["lane_bytes"] for lane in sinks.values()]


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize(("upstreams", "environ"), [(1, ONE), (2, BOTH)])
async def test_series(
    tmp_path: Path, upstreams: int, environ: dict[str, str], *, spool: bool
) -> None:
    """A running sidecar has as many series as the page says, also after spans, with a spool too."""
    path = str(tmp_path / "spool") if spool else ""
    async with running_app(environ, shutdown__grace_s=0, spool__path=path) as app:
        await app.post(make_event())
        await app.post({"no": "event"})
        async with app.client.get(app.admin_url + "/metrics") as reply:
            body = await reply.read()
    series = [line for line in body.splitlines() if not line.startswith(b"#")]
    page = sizing.PAGE.read_text(encoding="utf-8")
    assert f"| 1 | {upstreams} | {len(series):,} |" in page


def test_the_charts_defaults() -> None:
    """What the arithmetic takes from the charts is what they have."""
    values = (LIBRARY / "values.yaml").read_text(encoding="utf-8")
    limit, cpu = sizing.MIN_LIMIT // MIB, sizing.MIN_CPU_M
    assert re.search(rf"limits:\n(?: +#.*\n)* +memory: {limit}Mi$", values, re.MULTILINE)
    assert re.search(rf"^    cpu: \"?{cpu}m\"?$", values, re.MULTILINE)
    letters = values.partition("deadLetters:")[2].partition("volume:")[0]
    assert f"maxBytes: {sizing.LETTERS // MIB}Mi" in letters
    rule = (LIBRARY / "templates/_valid.tpl").read_text(encoding="utf-8")
    assert f"above {100 * sizing.VOLUME_SHARE:.0f}%" in rule


def test_figures_in_the_text() -> None:
    """What the defaults hold, and the shares behind it, are the daemon's."""
    text = " ".join(sizing.PAGE.read_text(encoding="utf-8").split())
    memory = rooms(automatic_max_bytes(sizing.MIN_LIMIT), 2) / MIB
    disks = [LaneRoom(BITS[2], spool_file(mib * MIB).capacity).limit / MIB for mib in (512, 1024)]
    assert f"hold {memory:.1f} MiB for each of two upstreams" in text
    assert f"a spool of 512 MiB {disks[0]:.1f} MiB, and one of 1 GiB {disks[1]:.1f} MiB" in text


def test_one_agents_sizes() -> None:
    """The command of the page prints what the functions return."""
    (command,) = [each.strip() for each in blocks(sizing.PAGE.read_text()) if "--rate" in each]
    python, *arguments = shlex.split(command)
    assert python == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = sizing.sizes(20, 50_000, 900, 2)
    assert f"spool.maxBytes {sizing.quantity(found.spool, 'B')}" in done.stdout
    assert "18,000 spans wait" in done.stdout


def test_every_module_in_the_table() -> None:
    """The commands of the measurements name modules that exist, and each has its test."""
    table = section(sizing.PAGE, "How it was measured")
    modules = re.findall(r"-m ((?:tests|tools)[\w.]+)", table)
    assert len(modules) > 6
    for module in modules:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


def test_formats() -> None:
    """docs/upgrade.md has the charts' version, and the formats that it writes and reads."""
    chart = (ROOT / "helm/trace-sidecar/Chart.yaml").read_text(encoding="utf-8")
    (version,) = re.findall(r"^appVersion: (\S+)$", chart, re.MULTILINE)
    table = section(ROOT / "docs/upgrade.md", "By version")
    (row,) = re.findall(rf"^\| {re.escape(version)} \|.*$", table, re.MULTILINE)
    older = " and ".join(map(str, range(1, schema.VERSION + 1)))
    assert f"writes format {schema.VERSION}, reads {older}" in row
    for path in re.findall(r"`(tests/[\w/]+\.py)`", table):
        assert (ROOT / path).exists(), path
