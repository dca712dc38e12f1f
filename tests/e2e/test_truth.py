"""The status page is true: its sentences and numbers are those of the agent and the upstreams.

In a real Chromium, in three states. No number is compared with another one of the sidecar.
"""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import aiohttp

from sidecar.demo.stand_in import Answer, Recorded, Scripted
from tests.e2e.page_support import LEVELS, world
from tests.support.kill import Rig, SidecarRun
from tests.support.spans import END_TIME, START_TIME

Json = dict[str, Any]

# All at one moment.
READ = """
const text = (e) => (e.textContent ?? '').replace(/\\s+/g, ' ').trim();
const all = (selector, root = document) => [...root.querySelectorAll(selector)].map(text);
const boxes = Object.fromEntries([...document.querySelectorAll('#journey .box')].map((box) => [
  text(box.querySelector('h3')), text(box)]));
const tables = [...document.querySelectorAll('#accounting table')].map((table) =>
  Object.fromEntries([...table.querySelectorAll('tbody tr')].map((row) => [
    text(row.querySelector('th')), all('td', row)])));
const letters = document.querySelector('#letters');
return {
  answers: all('.answer'), boxes, events: tables[0], writes: tables[1],
  letters: letters.hidden ? null : {
    note: text(letters.querySelector('.note')), code: all('code', letters),
    rows: [...letters.querySelectorAll('tbody tr')].map((row) => all('td', row))},
};
"""
WRITES = "document.querySelectorAll('#accounting table')[1]"
CELL = (
    f"[...{WRITES}.querySelectorAll('tbody tr')]"
    ".find(e => e.querySelector('th').textContent === arguments[0])"
    ".querySelectorAll('td')[arguments[1]].textContent === arguments[2]"
)
AGENTEX, SGP = 0, 1


async def _post(life: SidecarRun, prefix: str, count: int) -> list[str]:
    """Post spans that are over, one a request; return their ids."""
    ids = [f"{prefix}{number}" for number in range(count)]
    async with aiohttp.ClientSession() as session:
        for id_ in ids:
            span = {
                "id": id_, "trace_id": "t", "name": "n", "input": {"prompt": id_},
                "start_time": START_TIME, "end_time": END_TIME,
            }  # fmt: skip
            event = {"event_type": "end", "span": span}
            async with session.post(life.url + "/v1/spans", json=event) as reply:
                assert reply.status == 202
    return ids


def _seconds(text: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "min": 60.0}
    return sum(float(n) * units[unit] for n, unit in re.findall(r"([\d.]+) (ms|s|min)", text))


def _numbers(shown: Json, accepted: int, sent: tuple[int, int], dead: int = 0) -> None:
    """The accounting and the boxes show what the agent and both upstreams have."""
    waiting = (accepted - sent[AGENTEX], accepted - sent[SGP] - dead)
    assert shown["events"]["received"] == [f"{accepted}"]
    assert shown["events"]["difference"] == ["0 ✓"]
    writes = shown["writes"]
    assert writes["written"] == [f"{accepted}"] * 2
    assert writes["forwarded"] == [f"{each}" for each in sent]
    assert writes["in the lane"] == [f"{each}" for each in waiting]
    assert writes["dead letters"] == ["0", f"{dead}"]
    assert writes["lost"] == writes["not taken"] == ["0", "0"]
    assert writes["difference"] == ["0 ✓", "0 ✓"]
    assert f"accepted{accepted}" in shown["boxes"]["Listener"].replace(" ", "")
    assert "no event refused so far" in shown["boxes"]["Listener"]
    for title, count in zip(("Agentex", "SGP"), waiting, strict=True):
        assert shown["boxes"][f"{title} queue"].startswith(f"{title} queue{count}waiting")


def _arrived(rig: Rig) -> tuple[int, int]:
    return len(rig.agentex.complete), len({id_ for _, id_ in rig.sgp.spans})


