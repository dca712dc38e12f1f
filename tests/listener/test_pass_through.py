"""Pass-through: the SGP client's other requests are streamed unchanged, or refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tests.support.spool import until
from tests.support.world import NOWHERE, Running, running_app


class Far:
    """An SGP whose responses depend on the path."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.gate = asyncio.Event()
        self.requested = asyncio.Event()
        self.aborted = asyncio.Event()
        self.connections: set[object] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requested.set()
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername"))
        if request.path.endswith("/sick"):
            return web.Response(status=503)
        if request.path.endswith("/slow"):
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.aborted.set()
                raise
        if request.path.endswith("/events"):
            return await self._events(request)
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.rel_url.raw_path_qs, headers, body))
        if request.path.endswith("/moved"):
            return web.Response(status=307, headers={"Location": "http://elsewhere.invalid/"})
        return web.Response(
            status=201,
            body=b"echo:" + body,
            headers={"X-Far": "yes", "Connection": "X-Hop", "X-Hop": "1", "Keep-Alive": "3"},
        )

    async def _events(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await self.gate.wait()
        if request.path.startswith("/public/v5/broken"):
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(b"data: 2\n\n")
        return response


@asynccontextmanager
async def far_away() -> AsyncIterator[Far]:
    """A running `Far`."""
    far = Far()
    server = web.Server(far.handle, access_log=None, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        far.url = f"http://127.0.0.1:{runner.addresses[0][1]}/public"
        yield far
    finally:
        far.gate.set()
        await runner.cleanup()


@pytest.fixture
async def far() -> AsyncIterator[Far]:
    """An SGP behind a path prefix."""
    async with far_away() as running:
        yield running


@pytest.fixture
async def app(far: Far) -> AsyncIterator[Running]:
    """A sidecar that passes requests through to it."""
    environ = {"SGP_CLIENT_BASE_URL": far.url}
    async with running_app(environ, sgp__relay="true", listener__pass_through="true") as running:
        yield running


def passed(app: Running) -> dict[str, int]:
    """Passed-through requests by outcome, without zeros."""
    return dict(+app.app.listener._metrics.passed)


async def test_a_request_is_forwarded_unchanged(app: Running, far: Far) -> None:
    """Method, path, query, headers and body are forwarded; the credential is the agent's own."""
    headers = {"x-api-key": "agent", "Connection": "X-Secret-Hop", "X-Secret-Hop": "1"}
    path = "/v5/files/a%2Fb?x=%20y&z="
    async with app.client.post(app.url + path, data=b"body", headers=headers) as response:
        assert (response.status, await response.read()) == (201, b"echo:body")
        assert response.headers["X-Far"] == "yes"
        assert not {"X-Hop", "Keep-Alive"} & set(response.headers)
    ((method, target, got, body),) = far.requests
    assert (method, target, body) == ("POST", "/public" + path, b"body")
    assert got["x-api-key"] == "agent"
    assert "x-secret-hop" not in got
    assert got["host"] == far.url.split("/")[2]
    await until(lambda: passed(app) == {"answered": 1})
    assert app.app.accounting.received == 0


@pytest.mark.parametrize("key", [{"sgp__relay": "true"}, {}])
async def test_what_is_hidden_from_sgp_is_not_passed(far: Far, key: dict[str, str]) -> None:
    """A span in any spelling of its path is refused; what is read, and is no span, is forwarded."""
    settings = {"listener__pass_through": "true", "sgp__hide": "input", **key}
    async with running_app({"SGP_CLIENT_BASE_URL": far.url}, **settings) as app:
        headers = {"x-api-key": "agent"}
        paths = ["POST /v5/spans", "PATCH /v5/spans/s1", "PUT /v4/%73pans/x", "POST /v5//Spans"]
        if not key:
            paths.append("PUT /v5/spans/batch")
        for each in paths:
            method, path = each.split()
            url = URL(app.url + path, encoded=True)
            async with app.client.request(method, url, data=b"{}", headers=headers) as response:
                assert (response.status, b"sgp.hide" in await response.read()) == (403, True), each
        assert far.requests == []
        for method, path in [("GET", "/v5/spans/s1"), ("POST", "/v5/completions")]:
            async with app.client.request(method, app.url + path, headers=headers) as response:
                assert response.status == 201
        assert len(far.requests) == 2


async def test_a_response_streams(app: Running, far: Far) -> None:
    """The first event arrives before the second one is sent."""
    async with app.client.get(f"{app.url}/v5/events") as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readany() == b"data: 1\n\n"
        far.gate.set()
        assert await response.content.read() == b"data: 2\n\n"


async def test_a_request_streams(app: Running, far: Far) -> None:
    """The upstream gets the request while the agent is still sending the body."""

    async def body() -> AsyncIterator[bytes]:
        yield b"first"
        await far.requested.wait()
        yield b"second"

    async with app.client.post(f"{app.url}/v5/files", data=body()) as response:
        assert await response.read() == b"echo:firstsecond"


async def test_a_truncated_response_is_truncated_for_the_agent(app: Running, far: Far) -> None:
    """The agent can tell that a response is incomplete."""
    async with app.client.get(f"{app.url}/v5/broken/events") as response:
        await response.content.readany()
        far.gate.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
    assert passed(app) == {"broken": 1}


async def test_an_agent_that_disconnects_ends_the_request(app: Running, far: Far) -> None:
    """The agent's timeout applies: its request does not keep running at SGP."""
    with pytest.raises(TimeoutError):
        async with (
            asyncio.timeout(0.2),
            app.client.get(f"{app.url}/v5/slow"),
        ):
            raise AssertionError("no response was expected")
    async with asyncio.timeout(5):
        await far.aborted.wait()


async def test_a_silent_upstream_is_a_504(app: Running) -> None:
    """The read timeout is the one that the client sends (docs/upstreams.md S1.1)."""
    headers = {"x-stainless-read-timeout": "0.05"}
    reply = await app.request("GET", "/v5/slow", headers=headers)
    assert (reply.status, list(reply.body)) == (504, ["detail"])
    assert passed(app) == {"timeout": 1}


async def test_an_unreachable_upstream_is_a_502() -> None:
    """The 502 is immediate: nothing is retried."""
    environ = {"SGP_CLIENT_BASE_URL": NOWHERE}
    async with running_app(environ, sgp__relay="true", listener__pass_through="true") as app:
        reply = await app.request("GET", "/v5/models")
        assert (reply.status, list(reply.body)) == (502, ["detail"])
        assert passed(app) == {"unreachable": 1}


async def test_redirects_are_the_clients_to_follow(app: Running) -> None:
    """A redirect is returned to the client, not followed."""
    async with app.client.get(f"{app.url}/v5/moved", allow_redirects=False) as response:
        assert response.status == 307


@pytest.mark.parametrize(
    "target",
    [b"/v5/../admin", b"/v5/%2e%2e/admin", b"http://elsewhere.invalid/v5/../x"],
)
async def test_nothing_but_the_base_url_can_be_reached(
    app: Running, far: Far, target: bytes
) -> None:
    """No path escapes the base URL."""
    status, _ = await app.raw(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
    assert status in {400, 403, 404}
    assert not far.requests


async def test_another_host_in_the_target_is_still_our_upstream(app: Running, far: Far) -> None:
    """The host of an absolute request target is ignored."""
    request = b"GET http://elsewhere.invalid/v5/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    status, _ = await app.raw(request)
    assert status in {201, 400, 403}
    assert all(target == "/public/v5/models" for _, target, _, _ in far.requests)


async def test_it_is_disabled_by_default(far: Far) -> None:
    """The 404 names the key to set, and SGP gets no request."""
    environ = {"SGP_CLIENT_BASE_URL": far.url}
    async with running_app(environ, sgp__relay="true") as app:
        reply = await app.request("GET", "/v5/models")
    assert reply.status == 404
    assert "listener.pass_through" in reply.body["error"]
    assert not far.requests


async def test_spans_are_still_accepted(app: Running, far: Far) -> None:
    """The batch route is served by the sidecar, also with pass-through enabled."""
    reply = await app.request("PUT", "/v5/spans/batch", json={"items": []})
    assert reply.status == 200
    assert not far.requests


async def test_connections_are_used_again(app: Running, far: Far) -> None:
    """As long as SGP is well."""
    for _ in range(3):
        await app.request("GET", "/v5/models")
    assert len(far.connections) == 1


async def test_a_connection_that_brought_a_failure_is_replaced(app: Running, far: Far) -> None:
    """SGP's name may mean another server by now."""
    assert (await app.request("GET", "/v5/sick")).status == 503
    await app.request("GET", "/v5/models")
    assert len(far.connections) == 2


async def test_a_connection_that_is_too_old_is_replaced(far: Far) -> None:
    """However often it is used."""
    environ = {"AGENTEX_BASE_URL": NOWHERE, "SGP_CLIENT_BASE_URL": far.url}
    settings = {"listener__pass_through": True, "network__max_connection_age_s": 1e-6}
    async with running_app(environ, shutdown__grace_s=0, **settings) as running:
        for _ in range(3):
            await running.request("GET", "/v5/models")
        assert len(far.connections) == 3
