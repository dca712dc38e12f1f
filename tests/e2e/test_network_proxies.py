"""Both sinks, the pass-through and `replay` through real proxies, and through broken ones."""

import json
from asyncio import StreamReader, StreamWriter
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from sidecar.demo.stand_in import Answer
from tests.e2e.network_support import (
    AGENTEX,
    NAMES,
    PASSWORD,
    SGP,
    USER,
    Act,
    Both,
    Etc,
    FakeProxy,
    Pod,
    Proxy,
    echoing,
    names_of,
    over_tls,
    passes_through,
    pod,
    saying,
    silent,
    squid,
    status,
    tinyproxy,
    tunnelling,
)
from tests.support.kill import SidecarRun
from tests.support.lives import ANSWER_S, ARRIVE_S, shows, within
from tests.support.run_process import free_ports
from tests.support.stalls import deaf_port
from tests.support.tls import Authority

CREDENTIAL = f"{USER}:{PASSWORD}"
CREDENTIALS = pytest.mark.parametrize("credential", ["", CREDENTIAL], ids=["open", "credential"])
SCHEMES = pytest.mark.parametrize("scheme", ["http", "https"])
REAL = pytest.mark.parametrize(
    "proxy", [tinyproxy, pytest.param(squid, marks=pytest.mark.nightly)], ids=["tinyproxy", "squid"]
)
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n"
HUGE = 2**20
RealProxy = Callable[..., AbstractAsyncContextManager[Proxy]]


def unnamed(folder: Path) -> Etc:
    """An /etc for sidecars that know no upstream's name: only their proxy does."""
    return Etc(folder / "pod-etc", {"localhost": "127.0.0.1"})


def named(folder: Path) -> Etc:
    """An /etc for a proxy that knows the upstreams' names."""
    return Etc(folder / "proxy-etc", NAMES)


@asynccontextmanager
async def reachable(here: Pod, folder: Path, scheme: str) -> AsyncIterator[Both | None]:
    """Give the upstreams names and, for https, TLS with a private authority."""
    if scheme == "http":
        here.lead_to(here.agentex.port, here.sgp.port)
        yield None
        return
    ours = Authority(folder)
    here.settings |= {
        "SIDECAR_AGENTEX__CA_FILE": str(ours.path),
        "SIDECAR_SGP__CA_FILE": str(ours.path),
    }
    async with over_tls(here, ours.server(AGENTEX, SGP)) as both:
        yield both


async def went_through(proxy: Proxy, here: Pod, both: Both | None) -> None:
    """Check that every connection and every request came from the proxy.

    A proxy may log a tunnel only when it has ended.
    """
    if both is None:
        upstreams = here.upstreams.values()
        counted = [(up.port, up.requests_total) for up in upstreams]
        seen = proxy.forwards
    else:
        counted = [(relay.port, relay.accepted) for relay in both]
        seen = proxy.tunnels
    assert all(count > 0 for _, count in counted)
    assert await within(ARRIVE_S, lambda: all(seen(port) == count for port, count in counted)), (
        counted,
        proxy.requests,
    )
    tunnels = [method == "CONNECT" for method, _ in proxy.requests]
    assert tunnels == [both is not None] * len(tunnels)


@SCHEMES
@CREDENTIALS
@REAL
async def test_both_sinks(tmp_path: Path, proxy: RealProxy, credential: str, scheme: str) -> None:
    """Spans reach both upstreams through the proxy, and nothing goes past it.

    The proxy alone knows the upstreams' names.
    """
    async with (
        pod(tmp_path) as here,
        reachable(here, tmp_path, scheme) as both,
        proxy(tmp_path / "proxy", credential=credential, etc=named(tmp_path)) as through,
    ):
        variable = f"{scheme.upper()}_PROXY"
        life = await here.start(*unnamed(tmp_path).wrapper, **{variable: through.url})
        await here.post(life, 20)
        await here.delivers()
        await here.ends(life)
        await went_through(through, here, both)


