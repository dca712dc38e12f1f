"""Through a proxy: tunnels for https, whole URLs for http, and what the proxy itself says."""

import asyncio
import ssl

import pytest

from sidecar.network import dialer as dialers
from sidecar.network.certificates import CertificateFiles
from sidecar.network.tunnel import MAX_HEAD_BYTES
from sidecar.sinks import Misdirected, SinkError, Unavailable
from sidecar.sinks.http import decide
from tests.support.faults import fast, now
from tests.support.proxies import REQUIRED, ForwardProxy, forward_proxy
from tests.support.tls import Authority
from tests.support.upstream_connection import (
    DONE,
    RawUpstream,
    new_client,
    new_dialer,
    on_both_loops,
    raw_upstream,
)

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
PASSWORD = "s3cr3t%21"
USER = f"me:{PASSWORD}"


async def one(url: str, proxy: ForwardProxy, files: CertificateFiles | None = None) -> SinkError:
    """Why one request fails, through the proxy."""
    client = new_client(new_dialer(url, files, proxy.proxy), [])
    try:
        response = await client.request(b"POST", client.target("/spans"), b"{}")
        return decide(response)
    except SinkError as error:
        return error
    finally:
        await client.close()


async def arrives(upstream: RawUpstream, proxy: ForwardProxy, name: str, ca: str = "") -> bytes:
    """The first of two requests that go through the proxy, over one connection."""
    scheme = "https" if ca else "http"
    port = upstream.url.rpartition(":")[2]
    dialer = new_dialer(f"{scheme}://{name}:{port}/api", CertificateFiles(ca), proxy.proxy)
    client = new_client(dialer, [], key="k")
    requests = []
    connection = None
    for _ in range(2):
        sending = asyncio.create_task(client.request(b"POST", client.target("/spans"), b"{}"))
        connection = connection or await upstream.accept()
        requests.append(await connection.serve(JSON))
        assert await sending == DONE
    await client.close()
    return requests[0]


@pytest.mark.parametrize("user", ["", "me:pass:word"])
@on_both_loops
async def test_a_tunnel(user: str, authority: Authority) -> None:
    """The proxy is asked for the upstream's host and port, and sees nothing else of a request."""
    async with forward_proxy(user) as proxy, raw_upstream(tls=authority.server("a.test")) as far:
        request = await arrives(far, proxy, "a.test", str(authority.path))
        port = far.url.rpartition(":")[2]
        assert proxy.targets == [f"CONNECT a.test:{port}"]
        (head,) = proxy.heads
        assert f"\r\nHost: a.test:{port}\r\n".encode() in head
        assert (b"Proxy-Authorization" in head) is bool(user)
        assert request.startswith(b"POST /api/spans HTTP/1.1\r\nHost: a.test:")
        assert b"Proxy" not in request


