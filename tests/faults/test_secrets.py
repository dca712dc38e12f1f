"""Span content goes upstream and into dead letters, and nowhere else (D19)."""

import asyncio
import json
from typing import Any

import pytest
from structlog.testing import capture_logs

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer, Recorded, ResetMidBody, Scripted
from tests.support.faults import Json, World, end, fast, span, start, world

MARK = "Zanzibar"
KEY = "sk-Tanganyika"


def marked(id_: str, **fields: Any) -> Json:
    """A span with the mark in all of its content."""
    return span(
        id_,
        name=f"name {MARK}",
        input={MARK: f"input {MARK}"},
        output={"text": [MARK]},
        data={"__error__": {"type": MARK, "message": MARK}, "__span_type__": MARK, MARK: 1},
        **fields,
    )


def leaking(request: Recorded) -> Scripted:
    """A rule: every kind of failure, with the mark in its body and headers."""
    body = json.dumps({"detail": MARK, "message": MARK}).encode()
    headers = {"X-Reason": MARK, "Location": f"http://127.0.0.1/{MARK}", "Set-Cookie": f"a={MARK}"}
    faults.append(faults.pop(0))
    if request.at > 60:
        return Answer(422, body) if b'"id":"bad"' in request.body else None
    return faults[0] if isinstance(faults[0], ResetMidBody) else Answer(faults[0], body, headers)


faults: list[Any] = [503, 401, 404, 500, 429, 307, 403, 408, ResetMidBody()]


async def rejections(w: World) -> list[bytes]:
    """The listener's responses to bodies that it rejects."""
    event = end(marked("x"))
    bodies: list[Any] = [
        json.dumps(event)[:-2].encode(),
        json.dumps(event).encode() + MARK.encode(),
        b"\xff" + MARK.encode(),
        MARK.encode(),
        *(
            json.dumps([end(span("x", **{field: value}))]).encode()
            for field in ("start_time", "end_time", "input", "output", "data", "name", "trace_id")
            for value in ([MARK], 7, False)
        ),
        *(
            json.dumps([end(span("x", **{field: MARK}))]).encode()
            for field in ("start_time", "end_time", "input", "output", "data")
        ),
        json.dumps({"event_type": MARK, "span": event["span"]}).encode(),
    ]
    responses = []
    for body in bodies:
        reply = await w.send(body)
        assert reply.status == 400, body
        responses.append(json.dumps(reply.body).encode())
    reply = await w.send(b"", content_type=f"text/{MARK}")
    responses.append(json.dumps(reply.body).encode())
    return responses


@fast
async def test_content_stays_inside(caplog: pytest.LogCaptureFixture) -> None:
    """After every failure, no mark and no key is in logs, metrics, status or responses."""
    seen: list[bytes] = []
    with capture_logs() as logs:
        async with world(
            AgentexStandIn(api_key=KEY),
            SgpStandIn(api_key=KEY),
            agentex__api_key=KEY,
            sgp__api_key=KEY,
        ) as w:
            for upstream in w.upstreams:
                upstream.rule = leaking
            await w.post(start(marked("open")), start(marked("long", task_id="t")))
            await w.post(*[end(marked(f"s{number}")) for number in range(20)])
            seen += await rejections(w)
            await asyncio.sleep(10)
            await w.post(end(marked("long", task_id="t")))
            for _ in range(10):
                await asyncio.sleep(10)
                for path in ("metrics", "status", "readyz", "livez"):
                    async with w.running.client.get(f"{w.running.admin_url}/{path}") as page:
                        seen.append(await page.read())
            await w.post(end(marked("bad")))
            await w.until(lambda: w.dead().total() == 2)
            await w.finish(dead=[("agentex", "bad"), ("sgp", "bad")])
            assert MARK in w.letters.read_text()
    seen += [repr(logs).encode(), caplog.text.encode()]
    assert {"write_dead_lettered", "upstream_up", "stopped"} <= {entry["event"] for entry in logs}
    for secret in (MARK.encode(), KEY.encode()):
        assert [text for text in seen if secret in text] == []