@pytest.mark.parametrize(
    ("settings", "through"),
    [
        ({"SIDECAR_NETWORK__PROXY": "{proxy}"}, True),
        ({"SIDECAR_NETWORK__PROXY": "{proxy}", "HTTP_PROXY": "http://127.0.0.1:1"}, True),
        ({"SIDECAR_NETWORK__PROXY": "{proxy}", "NO_PROXY": "127.0.0.0/8,.internal"}, False),
        (
            {
                "SIDECAR_NETWORK__PROXY": "{proxy}",
                "SIDECAR_NETWORK__NO_PROXY": "elsewhere.internal",
                "NO_PROXY": "*",
            },
            True,
        ),
        ({"SIDECAR_NETWORK__PROXY": "none", "HTTP_PROXY": "http://127.0.0.1:1"}, False),
        ({"SIDECAR_NETWORK__NO_PROXY": ".internal", "HTTP_PROXY": "http://127.0.0.1:1"}, False),
        ({"ALL_PROXY": "{proxy}", "HTTPS_PROXY": "http://127.0.0.1:1"}, True),
    ],
    ids=["proxy", "over variable", "NO_PROXY", "over NO_PROXY", "none", "no_proxy", "ALL_PROXY"],
)
async def test_settings(tmp_path: Path, settings: dict[str, str], *, through: bool) -> None:
    """`[network]` comes before the variables; `no_proxy` counts for the proxy of the setting."""
    etc = named(tmp_path)
    async with pod(tmp_path) as here, tinyproxy(tmp_path / "proxy", etc=etc) as proxy:
        here.lead_to(here.agentex.port, here.sgp.port)
        filled = {name: value.format(proxy=proxy.url) for name, value in settings.items()}
        life = await here.start(*etc.wrapper, **filled)
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        for upstream in here.upstreams.values():
            assert bool(proxy.forwards(upstream.port)) is through


async def test_networks_in_no_proxy(tmp_path: Path) -> None:
    """An upstream in a network of NO_PROXY is reached directly, the other one is not."""
    async with pod(tmp_path) as here, tinyproxy(tmp_path / "proxy") as proxy:
        here.settings["SGP_CLIENT_BASE_URL"] = f"http://localhost:{here.sgp.port}"
        life = await here.start(HTTP_PROXY=proxy.url, NO_PROXY="10.0.0.0/8, 127.0.0.0/30")
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        assert proxy.forwards(here.agentex.port) == 0
        assert proxy.forwards(here.sgp.port) == here.sgp.requests_total


async def fetched(life: SidecarRun, path: str, body: bytes) -> tuple[int, str]:
    """Send a request to the agents' port; return the status and the body of its response."""
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(
            URL(life.url + path, encoded=True), data=body, headers={"x-api-key": "of-the-agent"}
        ) as reply,
    ):
        return reply.status, await reply.text()


@SCHEMES
@CREDENTIALS
@REAL
async def test_pass_through(tmp_path: Path, proxy: RealProxy, credential: str, scheme: str) -> None:
    """What is passed through to SGP goes through the proxy; the agent's headers stay its own."""
    async with (
        pod(tmp_path, SIDECAR_LISTENER__PASS_THROUGH="true") as here,
        reachable(here, tmp_path, scheme) as both,
        proxy(tmp_path / "proxy", credential=credential, etc=named(tmp_path)) as through,
    ):
        passes_through(here.sgp)
        variable = f"{scheme.upper()}_PROXY"
        life = await here.start(*unnamed(tmp_path).wrapper, **{variable: through.url})
        for size in (0, 10, 300_000):
            code, text = await fetched(life, "/v4/models?a=b%2Fc", b"x" * size)
            assert (code, json.loads(text)) == (200, {"path": "/v4/models", "size": size})
        await here.post(life)
        await here.delivers()
        asked = [one for one in here.sgp.requests if one.path == "/v4/models"]
        assert [one.query for one in asked] == ["a=b%2Fc"] * 3
        assert [one.headers["x-api-key"] for one in asked] == ["of-the-agent"] * 3
        assert not any("proxy-authorization" in one.headers for one in here.sgp.requests)
        await here.ends(life)
        await went_through(through, here, both)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_pass_through_without_its_credential(tmp_path: Path, scheme: str) -> None:
    """A proxy that refuses is an answer about the hop: the agent gets a 502 from the sidecar.

    A 407 would have the agent's own client look for a proxy's credential.
    """
    async with (
        pod(tmp_path, SIDECAR_LISTENER__PASS_THROUGH="true") as here,
        reachable(here, tmp_path, scheme),
        tinyproxy(tmp_path / "proxy", credential=CREDENTIAL) as proxy,
    ):
        passes_through(here.sgp)
        life = await here.start(**{f"{scheme.upper()}_PROXY": proxy.shown})
        code, text = await fetched(life, "/v4/models", b"x")
        assert code == 502, text
        assert "detail" in json.loads(text)
        await here.ends(life)


