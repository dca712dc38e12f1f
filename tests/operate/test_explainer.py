"""What the daemon answers about a span or a trace: from memory, the spool and the dead letters."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.behaviours import Answer
from sidecar.demo.sgp import SgpStandIn
from sidecar.operate import decision_search, explainer, known
from sidecar.operate.known import unknown
from sidecar.sinks import Refused
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.sinks.replayed import Place, known_by, mark
from sidecar.spool.spool import Spool
from sidecar.spool.sqlite_file import SpoolFile
from tests.support.spans import make_event, make_span
from tests.support.spool import until
from tests.support.world import NOWHERE, Running, running_app

Json = dict[str, Any]
SGP = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
ERROR = Refused("HTTP 422", 422)


@asynccontextmanager
async def sidecar(*, sgp: bool = False, **settings: object) -> AsyncIterator[Running]:
    """A sidecar with an Agentex that is away; or, if `sgp`, with a working SGP."""
    async with SgpStandIn() as stand_in:
        environ = SGP | {"SGP_CLIENT_BASE_URL": stand_in.url}
        if not sgp:
            environ = {"AGENTEX_BASE_URL": NOWHERE}
        async with running_app(environ, shutdown__grace_s=0, **settings) as app:
            yield app


async def about(app: Running, id_: str) -> Json:
    """The answer of `/explain`."""
    async with app.client.get(f"{app.admin_url}/explain", params={"id": id_}) as response:
        assert response.status == 200
        answer: Json = await response.json()
        return answer


def whats(span: Json) -> list[str]:
    """What happened to a span, as far as the intake is concerned."""
    return [each["what"] for each in span["timeline"] if not each["sink"]]


async def test_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id of a trace gives its spans, the newest first, and how many are left off."""
    monkeypatch.setattr(known, "MAX_SPANS", 2)
    async with sidecar(queue__start_hold_s=60) as app:
        for number in range(4):
            await app.post(make_event(f"s{number}"))
        await app.post(make_event("other", trace_id="t2"))
        await app.post(make_event("s1", kind="end"))
        answer = await about(app, "t1")
    assert (answer["found_by"], answer["left_off"]) == ("trace", 2)
    assert [(each["id"], each["trace_id"]) for each in answer["spans"]] == [
        ("s1", "t1"),
        ("s3", "t1"),
    ]
    first, second = answer["spans"]
    assert (whats(first), first["start"]) == (["accepted", "accepted", "joined"], None)
    assert (whats(second), second["start"]) == (["accepted"], "held for its END")
    assert first["lanes"]["agentex"]["waits_for"]
    assert second["lanes"] == {"agentex": None}


async def test_only_memory_knows_it() -> None:
    """With decisions off, what is held and what waits is found all the same, by both ids."""
    async with sidecar(admin__decisions=0, queue__start_hold_s=60) as app:
        await app.post(make_event("held"))
        await app.post(make_event("x" * 256, kind="end"))
        for id_, found_by, count in [
            ("held", "span", 1),
            ("x" * 256, "span", 1),
            ("t1", "trace", 2),
        ]:
            answer = await about(app, id_)
            assert (answer["found_by"], len(answer["spans"])) == (found_by, count)
            assert all(each["timeline"] == [] for each in answer["spans"])
        assert answer["remembered"]["decisions"] == 0
        assert {each["id"] for each in answer["spans"]} == {"held", "x" * 256}
        text = (await about(app, "no"))["text"]
    assert text.startswith("decisions are not recorded (admin.decisions is 0): ")


async def take_turns(turns: list[int]) -> None:
    """Count the iterations of the event loop."""
    while True:
        turns.append(len(turns))
        await asyncio.sleep(0)


async def test_a_span_with_very_many_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows the newest, says since when that is everything, and lets others run meanwhile."""
    monkeypatch.setattr(decision_search, "MAX_DECISIONS", 4_000)
    async with sidecar(queue__start_hold_s=60) as app:
        decisions = app.app.decisions
        codes = [decisions.code("sgp", "not accepted", f"HTTP {status}") for status in (500, 503)]
        for number in range(10_000):
            decisions.note([make_span("s")], codes[number % 2], float(number))
        for id_ in ("s", "t1"):
            turns: list[int] = []
            others = asyncio.create_task(take_turns(turns))
            answer = await app.app.operations.explainer.about(id_)
            others.cancel()
            assert len(turns) > 3
            (span,) = answer["spans"]
            assert (len(span["timeline"]), span["left_off"]) == (100, 3_900)
            assert answer["remembered"]["all"] is False
            since = span["timeline"][0]["at"]
            assert answer["remembered"]["since"] == since


async def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is explained for too long, others are told to come again."""
    monkeypatch.setattr(explainer, "WAIT_S", 0.01)
    began, disk = threading.Event(), threading.Event()

    def slow(*_: object) -> tuple[list[object], bool]:
        began.set()
        return [], disk.wait()

    monkeypatch.setattr(explainer, "search", slow)
    async with sidecar(dead_letters__path=tmp_path / "letters") as app:
        first = asyncio.create_task(about(app, "s"))
        await until(began.is_set)
        async with app.client.get(f"{app.admin_url}/explain?id=t") as response:
            status = response.status
        disk.set()
        assert (status, (await first)["searched"]["dead_letters"]) == (503, True)


