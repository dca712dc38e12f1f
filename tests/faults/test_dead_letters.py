"""What is left when the process ends goes to the dead letters, and can be replayed (D29).

At its end `world` checks that `App.run` returned False exactly if something was lost.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from sidecar.config_load import load
from sidecar.credentials import Accounts
from sidecar.demo.stand_in import Hang
from sidecar.lanes import build_lanes
from sidecar.operate import replay
from sidecar.operate.letters import read
from sidecar.process.exit_report import ExitReport
from sidecar.queue.memory_budget import MemoryBudget
from sidecar.shutdown import Shutdown
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters, LetterWriter
from sidecar.spool.spool import Spool
from sidecar.telemetry.decisions import Decisions
from tests.support.faults import Json, World, end, fast, fast_loop, span, start, world
from tests.support.spans import make_span
from tests.support.spool import no_file_grows_beyond
from tests.support.world import NOWHERE, Running, running_app

GRACE_S = 5.0
# A little more than the size of a letter of `span`.
LETTER = 620


@asynccontextmanager
async def down(**settings: Any) -> AsyncIterator[World]:
    """A world whose upstreams respond with 503 only."""
    async with world(shutdown__grace_s=GRACE_S, **settings) as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: 503
        yield w


async def stop(w: World) -> list[Json]:
    """Stop the sidecar; return what it logs from then on."""
    with structlog.testing.capture_logs() as lines:
        w.app.stop()
        await asyncio.wait([w.running.task])
    return [dict(line) for line in lines]


def became(w: World) -> dict[str, tuple[int, int, int]]:
    """Dead letters, lost writes and depth of each lane, whose accounting must balance."""
    totals = {lane.sink.name: lane.totals() for lane in w.app.lanes}
    assert all(each["imbalance"] == 0 for each in totals.values())
    return {
        name: (each["dead_lettered"], each["lost"], each["depth"]) for name, each in totals.items()
    }


def events(lines: list[Json], event: str) -> list[Json]:
    """The lines of one event."""
    return [line for line in lines if line["event"] == event]


async def replayed(w: World) -> dict[str, int]:
    """Replay what was kept directly, to upstreams that work again."""
    for upstream in w.upstreams:
        upstream.rule = None
    environ = {
        "AGENTEX_BASE_URL": w.agentex.url,
        "SGP_CLIENT_BASE_URL": w.sgp.url,
        "SGP_API_KEY": "key",
        "SGP_ACCOUNT_ID": "account",
    }
    return dict(+await replay.directly(str(w.letters), None, load(None, environ), environ))


@fast
async def test_what_is_left_is_kept_and_can_be_replayed() -> None:
    """Nothing is lost: two writes fail until SIGTERM, and a replay delivers both."""
    async with down() as w:
        await w.post(end(span("a")))
        await asyncio.sleep(1)
        lines = await stop(w)
        assert w.running.task.result()
        assert became(w) == {"agentex": (1, 0, 0), "sgp": (1, 0, 0)}
        assert w.dead() == Counter([("agentex", "a"), ("sgp", "a")])
        kept = [(line["sink"], line["count"]) for line in events(lines, "dead_letters_kept")]
        assert kept == [("agentex", 1), ("sgp", 1)]
        assert not events(lines, "write_dead_lettered")
        assert not events(lines, "writes_lost")
        last = lines[-1]
        assert (last["event"], last["lost"]) == ("stopped", 0)
        assert {totals["dead_lettered"] for totals in last["writes"].values()} == {1}
        assert [each.what for each in w.app.decisions.latest(100)].count("dead letter") == 2
        head = next(read(str(w.letters), None, Counter())).head
        assert (head.reason, head.status) == ("shutdown", 0)
        assert (w.letters.parent / "last_shutdown_lost").read_text() == "0\n"
        assert await replayed(w) == {"forwarded": 2}
        await w.finish(dead=w.dead())
        assert (w.agentex.complete, w.sgp.complete) == ({"a"}, {"a"})


@fast
async def test_what_was_kept_goes_through_another_sidecar() -> None:
    """Both lanes kept the span: another sidecar gets it twice, and delivers it whole."""
    async with down() as w:
        await w.post(*[end(span(f"s{number}")) for number in range(60)])
        await stop(w)
        assert became(w) == {"agentex": (60, 0, 0), "sgp": (60, 0, 0)}
        for upstream in w.upstreams:
            upstream.rule = None
        environ = {
            "AGENTEX_BASE_URL": w.agentex.url,
            "SGP_CLIENT_BASE_URL": w.sgp.url,
            "SGP_API_KEY": "key",
            "SGP_ACCOUNT_ID": "account",
        }
        async with running_app(environ) as other:
            done = await replay.through(str(w.letters), None, other.url)
            assert dict(+done) == {"accepted": 120}
        await w.finish(dead=w.dead())
        assert w.agentex.complete == w.sgp.complete == {f"s{number}" for number in range(60)}


@fast
async def test_writes_in_flight_are_kept() -> None:
    """Requests to hung upstreams end with the grace period; their writes are kept."""
    async with world(shutdown__grace_s=GRACE_S) as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: Hang()
        await w.feed(5)
        await stop(w)
        assert {lost for _, lost, _ in became(w).values()} == {0}
        assert {id_ for _, id_ in w.dead()} == set(w.accepted) | set(w.opened)
        await replayed(w)
        await w.finish(dead=w.dead())
        assert set(w.accepted) <= w.agentex.complete & w.sgp.complete


@fast
async def test_a_file_that_is_nearly_full() -> None:
    """As much is kept as fits without dropping an older letter; the rest is lost and counted."""
    async with down(dead_letters__max_bytes=8 * LETTER) as w:
        older = DeadLetters(str(w.letters), 8 * LETTER)
        for number in range(6):
            old = make_span(f"old{number}", input=b'{"p":"%b"}' % (b"x" * 290))
            older.add("sgp", old, "refused", Refused("", 422))
        before = w.dead()
        first = w.letters.with_name("letters.jsonl.1").read_bytes()
        await w.post(*[end(span(f"s{number}")) for number in range(3)])
        await asyncio.sleep(1)
        lines = await stop(w)
        assert w.letters.with_name("letters.jsonl.1").read_bytes() == first
        assert before <= w.dead()
        kept = Counter(name for name, id_ in w.dead() if id_.startswith("s"))
        assert 0 < kept.total() < 6
        assert became(w) == {name: (kept[name], 3 - kept[name], 0) for name in ("agentex", "sgp")}
        assert sum(line["count"] for line in events(lines, "writes_lost")) == 6 - kept.total()
        assert (lines[-1]["lost"], w.running.task.result()) == (6 - kept.total(), False)


@fast
async def test_a_full_disk() -> None:
    """What the disk does not take is lost; what it has taken is whole."""
    async with down() as w:
        big = {"p": "x" * 100_000}
        await w.post(*[end(span(f"s{number}", input=big)) for number in range(5)])
        await asyncio.sleep(1)
        with no_file_grows_beyond(250_000):
            lines = await stop(w)
        assert w.dead() == Counter([("agentex", "s0"), ("agentex", "s1")])
        assert became(w) == {"agentex": (2, 3, 0), "sgp": (0, 5, 0)}
        assert len(events(lines, "dead_letter_not_kept")) == 2  # once for each lane
        assert lines[-1]["lost"] == 8
        assert await replayed(w) == {"forwarded": 2}


@fast
async def test_no_file() -> None:
    """Without `dead_letters.path`, what is left is lost."""
    async with down(dead_letters__path="") as w:
        await w.post(end(span("a")))
        lines = await stop(w)
        assert became(w) == {"agentex": (0, 1, 0), "sgp": (0, 1, 0)}
        assert not events(lines, "dead_letters_kept")
        assert not w.dead()


@fast
async def test_open_writes_and_supplements() -> None:
    """A replay sends them to Agentex, where they add to the row, and says what SGP does not get."""
    async with world(shutdown__grace_s=GRACE_S, queue__start_hold_s=1) as w:
        await w.post(start(span("running")))
        await asyncio.sleep(5)  # written open: its data follows when the process stops
        assert not w.agentex.spans["running"]["data"]
        for upstream in w.upstreams:
            upstream.rule = lambda _: 503
        await w.post(start(span("open")), start(span("both")), end(span("done")))
        await asyncio.sleep(5)
        await w.post(end(span("both")))
        await stop(w)
        assert {lost for _, lost, _ in became(w).values()} == {0}
        # To Agentex all five, one of them inside another; to SGP the two complete ones.
        assert await replayed(w) == {"forwarded": 7, "skipped": 1}
        assert w.agentex.complete == w.sgp.complete == {"done", "both"}
        for id_ in ("running", "open"):
            assert w.agentex.spans[id_]["data"] == span(id_)["data"]
        assert "open" not in {key[1] for key in w.sgp.spans}
        assert (w.agentex.late_opens, w.sgp.late_opens) == (0, 0)


@fast
async def test_all_lanes_share_the_time(tmp_path: Path) -> None:
    """When it is over, the rest is lost and counted, also in the lanes that come later."""
    loop, hangs = fast_loop(), threading.Event()

    class HangingLetters(DeadLetters):
        """The disk hangs at the third letter."""

        def _append(self, path: Path, letter: bytes, *, may_drop: bool) -> None:
            if path.exists() and path.read_bytes().count(b"\n") == 2:
                loop.hang(hangs)
            super()._append(path, letter, may_drop=may_drop)

    letters = LetterWriter(HangingLetters(str(tmp_path / "letters.jsonl"), 100_000))
    environ = {"AGENTEX_BASE_URL": NOWHERE, "SGP_API_KEY": "key", "SGP_ACCOUNT_ID": "account"}
    budget = MemoryBudget(2**20)
    spool, decisions, accounts = Spool(), Decisions(), Accounts("account")
    lanes = build_lanes(load(None, environ), environ, budget, letters, spool, decisions, accounts)
    for lane in lanes:
        for id_ in "abc":
            lane.accounting.offered += 1
            lane.put(make_span(id_))
    report, nothing_held = ExitReport(None), lambda: None
    shutdown = Shutdown(spool, lanes, letters, report, nothing_held, lambda: {"received": 3})
    assert not await shutdown.finish()
    hangs.set()
    totals = [lane.totals() for lane in lanes]
    assert [(each["dead_lettered"], each["lost"]) for each in totals] == [(2, 1), (0, 3)]
    assert [each["imbalance"] for each in totals] == [0, 0]
    assert budget.used == 0


async def kept_with_spool(folder: Path, spool: Path) -> tuple[Running, Counter[str]]:
    """Stop a sidecar whose upstream is not there; the ids in its dead letters."""
    letters = folder / "letters.jsonl"
    settings: dict[str, Any] = {"spool__path": spool, "dead_letters__path": letters}
    environ = {"AGENTEX_BASE_URL": NOWHERE}
    async with running_app(environ, shutdown__grace_s=0, **settings) as running:
        assert (await running.post([end(span("a")), end(span("b"))])).status == 202
        await running.stop()
    counts = Counter[str]()
    ids = [each.span.id for each in read(str(letters), None, counts)] if letters.exists() else []
    assert not counts
    return running, Counter(ids)


async def test_rows_on_disk_stay_in_the_spool(tmp_path: Path) -> None:
    """With a spool nothing is left: the next process sends it."""
    running, ids = await kept_with_spool(tmp_path, tmp_path / "spool")
    assert not ids
    totals = running.app.lanes[0].totals()
    assert (totals["depth"], totals["dead_lettered"], totals["lost"]) == (2, 0, 0)
    assert running.task.result()


async def test_what_a_failing_spool_did_not_take_is_kept(tmp_path: Path) -> None:
    """While the spool's disk fails, writes are in memory only: they go to the dead letters."""
    in_the_way = tmp_path / "spool"
    in_the_way.write_bytes(b"")
    running, ids = await kept_with_spool(tmp_path, in_the_way)
    assert ids == Counter("ab")
    totals = running.app.lanes[0].totals()
    assert (totals["depth"], totals["dead_lettered"], totals["lost"]) == (0, 2, 0)
    assert running.task.result()


@pytest.mark.parametrize("route", ["directly", "through"])
@fast
async def test_a_disk_that_fills_up_costs_no_other_letter(route: str) -> None:
    """A running sidecar meets a full disk: what it could keep before and after is replayed."""
    async with world(shutdown__grace_s=GRACE_S) as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: 422
        big = {"p": "x" * 100_000}

        async def refuse(*ids: str) -> None:
            await w.post(*[end(span(id_, input=big)) for id_ in ids])
            await w.drained()

        await refuse("a")
        with no_file_grows_beyond(250_000):
            await refuse("b")
        await refuse("c")
        assert w.dead() == Counter((sink, id_) for sink in ("agentex", "sgp") for id_ in "ac")
        for upstream in w.upstreams:
            upstream.rule = None
        if route == "directly":
            assert await replayed(w) == {"forwarded": 4}
        else:
            done = await replay.through(str(w.letters), None, w.running.url)
            assert dict(+done) == {"accepted": 4}
            await w.drained()
        assert w.agentex.complete == w.sgp.complete == {"a", "c"}