@SCHEMES
async def test_replay(tmp_path: Path, scheme: str) -> None:
    """`sidecar replay` sends dead letters through the proxy, too."""
    etc = named(tmp_path)
    async with (
        pod(tmp_path) as here,
        reachable(here, tmp_path, scheme) as both,
        tinyproxy(tmp_path / "proxy", credential=CREDENTIAL, etc=etc) as proxy,
    ):
        here.settings[f"{scheme.upper()}_PROXY"] = proxy.url
        here.agentex.rule = here.sgp.rule = lambda _: Answer(422, b'{"detail":[]}')
        life = await here.start()
        await here.post(life)

        assert await shows(
            life,
            lambda now: all(
                sink["dead_lettered"] == len(here.sent) for sink in now["sinks"].values()
            ),
        )
        life.process.terminate()
        await life.ended()
        here.agentex.rule = here.sgp.rule = None
        letters = str(tmp_path / "letters.jsonl")
        code, out, errors = await here.says("replay", letters, wrapper=unnamed(tmp_path).wrapper)
        assert (code, out.split()[:1]) == (0, ["forwarded"]), out + errors
        await here.delivers()
        await went_through(proxy, here, both)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("407", "HTTP 407: it requires a credential"),
        ("wrong", "HTTP 401"),
        ("403", "HTTP 403"),
    ],
)
async def test_a_tunnel_is_refused(tmp_path: Path, answer: str, reason: str) -> None:
    """The text names the proxy, the host and why; a proxy that lets us through gets everything."""
    ours, etc = Authority(tmp_path), named(tmp_path)
    credential = "" if answer == "403" else CREDENTIAL
    folder = tmp_path / "proxy"
    async with (
        pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here,
        over_tls(here, ours.server(AGENTEX, SGP)) as both,
    ):
        async with tinyproxy(
            folder, credential=credential, allows=answer != "403", etc=etc
        ) as proxy:
            given = f"http://{USER}:not-it@127.0.0.1:{proxy.port}"
            life = await here.start(HTTPS_PROXY=given if answer == "wrong" else proxy.shown)
            await here.post(life)
            for sink, host, relay in (("agentex", AGENTEX, both[0]), ("sgp", SGP, both[1])):
                where = f"the proxy {proxy.shown} refuses a tunnel to {host}:{relay.port}: "
                seen = await here.holds(life, sink, where + reason)
                assert "not-it" not in json.dumps(seen)
        assert both.accepted == 0
        async with tinyproxy(folder, etc=etc, port=proxy.port):
            await here.delivers()
            await here.ends(life)


@pytest.mark.parametrize("answer", ["407", "401", "403"])
async def test_a_request_is_refused(tmp_path: Path, answer: str) -> None:
    """A proxy's own refusal of a whole request is no verdict on our key, or on the spans.

    tinyproxy ends the connection without reading the body, so a reset follows its response.
    """
    etc, folder = named(tmp_path), tmp_path / "proxy"
    credential = "" if answer == "403" else CREDENTIAL
    async with pod(tmp_path) as here:
        here.lead_to(here.agentex.port, here.sgp.port)
        async with tinyproxy(
            folder, credential=credential, allows=answer != "403", etc=etc
        ) as proxy:
            given = f"http://{USER}:not-it@127.0.0.1:{proxy.port}"
            life = await here.start(HTTP_PROXY=given if answer == "401" else proxy.shown)
            await here.post(life)
            for sink in here.upstreams:
                seen = await here.holds(life, sink, f"HTTP {answer}")
                assert seen["last_error"]["kind"] == "misdirected"
        assert here.agentex.requests_total == here.sgp.requests_total == 0
        async with tinyproxy(folder, etc=etc, port=proxy.port):
            await here.delivers()
            await here.ends(life)