async def test_how_far_back_it_remembers() -> None:
    """It says since when, and whether that is everything since the start."""
    async with sidecar(admin__decisions=3, queue__start_hold_s=60) as app:
        await app.post(make_event("a"))
        early = (await about(app, "a"))["remembered"]
        for number in range(4):
            await app.post(make_event(f"s{number}"))
        late = (await about(app, "no"))["remembered"]
        assert (await about(app, "a"))["spans"][0]["timeline"] == []
    assert (early["all"], late["all"]) == (True, False)
    assert late["since"] > early["since"]
    assert 0 <= late["span_s"] < early["span_s"] + 10


async def test_an_id_that_is_too_long_to_keep() -> None:
    """It is found, and shown as asked; in its trace it is shown as far as it is known."""
    id_ = "é" * 100
    async with sidecar(sgp=True) as app:
        await app.post(make_event(id_, kind="end"))
        await until(lambda: not app.app.lanes[0].depth)
        (span,) = (await about(app, id_))["spans"]
        (same,) = (await about(app, "t1"))["spans"]
    assert (span["id"], span["trace_id"]) == (id_, None)
    assert (same["id"], same["trace_id"]) == ("é" * 22 + "…", None)
    assert span["summary"] == "SGP: delivered"


async def test_what_waits_on_disk(tmp_path: Path) -> None:
    """A write that is on disk only is found by both ids, with the lanes that wait for it."""
    async with sidecar(spool__path=tmp_path, admin__decisions=0, queue__max_bytes="64KiB") as app:
        for number in range(100):
            await app.post(make_event(f"s{number}", kind="end"))
        answer = await about(app, "s99")
        (span,) = answer["spans"]
        assert (answer["found_by"], answer["searched"]["spool"]) == ("span", True)
        assert (span["trace_id"], span["on_disk"]) == ("t1", ["agentex"])
        assert span["summary"] == "Agentex: waiting on disk"
        (first,) = (await about(app, "s0"))["spans"]
        assert first["on_disk"] == []
        assert first["lanes"]["agentex"]["waits_for"]
        answer = await about(app, "t1")
        assert (answer["found_by"], len(answer["spans"])) == ("trace", 100)
        assert (await about(app, "no"))["text"].endswith(
            "nothing in the spool: it was settled before that, or was never accepted here"
        )


async def test_a_dead_letter_of_the_daemon(tmp_path: Path) -> None:
    """The daemon finds it in its own file, by both ids, also after it has forgotten the span."""
    path = tmp_path / "letters"
    DeadLetters(str(path), 10_000).add("sgp", make_span("s"), "refused", ERROR)
    DeadLetters(str(path), 10_000).add("agentex", make_span("s"), "failing", Refused("", 500))
    async with sidecar(dead_letters__path=path) as app:
        for id_, found_by in (("s", "span"), ("t1", "trace")):
            answer = await about(app, id_)
            assert (answer["found_by"], answer["searched"]["dead_letters"]) == (found_by, True)
            (span,) = answer["spans"]
            assert [(each["sink"], each["reason"], each["status"], each["kind"]) for each in
                    span["dead_letters"]] == [
                ("sgp", "refused", 422, "complete"), ("agentex", "failing", 500, "complete"),
            ]  # fmt: skip
            assert span["summary"] == "Agentex: dead letter (failing); SGP: dead letter (refused)"
        assert "nothing among the dead letters" in (await about(app, "no"))["text"]
        mark(path, [Place(known_by(path.read_bytes()), 0, path.stat().st_size)])
        (span,) = (await about(app, "s"))["spans"]
        assert [each["replayed"] for each in span["dead_letters"]] == [True, True]
        assert span["summary"].endswith("SGP: dead letter (refused), replayed since")