@pytest.mark.parametrize("user", ["", "me:pass:word"])
@on_both_loops
async def test_http_is_forwarded(user: str) -> None:
    """The request has the whole URL and the proxy's credential; the name is not looked up here."""
    async with forward_proxy(user) as proxy, raw_upstream() as far:
        port = far.url.rpartition(":")[2]
        request = await arrives(far, proxy, "no.such.test", "")
        assert proxy.targets == [f"POST http://no.such.test:{port}/api/spans"]
        assert (b"Proxy-Authorization" in proxy.heads[0]) is bool(user)
        assert f"\r\nHost: no.such.test:{port}\r\n".encode() in request


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (REQUIRED, "HTTP 407: it requires a credential"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nsecret", "HTTP 403"),
        (b"HTTP/1.0 503 Down\r\n\r\n", "HTTP 503"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://x\r\n\r\n", "HTTP 302"),
        (b"SSH-2.0-x\r\n\r\n", "its response is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra", "it sent more than a response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, "its response is too long"),
    ],
)
@on_both_loops
async def test_a_proxy_that_refuses(answer: bytes, reason: str) -> None:
    """It is an outage, in words that name the proxy; the upstream was not reached."""
    async with forward_proxy() as proxy:
        proxy.answer = answer
        failed = await one("https://a.test", proxy)
        refused = f"the proxy {proxy.url} refuses a tunnel to a.test:443: {reason}"
        assert str(failed) == refused
        assert (type(failed), failed.reached) == (Unavailable, False)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.0 200 Connection established\n\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n",
    ],
)
@on_both_loops
async def test_odd_answers_that_open_a_tunnel(
    answer: bytes, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any 2xx opens it, whatever its length says (RFC 9110, 9.3.6), also after a 1xx."""
    monkeypatch.setattr("tests.support.proxies.ESTABLISHED", answer)
    async with forward_proxy() as proxy, raw_upstream(tls=authority.server("a.test")) as far:
        await arrives(far, proxy, "a.test", str(authority.path))


@on_both_loops
async def test_a_wrong_credential() -> None:
    """The text says that it is the proxy's, and has no part of it."""
    async with forward_proxy("other:user") as proxy:
        wrong = proxy.proxy._replace(authorization=type(proxy.proxy.authorization)(PASSWORD))
        client = new_client(new_dialer("https://a.test", None, wrong), [])
        with pytest.raises(Unavailable) as failed:
            await client.request(b"POST", client.target("/spans"), b"{}")
        assert str(failed.value).endswith("HTTP 407: it refuses the credential in its URL")
        assert PASSWORD not in str(failed.value) + repr(wrong)
        await client.close()


@on_both_loops
async def test_a_proxy_that_ends_the_connection() -> None:
    """In the middle of its answer, or instead of one."""
    async with forward_proxy() as proxy:
        proxy.answer = b"HTTP/1.1 200 O"
        sending = asyncio.create_task(one("https://a.test", proxy))
        await proxy.asked.wait()
        proxy.close()
        failed = await sending
        assert str(failed).startswith(f"the proxy {proxy.url} ")
        assert not failed.reached


@fast
async def test_a_proxy_that_never_answers() -> None:
    """The request fails after `TUNNEL_S`, as a timeout."""
    async with forward_proxy() as proxy:
        proxy.answer = b""
        outcomes: list[str] = []
        client = new_client(new_dialer("https://a.test", None, proxy.proxy), outcomes)
        began = now()
        with pytest.raises(Unavailable, match=r"opens no tunnel to a\.test:443 within 10 s$"):
            await client.request(b"POST", client.target("/spans"), b"{}")
        assert now() - began == pytest.approx(dialers.TUNNEL_S, abs=0.01)
        assert outcomes == ["timeout"]
        await client.close()


@on_both_loops
async def test_a_proxy_that_is_not_there() -> None:
    """It is the proxy that is named, not the upstream."""
    async with forward_proxy() as proxy:
        pass
    failed = await one("https://a.test", proxy)
    assert str(failed) == f"the proxy {proxy.url} refuses connections"


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (REQUIRED, Misdirected),
        (b"HTTP/1.1 403 X\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", Misdirected),
        (b"HTTP/1.1 401 X\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", Misdirected),
        (b"HTTP/1.1 503 X\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", Unavailable),
        # Without a type, it is not the API's.
        (b"HTTP/1.1 401 X\r\nContent-Length: 0\r\n\r\n", Misdirected),
        (b"HTTP/1.1 422 X\r\nContent-Length: 0\r\n\r\n", Misdirected),
        (b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n", Misdirected),
    ],
)
@on_both_loops
async def test_what_a_forwarding_proxy_says_itself(answer: bytes, decision: type) -> None:
    """It is about the hop: no credential is suspected, and no span."""
    async with forward_proxy() as proxy:
        proxy.answer = answer
        failed = await one("http://a.test", proxy)
        assert type(failed) is decision
        expected = (
            "HTTP 407: the proxy requires" if answer is REQUIRED else ", perhaps from the proxy"
        )
        assert expected in str(failed)


@on_both_loops
async def test_an_answer_of_the_upstream_through_a_proxy() -> None:
    """JSON is the API's own word: a 401 is about the key."""
    answer = b"HTTP/1.1 401 X\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    async with forward_proxy() as proxy:
        proxy.answer = answer
        assert (await one("http://a.test", proxy)).outcome == "unauthorized"


@on_both_loops
async def test_an_untrusted_upstream_behind_a_proxy(tls: ssl.SSLContext) -> None:
    """TLS is the upstream's own, whoever is in between."""
    async with forward_proxy() as proxy, raw_upstream(tls=tls) as far:
        failed = await one(far.url, proxy)
        assert str(failed).startswith("certificate of localhost is not trusted: ")
