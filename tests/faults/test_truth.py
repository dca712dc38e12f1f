"""Every sentence of `/status`, `sidecar top` and the log is true, whatever goes wrong.

Each test plants a failure, and lets a judge compare what the sidecar said with what the agent and
the upstreams have in their books (tests/support/truth*.py). No sentence is compared with another
one of the sidecar.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.stand_in import Answer, Delay, Hang, Recorded, Reset, Scripted
from tests.support.faults import end, fast, ids_in, now, span, start
from tests.support.otlp import span_id
from tests.support.truth_stage import Stage

Json = dict[str, Any]

LATER = Answer(429, headers={"Retry-After": "7"})
BIG = 20_000


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Two upstreams and no sidecar yet."""
    return Stage(tmp_path)


@pytest.fixture
def three(tmp_path: Path) -> Stage:
    """All three upstreams and no sidecar yet."""
    return Stage(tmp_path, lanes=("agentex", "sgp", "otlp"))


def whole(number: int) -> list[Json]:
    """A post with a span that is over."""
    return [end(span(f"w{number}"))]


def ended(prefix: str) -> Callable[[int], list[Json]]:
    """Posts like that, with other ids."""
    return lambda number: [end(span(f"{prefix}{number}"))]


def large(number: int) -> list[Json]:
    """The same with a large prompt."""
    return [end(span(f"l{number}", input={"prompt": "x" * BIG}))]


def joined(number: int) -> list[Json]:
    """START and END alternate: each span lasts for one post."""
    made = span(f"j{number // 2}")
    return [end(made) if number % 2 else start(made)]


def pair(number: int) -> list[Json]:
    """Two spans that are over."""
    return [end(span(f"a{number}")), end(span(f"b{number}"))]


def long(number: int) -> list[Json]:
    """STARTs whose ENDs come 20 posts later."""
    events = [start(span(f"o{number}"))]
    return [*events, end(span(f"o{number - 20}"))] if number >= 20 else events


@fast
async def test_nobody_sends_anything(stage: Stage) -> None:
    """Nothing has arrived, and no upstream was asked."""
    async with stage.life() as w:
        await stage.quiet(w, 20, step_s=3.0137)
        await stage.quiet(w, 700)
    stage.judge()


@fast
async def test_all_goes_well(stage: Stage) -> None:
    """From the first span to a quiet evening, and a stop."""
    async with stage.life() as w:
        await asyncio.sleep(3)
        await stage.post(w, *whole(0))
        await asyncio.sleep(5)
        await stage.agent(w, 15, joined)
        await stage.agent(w, 30, long)
        await stage.quiet(w, 100, step_s=5.0137)
        await stage.quiet(w, 1000)
    stage.judge()


# One of each kind is quick enough for every run.
QUICK = [(503, "sgp"), (401, "agentex")]
OUTAGES = [
    pytest.param(how, lane, marks=[] if (how, lane) in QUICK else [pytest.mark.slow])
    for how in (503, 500, 429, LATER, 401, 404, Hang(), Reset())
    for lane in ("agentex", "sgp")
]


@pytest.mark.parametrize(("how", "lane"), OUTAGES, ids=str)
@fast
async def test_an_outage(stage: Stage, lane: str, how: Scripted) -> None:
    """One upstream fails for a minute and a half, with traffic and after it."""
    async with stage.life(agentex__timeout_s=5, sgp__timeout_s=5) as w:
        await stage.agent(w, 5, whole)
        stage.rule(lambda _: how, lane)
        await stage.agent(w, 90, ended("during"))
        stage.rule(None, lane)
        await stage.agent(w, 60, ended("after"))
        await stage.quiet(w, 200, step_s=10.0137)
        await stage.quiet(w, 1000)
    stage.judge()


@fast
async def test_all_goes_well_with_three(three: Stage) -> None:
    """An OTLP receiver gets no running span, and counts none."""
    async with three.life() as w:
        await asyncio.sleep(3)
        await three.agent(w, 15, joined)
        await three.agent(w, 30, long)
        await three.quiet(w, 100, step_s=5.0137)
        await three.quiet(w, 1000)
    three.judge()


@pytest.mark.parametrize(
    "how",
    [
        503,
        *(pytest.param(how, marks=pytest.mark.slow) for how in (401, 404, LATER, Hang(), Reset())),
    ],
    ids=str,
)
@fast
async def test_an_outage_of_an_otlp_receiver(three: Stage, how: Scripted) -> None:
    """The other two upstreams are not affected, and what waited arrives."""
    async with three.life(otlp__timeout_s=5) as w:
        await three.agent(w, 5, whole)
        three.rule(lambda _: how, "otlp")
        await three.agent(w, 60, ended("during"))
        three.rule(None, "otlp")
        await three.agent(w, 40, ended("after"))
        await three.quiet(w, 200, step_s=10.0137)
        await three.quiet(w, 1000)
    three.judge()


