"""The rules and the metrics, checked by Prometheus' own tools."""

import re
import subprocess
from pathlib import Path

from tests.e2e.prometheus_support import RULES, program, shortened
from tests.support.telemetry import BOTH, scrape
from tests.support.world import running_app

CASES = sorted((Path(__file__).parents[1] / "rules").glob("*.yaml"))


def promtool(*arguments: str | Path, given: str | None = None) -> None:
    """Run promtool; its complaints are in the failure."""
    command = [program("promtool"), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


def test_every_rule_loads(tmp_path: Path) -> None:
    """The chart's rules and their shortened copy for the scenarios are valid."""
    copy = tmp_path / "rules.yaml"
    copy.write_text(shortened(RULES.read_text()))
    promtool("check", "rules", "--lint-fatal", RULES, copy)


def test_alerts_fire_when_they_should_and_only_then() -> None:
    """All cases of tests/rules pass, with the real times."""
    promtool("test", "rules", *CASES)


def test_every_alert_has_both_cases() -> None:
    """Each alert has a case in which it fires, and one in which it never does."""
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    fires, silent = set(), set()
    for case in CASES:
        for test in case.read_text().split("  - name: ")[1:]:
            looks = re.findall(r"alertname: (\w+)\n +exp_alerts:(.*)", test)
            names = {name for name, _ in looks}
            fired = {name for name, expected in looks if "[]" not in expected}
            fires |= fired
            silent |= names - fired
    assert fires == alerts
    assert silent == alerts


async def test_metrics_are_clean() -> None:
    """`promtool check metrics` accepts all names, types and help texts."""
    async with running_app(BOTH, shutdown__grace_s=0) as app:
        promtool("check", "metrics", given=await scrape(app))
