"""`sidecar replay --to`: its requests, and what it makes of the responses."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from sidecar.config import ListenerConfig
from sidecar.operate import replay
from sidecar.sinks import TooLarge
from sidecar.sinks.dead_letters import DeadLetters
from sidecar.spans.span import Lanes, SdkFields
from tests.support.faults import fast, now
from tests.support.spans import make_span
from tests.support.world import NOWHERE


class Received(NamedTuple):
    """A request that the listener received."""

    path: str
    headers: dict[str, str]
    body: bytes


Answers = Callable[[Received], web.Response]


@asynccontextmanager
async def listener(
    received: list[Received], answer: Answers = lambda _: web.json_response({})
) -> AsyncIterator[str]:
    """The URL of a server that appends each request to `received`; it accepts everything."""

    async def handle(request: web.BaseRequest) -> web.Response:
        headers = {name.lower(): text for name, text in request.headers.items()}
        received.append(Received(request.path, headers, await request.content.read()))
        return answer(received[-1])

    runner = web.ServerRunner(web.Server(handle, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("sdk", [None, SdkFields(Lanes.SGP)])
async def test_requests_fit_into_the_listener(tmp_path: Path, sdk: SdkFields | None) -> None:
    """Fifty large letters do not share a request, as small ones do, and none is left out."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 2**30)
    for number in range(70):
        payload = b'{"p":"%b"}' % (b"x" * (700_000 if number < 50 else 7))
        dead.add("sgp", make_span(f"s{number}", sdk=sdk, input=payload), "too_large", TooLarge("x"))
    received: list[Received] = []
    async with listener(received) as url:
        done = await replay.through(str(file), None, url)
    assert dict(+done) == {"accepted": 70}
    assert len(received) < 70
    assert max(len(each.body) for each in received) <= ListenerConfig().max_body


@pytest.fixture
def accounts(tmp_path: Path) -> Path:
    """Return a file whose letters have no account, or one of two, on each route."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 100_000, ["", "acme", "other"].__getitem__)
    for number, name in enumerate(["none", "acme", "other"]):
        for sdk in (None, SdkFields(Lanes.SGP), SdkFields(Lanes.AGENTEX)):
            route = 0 if sdk is None else sdk.api
            for each in "ab":
                span = make_span(f"{name}-{route}-{each}", account=number, sdk=sdk)
                dead.add("sgp", span, "refused", TooLarge("x"))
    return file


async def test_a_request_has_letters_of_one_account(accounts: Path) -> None:
    """It names the account twice: to use it, and to be refused under any other one."""
    received: list[Received] = []
    async with listener(received) as url:
        done = await replay.through(str(accounts), None, url)
    assert dict(+done) == {"accepted": 18}
    assert len(received) == 12  # the route to Agentex takes one span per request
    for request in received:
        (name,) = {name for name in ("none", "acme", "other") if name.encode() in request.body}
        expected = None if name == "none" else name
        assert request.headers.get("x-selected-account-id") == expected
        assert request.headers.get("x-trace-sidecar-account") == expected


async def test_a_sidecar_that_would_use_another_account(accounts: Path) -> None:
    """Its 409 is counted; the letters of its own account are sent all the same."""

    def answer(request: Received) -> web.Response:
        other = request.headers.get("x-trace-sidecar-account", "acme") != "acme"
        return web.json_response({"error": "another account"}, status=409 if other else 200)

    async with listener([], answer) as url:
        done = await replay.through(str(accounts), None, url)
    assert dict(+done) == {"accepted": 12, "other_account": 6}


REFUSALS = [
    (400, {"error": "several accounts are known"}),
    (404, {"detail": "SGP is not enabled in this sidecar"}),
    (413, {"error": "too large"}),
    (422, {"status_code": 10422, "message": "secret", "data": None}),
    (500, {"error": "a bug"}),
]


@pytest.mark.parametrize(("status", "body"), REFUSALS)
async def test_a_refused_request_does_not_stop_the_others(
    accounts: Path, capsys: pytest.CaptureFixture[str], status: int, body: dict[str, Any]
) -> None:
    """Its letters are counted, and its status is printed once, without the body."""

    def answer(request: Received) -> web.Response:
        named = "x-selected-account-id" in request.headers
        return web.json_response({} if named else body, status=200 if named else status)

    async with listener([], answer) as url:
        done = await replay.through(str(accounts), None, url)
    assert dict(+done) == {"accepted": 12, "rejected": 6}
    assert capsys.readouterr().err == f"sidecar: {url}: HTTP {status} for 6 letters\n"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"accepted": 1, "rejected": [{"index": 0}]}),
        (202, {"accepted": 1, "rejected": [{"index": 0}]}),
        (400, {"detail": [{"loc": ["body", "items", 0, "id"]}]}),
        (422, {"detail": [{"loc": ["body", "items", 0, "name"]}]}),
    ],
)
async def test_some_letters_of_a_request_are_accepted(
    tmp_path: Path, status: int, body: dict[str, Any]
) -> None:
    """Only those that the response names count as rejected."""
    file = tmp_path / "letters.jsonl"
    dead = DeadLetters(str(file), 100_000)
    for name in "ab":
        dead.add("sgp", make_span(name), "refused", TooLarge("x"))
    async with listener([], lambda _: web.json_response(body, status=status)) as url:
        done = await replay.through(str(file), None, url)
    assert dict(+done) == {"accepted": 1, "rejected": 1}


@pytest.mark.parametrize("text", ["<html>secret</html>", "[]", "3"])
async def test_something_that_is_no_sidecar(
    accounts: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Nothing is taken for accepted, and what was not sent is counted."""
    received: list[Received] = []

    def answer(_: Received) -> web.Response:
        sidecar = len(received) == 1
        return web.Response(text="{}" if sidecar else text, content_type="application/json")

    async with listener(received, answer) as url:
        done = await replay.through(str(accounts), None, url)
    assert dict(+done) == {"accepted": 2, "left": 16}
    assert capsys.readouterr().err == f"sidecar: {url}: HTTP 200 without JSON\n"


async def test_no_sidecar(accounts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not sent is counted, and the reason printed."""
    done = await replay.through(str(accounts), None, NOWHERE)
    assert dict(+done) == {"left": 18}
    assert NOWHERE in capsys.readouterr().err


@fast
async def test_a_sidecar_that_stays_busy(
    accounts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After five minutes the rest is left for another replay."""
    busy = {"Retry-After": "7"}
    async with listener([], lambda _: web.json_response({}, status=429, headers=busy)) as url:
        done = await replay.through(str(accounts), None, url)
    assert dict(+done) == {"left": 18}
    assert (now(), capsys.readouterr().err) == (
        replay.DEADLINE_S,
        f"sidecar: {url}: TimeoutError\n",
    )
