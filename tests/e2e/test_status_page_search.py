"""What the status page tells operators to do, and its search, in a real Chromium."""

import asyncio
import json
from pathlib import Path

from sidecar.demo.stand_in import Answer
from tests.e2e.browser import DESKTOP, PHONE
from tests.e2e.page_support import LEVELS, STATE, judged, world

FOUND = "document.querySelector('#found')"
TITLE = "document.querySelector('#found-title')?.textContent"
FORWARDED = "document.querySelectorAll('#accounting table')[1].rows[4].cells[1].textContent"
LETTERS = "document.querySelector('#letters')"
ANSWER = "document.querySelectorAll('.answer')[arguments[0]]"
COMMAND = "document.querySelector('#first code').textContent"
LOOKS = [("desktop", DESKTOP, "light"), ("desktop", DESKTOP, "dark"), ("phone", PHONE, "light")]
LOST, WHY = 0, 2
SGP = 1


async def test_the_first_span(tmp_path: Path) -> None:
    """The page of a sidecar that has received nothing has a command that sends the first span."""
    async with world(tmp_path, busy=False) as (rig, _, page):
        await page.until("!document.querySelector('#first').hidden")
        assert await page.run(f"return {STATE}", SGP) == "not asked yet"
        level = "document.querySelectorAll('.lane .state')[arguments[0]].dataset.level"
        assert await page.run(f"return {level}", SGP) == "none"
        for name, size, scheme in LOOKS:
            await page.look(size, scheme)
            await judged(page, f"empty-{name}-{scheme}", tmp_path)
        command = await page.run(f"return {COMMAND}")
        shell = await asyncio.create_subprocess_exec(
            "sh", "-c", f"{command} --silent --fail --max-time 30"
        )
        assert await shell.wait() == 0
        await page.until("document.querySelector('#first').hidden")
        await page.until(f"{STATE} === 'up'", SGP)
        (sent,) = rig.agentex.spans
        await page.run("document.querySelector('#first a').click()")
        await page.until(f"{TITLE} === arguments[0]", f"What became of {sent}")
        await page.until(f"{FOUND}.textContent.includes('Agentex accepted the complete write.')")
        assert await page.complaints() == []


async def test_search_by_keyboard(tmp_path: Path) -> None:
    """`/` starts a search, Enter shows what became of a span, Escape closes it."""
    async with world(tmp_path) as (rig, life, page):
        await page.until(f"{LEVELS} === 'ok,ok,ok'")

        await page.until(f"{FORWARDED}.length > 1")  # ten or more: one is complete
        span = next(iter(rig.agentex.complete))
        await page.key("/")
        await page.until("document.activeElement.id === 'wanted'")
        await page.type(span)
        await page.key("Enter")
        await page.until(f"{TITLE} === arguments[0]", f"What became of {span}")
        assert await page.run("return document.activeElement.id") == "found-title"
        assert await page.run("return location.hash") == f"#id={span}"
        entries = "[...document.querySelectorAll('.timeline li')].map(e => e.textContent)"
        texts = await page.run(f"return {entries}")
        assert any(text.endswith("The sidecar accepted its START.") for text in texts)
        assert any(text.endswith("Agentex accepted the complete write.") for text in texts)
        text = await page.run("return document.querySelector('#found pre').textContent")
        shown = json.loads(text)
        assert [each["id"] for each in shown["spans"]] == [span]
        await page.key("Escape")
        await page.until(f"{FOUND}.hidden")
        assert await page.run("return [location.hash, document.activeElement.id]") == ["", "wanted"]
        # A link to the trace, which has more spans than are shown open.
        await page.open("about:blank")
        await page.open(f"{life.admin_url}/#id=t")
        await page.until(f"{TITLE}?.startsWith('Trace t: ')")
        await page.until("document.querySelectorAll('details.span').length > 3")
        await page.open(f"{life.admin_url}/#id=%3Cb%3E%26")
        await page.until(f"{TITLE} === 'Nothing is known of <b>&'")
        assert await page.run(f"return {FOUND}.querySelector('b')") is None
        await judged(page, "unknown", tmp_path)
        assert await page.complaints() == []


async def test_what_to_do(tmp_path: Path) -> None:
    """During an outage with dead letters, the page says what to do, and where spans are."""
    async with world(tmp_path) as (rig, _, page):
        await page.until(f"{LEVELS} === 'ok,ok,ok'")
        # The upstream refuses every tenth span.
        rig.sgp.rule = lambda request: 422 if b'7"' in request.body else None
        await page.until(f"{LETTERS}.querySelector('tbody tr')")
        rig.sgp.rule = lambda _: Answer(503)
        await page.until(f"{STATE} === 'down'", SGP)
        file = tmp_path / "letters.jsonl"
        letters = [
            json.loads(line)["event"]["span"]["id"] for line in file.read_text().splitlines()
        ]
        shown = f"[...{LETTERS}.querySelectorAll('tbody .id')].map(e => e.textContent)"
        await page.until(f"{shown}.length === arguments[0]", min(20, len(letters)))
        assert sorted(await page.run(f"return {shown}")) == sorted(letters[-20:])
        advice = f"{ANSWER}.querySelector('.advice').textContent"
        await page.until(f"{advice}.includes(arguments[1])", LOST, f"sidecar replay {file}")
        assert "sidecar check --probe" in await page.run(f"return {advice}", WHY)
        assert "docs/runbooks.md#tracesidecarupstreamdown" in await page.run(
            f"return {advice}", WHY
        )
        # The machine's clipboard may have no owner to read it from.
        await page.run("navigator.clipboard.writeText = async text => { window.copied = text; }")
        await page.run(f"{LETTERS}.querySelector('.copy').click()")
        await page.until("document.querySelector('#spoken').textContent === 'Copied.'")
        assert await page.run("return window.copied") == f"sidecar replay {file}"
        for name, size, scheme in LOOKS:
            await page.look(size, scheme)
            await judged(page, f"outage-{name}-{scheme}", tmp_path)
        await page.run(f"{LETTERS}.querySelector('tbody a').click()")
        await page.until(f"{FOUND}.textContent.includes('SGP: dead letter (refused)')")
        kept = await page.run(f"return {FOUND}.querySelector('.kept').textContent")
        assert kept.endswith(": SGP, refused (HTTP 422), its complete write")
        for name, size, scheme in LOOKS:
            await page.look(size, scheme)
            await judged(page, f"found-{name}-{scheme}", tmp_path)
        assert await page.complaints() == []
