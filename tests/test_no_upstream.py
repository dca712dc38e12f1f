"""A sidecar whose settings are missing or, in the pod's own variables, wrong (D12)."""

from pathlib import Path
from typing import Any

import pytest

from sidecar.config_load import read
from sidecar.config_upstreams import SGP_PRODUCTION
from sidecar.operate.problems import missing_settings
from tests.support.spans import make_event
from tests.support.spool import until
from tests.support.world import NOWHERE, Running, running_app, upstream

NOTHING = {"AGENT_NAME": "agent"}
JSON = {"content-type": "application/json"}
POSTS = [
    ("POST", "/v1/spans", b"[]"),
    ("POST", "/v1/spans", b"not JSON"),
    ("PUT", "/v5/spans/batch", b'{"items": []}'),
    ("POST", "/v5/spans/batch", b"{}"),
    ("POST", "/spans", b"{}"),
    ("PATCH", "/spans/s1", b"{}"),
]


async def admin(app: Running, path: str) -> tuple[int, Any]:
    """The response of the admin port: status, and its JSON."""
    async with app.client.get(app.admin_url + path) as response:
        is_json = response.content_type == "application/json"
        return response.status, await response.json() if is_json else None


@pytest.mark.parametrize(("method", "path", "body"), POSTS)
async def test_posts_say_what_is_missing(method: str, path: str, body: bytes) -> None:
    """Whatever its body, a post gets 503 with what to set, and no request to try again."""
    async with running_app(NOTHING) as app:
        reply = await app.request(method, path, data=body, headers=JSON)
        (_, status) = await admin(app, "/status")
    assert reply.status == 503
    (text,) = reply.body.values()
    assert text.startswith("nothing was accepted: ")
    assert "set AGENTEX_BASE_URL" in text or "SGP_API_KEY" in text
    assert "Retry-After" not in reply.headers
    assert reply.headers["X-Should-Retry"] == "false"
    assert status["intake"]["rejected_by_reason"]["no_upstream"] == 1


async def test_it_is_ready() -> None:
    """Both ports are alive and ready, so that the pod starts, and operators see why."""
    async with running_app(NOTHING) as app:
        assert (await app.request("GET", "/readyz")).status == 200
        for path in ("/livez", "/readyz", "/metrics", "/", "/status/history"):
            status, _ = await admin(app, path)
            assert status == 200, path
        _, status = await admin(app, "/status")
        assert status["sinks"] == {}
        assert [each["answer"] for each in status["answers"]][1:] == [
            "No",
            "No upstream is enabled",
        ]
        assert await app.stop()


async def test_refused_posts_are_a_loss() -> None:
    """While agents post, the first answer is that events are rejected, at the worst level."""
    async with running_app(NOTHING) as app:

        async def shown() -> bool:
            await app.post([make_event("s1")])
            _, status = await admin(app, "/status")
            first = status["answers"][0]
            return (first["level"], first["answer"]) == ("bad", "Events are being rejected")

        while not await shown():
            pass


async def test_one_upstream_is_enough() -> None:
    """With one of two upstreams, /v1/spans is accepted, and only the other's own route is not."""
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}) as app:
        assert (await app.post([make_event("s1", kind="end")])).status == 202
        await until(lambda: len(agentex.requests) == 1)
        reply = await app.request("PUT", "/v5/spans/batch", data=b'{"items": []}', headers=JSON)
    assert reply.status == 503
    assert reply.body["detail"].startswith("nothing was accepted: SGP is off: ")


async def test_the_spool_is_left_as_it_is(tmp_path: Path) -> None:
    """What an earlier process left on disk is delivered once an upstream is set again."""
    spool = {"spool__path": tmp_path / "spool"}
    async with running_app({"AGENTEX_BASE_URL": NOWHERE}, shutdown__grace_s=0, **spool) as app:
        assert (await app.post([make_event("s1", kind="end")])).status == 202
    before = {path.name: path.read_bytes() for path in (tmp_path / "spool").iterdir()}
    async with running_app(NOTHING, **spool) as app:
        assert (await app.post([make_event("s2", kind="end")])).status == 503
        assert await app.stop()
    assert {path.name: path.read_bytes() for path in (tmp_path / "spool").iterdir()} == before
    async with upstream() as agentex, running_app({"AGENTEX_BASE_URL": agentex.url}, **spool):
        await until(lambda: len(agentex.requests) == 1)