@fast
async def test_a_span_that_an_otlp_receiver_refuses(three: Stage) -> None:
    """It is found among the others of its batch, and its letter is replayed."""
    async with three.life() as w:
        three.otlp.bad = lambda sent: span_id(sent) in {"a7", "b30"}
        await three.agent(w, 20, pair)
        three.otlp.bad = lambda _: False
        await three.replay()
        await three.quiet(w, 60, step_s=2.0137)
        await three.quiet(w, 1000)
    three.judge()


@fast
async def test_an_otlp_receiver_whose_headers_come_later(three: Stage) -> None:
    """Nothing is sent to it before the file of headers is there."""
    headers = three.folder / "headers"
    three.otlp.headers = {"Authorization": "Bearer made-up"}
    async with three.life(otlp__headers_file=headers) as w:
        await three.agent(w, 15, whole)
        headers.write_text("Authorization: Bearer made-up\n", encoding="utf-8")
        await three.agent(w, 5, ended("after"))
        await three.quiet(w, 60, step_s=3.0137)
    three.judge()
    assert three.has_said("OTLP has no credential")


@fast
async def test_a_partial_success(three: Stage) -> None:
    """What a receiver accepts and does not keep is lost there; what it keeps none of, is not."""
    three.otlp.rejected = lambda sent: span_id(sent) in {"a7", "a30", "b30", "b31"}
    async with three.life() as w:
        await three.agent(w, 10, pair)
        await three.quiet(w, 60, step_s=2.0137)
        await three.quiet(w, 1200)
    three.judge()
    assert three.has_said("Yes")
    assert three.has_said("Not now")


@fast
async def test_both_are_gone_and_come_back(stage: Stage) -> None:
    """Neither upstream listens for a while."""
    async with stage.life() as w:
        await stage.agent(w, 5, whole)
        for each in stage.books.upstreams.values():
            await each.go()
        await stage.agent(w, 30, ended("during"))
        await stage.quiet(w, 60, step_s=5.0137)
        for each in stage.books.upstreams.values():
            await each.come_back()
        await stage.quiet(w, 120, step_s=5.0137)
    stage.judge()


@fast
async def test_an_upstream_that_is_gone_from_the_start(stage: Stage) -> None:
    """It was never asked, and could not be reached; then spans come."""
    gone = stage.books.upstreams["sgp"]
    async with stage.life(
        without=("SGP_CLIENT_BASE_URL",), sgp__base_url="http://127.0.0.1:1"
    ) as w:
        gone.away.append((0.0, float("inf")))
        await stage.quiet(w, 40, step_s=5.0137)
        await stage.agent(w, 20, whole)
        await stage.stop(w)
    stage.judge()


@fast
async def test_an_upstream_goes_while_nobody_asks(stage: Stage) -> None:
    """What is said of it is what it said last; then the next span meets it."""
    async with stage.life() as w:
        await stage.agent(w, 5, whole)
        await stage.quiet(w, 100, step_s=10.0137)
        stage.rule(lambda _: 503)
        await stage.quiet(w, 100, step_s=10.0137)
        await stage.agent(w, 3, ended("later"))
        await stage.quiet(w, 100, step_s=3.0137)
    stage.judge()


@pytest.mark.parametrize(
    "status", [422, *(pytest.param(status, marks=pytest.mark.slow) for status in (413, 500))]
)
@fast
async def test_poison(stage: Stage, status: int) -> None:
    """A few writes are refused for good; then their letters are replayed."""
    poison = {"w7", "w30", "w31"}
    async with stage.life() as w:
        stage.rule(lambda request: status if ids_in(request) & poison else None)
        await stage.agent(w, 20, whole)
        # A 500 is a verdict only on a write whose neighbors arrive.
        await stage.agent(w, 200, ended("later"), per_s=0.5)
        stage.rule(None)
        await stage.replay()
        await stage.quiet(w, 60, step_s=2.0137)
        await stage.quiet(w, 1000)
    stage.judge()


@fast
async def test_one_dead_letter_whose_file_is_moved_away(stage: Stage) -> None:
    """One letter, in the singular; once its file is gone, it is over."""
    async with stage.life() as w:
        stage.rule(lambda request: 422 if "w3" in ids_in(request) else None, "sgp")
        await stage.agent(w, 2, whole)
        await stage.quiet(w, 30, step_s=2.0137)
        stage.letters.rename(stage.letters.with_name("away"))
        stage.books.letters_gone_at = now()
        await stage.quiet(w, 30, step_s=2.0137)
    stage.judge()