async def test_all_is_well(tmp_path: Path) -> None:
    """Both upstreams have everything: so it says, and no delay that it shows is too long."""
    async with world(tmp_path, busy=False) as (rig, life, page):
        began = time.monotonic()
        await _post(life, "well", 12)
        for lane in (AGENTEX, SGP):
            await page.until(CELL, "forwarded", lane, "12")
        took = time.monotonic() - began
        await page.until(f"{LEVELS} === 'ok,ok,ok'")
        shown = await page.run(READ)
        lost, late, why = shown["answers"]
        assert lost == "Are we losing anything?✓ Noall 12 events are accounted for"
        assert why.startswith("Why?✓ All is wellAgentex and SGP answered when last asked")
        found = re.fullmatch(
            r"Is it late\?✓ Noin the last minute, 95% were delivered within ([\d.]+ m?s) at "
            r"Agentex and ([\d.]+ m?s) at SGP",
            late,
        )
        assert found, late
        # The stand-ins' own delays are the least, and the agent's clock has the most.
        for text, least in zip(found.groups(), (0.05, 0.3), strict=True):
            assert least * 0.9 <= _seconds(text) <= took + 0.06
        _numbers(shown, 12, _arrived(rig))
        assert shown["letters"] is None
        assert await page.complaints() == []


async def test_sgp_is_down_with_rows_waiting(tmp_path: Path) -> None:
    """What waits, since when, and why, and that Agentex is not concerned."""
    async with world(tmp_path, busy=False) as (rig, life, page):
        await _post(life, "before", 3)
        await page.until(CELL, "forwarded", SGP, "3")
        answered = _arrived(rig)[SGP]
        rig.sgp.rule = lambda _: Answer(503)
        began = time.monotonic()
        await _post(life, "during", 7)
        posted = time.monotonic()
        await page.until(CELL, "forwarded", AGENTEX, "10")
        late = "document.querySelectorAll('.answer')[1].textContent"
        await page.until(f"{late}.includes('Yes, by')")
        least = time.monotonic()
        shown = await page.run(READ)
        most = time.monotonic()
        lost, late, why = shown["answers"]
        assert lost == "Are we losing anything?✓ Noall 10 events are accounted for"
        found = re.match(
            r"Is it late\?! Yes, by ([\d.]+ s)SGP: 7 writes not delivered yet, the oldest for \1",
            late,
        )
        assert found, late
        # The page is half a second old at most, and times are rounded.
        assert least - posted - 1.6 <= _seconds(found[1]) <= most - began + 0.6
        assert re.match(r"Why\?✕ SGP is downHTTP 503; (next attempt|an attempt)", why), why
        assert "Agentex" not in why
        assert answered == 3
        _numbers(shown, 10, _arrived(rig))
        assert re.search(r"last error (just now|\d.* ago): HTTP 503", shown["boxes"]["SGPdown"])
        assert "no error so far" in shown["boxes"]["Agentexup"]
        rig.sgp.rule = None
        await page.until(CELL, "forwarded", SGP, "10")
        _numbers(await page.run(READ), 10, _arrived(rig))


async def test_dead_letters(tmp_path: Path) -> None:
    """Each letter with its span, upstream, reason and status; how many there are, everywhere."""
    poison = {"some1", "some4"}

    def refuse(request: Recorded) -> Scripted:
        ids = {item["id"] for item in json.loads(request.body)["items"]}
        return 422 if ids & poison else None

    async with world(tmp_path, busy=False) as (rig, life, page):
        rig.sgp.keep_bodies = True
        rig.sgp.rule = refuse
        await _post(life, "some", 8)
        await page.until(CELL, "dead letters", SGP, "2")
        await page.until(CELL, "forwarded", SGP, "6")
        await page.until("document.querySelectorAll('#letters tbody tr').length === 2")
        path = tmp_path / "letters.jsonl"
        kept = "document.querySelector('#letters .note').textContent"
        await page.until(f"{kept}.startsWith('2 wait for a replay')")
        shown = await page.run(READ)
        lines = await asyncio.to_thread(path.read_text, encoding="utf-8")
        assert {json.loads(line)["event"]["span"]["id"] for line in lines.splitlines()} == poison
        lost, late, why = shown["answers"]
        assert re.match(
            r"Are we losing anything\?! Dead letters2 writes to SGP were set aside \(2 refused\), "
            rf"the last (just now|\d s ago); 2 letters are in {re.escape(str(path))}, not replayed",
            lost,
        ), lost
        assert late.startswith("Is it late?✓ Noin the last minute")
        assert why.startswith("Why?✓ Nothing is wrong nowAgentex and SGP answered when last asked")
        _numbers(shown, 8, _arrived(rig), dead=2)
        assert shown["letters"]["note"] == f"2 wait for a replay in {path}."
        assert shown["letters"]["code"] == [f"sidecar replay {path}"]
        assert {row[1] for row in shown["letters"]["rows"]} == poison
        for row in shown["letters"]["rows"]:
            assert row[2:6] == ["SGP", "refused", "422", "END"]
        assert await page.complaints() == []