@pytest.mark.parametrize("status_", [200, 401, 403, 407])
async def test_a_proxys_web_pages(tmp_path: Path, status_: int) -> None:
    """A page of a proxy that reads the whole request first is not the upstream's answer."""
    text = b"<html>go away</html>"
    head = b"HTTP/1.1 %d Denied\r\nContent-Type: text/html\r\n" % status_
    async with pod(tmp_path) as here, FakeProxy(refusing(head, text)) as proxy:
        life = await here.start(HTTP_PROXY=proxy.url)
        await here.post(life)
        for sink in here.upstreams:
            seen = await here.holds(life, sink, f"HTTP {status_}")
            assert seen["last_error"]["kind"] == "misdirected"
        await here.ends(life)
        life = await here.start()
        await here.delivers()
        await here.ends(life)


def refusing(head: bytes, body: bytes) -> Act:
    """Read requests to their end, and answer each with `head` and `body`."""

    async def act(proxy: FakeProxy, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            length = int(proxy.heads[-1].lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
            writer.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            proxy.heads.append(await reader.readuntil(b"\r\n\r\n"))

    return act


@SCHEMES
async def test_what_is_asked_of_a_proxy(tmp_path: Path, scheme: str) -> None:
    """Ports that are the scheme's own, and credentials in URLs, are where they belong."""
    async with pod(tmp_path) as here, FakeProxy(saying(b"HTTP/1.1 503 x\r\n\r\n")) as proxy:
        here.settings |= {
            "AGENTEX_BASE_URL": f"{scheme}://user:secret@{AGENTEX}",
            "SGP_CLIENT_BASE_URL": f"{scheme}://user:secret@[fd00::7]/public/",
            f"{scheme.upper()}_PROXY": proxy.url,
        }
        life = await here.start()
        await here.post(life)
        for sink in here.upstreams:
            await here.holds(life, sink, "HTTP 503")
        await here.ends(life)
        lines = {head.partition(b"\r\n")[0].decode() for head in proxy.heads}
        hosts = {
            head.lower().partition(b"\r\nhost: ")[2].partition(b"\r\n")[0] for head in proxy.heads
        }
        if scheme == "http":
            assert lines == {
                f"POST http://{AGENTEX}/spans HTTP/1.1",
                "PUT http://[fd00::7]/public/v5/spans/batch HTTP/1.1",
            }
            assert hosts == {AGENTEX.encode(), b"[fd00::7]"}
        else:
            assert lines == {
                f"CONNECT {AGENTEX}:443 HTTP/1.1",
                "CONNECT [fd00::7]:443 HTTP/1.1",
            }
            assert hosts == {f"{AGENTEX}:443".encode(), b"[fd00::7]:443"}
            basic = b64encode(b"user:secret")
            assert not any(basic in head for head in proxy.heads)


@SCHEMES
async def test_a_proxy_goes_away(tmp_path: Path, scheme: str) -> None:
    """Spans wait while the proxy is away, and go through it when it is back."""
    etc, folder = named(tmp_path), tmp_path / "proxy"
    async with pod(tmp_path) as here, reachable(here, tmp_path, scheme):
        async with tinyproxy(folder, etc=etc) as proxy:
            life = await here.start(
                *unnamed(tmp_path).wrapper, **{f"{scheme.upper()}_PROXY": proxy.url}
            )
            await here.post(life)
            await here.settles(life)
        await here.post(life)
        for sink in here.upstreams:
            await here.holds(life, sink, f"127.0.0.1:{proxy.port} refuses connections")
        async with tinyproxy(folder, etc=etc, port=proxy.port):
            await here.delivers()
            await here.ends(life)


# What a proxy does instead of a tunnel, whether the text names the proxy or the host, and why.
BROKEN: dict[str, tuple[Act, str, str]] = {
    "nothing": (saying(b""), "proxy", "ended the connection"),
    "cut": (saying(b"HTTP/1.1 2"), "proxy", "ended the connection"),
    "cut head": (saying(ESTABLISHED + b"Via: x"), "proxy", "ended the connection"),
    "huge head": (saying(ESTABLISHED + b"X: " + b"y" * HUGE + b"\r\n\r\n"), "proxy", ""),
    "binary": (saying(b"\0\1\2\3\r\n\r\n"), "proxy", ""),
    "another protocol": (saying(b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n"), "proxy", ""),
    "503": (saying(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"), "proxy", "HTTP 503"),
    "redirect": (saying(b"HTTP/1.1 301 M\r\nLocation: http://x/\r\n\r\n"), "proxy", "HTTP 301"),
    "other scheme": (
        saying(b"HTTP/1.1 407 P\r\nProxy-Authenticate: NTLM\r\n\r\n"),
        "proxy",
        "HTTP 407",
    ),
    "ends after its yes": (saying(ESTABLISHED + b"\r\n"), "host", ""),
    "speaks after its yes": (saying(ESTABLISHED + b"\r\nHTTP/1.1 200 OK\r\n\r\n"), "host", ""),
    "echo": (echoing(), "proxy", "HTTP 502"),
}


@pytest.mark.parametrize(
    "broken", names_of(BROKEN, {"nothing", "binary", "redirect", "other scheme", "503"})
)
async def test_broken_tunnels(tmp_path: Path, broken: str) -> None:
    """Whatever a proxy does instead of a tunnel is said with its URL, and costs no span."""
    act, names, reason = BROKEN[broken]
    ours, etc = Authority(tmp_path), unnamed(tmp_path)
    async with (
        pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here,
        over_tls(here, ours.server(AGENTEX, SGP)) as both,
        FakeProxy(act) as proxy,
    ):
        life = await here.start(*etc.wrapper, HTTPS_PROXY=proxy.url)
        await here.post(life)
        for sink, host in (("agentex", AGENTEX), ("sgp", SGP)):
            seen = await here.holds(life, sink, reason)
            named_ = proxy.shown.removeprefix("http://") if names == "proxy" else host
            assert named_ in seen["last_error"]["text"]
        assert proxy.heads[0].startswith(b"CONNECT ")
        assert not secrets_in(json.dumps(await status(life)) + json.dumps(life.log))
        proxy.act = tunnelling(ESTABLISHED + b"\r\n")
        await here.delivers()
        assert both.accepted > 0
        await here.ends(life)


def secrets_in(text: str) -> list[str]:
    """The forms of the proxy's credential that are in a text."""
    encoded = b64encode(CREDENTIAL.encode()).decode()
    return [each for each in (PASSWORD, encoded) if each in text]


# Pieces of a head that says yes, one packet each.
GOOD = {
    "bytes": [bytes([byte]) for byte in ESTABLISHED + b"Via: x\r\n\r\n"],
    "length": [b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"],
    "chunked": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"],
    "204": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "no reason": [b"HTTP/1.1 200\r\n\r\n"],
    "100 first": [b"HTTP/1.1 100 Continue\r\n\r\n", ESTABLISHED + b"\r\n"],
    "long": [ESTABLISHED + b"Set-Cookie: " + b"x" * 4000 + b"\r\n\r\n"],
}


@pytest.mark.parametrize("good", names_of(GOOD, {"204", "no reason", "100 first", "long"}))
async def test_odd_but_good_tunnels(tmp_path: Path, good: str) -> None:
    """Any form of a yes to CONNECT is a tunnel; a body that the head announces is none."""
    ours = Authority(tmp_path)
    async with (
        pod(tmp_path, SSL_CERT_FILE=str(ours.path)) as here,
        over_tls(here, ours.server(AGENTEX, SGP)),
        FakeProxy(tunnelling(*GOOD[good])) as proxy,
    ):
        life = await here.start(HTTPS_PROXY=proxy.url)
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        expected = b64encode(CREDENTIAL.encode())
        for head in proxy.heads:
            line, *fields = head.decode().lower().split("\r\n")
            host = line.split()[1]
            assert line == f"connect {host} http/1.1"
            assert f"host: {host}" in fields
            assert f"proxy-authorization: basic {expected.decode().lower()}" in fields
            assert not any(name in head.lower() for name in (b"x-api-key", b"x-agent-api-key"))


@pytest.mark.parametrize(
    ("scheme", "timeout_s", "text"),
    [("http", 1, "timed out"), ("https", 60, "the proxy {} opens no tunnel to ")],
    ids=["http", "https"],
)
async def test_a_proxy_that_says_nothing(
    tmp_path: Path, scheme: str, timeout_s: int, text: str
) -> None:
    """A proxy that accepts and says nothing: its upstreams are down, and their spans wait."""
    limits = {f"SIDECAR_{name}__TIMEOUT_S": str(timeout_s) for name in ("AGENTEX", "SGP")}
    async with (
        pod(tmp_path, **limits) as here,
        reachable(here, tmp_path, scheme),
        FakeProxy(silent) as proxy,
    ):
        life = await here.start(**{f"{scheme.upper()}_PROXY": proxy.url})
        await here.post(life)
        for sink in here.upstreams:
            await here.holds(life, sink, text.format(proxy.shown))
        await here.ends(life)


@pytest.mark.nightly
async def test_a_proxy_that_accepts_nothing(tmp_path: Path) -> None:
    """A proxy to which no connection is made does not answer: the text has its address."""
    with deaf_port() as deaf:
        async with pod(tmp_path) as here:
            here.lead_to(here.agentex.port, here.sgp.port)
            life = await here.start(HTTP_PROXY=f"http://{CREDENTIAL}@127.0.0.1:{deaf}")
            await here.post(life)
            for sink in here.upstreams:
                await here.holds(life, sink, f"127.0.0.1:{deaf} does not answer")
            await here.ends(life)


async def test_a_proxy_without_a_name(tmp_path: Path) -> None:
    """An unknown name of the proxy is the one that the text has, not that of the upstream."""
    etc = unnamed(tmp_path)
    async with pod(tmp_path) as here:
        here.lead_to(here.agentex.port, here.sgp.port)
        life = await here.start(*etc.wrapper, HTTP_PROXY="http://proxy.internal:3128")
        await here.post(life)
        for sink in here.upstreams:
            await here.holds(life, sink, "DNS knows no proxy.internal")
        port = free_ports()[0]
        await here.ends(life)
        life = await here.start(*etc.wrapper, HTTP_PROXY=f"http://localhost:{port}")
        async with tinyproxy(tmp_path / "proxy", etc=named(tmp_path), port=port):
            await here.delivers()
            await here.ends(life)


@pytest.mark.parametrize(
    ("settings", "source"),
    [
        ({"HTTP_PROXY": "https://{secret}@127.0.0.1:1"}, "HTTP_PROXY"),
        ({"http_proxy": "socks5://{secret}@127.0.0.1:1"}, "http_proxy"),
        ({"ALL_PROXY": "socks5h://{secret}@127.0.0.1:1"}, "ALL_PROXY"),
        ({"HTTP_PROXY": "http://{secret}@127.0.0.1:1/path?query"}, "HTTP_PROXY"),
        ({"SIDECAR_NETWORK__PROXY": "https://{secret}@127.0.0.1:1"}, "network.proxy: "),
    ],
)
async def test_proxies_that_cannot_be_used(
    tmp_path: Path, settings: dict[str, str], source: str
) -> None:
    """The start is refused with exit code 2 and the variable's name, without the credential."""
    filled = {name: value.format(secret=CREDENTIAL) for name, value in settings.items()}
    async with pod(tmp_path, **filled) as here:
        errors = await here.refuses_to_start()
        assert source in errors
        assert not secrets_in(errors)
        code, out, errors = await here.says("check")
        assert code == 2
        assert source in errors
        assert not secrets_in(out + errors)


async def test_a_proxy_for_other_hosts(tmp_path: Path) -> None:
    """A proxy of a kind that can't be used is no obstacle where it does not apply."""
    unused = {"HTTPS_PROXY": "https://127.0.0.1:1", "ALL_PROXY": "socks5://127.0.0.1:1"}
    async with pod(tmp_path) as here:
        life = await here.start(**unused, NO_PROXY="localhost,127.0.0.1")
        await here.post(life)
        await here.delivers()
        await here.ends(life)


async def test_loopback_is_no_exception(tmp_path: Path) -> None:
    """As with httpx, a loopback upstream is reached through the proxy unless NO_PROXY has it."""
    async with pod(tmp_path) as here, tinyproxy(tmp_path / "proxy") as proxy:
        here.settings["AGENTEX_BASE_URL"] = f"http://localhost:{here.agentex.port}"
        life = await here.start(HTTP_PROXY=proxy.url)
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        assert proxy.forwards(here.agentex.port) == here.agentex.requests_total
        assert proxy.forwards(here.sgp.port) == here.sgp.requests_total
