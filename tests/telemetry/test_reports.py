"""Rate-limited log lines, and the report of a shutdown."""

from pathlib import Path

import pytest
import structlog

from sidecar.process.exit_report import TERMINATION_MESSAGE, ExitReport, report_directory
from sidecar.telemetry.log_rate_limiter import PERIOD_S, LogRateLimiter
from tests.support.spans import make_event
from tests.support.world import running_app


def test_suppressed_lines_are_counted() -> None:
    """A few lines per minute are logged; the next one reports how many were not."""
    limiter = LogRateLimiter(max_lines=2)
    assert [limiter.admit(0.0) for _ in range(4)] == [0, 0, None, None]
    assert limiter.admit(PERIOD_S) == 2
    assert [limiter.admit(PERIOD_S) for _ in range(2)] == [0, None]


async def test_a_full_queue_logs_one_line_and_one_at_its_end() -> None:
    """The number of refused requests does not change the number of log lines."""
    with structlog.testing.capture_logs() as lines:
        async with running_app(queue__max_bytes="8KiB", shutdown__grace_s=0) as app:
            for number in range(20):
                await app.post(make_event(str(number)))
            assert (await app.post(make_event("more"))).status == 429
            app.app.budget.used -= 8192
            assert (await app.post(make_event("room"))).status == 202
            app.app.budget.used += 8192
    events = [line["event"] for line in lines if line["event"].startswith("intake_")]
    assert events == ["intake_refusing", "intake_taking"]


def read_report(folder: Path | None, message: Path = TERMINATION_MESSAGE) -> ExitReport:
    """The report of a process that starts."""
    report = ExitReport(folder, message)
    report.read()
    return report


def test_the_next_process_reads_the_exit_report(tmp_path: Path) -> None:
    """The number of lost writes is on the volume and in the container's termination message."""
    message = tmp_path / "termination-log"
    message.touch()
    folder = report_directory(str(tmp_path), "")
    first = read_report(folder, message)
    assert first.lost == 0
    first.write(3)
    assert message.read_text() == "lost 3 writes at shutdown\n"
    assert read_report(folder, message).lost == 3
    assert read_report(folder, message).lost == 0  # the second was killed and wrote nothing


def test_exit_report_without_a_volume(tmp_path: Path) -> None:
    """Without a volume, or with an invalid file, the report reads 0 and nothing fails."""
    report = read_report(report_directory("", ""), tmp_path / "none")
    report.write(5)
    assert report.lost == 0
    assert report_directory("", str(tmp_path / "letters.jsonl")) == tmp_path
    (tmp_path / "last_shutdown_lost").write_text("many")
    assert read_report(tmp_path).lost == 0


@pytest.mark.parametrize("folder", ["none", "file"])
def test_a_failing_disk_logs_a_warning(tmp_path: Path, folder: str) -> None:
    """Nothing is raised while the process ends."""
    (tmp_path / "file").touch()
    with structlog.testing.capture_logs() as lines:
        ExitReport(tmp_path / folder).write(1)
    assert [line["event"] for line in lines] == ["last_words_not_kept"]