@fast
async def test_dead_letters_that_are_not_kept(stage: Stage) -> None:
    """Their path is no file: each of them is missing there, and the log says so."""
    async with stage.life() as w:
        await stage.agent(w, 3, whole)
        stage.letters.mkdir()
        stage.books.letters_failed.append((now(), float("inf")))
        stage.rule(lambda request: 422 if ids_in(request) & {"x3", "x4"} else None)
        await stage.agent(w, 5, ended("x"))
        await stage.quiet(w, 1200, step_s=20.0137)
    stage.judge()
    assert stage.has_said("Dead letters are not kept")


@fast
async def test_memory_and_log_near_their_limits(stage: Stage) -> None:
    """The container's memory is nearly used up, and the log is not read."""
    async with stage.life() as w:
        await stage.agent(w, 3, whole)
        stage.limit_memory(w, 0.95)
        stage.drop_lines(w, 3)
        await stage.agent(w, 20, ended("after"))
        await stage.quiet(w, 120, step_s=5.0137)
    stage.judge()
    assert stage.has_said("Log lines were dropped")
    assert any("of its memory" in text for text in stage.texts())


@fast
async def test_no_file_of_dead_letters(stage: Stage) -> None:
    """Nothing is kept, and nothing can be replayed."""
    async with stage.life(dead_letters__path="") as w:
        stage.rule(lambda request: 422 if "w3" in ids_in(request) else None)
        await stage.agent(w, 3, whole)
        await stage.quiet(w, 1200)
    stage.judge()


@pytest.mark.parametrize("lane", [pytest.param("agentex", marks=pytest.mark.slow), "sgp"])
@fast
async def test_the_brake(stage: Stage, lane: str) -> None:
    """Everything is refused for a while: the lane keeps its writes."""
    async with stage.life() as w:
        await stage.agent(w, 10, whole)
        stage.rule(lambda _: 422, lane)
        await stage.agent(w, 60, ended("during"))
        stage.rule(None, lane)
        await stage.agent(w, 30, ended("after"))
        await stage.quiet(w, 120, step_s=5.0137)
    stage.judge()


@pytest.mark.slow
@fast
async def test_a_room_fills_up(stage: Stage) -> None:
    """SGP is down until its room is full, and then some more. Agentex gets everything."""
    async with stage.life(queue__max_bytes="8MiB") as w:
        await stage.agent(w, 5, whole)
        stage.rule(lambda _: 503, "sgp")
        await stage.agent(w, 110, large, per_s=4)
        stage.rule(None, "sgp")
        await stage.agent(w, 30, ended("after"))
        await stage.quiet(w, 100, step_s=5.0137)
        await stage.quiet(w, 1000)
    stage.judge()


@pytest.mark.slow
@fast
async def test_spans_that_are_left_running(stage: Stage) -> None:
    """SGP has their STARTs, and no room for their ENDs."""
    async with stage.life(queue__max_bytes="8MiB") as w:
        opened = [span(f"open{number}", output={"text": "x" * BIG}) for number in range(5)]
        await stage.post(w, *map(start, opened))
        await asyncio.sleep(5)
        stage.rule(lambda _: 503, "sgp")
        await stage.agent(w, 80, large, per_s=6)
        await stage.post(w, *map(end, opened))
        await asyncio.sleep(10)
        stage.rule(None, "sgp")
        await stage.quiet(w, 100, step_s=5.0137)
    stage.judge()


@fast
async def test_no_lane_has_room(stage: Stage) -> None:
    """Agents get 429, with one lane and no other."""
    async with stage.life(queue__max_bytes="8MiB") as w:
        stage.rule(lambda _: 503)
        await stage.agent(w, 110, large, per_s=4)
        stage.rule(None)
        await stage.agent(w, 30, ended("after"))
        await stage.quiet(w, 100, step_s=5.0137)
    stage.judge()


@fast
async def test_what_agents_do_wrong(stage: Stage) -> None:
    """Malformed bodies, and events that are invalid among others."""
    async with stage.life() as w:
        await stage.post_raw(w, b"[")
        await asyncio.sleep(12)
        await stage.agent(w, 5, whole)
        for number in range(40):
            broken = end(span(f"bad{number}", start_time=None))
            await stage.post(w, end(span(f"good{number}")), broken)
            await stage.post_raw(w, b"{" * 10)
            await asyncio.sleep(0.3)
        await stage.quiet(w, 60, step_s=3.0137)
    stage.judge()