async def test_the_timeline_of_a_dead_letter(tmp_path: Path) -> None:
    """One entry for each attempt's answer, one for the decision, and the letter."""
    path = tmp_path / "letters"
    async with SgpStandIn() as sgp:
        sgp.rule = lambda _: Answer(422, b"{}")
        environ = SGP | {"SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, dead_letters__path=path) as app:
            await app.post(make_event("s", kind="end"))
            await until(lambda: not app.app.lanes[0].depth)
            (span,) = (await about(app, "s"))["spans"]
    assert [(each["what"], each["detail"]) for each in span["timeline"]] == [
        ("accepted", "end"),
        ("not accepted", "HTTP 422"),
        ("dead letter", "refused"),
    ]
    assert (span["account"], len(span["dead_letters"])) == ("a", 1)
    assert span["summary"] == "SGP: dead letter (refused)"


async def test_the_id_of_a_span_comes_first(tmp_path: Path) -> None:
    """Where an id is a span's and a trace's, the answer is about the span, wherever it is found."""
    path = tmp_path / "letters"
    DeadLetters(str(path), 10_000).add("sgp", make_span("x"), "refused", ERROR)
    async with sidecar(dead_letters__path=path) as app:
        await app.post(make_event("s", trace_id="x"))
        answer = await about(app, "x")
        assert answer["found_by"] == "span"
        assert [(each["id"], each["trace_id"]) for each in answer["spans"]] == [("x", "t1")]


async def test_the_same_ids_in_two_accounts() -> None:
    """Spans of two accounts are two spans, even if their ids are equal."""
    async with SgpStandIn() as sgp:
        environ = {"SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, sgp__relay="true") as app:
            for account in ("one", "two"):
                await app.post(
                    make_event("s", kind="end"), x_api_key="k", x_selected_account_id=account
                )
            await until(lambda: not app.app.lanes[0].depth)
            answer = await about(app, "s")
    assert sorted(each["account"] for each in answer["spans"]) == ["one", "two"]
    assert [whats(each) for each in answer["spans"]] == [["accepted"], ["accepted"]]


async def test_a_disk_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What memory knows is the answer, which says where it could not look; others don't wait."""
    monkeypatch.setattr(explainer, "DISK_S", 0.05)
    disk = threading.Event()
    monkeypatch.setattr(explainer, "search", lambda *_: disk.wait())
    try:
        async with sidecar(dead_letters__path=tmp_path / "letters") as app:
            await app.post(make_event("s"))
            for _ in range(2):
                answer = await about(app, "s")
                assert answer["searched"]["dead_letters"] is False
                assert len(answer["spans"]) == 1
            text = (await about(app, "no"))["text"]
            async with app.client.get(app.admin_url + "/livez") as response:
                assert response.status == 200
    finally:
        disk.set()
    assert text.endswith("not all among the dead letters could be read in time: it may be there")


async def test_a_spool_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that fails is no answer about the spool, and says so."""
    async with sidecar(spool__path=tmp_path, queue__max_bytes="64KiB") as app:
        for number in range(100):
            await app.post(make_event(f"s{number}", kind="end"))

        async def fails(_: Spool, __: object) -> None:
            raise OSError("disk I/O error")

        monkeypatch.setattr(type(app.app.spool), "find", fails)
        answer = await about(app, "s99")
        assert answer["searched"]["spool"] is False
        assert answer["spans"][0]["on_disk"] is None
        text = (await about(app, "no"))["text"]
    assert text.endswith("not all in the spool could be read in time: it may be there")


async def test_a_spool_that_is_not_read_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk has not said what an earlier process left there, anything may be there."""

    def fails(_: SpoolFile) -> None:
        raise OSError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(SpoolFile, "open", fails)
        async with sidecar(spool__path=tmp_path) as app:
            answer = await about(app, "no")
            assert answer["searched"]["spool"] is False
            assert answer["text"].endswith(": it may be there")
    async with sidecar(spool__path=tmp_path) as app:
        assert (await about(app, "no"))["searched"]["spool"] is True


async def test_many_ask_while_the_disk_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All get an answer in time: once one call hangs, the others are not made."""
    monkeypatch.setattr(explainer, "DISK_S", 0.05)
    disk = threading.Event()
    monkeypatch.setattr(explainer, "search", lambda *_: disk.wait())
    try:
        async with sidecar(dead_letters__path=tmp_path / "letters") as app:
            answers = await asyncio.gather(*(about(app, f"s{n}") for n in range(20)))
            assert {answer["searched"]["dead_letters"] for answer in answers} == {False}
    finally:
        disk.set()


async def test_the_latest_decisions() -> None:
    """They are listed newest first, with ids only."""
    async with sidecar(sgp=True) as app:
        await app.post(make_event("s", kind="end", input={"secret": "prompt"}))
        await until(lambda: not app.app.lanes[0].depth)
        latest = app.app.operations.explainer.latest(10)
    assert [(each["what"], each["sink"], each["kind"]) for each in latest] == [
        ("forwarded", "sgp", "complete"),
        ("accepted", "", "end"),
    ]
    assert set(latest[0]) == {"at", "id", "account", "sink", "what", "kind", "detail"}
    assert "prompt" not in str(latest)


SETTLED = "it was settled before that, or was never accepted here"


@pytest.mark.parametrize(
    ("remembered", "spool", "letters", "where", "so"),
    [
        ((True, 125.0), None, None, "nothing since the start, 2 min 5 s ago", SETTLED),
        (
            (False, 812.4),
            True,
            True,
            "nothing in the last 13 min 32 s, nothing in the spool, nothing among the dead letters",
            SETTLED,
        ),
        (
            (False, 60.0),
            False,
            True,
            "nothing in the last 1 min 0 s, not all in the spool could be read in time",
            "it may be there",
        ),
    ],
)
def test_an_unknown_id(
    remembered: tuple[bool, float], spool: bool | None, letters: bool | None, where: str, so: str
) -> None:
    """The answer says where was looked, how far back, and what follows."""
    everything, span_s = remembered
    memory = {"decisions": 9, "all": everything, "span_s": span_s}
    text = unknown(memory, {"memory": True, "spool": spool, "dead_letters": letters})
    assert text.startswith(where)
    assert text.endswith(f": {so}")
