"""The OTLP lane in a running sidecar: what it takes, what it must not see, and its credentials."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Recorded
from sidecar.spans.span import Lanes
from sidecar.telemetry.outcomes import SinkState
from tests.support.otlp import OtlpStandIn, attributes, decoded, spans_in
from tests.support.spans import make_event
from tests.support.spool import until
from tests.support.world import NOWHERE, Running, running_app

ITEM = {
    "id": "item",
    "trace_id": "t1",
    "name": "turn",
    "start_timestamp": "2026-01-02T03:04:05+00:00",
    "end_timestamp": "2026-01-02T03:04:06+00:00",
    "input": {"q": "hi"},
    "status": "SUCCESS",
    "type": "COMPLETION",
}
SPAN = {
    "id": "sdk",
    "trace_id": "t1",
    "name": "turn",
    "start_time": "2026-01-02T03:04:05+00:00",
    "end_time": "2026-01-02T03:04:06+00:00",
}
SECRETS = {"input": {"q": "in-7a1"}, "output": {"a": "out-5c2"}, "data": {"d": "data-93e"}}


@pytest.fixture
async def otlp() -> AsyncIterator[OtlpStandIn]:
    """A receiver of OTLP."""
    async with OtlpStandIn() as stand_in:
        yield stand_in


def environ_of(otlp: OtlpStandIn, **more: str) -> dict[str, str]:
    """The variables of a pod whose only upstream is `otlp`, but for `more`."""
    return {"SIDECAR_OTLP__ENDPOINT": otlp.url} | more


async def put(app: Running, *items: Any, **headers: str) -> int:
    """Send items as SGP's SDK does; returns the status."""
    reply = await app.request("PUT", "/v5/spans/batch", json={"items": items}, headers=headers)
    return reply.status


def writes(app: Running, name: str) -> dict[str, int]:
    """The accounting of a lane."""
    (lane,) = (lane for lane in app.app.lanes if lane.name == name)
    return lane.totals()


async def test_it_may_be_the_only_lane(otlp: OtlpStandIn) -> None:
    """Without another upstream, events and SGP's items are taken; Agentex's SDK gets a 503."""
    async with running_app(environ_of(otlp)) as app:
        assert (await app.post(make_event("event", kind="end"))).status == 202
        assert await put(app, ITEM) == 200
        refused = await app.request("POST", "/spans", json=SPAN)
        assert refused.status == 503
        assert "Agentex is off" in refused.body["detail"]
        assert await app.stop()
    assert set(otlp.spans) == {"event", "item"}


async def test_each_span_of_an_sdk_arrives_once(otlp: OtlpStandIn) -> None:
    """An SDK posts each span to both routes: OTLP gets what came by SGP's, and not the other."""
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp:
        more = {"AGENTEX_BASE_URL": agentex.url, "SGP_CLIENT_BASE_URL": sgp.url}
        keys = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
        async with running_app(environ_of(otlp, **more, **keys)) as app:
            assert await put(app, ITEM) == 200
            reply = await app.request("POST", "/spans", json=SPAN | {"id": "item"})
            assert reply.status == 200
            assert await app.stop()
            assert [writes(app, name)["forwarded"] for name in ("agentex", "sgp", "otlp")] == [
                1
            ] * 3
    assert otlp.writes == {"item": 1}


async def test_only_complete_writes_are_sent(otlp: OtlpStandIn) -> None:
    """A START goes nowhere; its END takes what it leaves out from it, also after the hold."""
    async with running_app(environ_of(otlp), queue__start_hold_s=0) as app:
        await app.post(make_event("s", kind="start", input={"q": "hi"}))
        await until(lambda: writes(app, "otlp")["skipped"] == 1)
        await app.post(make_event("s", kind="end", input=None))
        await app.post(make_event("never ends", kind="start"))
        assert await put(app, ITEM | {"end_timestamp": None}) == 200
        assert await app.stop()
        totals = writes(app, "otlp")
    assert (totals["forwarded"], totals["skipped"], totals["depth"]) == (1, 3, 0)
    assert attributes(otlp.spans["s"].attributes)["input.value"] == '{"q":"hi"}'
    assert set(otlp.spans) == {"s"}