WRONG = [
    ({"AGENTEX_BASE_URL": "agentex:5003"}, "agentex.base_url"),
    ({"SGP_CLIENT_BASE_URL": "ftp://sgp"}, "sgp.base_url"),
    ({"SGP_API_KEY": "k\u00e9y"}, "sgp.api_key"),
    ({"SGP_ACCOUNT_ID": "a\nb"}, "sgp.account_id"),
]


@pytest.mark.parametrize(("environ", "key"), WRONG)
def test_wrong_variables_of_the_pod(environ: dict[str, str], key: str) -> None:
    """Their upstream is off, never the default one in its place; nothing stops the start."""
    good = {"AGENTEX_BASE_URL": "http://a", "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
    settings = read(None, {**good, **environ})
    (mistake,) = settings.mistakes
    assert mistake.startswith(f"{key}: ")
    assert mistake.endswith(f" (set by {next(iter(environ))})")
    assert settings.stopping == ()
    name = key.partition(".")[0]
    off = {each: bool(getattr(settings.config, each).missing) for each in ("agentex", "sgp")}
    assert off == {"agentex": name == "agentex", "sgp": name == "sgp"}


def test_the_way_to_itself_counts_as_unset() -> None:
    """The pod's containers may share the address at which agents reach the sidecar."""
    itself = {
        "AGENTEX_BASE_URL": "http://localhost:8319",
        "SGP_CLIENT_BASE_URL": "http://[::1]:8319",
    }
    settings = read(None, {**itself, "SIDECAR_LISTENER__PORT": "8319"})
    assert (settings.stopping, len(settings.mistakes)) == ((), 2)
    assert settings.config.agentex.base_url == ""
    assert settings.config.sgp.base_url == SGP_PRODUCTION


@pytest.mark.parametrize(
    "environ",
    [
        {"SIDECAR_AGENTEX__BASE_URL": "agentex:5003"},
        {"SIDECAR_SGP__BASE_URL": "http://127.0.0.1:8318"},
        {"SIDECAR_SGP__ACCOUNT_ID": "a\nb"},
        {"AGENTEX_BASE_URL": "agentex", "SIDECAR_RETRY__MAX_S": "soon"},
        {"SIDECAR_SGP__ACOUNT_ID": "a"},
    ],
)
def test_wrong_settings_of_the_sidecar(environ: dict[str, str]) -> None:
    """They stop the start, whatever the pod's own variables are like."""
    assert read(None, environ).stopping


def test_what_is_said_about_a_wrong_variable() -> None:
    """Posts are told what is wrong with it, and not that it is missing."""
    settings = read(None, {"AGENTEX_BASE_URL": "nonsense"})
    said = missing_settings(settings.config, settings.mistakes)
    assert said["agentex"].startswith("Agentex is off: agentex.base_url: must be a URL ")
    assert said["sgp"].startswith("SGP is off: the API key and the account id are missing")
    assert said[""].startswith("no upstream is enabled: agentex.base_url: must be a URL ")


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_spans_of_a_client_with_its_own_key_are_passed_through(method: str) -> None:
    """An agent's SGP client is no worse off than without the sidecar; others get 503 as ever."""
    async with upstream() as sgp:
        environ = {"SGP_CLIENT_BASE_URL": sgp.url}
        async with running_app(environ, listener__pass_through=True) as app:
            body = b'{"items": []}'
            headers = JSON | {"x-api-key": "of-the-agent"}
            reply = await app.request(method, "/v5/spans/batch", data=body, headers=headers)
            assert reply.status == 200
            ((path, key),) = [(r.path, r.headers["x-api-key"]) for r in sgp.requests]
            assert (path, key) == ("/v5/spans/batch", "of-the-agent")
            reply = await app.request(method, "/v5/spans/batch", data=body, headers=JSON)
            assert reply.status == 503
            reply = await app.request("POST", "/spans", data=b"{}", headers=headers)
            assert reply.status == 503
    assert len(sgp.requests) == 1


async def test_the_pass_through_has_no_other_target() -> None:
    """With a wrong base URL of SGP, the SGP client's requests don't go to the default one."""
    environ = {"SGP_CLIENT_BASE_URL": "sgp", "SGP_API_KEY": "k", "SGP_ACCOUNT_ID": "a"}
    settings = read(None, {**environ, "SIDECAR_LISTENER__PASS_THROUGH": "true"})
    assert settings.stopping == ()
    assert settings.config.sgp.base_url == ""
