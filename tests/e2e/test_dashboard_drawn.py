"""The dashboard as it looks: drawn from a real Prometheus that scrapes a fleet with troubles."""

import asyncio
import itertools
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.browser import Browser, artifacts, browser
from tests.e2e.drawing import Drawing, Json, View, difference, drawn, page, serving
from tests.e2e.fleet import CROWD, RESTARTS, TROUBLES, fleet
from tests.e2e.prometheus_support import RULES, Prometheus, prometheus, shortened
from tests.support.telemetry import DASHBOARD
from tools.panel import GREY, STATES
from tools.panels import ROWS

# As tall as the whole dashboard, so that every panel is drawn at once.
HEIGHT = 6000
# What docs/dashboard.png shows of the first one.
TOP = (1280, 1180)
# Below it, two colors are hard to tell apart in thin lines.
ALIKE = 20
# A graph has at most this many series, a table this many rows, however many pods there are.
SERIES, ROWS_SHOWN = 12, 10
# Each takes seconds, on a busy machine half a minute.
ATTEMPTS = 8
PANELS = {panel.title: panel for _, row in ROWS for panel in row}


@pytest.fixture
def prom(tmp_path: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the chart's rules, in shortened times."""
    with prometheus(tmp_path, shortened(RULES.read_text())) as running:
        yield running


@pytest.fixture
def prom_in_time(tmp_path: Path) -> Iterator[Prometheus]:
    """Run a Prometheus with the chart's rules as they are: no alert fires within minutes."""
    with prometheus(tmp_path, RULES.read_text()) as running:
        yield running


def alike(panel: Json) -> list[str]:
    """Return the pairs of a panel's legend whose colors are hard to tell apart."""
    return [
        f"{panel['title']}: {one['text']} is like {other['text']}"
        for one, other in itertools.combinations(panel["legend"], 2)
        if difference(one["color"], other["color"]) < ALIKE
    ]


def outside(panel: Json) -> list[str]:
    """Return the texts of a panel that are not in it, and the cells that are cut off."""
    cells = [*panel["header"], *itertools.chain.from_iterable(panel["rows"])]
    found = [each["text"] for each in (*panel["legend"], *cells) if not each["inside"]]
    found += [cell["text"] for cell in cells if cell["cut"]]
    return [f"{panel['title']}: {text!r} is cut off" for text in found]


def unlike(panel: Json) -> list[str]:
    """Return how a table differs from what its panel says: the value is the first column."""
    meant = PANELS[panel["title"]]
    if meant.kind != "table" or not meant.value:
        return []
    first = panel["header"][0]["text"] if panel["header"] else None
    return [] if first == meant.value else [f"{meant.title}: {first!r} is first"]


def wrong(drawing: Drawing) -> list[str]:
    """Return all that is wrong with what was drawn, whatever the numbers are."""
    assert set(drawing.panels) == set(PANELS)
    found = list(drawing.faults)
    for panel in drawing.panels.values():
        if panel["nothing"] is not None or panel["text"] == panel["title"]:
            found.append(f"{panel['title']} is empty")
        if len(panel["legend"]) > SERIES or len(panel["rows"]) > ROWS_SHOWN:
            found.append(f"{panel['title']} grows with the number of pods")
        found += alike(panel) + outside(panel) + unlike(panel)
    return found


def number(drawing: Drawing, title: str) -> int:
    """Return the number that a panel of one number shows."""
    shown = re.fullmatch(r"([\d,]+)", drawing.panels[title]["text"].removeprefix(title))
    assert shown, drawing.panels[title]["text"]
    return int(shown[1].replace(",", ""))


def column(drawing: Drawing, title: str, header: str) -> list[str]:
    """Return what a table has in a column."""
    panel = drawing.panels[title]
    at = [cell["text"] for cell in panel["header"]].index(header)
    return [row[at]["text"] for row in panel["rows"]]


def judge(drawing: Drawing) -> None:
    """Compare what is shown with what the fleet was made to suffer."""
    assert wrong(drawing) == []
    assert number(drawing, "Sidecars") == CROWD + len(TROUBLES)
    assert number(drawing, "No sidecar") == 1
    assert number(drawing, "Restarts") == 1
    assert drawing.notes >= 1
    assert number(drawing, "Imbalance") == 0
    for title in ("Lost writes", "Not taken", "Dead letters"):
        assert number(drawing, title) > 0
    shown = dict(STATES)
    states = {state["text"] for state in drawing.panels["Worst state of each upstream"]["states"]}
    assert {"down", "unauthorized"} <= states <= set(shown)
    lost = dict(
        zip(
            column(drawing, "Losing most", "Pod"),
            column(drawing, "Losing most", "Reason"),
            strict=True,
        )
    )
    assert lost["search-agent-5f7b8c9d6-8kqzt"] == "no_room"
    assert lost["support-agent-6c8d7f5b9-mm7wr"] == "refused"
    assert lost[RESTARTS] == "shutdown"
    alerts = set(column(drawing, "Firing alerts", "Alert"))
    assert {"TraceSidecarWritesNotTaken", "TraceSidecarDeadLetters"} <= alerts
    assert column(drawing, "Firing alerts", "Severity")[0] == "critical"


async def right(here: Browser, url: str, prom: Prometheus, since: float) -> View:
    """Draw until all is as it should be, and return how: troubles take a time to show."""
    for last in (*itertools.repeat(False, ATTEMPTS - 1), True):
        now = time.time()
        view = View("dark", (1280, HEIGHT), until=now, minutes=(now - since) / 60)
        try:
            judge(await drawn(here, url, prom.url, view))
        except AssertionError as error:
            sys.stdout.write(f"{error}\n")
            if last:
                raise
        else:
            break
    return view


async def test_a_fleet_with_troubles(prom: Prometheus, tmp_path: Path) -> None:
    """Under load no panel is empty or cut off, and each trouble shows; keeps screenshots."""
    folder = artifacts(tmp_path)
    built = await asyncio.to_thread(page)
    async with browser() as here, serving(built, DASHBOARD) as url:
        since = time.time()
        async with fleet(tmp_path, prom):
            view = await right(here, url, prom, since)
        # What follows is the same moment.
        for theme, width in itertools.product(("dark", "light"), (1280, 1920)):
            seen = replace(view, theme=theme, size=(width, HEIGHT))
            judge(await drawn(here, url, prom.url, seen))
            await here.screenshot(folder / f"dashboard-{theme}-{width}.png")
            if seen == view:
                await here.screenshot(folder / f"dashboard-{theme}-{width}-top.png", TOP)
        alone = await drawn(here, url, prom.url, replace(view, pod=RESTARTS))
        assert alone.faults == []
        assert number(alone, "Sidecars") == 1
        assert number(alone, "Not taken") == 0
        assert alone.panels["Delivery delay"]["legend"]


async def test_nothing_scraped(prom_in_time: Prometheus, tmp_path: Path) -> None:
    """Without any sidecar every panel says so, and none in a color of health."""
    built = await asyncio.to_thread(page)
    prom = prom_in_time
    async with browser() as here, serving(built, DASHBOARD) as url:
        for theme in ("dark", "light"):
            view = View(theme, (1280, HEIGHT), until=time.time())
            drawing = await drawn(here, url, prom.url, view)
            await here.screenshot(artifacts(tmp_path) / f"dashboard-{theme}-nothing.png")
            assert drawing.faults == []
            red, green, blue = (int(GREY[at : at + 2], 16) for at in (1, 3, 5))
            for panel in drawing.panels.values():
                if panel["kind"] == "stat":
                    assert f"rgb({red}, {green}, {blue})" in panel["colors"], panel["title"]
                else:
                    assert panel["nothing"], panel["title"]
                for color in panel["colors"]:
                    for name, healthy in drawing.health.items():
                        assert difference(color, healthy) > ALIKE, (panel["title"], name, color)


def test_the_difference_of_colors() -> None:
    """Black and white differ by 100, equal colors by 0, two of one hue by less than the limit."""
    assert difference("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(100, abs=0.1)
    assert difference("rgb(1, 2, 3)", "rgb(1, 2, 3)") == 0
    assert difference("rgb(242, 73, 92)", "rgb(224, 47, 68)") < ALIKE