async def test_rows_of_an_earlier_version(otlp: OtlpStandIn, tmp_path: Path) -> None:
    """An item of SGP that waits since before the upgrade goes to SGP only; its END joins it."""
    async with SgpStandIn() as sgp:
        keys = {"SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
        stalled = keys | {"SGP_CLIENT_BASE_URL": NOWHERE}
        settings: dict[str, Any] = {"spool__path": tmp_path, "queue__start_hold_s": 60}
        before = 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sidecar.listener.routes.sgp.SGP_ROUTE", before)
            async with running_app(stalled, **settings, shutdown__grace_s=0) as app:
                assert await put(app, ITEM | {"id": "done"}) == 200
                assert await put(app, ITEM | {"id": "open", "end_timestamp": None}) == 200
        environ = environ_of(otlp, **keys, SGP_CLIENT_BASE_URL=sgp.url)
        async with running_app(environ, **settings) as app:
            assert await put(app, ITEM | {"id": "open", "input": None}) == 200
            assert await app.stop()
        rows = {key[1]: row for key, row in sgp.spans.items()}
    assert set(rows) == {"done", "open"}
    assert rows["open"]["input"] == ITEM["input"]
    assert rows["open"]["end_timestamp"] == ITEM["end_timestamp"]
    assert "done" not in otlp.spans


@pytest.mark.parametrize("hide", ["input", "output", "data", "input,output,data"])
async def test_each_upstream_sees_what_it_may(otlp: OtlpStandIn, tmp_path: Path, hide: str) -> None:
    """What is hidden from one upstream is in no request to it, and in those to the others."""
    hidden = {str(*SECRETS[name].values()) for name in hide.split(",")}
    async with AgentexStandIn() as agentex:
        environ = environ_of(otlp, AGENTEX_BASE_URL=agentex.url)
        async with running_app(environ, otlp__hide=hide, spool__path=tmp_path) as app:
            await app.post(make_event("event", kind="end", **SECRETS))
            fields = SECRETS | {"metadata": SECRETS["data"]}
            await put(app, ITEM | {k: v for k, v in fields.items() if k != "data"})
            assert await app.stop()
        seen = b"".join(request.body for request in agentex.requests).decode()
    shown = b"".join(request.body for request in otlp.requests).decode(errors="replace")
    for text in (str(*value.values()) for value in SECRETS.values()):
        assert text in seen
        assert (text in shown) == (text not in hidden)


def letters_in(path: Path) -> list[dict[str, Any]]:
    """The dead letters in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_hidden_from_dead_letters(otlp: OtlpStandIn, tmp_path: Path) -> None:
    """A letter has only what its upstream may see, and says what is not there."""
    path = tmp_path / "letters.jsonl"
    otlp.bad = lambda span: span.name == "bad"
    async with AgentexStandIn() as agentex:
        agentex.rule = lambda _: Answer(422)
        settings: dict[str, Any] = {"dead_letters__path": path, "otlp__hide": "input,output"}
        environ = environ_of(otlp, AGENTEX_BASE_URL=agentex.url)
        async with running_app(environ, **settings) as app:
            await app.post(make_event("s", kind="end", name="bad", **SECRETS))
            await app.post(make_event("bare", kind="end", name="bad", input=None, output=None))
            assert await app.stop()
    letters = {(each["sink"], each["event"]["span"]["id"]): each for each in letters_in(path)}
    one, bare = letters["otlp", "s"], letters["otlp", "bare"]
    assert one["hidden"] == ["input", "output"]
    span = one["event"]["span"]
    assert (span["input"], span["output"], span["data"]) == (None, None, SECRETS["data"])
    assert "hidden" not in bare  # there was nothing to hide
    whole = letters["agentex", "s"]
    assert "hidden" not in whole
    assert whole["event"]["span"]["input"] == SECRETS["input"]


async def test_hidden_from_letters_at_the_end(tmp_path: Path) -> None:
    """So has a letter that is written because the process stops."""
    path = tmp_path / "letters.jsonl"
    environ = {"SIDECAR_OTLP__ENDPOINT": NOWHERE}
    async with running_app(
        environ, dead_letters__path=path, otlp__hide="data", shutdown__grace_s=0
    ) as app:
        await app.post(make_event("s", kind="end", **SECRETS))
        assert await app.stop()
    (letter,) = letters_in(path)
    assert (letter["reason"], letter["hidden"]) == ("shutdown", ["data"])
    assert letter["event"]["span"]["data"] is None


async def test_an_open_span_whose_data_is_hidden(tmp_path: Path) -> None:
    """Agentex gets no supplement of what it must not see, and nothing is left behind."""
    async with AgentexStandIn() as agentex:
        environ = {"AGENTEX_BASE_URL": agentex.url}
        settings: dict[str, Any] = {"queue__start_hold_s": 0, "agentex__hide": "data,input"}
        async with running_app(environ, **settings, spool__path=tmp_path) as app:
            await app.post(make_event("open", kind="start", **SECRETS))
            await app.post(make_event("late", kind="end", input=None))
            await agentex.arrived(2)
            await app.post(make_event("late", kind="start", input=SECRETS["input"]))
            assert await app.stop()
            assert writes(app, "agentex")["skipped"] <= 1
        seen = b"".join(request.body for request in agentex.requests).decode()
    assert "out-5c2" in seen
    assert "in-7a1" not in seen
    assert "data-93e" not in seen


async def test_a_partial_success_is_counted(otlp: OtlpStandIn) -> None:
    """What the receiver says that it did not keep counts as lost; the rest is delivered."""
    otlp.rejected = lambda span: span.name == "bad"
    with capture_logs() as logs:
        async with running_app(environ_of(otlp), otlp__linger_s=60) as app:
            names = ["bad", "bad", "ok", "ok", "ok"]
            events = [make_event(str(n), kind="end", name=name) for n, name in enumerate(names)]
            assert (await app.post(events)).status == 202
            assert not await app.stop()  # exit code 1: something was lost
    last = next(line["text"] for line in logs if line["event"] == "stopped")
    assert last.startswith("stopped: 2 writes were lost (an upstream did not keep 2); ")
    (lane,) = app.app.lanes
    assert (lane.totals()["forwarded"], lane.accounting.lost["partial_success"]) == (3, 2)
    assert set(otlp.spans) == {"2", "3", "4"}


async def test_of_nothing_that_was_kept_the_bad_ones_are_found(
    otlp: OtlpStandIn, tmp_path: Path
) -> None:
    """If the receiver kept none, halves are sent: the bad span becomes a dead letter, alone."""
    path = tmp_path / "letters.jsonl"

    def reply(request: Recorded) -> Answer | None:
        spans = spans_in(decoded(request))
        if any(span.name == "bad" for span in spans):
            otlp.rejected = lambda _: True
        else:
            otlp.rejected = lambda _: False
        return None

    otlp.rule = reply
    async with running_app(environ_of(otlp), otlp__linger_s=60, dead_letters__path=path) as app:
        events = [make_event(str(n), kind="end", name="bad" if n == 3 else "ok") for n in range(8)]
        assert (await app.post(events)).status == 202
        assert await app.stop()
        assert writes(app, "otlp")["forwarded"] == 7
    assert [letter["event"]["span"]["id"] for letter in letters_in(path)] == ["3"]
    assert set(otlp.spans) == {"0", "1", "2", "4", "5", "6", "7"}


async def test_headers_in_a_file_that_changes(tmp_path: Path) -> None:
    """They win over those of the configuration; while the file is missing, nothing is sent."""
    file = tmp_path / "headers"
    async with OtlpStandIn(headers={"authorization": "Bearer two", "x-scope": "mine"}) as otlp:
        environ = environ_of(otlp, SIDECAR_OTLP__HEADERS="Authorization=Bearer%20one,x-scope=mine")
        async with running_app(environ, otlp__headers_file=file) as app:
            (lane,) = app.app.lanes
            await app.post(make_event("s", kind="end"))
            await until(lambda: lane.state is SinkState.UNAUTHORIZED)
            assert otlp.requests == []
            assert not lane.waits_for_key(0)  # of an agent: it could not be used
            file.write_text("# rotated\n\nAuthorization: Bearer wrong\n")
            await until(lambda: len(otlp.requests) >= 1)
            assert otlp.requests[0].headers["Authorization"] == "Bearer wrong"
            file.write_text("Authorization: Bearer two and more\nbroken\n")
            await asyncio.gather(*(lane.refresh() for lane in app.app.lanes))
            file.write_text("Authorization: Bearer two\n")
            await until(lambda: lane.state is SinkState.UP)
            assert set(otlp.spans) == {"s"}
            assert "Bearer" not in str(app.app.status())


async def test_a_header_wins_over_the_user_in_the_url(otlp: OtlpStandIn) -> None:
    """There is one `Authorization`: the configured one, or else that of the endpoint's user."""
    url = otlp.url.replace("//", "//user:pass@")
    for headers, sent in (("", "Basic dXNlcjpwYXNz"), ("authorization=Bearer%20one", "Bearer one")):
        async with running_app({"SIDECAR_OTLP__ENDPOINT": url}, otlp__headers=headers) as app:
            await app.post(make_event("s", kind="end"))
            assert await app.stop()
        found = otlp.requests[-1].headers.items()
        assert [text for name, text in found if name.lower() == "authorization"] == [sent]


async def test_the_bit_of_the_lane_is_in_the_spool(otlp: OtlpStandIn, tmp_path: Path) -> None:
    """What waits for OTLP when the process is stopped is delivered by the next one, to it only."""
    async with AgentexStandIn() as agentex:
        pod = {"AGENTEX_BASE_URL": agentex.url}
        settings: dict[str, Any] = {"spool__path": tmp_path, "shutdown__grace_s": 0.5}
        environ = pod | {"SIDECAR_OTLP__ENDPOINT": NOWHERE}
        async with running_app(environ, **settings) as app:
            await app.post(make_event("s", kind="end"))
            await agentex.arrived(1)
            assert await app.stop()
            assert [lane.bit for lane in app.app.lanes] == [Lanes.AGENTEX, Lanes.OTLP]
        async with running_app(environ_of(otlp, **pod), **settings) as app:
            await otlp.arrived(1)
            assert await app.stop()
        assert agentex.writes == {"s": 1}
    assert otlp.writes == {"s": 1}
