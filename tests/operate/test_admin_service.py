"""The admin port's service: paths, methods, bugs, and turns with the agents' requests."""

import asyncio
from itertools import count

import pytest

from sidecar.http.messages import Request, Response
from sidecar.operate import admin
from sidecar.operate.admin import AdminService, Query
from sidecar.operate.turns import AGENTS_SHARE
from tests.support.playbook import Wire, sent
from tests.support.virtual_time import run_virtual
from tests.support.world import Running, running_app

MAX_WAITING = 8


def echo(query: Query) -> Response:
    """The query's parameters, sorted by name."""
    return Response(200, " ".join(f"{name}={query[name]}" for name in sorted(query)).encode())


def bug(_: Query) -> Response:
    """A handler with a bug."""
    raise ZeroDivisionError


async def slow(query: Query) -> Response:
    """A handler that waits for 5 s."""
    await asyncio.sleep(5)
    return echo(query)


async def slow_bug(_: Query) -> Response:
    """A handler with a bug that shows only after a while."""
    await asyncio.sleep(0)
    raise ZeroDivisionError


async def crowded(_: Query) -> Response:
    """A handler for which others leave no time."""
    await asyncio.sleep(1)
    raise TimeoutError


def service() -> AdminService:
    """A service with cheap and expensive paths, and bugs in each kind."""
    return AdminService(
        cheap={"/": echo, "/bug": bug},
        expensive={
            "/large": echo,
            "/large/bug": bug,
            "/large/slow": slow,
            "/large/slow/bug": slow_bug,
            "/large/crowded": crowded,
        },
        max_waiting=MAX_WAITING,
    )


async def ask(asked: AdminService, target: str, method: str = "GET") -> Response:
    """The response to a request without a body."""
    request = Request(method, target, target.partition("?")[0], {})
    answer = asked.receive(request, Wire()).end()
    response = answer if isinstance(answer, Response) else await answer
    assert isinstance(response, Response)
    return response


async def test_a_query() -> None:
    """A handler gets the first value of each parameter."""
    for path in ("/", "/large"):
        assert (await ask(service(), f"{path}?a=1&a=2&b=%20&c=")).body == b"a=1 b=  c="


async def test_other_paths_and_methods() -> None:
    """An unknown path is a 404, a method that changes something a 405 with the allowed ones."""
    assert (await ask(service(), "/nowhere")).status == 404
    for path in ("/", "/large"):
        response = await ask(service(), path, "POST")
        assert response.status == 405
        assert ("Allow", "GET, HEAD") in response.headers
        assert (await ask(service(), path, "HEAD")).status == 200


@pytest.mark.parametrize("path", ["/bug", "/large/bug", "/large/slow/bug"])
async def test_a_handler_that_fails(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets a 500, the exception is logged, and the next request is served."""
    asked = service()
    assert (await ask(asked, path)).status == 500
    assert "ZeroDivisionError" in caplog.text
    assert (await ask(asked, "/large")).status == 200


async def test_every_response_has_the_same_policy() -> None:
    """Whatever the status, no response can be framed or read by another page."""
    for path in ("/", "/nowhere", "/bug", "/large"):
        headers = dict((await ask(service(), path)).headers)
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_expensive_pages_leave_the_loop_to_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """After each, the loop is left to others for `AGENTS_SHARE` times what it cost."""
    clock = count(step=2)
    monkeypatch.setattr(admin, "perf_counter", lambda: next(clock))  # each costs 2 s

    async def story() -> None:
        asked = service()
        done: list[float] = []

        async def one() -> None:
            await ask(asked, "/large")
            done.append(asyncio.get_running_loop().time())

        await asyncio.gather(*(one() for _ in range(3)))
        assert done == [0, 2 * AGENTS_SHARE, 4 * AGENTS_SHARE]
        assert (await ask(asked, "/")).status == 200  # cheap ones don't wait

    run_virtual(story())


def test_a_handler_that_waits_delays_no_other() -> None:
    """What it waits for, it waits for after its turn; its response has the same policy."""

    async def story() -> None:
        asked, loop = service(), asyncio.get_running_loop()
        waiting = asyncio.create_task(ask(asked, "/large/slow?a=1"))
        await asyncio.sleep(1)
        assert (await ask(asked, "/large")).status == 200
        assert loop.time() < 2
        response = await waiting
        assert response.body == b"a=1"
        assert dict(response.headers)["X-Frame-Options"] == "DENY"

    run_virtual(story())


def test_a_handler_without_time() -> None:
    """Who has waited for too long after the turn is told to come again."""

    async def story() -> None:
        refused = await ask(service(), "/large/crowded")
        assert refused.status == 503
        assert ("Retry-After", "1") in refused.headers

    run_virtual(story())


def test_those_who_wait_are_bounded() -> None:
    """Probes keep their places: with `MAX_WAITING` waiting, before or after, one more gets 503."""

    async def story() -> None:
        asked = service()
        paths = ["/large", "/large/slow"] * (MAX_WAITING // 2)
        waiting = [asyncio.create_task(ask(asked, path)) for path in paths]
        await asyncio.sleep(0)
        for path in paths:
            refused = await ask(asked, path)
            assert refused.status == 503
            assert ("Retry-After", "1") in refused.headers
        await asyncio.sleep(1)  # all have had their turn, and half of them wait after it
        for _ in range(MAX_WAITING // 2):
            paths.append("/large/slow")
            waiting.append(asyncio.create_task(ask(asked, "/large/slow")))
        await asyncio.sleep(1)
        assert (await ask(asked, "/large")).status == 503
        assert (await ask(asked, "/")).status == 200
        assert {response.status for response in await asyncio.gather(*waiting)} == {200}

    run_virtual(story())


@pytest.mark.parametrize("data", [b"\0\r\n\r\n", b"GET / FTP/1.1\r\n\r\n"])
async def test_garbage_on_the_admin_port(data: bytes) -> None:
    """It gets a 400 with the headers of every other response."""
    async with running_app() as app:
        raw = await _raw(app, data)
        assert raw.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"X-Frame-Options: DENY\r\n" in raw
        assert b"Server:" not in raw


async def test_half_closed_operators_get_their_response() -> None:
    """A client that closes its side after its request gets the response, even an expensive one."""
    async with running_app() as app:
        raw = await _raw(app, sent(b"GET /metrics HTTP/1.1"))
        assert raw.startswith(b"HTTP/1.1 200 OK\r\n")


async def _raw(app: Running, data: bytes) -> bytes:
    port = app.app.ports["admin"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize("path", ["/", "/large", "/nowhere"])
async def test_a_body_that_does_not_arrive(path: str) -> None:
    """Its request is answered without running a handler."""
    receiver = service().receive(Request("GET", path, path, {}), Wire())
    assert receiver.lost(late=True).status == (404 if path == "/nowhere" else 408)
