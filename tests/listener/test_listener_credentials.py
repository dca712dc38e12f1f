"""Credentials that come with a request: sent upstream, shown nowhere (docs/api.md)."""

from collections.abc import Mapping

import orjson
import pytest
import structlog

from tests.support.spans import make_event
from tests.support.world import Running, Upstream, running_app, upstream

AGENT_KEY, API_KEY, ACCOUNT = "agent-key-1f3a", "api-key-77b2", "account-05c9"
RELAYED = {"x_agent_api_key": AGENT_KEY, "x_api_key": API_KEY, "x_selected_account_id": ACCOUNT}
HEADERS = ("x-agent-api-key", "x-api-key", "x-selected-account-id")


def sent(fake: Upstream) -> list[dict[str, str]]:
    """The credentials in each request that an upstream received."""
    return [
        {name: request.headers[name] for name in HEADERS if name in request.headers}
        for request in fake.requests
    ]


def end(id_: str) -> Mapping[str, object]:
    """An END, which is forwarded immediately."""
    return make_event(id_, kind="end")


async def shown(app: Running) -> str:
    """Everything that the admin port shows."""
    texts = []
    for path in ("/metrics", "/status", "/readyz", "/livez"):
        async with app.client.get(app.admin_url + path) as response:
            texts.append(await response.text())
    return "\n".join(texts)


async def state(app: Running) -> str:
    """The state of SGP in `/status`."""
    async with app.client.get(app.admin_url + "/status") as response:
        return str((await response.json())["sinks"]["sgp"]["state"])


async def test_relayed_credentials_are_used() -> None:
    """Each upstream gets the agent's values of its own headers, and none of the other's."""
    async with upstream() as agentex, upstream() as sgp:
        environ = {"AGENTEX_BASE_URL": agentex.url, "SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, sgp__relay="true") as app:
            assert (await app.post(end("a"), **RELAYED)).status == 202
            assert await app.stop()
        assert sent(agentex) == [{"x-agent-api-key": AGENT_KEY}]
        assert sent(sgp) == [{"x-api-key": API_KEY, "x-selected-account-id": ACCOUNT}]


async def test_configured_credentials_win() -> None:
    """A configured credential is not replaced by one that an agent sends."""
    async with upstream() as agentex, upstream() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url,
            "SGP_API_KEY": "own-key",
            "SGP_ACCOUNT_ID": "own-account",
        }
        async with running_app(environ, agentex__api_key="own", sgp__relay="true") as app:
            await app.post(end("a"), **RELAYED)
            assert await app.stop()
        assert sent(agentex) == [{"x-agent-api-key": "own"}]
        assert sent(sgp) == [{"x-api-key": "own-key", "x-selected-account-id": "own-account"}]


async def test_without_relay_nothing_is_used() -> None:
    """An agent's SGP credentials are used only with `sgp.relay`."""
    async with upstream() as agentex, upstream() as sgp:
        environ = {"AGENTEX_BASE_URL": agentex.url, "SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ) as app:
            await app.post(end("a"), **RELAYED)
            assert await app.stop()
        assert len(agentex.requests) == 1
        assert sgp.requests == []


async def test_waiting_spans_get_the_credential() -> None:
    """Spans wait for a credential, and the first one that arrives is used for all of them."""
    async with upstream() as sgp:
        async with running_app({"SGP_CLIENT_BASE_URL": sgp.url}, sgp__relay="true") as app:
            assert (await app.post(end("early"))).status == 202
            while (await state(app)) == "up":
                pass
            assert sgp.requests == []
            await app.post(end("late"), x_api_key=API_KEY, x_selected_account_id=ACCOUNT)
            await sgp.asked.wait()
            assert await app.stop()
        items = [item["id"] for request in sgp.requests for item in request.body["items"]]
        assert sorted(items) == ["early", "late"]


async def test_the_latest_credential_is_used() -> None:
    """A pod has one agent, so its last key is used."""
    async with upstream() as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            for key in ("first", "second"):
                agentex.asked.clear()
                await app.post(end(key), x_agent_api_key=key)
                await agentex.asked.wait()
            assert await app.stop()
        assert [headers["x-agent-api-key"] for headers in sent(agentex)] == ["first", "second"]


async def test_a_probe_brings_none() -> None:
    """Credentials are relayed from POST, PUT and PATCH only, not from GET or HEAD."""
    async with upstream() as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            await app.post(end("a"), x_agent_api_key=AGENT_KEY)
            headers = {"x-agent-api-key": "of-another-client"}
            for method in ("GET", "HEAD"):
                assert (await app.request(method, "/readyz", headers=headers)).status == 200
            await app.post(end("b"))
            assert await app.stop()
        assert sent(agentex) == 2 * [{"x-agent-api-key": AGENT_KEY}]


async def test_a_web_page_can_not_bring_one() -> None:
    """A request that gets 403 does not set a credential."""
    async with upstream() as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            await app.post(end("a"), x_agent_api_key="evil", origin="http://evil.example")
            await app.post(end("b"), x_agent_api_key="evil", host="evil.example")
            await app.post(end("c"))
            assert await app.stop()
        assert sent(agentex) == [{}]


async def test_they_are_shown_nowhere() -> None:
    """No page, metric, log line or response contains a key. The id of an account is no secret."""
    with structlog.testing.capture_logs() as logs:
        async with upstream() as agentex, upstream() as sgp:
            environ = {"AGENTEX_BASE_URL": agentex.url, "SGP_CLIENT_BASE_URL": sgp.url}
            options: dict[str, object] = {"sgp__relay": "true", "sgp__api_key": "configured-key"}
            async with running_app(environ, **options) as app:
                replies = [
                    await app.post(end("a"), **RELAYED),
                    await app.post(b"{", **RELAYED),
                    await app.request("POST", "/x", headers={"x-agent-api-key": AGENT_KEY}),
                ]
                pages = await shown(app)
                assert await app.stop()
            bodies = [request.body for request in agentex.requests + sgp.requests]
    shown_texts = pages + repr(logs) + repr(replies) + orjson.dumps(bodies).decode()
    assert "started" in shown_texts
    for secret in (AGENT_KEY, API_KEY, "configured-key"):
        assert secret not in shown_texts


@pytest.mark.parametrize("value", [b"\xff\xfe", "schlüssel".encode(), b"a\tb", b"a b", b'"'])
async def test_strange_values_do_no_harm(value: bytes) -> None:
    """Spans arrive, whatever bytes a credential header holds."""
    async with upstream() as agentex:
        async with running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
            body = orjson.dumps(end("a"))
            head = [
                b"POST /v1/spans HTTP/1.1",
                b"Host: localhost",
                b"Content-Type: application/json",
                b"Content-Length: %d" % len(body),
                b"X-Agent-Api-Key: " + value,
            ]
            assert (await app.raw(b"\r\n".join([*head, b"", body])))[0] == 202
            assert await app.stop()
        assert len(agentex.requests) == 1
