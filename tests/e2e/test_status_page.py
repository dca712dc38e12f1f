"""The status page in a real Chromium, over a real sidecar process under load."""

import socket
import sys
from pathlib import Path

import pytest

from sidecar.demo.stand_in import Answer
from tests.e2e.browser import DESKTOP, PHONE, browser
from tests.e2e.page_support import ACCEPTED, LEVELS, STATE, judged, world
from tests.support.kill import Rig
from tests.support.otlp import OtlpStandIn

DIFFERENCES = (
    "[...document.querySelectorAll('#accounting tr:last-child td')].map(e => e.textContent)"
)
PROCESS = "document.querySelector('#process').textContent"
AGENTEX, SGP = 0, 1


async def test_numbers_move_and_an_outage_shows(tmp_path: Path) -> None:
    """Under load the numbers grow; an outage shows with its reason, and so does its end."""
    async with world(tmp_path) as (rig, life, page):
        await page.until(f"{LEVELS} === 'ok,ok,ok'")
        before = await page.run(f"return {ACCEPTED}")
        await page.until(f"{ACCEPTED} !== arguments[0]", before)
        assert await page.run(f"return {DIFFERENCES}") == ["0 ✓"] * 3
        # The page itself records when it first shows the outage: polling by the driver is slow.
        await page.run(
            """
            const lane = document.querySelectorAll('.lane .state')[arguments[0]];
            window.seen = new Promise(resolve => {
              const look = () => lane.textContent === 'down' && resolve(Date.now());
              const all = {childList: true, characterData: true, subtree: true};
              new MutationObserver(look).observe(lane, all);
            });
            """,
            SGP,
        )
        broken_at = await page.run("return Date.now()")
        rig.sgp.rule = lambda _: Answer(503)
        seen_at = await page.run("return window.seen")
        sys.stdout.write(f"an outage was on the page after {seen_at - broken_at} ms\n")
        why = "document.querySelectorAll('.answer')[2].textContent"
        await page.until(f"{why}.includes('SGP is down')")
        await page.until(f"{why}.includes('HTTP 503')")
        assert await page.run(f"return {STATE}", AGENTEX) == "up"
        assert (await page.run("return document.title")).startswith("✕ SGP is down")
        announced = "document.querySelector('#spoken').textContent"
        await page.until(f"{announced}.includes('SGP is down')")
        assert await page.violations() == []
        rig.sgp.rule = None
        await page.until(f"{STATE} === 'up'", SGP)
        await page.until(f"{LEVELS}.endsWith('ok')")
        assert await page.complaints() == []
        assert {url.split("?")[0] for url in await page.requests()} == {
            f"{life.admin_url}{path}" for path in ("/", "/status", "/status/history")
        }


async def test_a_killed_sidecar_and_its_successor(tmp_path: Path) -> None:
    """The page reports since when the sidecar has not responded, and recognizes a new process."""
    async with world(tmp_path) as (rig, life, page):
        await page.until(f"{LEVELS} === 'ok,ok,ok'")
        await page.until(f"{ACCEPTED} !== '0'")
        life.process.kill()
        await life.ended()
        gone = "document.querySelector('#gone')"
        await page.until(
            f"!{gone}.hidden && {gone}.textContent.includes('has not responded since')"
        )
        assert await page.run("return document.querySelector('#live').textContent") == (
            "not responding"
        )
        assert await page.violations() == []
        port = life.admin_url.rpartition(":")[2]
        second = await rig.start(SIDECAR_ADMIN__PORT=port)
        try:
            await page.until(f"{gone}.hidden")
            await page.until(f"{ACCEPTED} === '0'")
        finally:
            second.process.terminate()
            await second.ended()