@fast
async def test_a_slow_upstream(stage: Stage) -> None:
    """SGP answers everything, but more slowly than spans come."""
    async with stage.life(sgp__max_concurrency=1, sgp__max_batch=5) as w:
        stage.rule(lambda _: Delay(3.0), "sgp")
        await stage.agent(w, 60, whole)
        stage.rule(None, "sgp")
        await stage.quiet(w, 100, step_s=3.0137)
    stage.judge()


@fast
async def test_an_upstream_takes_long_to_answer(stage: Stage) -> None:
    """No request failed: none has an answer yet."""
    async with stage.life() as w:
        stage.rule(lambda _: Delay(50.0), "sgp")
        await stage.agent(w, 20, whole)
        await stage.quiet(w, 30, step_s=3.0137)
        stage.rule(None, "sgp")
        await stage.quiet(w, 100, step_s=3.0137)
    stage.judge()


@fast
async def test_a_restart_with_a_backlog(stage: Stage) -> None:
    """What one process left in the spool is sent by the next one."""
    spool = {"spool__path": stage.folder / "spool"}
    stage.rule(lambda _: 503, "sgp")
    async with stage.life(**spool, shutdown__grace_s=5) as w:
        await stage.agent(w, 30, whole)
        await stage.stop(w)
    async with stage.life(**spool) as w:
        await asyncio.sleep(40)
        stage.rule(None, "sgp")
        await stage.agent(w, 30, ended("after"))
        await stage.quiet(w, 100, step_s=5.0137)
    stage.judge()


@pytest.mark.parametrize("kept", [True, False])
@fast
async def test_what_is_left_at_the_end(stage: Stage, kept: bool) -> None:
    """It becomes dead letters, or is lost, and the next process says so."""
    settings: dict[str, Any] = {"shutdown__grace_s": 10, "shutdown__quiet_s": 2}
    if not kept:
        settings["dead_letters__path"] = ""
    stage.rule(lambda _: 503, "sgp")
    async with stage.life(**settings) as w:
        await stage.agent(w, 10, whole)
        await stage.stop(w)
    stage.rule(None)
    async with stage.life(**settings) as w:
        await stage.agent(w, 10, ended("after"))
        await stage.quiet(w, 60, step_s=3.0137)
        await stage.quiet(w, 4000, step_s=200.0137)
    stage.judge()


@fast
async def test_a_disk_that_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spool's disk fails for a while: what comes meanwhile is in memory only."""
    async with stage.life(spool__path=stage.folder / "spool") as w:
        await stage.agent(w, 10, whole)
        with stage.failing_disk(monkeypatch):
            await stage.agent(w, 30, ended("during"))
        await stage.agent(w, 60, ended("after"))
    stage.judge()


@fast
async def test_the_key_of_one_account(stage: Stage) -> None:
    """SGP refuses the key of one account of two."""
    relay: dict[str, Any] = {"sgp__relay": "true", "without": ("SGP_API_KEY", "SGP_ACCOUNT_ID")}

    def refuse(request: Recorded) -> Scripted:
        return 401 if request.headers.get("x-selected-account-id") == "red" else None

    async with stage.life(**relay) as w:
        for account in ("red", "green"):
            await stage.agent(w, 5, ended(account), account=account, key="k")
        stage.rule(refuse, "sgp")
        for part in range(10):
            for account in ("red", "green"):
                made = ended(f"{account}-{part}-")
                await stage.agent(w, 3, made, account=account, key="k")
        stage.rule(None, "sgp")
        await stage.agent(w, 10, ended("last"), account="red", key="new")
        await stage.quiet(w, 100, step_s=5.0137)
    stage.judge()


@fast
async def test_no_credential_yet(stage: Stage) -> None:
    """SGP's key comes with the agents' requests, and they send none."""
    async with stage.life(sgp__relay="true", without=("SGP_API_KEY", "SGP_ACCOUNT_ID")) as w:
        await stage.agent(w, 15, whole)
        await stage.agent(w, 5, ended("red"), account="red", key="k")
        await stage.quiet(w, 30, step_s=3.0137)
    stage.judge()


@pytest.mark.parametrize("lanes", [pytest.param(("agentex",), marks=pytest.mark.slow), ()])
@fast
async def test_fewer_upstreams(tmp_path: Path, lanes: tuple[str, ...]) -> None:
    """One upstream, or none."""
    stage = Stage(tmp_path, lanes=lanes)
    without = ("SGP_API_KEY", "SGP_ACCOUNT_ID", *(() if lanes else ("AGENTEX_BASE_URL",)))
    async with stage.life(without=without, queue__max_bytes="8MiB") as w:
        await stage.agent(w, 10, whole)
        if lanes:
            stage.rule(lambda _: 503)
            await stage.agent(w, 110, large, per_s=4)
            stage.rule(None)
        await stage.quiet(w, 60, step_s=3.0137)
    stage.judge()
