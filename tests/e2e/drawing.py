"""Draws a dashboard in a headless browser, from a real Prometheus, and tells what can be seen.

The page in grafana/ draws with the parts that Grafana itself is built from, as published on npm in
the versions of its lock file. It is not Grafana: the import of a dashboard, its variables and the
data source's plugin are not judged here.
"""

import hashlib
import math
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from tests.e2e import parts
from tests.e2e.browser import Browser

# Ten times what it takes on two cores that have nothing else to do.
DEADLINE_S = 100.0
SOURCE = Path(__file__).parent / "grafana"
Json = dict[str, Any]


@dataclass(frozen=True)
class View:
    """How to look at the dashboard: `size` in CSS pixels, `until` in Unix seconds."""

    theme: str
    size: tuple[int, int]
    until: float
    namespace: str = ".*"
    pod: str = ".*"
    minutes: float = 1
    scrape_s: int = 1


@dataclass(frozen=True)
class Drawing:
    """What was drawn: `panels` are grafana/facts.js's, `notes` the annotations' count.

    `health` are the theme's colors that say how something is, by name.
    """

    panels: dict[str, Json]
    faults: list[str]
    notes: int
    health: dict[str, str]


def page() -> Path:
    """Return the folder of the built page."""
    files = sorted(path for path in SOURCE.iterdir() if path.is_file())
    lock = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()[:12]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]

    def install(home: Path) -> None:
        if shutil.which("npm") is None:
            parts.missing("no npm")
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(SOURCE / name, home)
        parts.run("npm", "ci", "--silent", cwd=home)

    packages = parts.build_once(f"grafana/packages-{lock}", install)

    def build(home: Path) -> None:
        for path in files:
            shutil.copy(path, home)
        (home / "node_modules").symlink_to(packages / "node_modules")
        parts.run("node", "build.mjs", "out", cwd=home)

    return parts.build_once(f"grafana/page-{digest}", build) / "out"


@asynccontextmanager
async def serving(folder: Path, board: Path) -> AsyncIterator[str]:
    """Serve the page and the dashboard on loopback; yield the URL of the page."""

    async def dashboard(_: web.Request) -> web.FileResponse:
        return web.FileResponse(board)

    app = web.Application()
    app.router.add_get("/board.json", dashboard)
    app.router.add_static("/", folder)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/index.html"
    finally:
        await runner.cleanup()


async def drawn(browser: Browser, url: str, prometheus: str, view: View) -> Drawing:
    """Draw the dashboard, and return what can be seen."""
    asked = {
        "prometheus": prometheus,
        "theme": view.theme,
        "namespace": view.namespace,
        "pod": view.pod,
        "minutes": view.minutes,
        "until": view.until,
        "scrape": view.scrape_s,
    }
    await browser.look(view.size, view.theme)
    await browser.open(f"{url}?{urlencode(asked)}")
    await browser.until("window.done", within=DEADLINE_S)
    panels = await browser.run("return window.facts()")
    faults = await browser.run("return window.faults")
    return Drawing(
        {panel["title"]: panel for panel in panels},
        faults + await browser.complaints(),
        await browser.run("return window.notes"),
        await browser.run("return window.health"),
    )


def lab(color: str) -> tuple[float, float, float]:
    """Return CIELAB of a CSS color such as `rgb(242, 73, 92)`, for D65 and the 2° observer."""
    channels = [float(part) / 255 for part in color.partition("(")[2].strip(")").split(",")[:3]]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    xyz = (
        (0.4124 * red + 0.3576 * green + 0.1805 * blue) / 0.95047,
        0.2126 * red + 0.7152 * green + 0.0722 * blue,
        (0.0193 * red + 0.1192 * green + 0.9505 * blue) / 1.08883,
    )
    x, y, z = (t ** (1 / 3) if t > (6 / 29) ** 3 else t * (29 / 6) ** 2 / 3 + 4 / 29 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def difference(one: str, other: str) -> float:
    """Return Delta E (CIE 1976) of two CSS colors."""
    return math.dist(lab(one), lab(other))
