"""The measurements of docs/sizing.md, each command as it stands but on a small scale."""

import re
import subprocess
import sys

import pytest

from tests.support.docs import ROOT, section

PAGE = ROOT / "docs/sizing.md"
DEADLINE_S = 540
# What is added to a command, and what it prints when all is well.
SMALL = {
    "sizing": ("--cells 10x5000x5 --within-s 2", "spool: a lane holds"),
    "one_pod": ("--rates 10 --sizes 5000 --seconds 2", "lanes  spool  series  bytes"),
    "outage": ("--rate 20 --outage-s 2", "lost 0"),
    "backlog": ("--mib 4", "lost: 0"),
    "crowd": ("", "64 scrapers"),
}
RARE = ("outage", "backlog", "crowd", "one_pod")
RESTART = "--down-s 0.5 --signals SIGKILL --spool yes --repeat 1"


def said(name: str, options: str) -> str:
    """What the page's command of this load prints with more options."""
    table = section(PAGE, "How it was measured")
    (found,) = re.findall(rf"`\.venv/bin/python (-m tests\.load\.{name}\b[^`]*)`", table)
    done = subprocess.run(
        [sys.executable, *found.split(), *options.split()],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=pytest.mark.nightly) if each in RARE else each for each in SMALL],
)
def test_loads(name: str) -> None:
    """A load of the page ends well and prints what the page quotes; no span is lost."""
    options, expected = SMALL[name]
    assert expected in said(name, options)


@pytest.mark.nightly
def test_a_restart() -> None:
    """A sidecar with a spool that is killed costs agents with our client nothing."""
    rows = [line.strip("| ").split(" | ") for line in said("restart", RESTART).splitlines()]
    lost = {agent: int(cells[5]) for agent, *cells in rows[2:]}
    assert set(lost) == {"the SDK, unchanged", "the SDK, `register()`", "our client"}
    assert lost["the SDK, `register()`"] == lost["our client"] == 0


def test_every_load_is_run() -> None:
    """Each load in the page's table is run by a test above."""
    table = section(PAGE, "How it was measured")
    assert set(re.findall(r"tests\.load\.(\w+)", table)) == {*SMALL, "restart"}
