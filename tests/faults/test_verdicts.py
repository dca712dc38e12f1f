"""What counts as the API's own verdict, and what is only a gateway's, however it looks."""

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from sidecar.demo.stand_in import Answer, ApplyThen, Raw, Scripted
from tests.support.faults import end, fast, for_a_while, for_ids, now, page, span, start, world

LANES = "agentex", "sgp"


@pytest.mark.parametrize(
    "answer",
    [
        page(200),
        page(200, "text/plain"),
        page(201),
        Answer(204, headers={"Content-Type": "text/html"}),
        # Not in the table.
        page(200, "TEXT/HTML; charset=utf-8"),
        page(206, "application/xhtml+xml"),
        Answer(200, b'{"ok":true}', {"Content-Type": "text/html"}),
    ],
)
@fast
async def test_a_page_instead_of_a_response(answer: Answer) -> None:
    """Nothing counts as forwarded, the lane says why it is down, and all is delivered later."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(20, answer)
        feeding = asyncio.create_task(w.feed(25, per_s=3))
        await asyncio.sleep(15)
        for name in LANES:
            lane = w.lane(name)
            assert lane["forwarded"] == 0
            assert lane["state"] == "down"
            assert lane["last_error"]["kind"] == "misdirected"
            assert f"{answer.status}" in lane["last_error"]["text"]
            outcomes = {outcome for outcome, count in lane["requests_by_outcome"].items() if count}
            assert outcomes == {"misdirected"}
        await feeding
        await w.finish()


@pytest.mark.parametrize(
    "response",
    [
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        Raw(b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"),
        Raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
        ApplyThen(Answer(200, b"{}", {"Content-Type": "application/json; charset=utf-8"})),
        ApplyThen(Answer(202, b"{}", {"Content-Type": "Application/JSON ;charset=utf-8"})),
        ApplyThen(Answer(200, b"{}", {"Content-Type": "application/problem+json"})),
    ],
)
@fast
async def test_other_successes_count(response: Scripted) -> None:
    """JSON in any spelling, or no media type at all: every span is written once."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: response
        await w.post(*(end(span(f"s{number}")) for number in range(20)))
        await w.finish()
        for upstream in w.upstreams:
            assert set(upstream.writes.values()) == {1}


HOP = [407, 421, 426, 431, 402, 451, 406, 411, 412, 415, 417, 418, 428, 444, 499, 300, 304, 307]
# Not in the table: 1xx cannot be a final response; 5xx are in test_outages.py.
MORE = [301, 302, 303, 308, 405, 410, 416, 423, 424, 429, 494, 497, 520, 530, 599, 999]
PAGES = [page(400), page(409), page(422, "text/plain"), page(404), page(403), page(503)]


def _answers(*answers: Scripted, seconds: float, slow: bool) -> list[object]:
    """Parameters: each for so many seconds."""
    names = [str(a if isinstance(a, int) else f"page-{getattr(a, 'status', a)}") for a in answers]
    marks = [pytest.mark.slow] if slow else []
    return [
        pytest.param(answer, seconds, id=f"{name}-{seconds}", marks=marks)
        for answer, name in zip(answers, names, strict=True)
    ]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        *_answers(*HOP, *PAGES, seconds=5, slow=False),
        *_answers(*HOP, *PAGES, *MORE, seconds=60, slow=True),
    ],
)
@fast
async def test_a_status_of_the_hop(answer: Scripted, seconds: float) -> None:
    """No write becomes a dead letter for it, and all are delivered afterwards."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(seconds, answer)
        feeding = asyncio.create_task(w.feed(seconds + 2, per_s=3))
        await asyncio.sleep(seconds - 1)
        assert [w.lane(name)["forwarded"] for name in LANES] == [0, 0]
        assert "up" not in {w.lane(name)["state"] for name in LANES}
        await feeding
        await w.finish()


@pytest.mark.parametrize("status", [400, 409, 422])
@fast
async def test_the_apis_own_refusal(status: int) -> None:
    """With JSON, or without a media type, it makes a dead letter at once, also after an outage."""
    bare = Raw(b"HTTP/1.1 %d Refused\r\nContent-Length: 0\r\n\r\n" % status)
    async with world() as w:
        for upstream in w.upstreams:
            upstream.rule = for_a_while(5, page(status))
        await w.feed(5, per_s=3)
        refusals: list[Scripted] = [status, bare]
        for number, answer in enumerate(refusals):
            for upstream in w.upstreams:
                upstream.rule = for_ids([f"bad{number}"], answer)
            await w.post(*(end(span(id_)) for id_ in (f"a{number}", f"bad{number}", f"b{number}")))
            await w.drained()
        dead = [(name, f"bad{number}") for name in LANES for number in (0, 1)]
        # `Raw` stores the write before it is refused.
        await w.finish(dead=dead)
        for name in LANES:
            assert w.lane(name)["dead_lettered_by_reason"]["refused"] == 2


def later(seconds: float, *, ahead_s: float) -> Answer:
    """A 503 whose Retry-After is a date, by a clock that is ahead."""
    clock = datetime.now(UTC) + timedelta(seconds=ahead_s)
    date, retry = (
        format_datetime(at, usegmt=True) for at in (clock, clock + timedelta(0, seconds))
    )
    return Answer(503, headers={"Date": date, "Retry-After": retry})


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        (later(5, ahead_s=3000), 4.9, 6),
        (later(5, ahead_s=-3000), 4.9, 6),
        (Answer(503, headers={"Retry-After": "86400"}), 250, 300),
        (Answer(429, headers={"Retry-After": "86400"}), 250, 300),
        (later(86400, ahead_s=0), 250, 300),
        (later(-60, ahead_s=0), 0, 2),
        (Answer(503, headers={"Retry-After": "-5"}), 0, 2),
        (Answer(503, headers={"Retry-After": "soon"}), 0, 2),
        (Answer(503, headers={"Retry-After": "1e400"}), 0, 2),
    ],
)
@fast
async def test_retry_after(answer: Answer, least: float, most: float) -> None:
    """A date counts from the response's own Date, and no pause exceeds five minutes."""
    async with world() as w:
        for upstream in w.upstreams:
            upstream.script = [answer]
        await w.post(end(span("s")))
        await w.until(lambda: not any(w.lane(name)["depth"] for name in LANES))
        for upstream in w.upstreams:
            first, second = (request.at for request in upstream.requests)
            assert least <= second - first <= most
        await w.finish()


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BODIES = {
    "until it is closed": b"\r\n" + b"x" * 100,
    "closed at once": b"\r\n",
    "cut in a sized body": b"Content-Length: 100\r\n\r\n{",
    "cut in a chunk": b"Transfer-Encoding: chunked\r\n\r\n10\r\n{",
    "cut after a chunk": b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    "not chunks": b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
}


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("body", BODIES)
@fast
async def test_the_body_does_not_matter(body: str, hangs: bool) -> None:
    """Once the head of a 200 has arrived, nothing is written a second time."""
    async with world(agentex__timeout_s="5", sgp__timeout_s="5") as w:
        for upstream in w.upstreams:
            upstream.rule = lambda _: Raw(OK + BODIES[body], hangs)
        made = [span(f"s{number}") for number in range(3)]
        await w.post(*map(start, made))
        await asyncio.sleep(10)
        assert [w.lane(name)["depth"] for name in LANES] == [0, 0]
        await w.post(*map(end, made))
        await w.finish()
        assert w.agentex.history == w.sgp.history == {s["id"]: ["open", "complete"] for s in made}
        assert now() < 20
