"""The status page of a real sidecar process in a browser, and what is always asked of it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.e2e.browser import DESKTOP, Browser, artifacts, browser
from tests.support.kill import Rig, SidecarRun

ACCEPTED = "document.querySelector('#journey dd').textContent"
STATE = "document.querySelectorAll('.lane .state')[arguments[0]]?.textContent"
LEVELS = "[...document.querySelectorAll('.answer')].map(e => e.dataset.level).join()"


@asynccontextmanager
async def world(
    folder: Path, *, busy: bool = True, settings: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Rig, SidecarRun, Browser]]:
    """Run two upstreams, a sidecar that an agent posts to if `busy`, and a browser on its page."""
    rig = Rig(folder, seed=8, settings={"SIDECAR_RETRY__MAX_S": "1", **(settings or {})})
    rig.agentex.keep_bodies = rig.sgp.keep_bodies = False
    async with rig.agentex, rig.sgp:
        life = await rig.start()
        agents = [asyncio.create_task(rig.agent(life.url, "agent"))] if busy else []
        try:
            async with browser() as page:
                await page.look(DESKTOP)
                await page.open(life.admin_url + "/")
                yield rig, life, page
        finally:
            if life.code is None and life.process.returncode is None:
                life.process.kill()
            await life.ended()
            await asyncio.gather(*agents)


async def judged(page: Browser, name: str, folder: Path) -> None:
    """axe-core finds no violation, and nothing is wider than the screen; keeps a screenshot."""
    violations = await page.violations()
    assert not violations, violations
    assert await page.run("return document.documentElement.scrollWidth <= innerWidth")
    await page.screenshot(artifacts(folder) / f"status-page-{name}.png")
