"""The metrics contract: names, types and label sets, and what a scrape shows."""

import re
from pathlib import Path

from tests.support.spans import make_event
from tests.support.telemetry import BOTH, scrape
from tests.support.world import running_app

GOLDEN = Path(__file__).parent / "metrics.golden"


def series(text: str) -> str:
    """Return every type and series of ours, without values."""
    lines = []
    for line in text.splitlines():
        if line.startswith("# TYPE trace_sidecar_"):
            lines.append(line.removeprefix("# TYPE "))
        elif line.startswith("trace_sidecar_"):
            lines.append(re.sub(r'version="[^"]*"', 'version="…"', line.rpartition(" ")[0]))
    return "\n".join(lines) + "\n"


async def test_names_and_labels_are_the_contract() -> None:
    """All series exist from the start. A change to metrics.golden is a change for operators."""
    async with running_app(BOTH, shutdown__grace_s=0) as app:
        assert series(await scrape(app)) == GOLDEN.read_text()


async def test_a_scrape_is_small(tmp_path: Path) -> None:
    """With two upstreams and a spool, the process included, at most 120 series."""
    async with running_app(BOTH, shutdown__grace_s=0, spool__path=str(tmp_path / "spool")) as app:
        lines = [line for line in (await scrape(app)).splitlines() if not line.startswith("#")]
    assert 100 < len(lines) <= 120
    assert {line.partition("{")[0].partition(" ")[0] for line in lines if line[:3] == "pro"} == {
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "process_start_time_seconds",
        "process_open_fds",
        "process_max_fds",
    }


async def test_everything_counts_from_zero() -> None:
    """Counters and the imbalance start at 0."""
    async with running_app(BOTH, shutdown__grace_s=0) as app:
        for line in (await scrape(app)).splitlines():
            if re.match(r"trace_sidecar_\w+_total|trace_sidecar_accounting", line):
                assert line.endswith(" 0.0"), line


async def test_depth_and_rss_are_read_at_the_scrape() -> None:
    """A scrape has the current depth, counts and RSS."""
    async with running_app(BOTH, shutdown__grace_s=0) as app:
        event = make_event(kind="end")
        async with app.client.post(f"{app.url}/v1/spans", json=event) as response:
            assert response.status == 202
        text = await scrape(app)
    assert 'trace_sidecar_queue_depth{sink="agentex"} 1.0' in text
    assert 'trace_sidecar_received_events_total{kind="end"} 1.0' in text
    assert "trace_sidecar_ingest_duration_seconds_count 1.0" in text
    rss = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
    assert rss is not None
    assert float(rss[1]) > 1e6