async def test_three_upstreams(tmp_path: Path) -> None:
    """Each has its lane, charts and column; the configuration shows `hide`, and no header."""
    names = ["Agentex", "SGP", "OTLP"]
    settings = {
        "SIDECAR_OTLP__HEADERS": "authorization=made-up",
        "SIDECAR_OTLP__HIDE": "input,output",
    }
    async with OtlpStandIn(keep_bodies=False) as otlp:
        settings["SIDECAR_OTLP__ENDPOINT"] = otlp.url
        async with world(tmp_path, settings=settings) as (_, _, page):
            await page.until(f"{LEVELS} === 'ok,ok,ok'")
            await page.until(
                "document.querySelectorAll('.lane .state[data-level=ok]').length === 3"
            )
            texts = (
                "return [...document.querySelectorAll(arguments[0])].map(e => e.firstChild.data)"
            )
            assert await page.run(texts, ".lane .upstream > h3") == names
            assert await page.run(texts, "#charts .group > h3") == ["Process", *names]
            assert await page.run(texts, "#accounting table:last-child th[scope=col]") == [
                "writes",
                *names,
            ]
            shown = await page.run("return document.querySelector('#config').textContent")
            assert "hideinput, output" in shown
            assert "authorization: ***" in shown
            assert "made-up" not in shown
            for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
                await page.look(size)
                await judged(page, f"three-{name}", tmp_path)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
async def test_accessibility_and_layout(
    tmp_path: Path, scheme: str, name: str, size: tuple[int, int]
) -> None:
    """axe-core finds no violation, and nothing is wider than the screen; keeps a screenshot."""
    async with world(tmp_path) as (_, _, page):
        await page.look(size, scheme)
        await page.until(f"{LEVELS} === 'ok,ok,ok'")
        await page.run("document.querySelector('#config').parentElement.open = true")
        await judged(page, f"{name}-{scheme}", tmp_path)
        color = await page.run("return getComputedStyle(document.body).backgroundColor")
        brightest = max(int(channel) for channel in color.strip("rgb()").split(","))
        assert (brightest > 128) == (scheme == "light")


LONG = "x" * 253


@pytest.mark.parametrize(
    ("pod", "shown"),
    [
        (("agent-0", "agents", "node-1"), "agents/agent-0 on node-1 · version"),
        (("agent-0", "", ""), "agent-0 · version"),
        (("", "", ""), " · version"),
        (("<b>&", "", "</p>"), "<b>& on </p> · version"),
        ((LONG, LONG, LONG), f"{LONG}/{LONG} on {LONG} · version"),
    ],
    ids=["all", "name", "none", "markup", "long"],
)
async def test_the_pod(tmp_path: Path, pod: tuple[str, ...], shown: str) -> None:
    """The first line says what is known of the pod, as text, and is no wider than a phone."""
    rig = Rig(tmp_path, seed=8)
    async with rig.agentex, rig.sgp:
        keys = (f"SIDECAR_POD__{key}" for key in ("NAME", "NAMESPACE", "NODE"))
        life = await rig.start(**dict(zip(keys, pod, strict=True)))
        try:
            async with browser() as page:
                await page.look(PHONE)
                await page.open(life.admin_url + "/")
                await page.until(f"{PROCESS}.includes('version')")
                line = await page.run(f"return {PROCESS}")
                assert line.startswith(shown if pod[0] else f"{socket.gethostname()}{shown}")
                wide = "document.documentElement.scrollWidth > innerWidth"
                assert await page.run(f"return {wide}") is False
                assert await page.complaints() == []
        finally:
            life.process.terminate()
            await life.ended()


async def test_by_keyboard(tmp_path: Path) -> None:
    """Tab reaches a chart, and arrow keys move the cursor, which screen readers announce."""
    async with world(tmp_path) as (_, _, page):
        await page.until("document.querySelector('svg')?.getAttribute('aria-valuemax') > 0")
        for _ in range(3):  # the search, its button, and the first chart
            await page.key("Tab")
        await page.until("document.activeElement.role === 'slider'")
        assert await page.run("return document.activeElement.matches(':focus-visible')")
        await page.key("ArrowLeft")
        spoken = "document.activeElement.getAttribute('aria-valuetext')"
        await page.until(f"{spoken}.startsWith('5.0 s ago')")
        await page.key("End")
        await page.until(f"{spoken}.startsWith('now')")
