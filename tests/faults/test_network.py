"""The network between a sidecar and its upstreams: proxies, names that move, certificates."""

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import pytest
import structlog

from sidecar.config import ConfigError
from sidecar.demo import stand_in
from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.behaviours import Hang
from sidecar.demo.sgp import SgpStandIn
from sidecar.demo.stand_in import Answer
from sidecar.network.certificates import CertificateError
from tests.support.faults import end, fast, span, world
from tests.support.proxies import REQUIRED, forward_proxy
from tests.support.tls import Authority, Relay, authority
from tests.support.world import running_app

__all__ = ["authority"]

FAR = "far.test"


def by_name(url: str) -> str:
    """The URL of a stand-in, by a name that only a proxy knows."""
    return url.replace("127.0.0.1", FAR)


@pytest.mark.parametrize("user", ["", "me:secret"])
@pytest.mark.parametrize("by_setting", [False, True])
@fast
async def test_everything_goes_through_the_proxy(user: str, by_setting: bool) -> None:
    """Both sinks and the pass-through reach names that only the proxy knows."""
    async with forward_proxy(user) as proxy, AgentexStandIn() as agentex, SgpStandIn() as sgp:
        url = proxy.url.replace("://", f"://{user}@") if user else proxy.url
        environ = {
            "AGENTEX_BASE_URL": by_name(agentex.url),
            "SGP_CLIENT_BASE_URL": by_name(sgp.url),
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        settings: dict[str, object] = {"listener__pass_through": True}
        if by_setting:
            settings["network__proxy"] = url
        else:
            environ["HTTP_PROXY"] = url
        async with running_app(environ, **settings) as app:
            await app.post(end(span("s")))
            passed = await app.request("GET", "/v5/other", headers={"x-api-key": "k"})
            await agentex.arrived(1)
            await sgp.arrived(1)
            report = app.app.status()
        assert (passed.status, set(sgp.spans), set(agentex.spans)) == (404, {("trace", "s")}, {"s"})
        assert {head.split("/")[2].partition(":")[0] for head in proxy.targets} == {FAR}
        assert any(target.endswith("/v5/other") for target in proxy.targets)
        assert "secret" not in str(report)


@fast
async def test_no_proxy_is_direct() -> None:
    """`NO_PROXY` is read for each upstream; `network.no_proxy` is read instead of it."""
    async with forward_proxy() as proxy, AgentexStandIn() as agentex, SgpStandIn() as sgp:
        environ = {
            "AGENTEX_BASE_URL": agentex.url,
            "SGP_CLIENT_BASE_URL": sgp.url.replace("127.0.0.1", "localhost"),
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
            "ALL_PROXY": proxy.url,
            "NO_PROXY": "127.0.0.0/8",
        }
        for extra, direct in (({}, "POST"), ({"network__no_proxy": "localhost"}, "PUT")):
            proxy.heads.clear()
            async with running_app(environ, **extra) as app:
                await app.post(end(span("s")))
                await app.stop()
            methods = {target.split(" ")[0] for target in proxy.targets}
            assert methods == {"POST", "PUT"} - {direct}


@pytest.mark.parametrize("url", ["https://proxy:1", "socks5://me:secret@proxy", "socks5h://p"])
async def test_a_proxy_that_can_not_be_used(url: str) -> None:
    """The start ends with the name of the variable; one that applies to nothing does no harm."""
    environ = {"AGENTEX_BASE_URL": "http://127.0.0.1:9", "http_proxy": url}
    with pytest.raises(ConfigError, match=r"^http_proxy: \w+:// proxies can't be used") as failed:
        async with running_app(environ):
            pass
    assert "secret" not in str(failed.value)
    del environ["http_proxy"]
    async with running_app(environ | {"HTTPS_PROXY": url}, shutdown__grace_s=0):
        pass


@fast
async def test_a_proxy_that_loses_its_credential() -> None:
    """Nothing is lost, no span is blamed, and the state says that it is the hop."""
    async with forward_proxy() as proxy, world(variables={"HTTP_PROXY": proxy.url}) as w:
        await w.post(end(span("before")))
        await w.drained()
        proxy.answer = REQUIRED
        proxy.close()
        for number in range(12):
            await w.post(end(span(f"s{number}")))
            await asyncio.sleep(1.0)
        for name in ("agentex", "sgp"):
            lane = w.lane(name)
            assert (lane["state"], lane["depth"], lane["dead_lettered"]) == ("down", 12, 0)
            assert lane["last_error"]["text"].startswith("HTTP 407: the proxy requires")
        proxy.answer = None
        proxy.close()
        await w.finish()


# Names that move.


class Names:
    """The addresses of `FAR`, which can change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._address = "127.0.0.1"
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: bytes | str, *arguments: Any, **options: Any) -> object:
        if (host if isinstance(host, str) else host.decode()) == FAR:
            if options["flags"] == socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "a name")
            host = self._address
        return self._real(host, *arguments, **options)

    def move(self) -> None:
        self._address = "127.0.0.2"


@pytest.mark.parametrize("status", [200, 500, 503, 404, 401])
@pytest.mark.parametrize("name", ["agentex", "sgp"])
@fast
async def test_a_name_that_moves(name: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old server is still there, and works (200) or fails: the new one is used all the same."""
    names = Names(monkeypatch)
    kind: type[AgentexStandIn | SgpStandIn] = AgentexStandIn if name == "agentex" else SgpStandIn

    class Moved(kind):  # type: ignore[valid-type,misc]
        async def __aenter__(self) -> Self:
            await super().__aenter__()
            self.url: str = by_name(self.url)
            return self

    async with AsyncExitStack() as stack:
        old = Moved()
        upstreams = {name: old}
        w = await stack.enter_async_context(world(**upstreams, network__max_connection_age_s=60.0))
        await w.post(end(span("before")))
        await w.drained()
        new = kind()
        monkeypatch.setattr(stand_in, "HOST", "127.0.0.2")
        await new.start(old.port)
        stack.push_async_callback(new.stop)
        names.move()
        if status != 200:
            old.rule = lambda _: Answer(status, b"{}")
        await w.feed_until(lambda: new.requests_total > 3, per_s=2.0)
        await w.drained()
        assert len(old.spans) + len(new.spans) >= len(w.accepted)
        assert w.lane(name)["lost"] == w.lane(name)["dead_lettered"] == 0


# Certificates.


@fast
async def test_a_private_authority_for_both(authority: Authority) -> None:
    """`ca_file` of each upstream, over TLS, with a client's certificate where it is required."""
    mine = authority.client_files("mine", trusts=authority)
    async with AgentexStandIn() as agentex, SgpStandIn() as sgp, AsyncExitStack() as stack:
        far = await stack.enter_async_context(Relay(authority, clients=authority)(agentex))
        many = await stack.enter_async_context(Relay(authority)(sgp))
        environ = {
            "AGENTEX_BASE_URL": f"https://localhost:{far}",
            "SGP_CLIENT_BASE_URL": f"https://localhost:{many}",
            "SGP_API_KEY": "k",
            "SGP_ACCOUNT_ID": "a",
        }
        settings = {
            "agentex__ca_file": mine.ca,
            "agentex__client_cert_file": mine.cert,
            "agentex__client_key_file": mine.key,
            "sgp__ca_file": mine.ca,
            "listener__pass_through": True,
        }
        async with running_app(environ, **settings) as app:
            await app.post(end(span("s")))
            passed = await app.request("GET", "/v5/other", headers={"x-api-key": "k"})
            await app.stop()
        assert (passed.status, set(sgp.spans), set(agentex.spans)) == (404, {("trace", "s")}, {"s"})


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("key", ["ca_file", "client_cert_file"])
async def test_a_file_that_is_missing(key: str, scheme: str, tmp_path: Path) -> None:
    """It stops the start, with its path, even if the URL is not an https one."""
    path = tmp_path / "none.pem"
    environ = {"AGENTEX_BASE_URL": f"{scheme}://127.0.0.1:9"}
    expected = rf"^agentex\.{key}: {path}: No such file or directory$"
    with pytest.raises(CertificateError, match=expected):
        async with running_app(environ, **{f"agentex__{key}": path}):
            pass


@fast
async def test_an_authority_that_changes(tmp_path: Path) -> None:
    """What was held is sent as soon as the new file is there, without a restart."""
    first, second = Authority(tmp_path, "first"), Authority(tmp_path, "second")
    file = tmp_path / "ca.pem"
    file.write_bytes(first.path.read_bytes())
    async with AgentexStandIn() as agentex, Relay(second)(agentex) as port:
        environ = {"AGENTEX_BASE_URL": f"https://localhost:{port}"}
        with structlog.testing.capture_logs() as lines:
            async with running_app(environ, agentex__ca_file=file) as app:
                await app.post(end(span("s")))
                await asyncio.sleep(30.0)
                lane = app.app.status()["sinks"]["agentex"]
                assert (lane["state"], lane["depth"]) == ("down", 1)
                error = "certificate of localhost is not trusted: "
                assert lane["last_error"]["text"].startswith(error)
                file.write_bytes(second.path.read_bytes())
                await asyncio.sleep(3.0)
                assert set(agentex.spans) == {"s"}
        assert [each["event"] for each in lines if each["event"].startswith("certif")] == [
            "certificates_changed"
        ]


# What is not asked yet.


@fast
async def test_not_asked_yet() -> None:
    """An upstream that was sent nothing is not up; that it can be reached is logged."""
    with structlog.testing.capture_logs() as lines:
        async with world() as w:
            await asyncio.sleep(1.0)
            assert {w.lane(name)["state"] for name in ("agentex", "sgp")} == {"not_asked"}
            answers = {each["question"]: each for each in w.app.status()["answers"]}
            assert "Agentex and SGP were not asked yet" in answers["Why?"]["detail"]
            assert w.agentex.requests_total == w.sgp.requests_total == 0
            await w.post(end(span("s")))
            await w.finish()
            assert {w.lane(name)["state"] for name in ("agentex", "sgp")} == {"up"}
    reachable = [each for each in lines if each["event"] == "upstream_reachable"]
    assert {each["sink"] for each in reachable} == {"agentex", "sgp"}
    assert all(each["steps"][0].startswith("TCP: connected to ") for each in reachable)


@fast
async def test_an_upstream_that_can_not_be_reached() -> None:
    """It shows at the start, before any span comes; it says nothing about the other one."""
    async with running_app({"AGENTEX_BASE_URL": "http://127.0.0.1:1"}) as app:
        await asyncio.sleep(1.0)
        status = app.app.status()
        lane = status["sinks"]["agentex"]
        assert (lane["state"], lane["last_error"]["kind"]) == ("not_asked", "connection")
        assert lane["last_error"]["text"] == "127.0.0.1:1 refuses connections"
        (why,) = [each for each in status["answers"] if each["question"] == "Why?"]
        assert (why["level"], why["answer"]) == (
            "warn",
            "Agentex could not be reached at the start",
        )


@fast
async def test_an_upstream_that_has_never_answered() -> None:
    """A request that timed out says nothing about it: it is not up."""
    async with world(agentex__timeout_s=5.0) as w:
        w.agentex.rule = lambda _: Hang()
        await w.post(end(span("s")))
        await asyncio.sleep(6.0)
        lane = w.lane("agentex")
        assert (lane["state"], lane["last_error"]["text"]) == ("not_asked", "timed out")
        assert lane["label"] == "no answer yet"
        w.agentex.rule = None
        await w.finish()
        assert w.lane("agentex")["state"] == "up"
