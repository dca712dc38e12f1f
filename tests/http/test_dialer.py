"""How the sinks' client connects: names, addresses that are dead or silent, TLS."""

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from sidecar.http.dialer import CONNECT_S, NEXT_ADDRESS_S
from sidecar.sinks import Unavailable
from tests.support.faults import fast, now
from tests.support.upstream_connection import DONE, Far, far, new_client, on_both_loops


def full_house() -> tuple[socket.socket, socket.socket]:
    """A listening socket whose queue is full, so that nobody gets through; and who fills it."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    return listening, socket.create_connection(listening.getsockname())


@fast
async def test_connecting_has_its_time() -> None:
    """A host that does not answer at all is given up long before the request would be."""
    listening, first = full_house()
    outcomes: list[str] = []
    with listening, first:
        client = new_client(f"http://127.0.0.1:{listening.getsockname()[1]}", outcomes)
        with pytest.raises(Unavailable, match="timed out"):
            await client.request(b"POST", client.target("/"), b"{}")
        assert now() == pytest.approx(CONNECT_S, abs=0.01)
        assert outcomes == ["timeout"]
        await client.close()


@on_both_loops
async def test_nobody_listens() -> None:
    """An outage, by the class of the error."""
    outcomes: list[str] = []
    client = new_client("http://127.0.0.1:1", outcomes)
    with pytest.raises(Unavailable, match=r"^ConnectionRefusedError$") as failed:
        await client.request(b"POST", client.target("/"), b"{}")
    assert failed.value.outage
    assert outcomes == ["connection"]
    await client.close()


@on_both_loops
async def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage; all who wait for the name share one question."""
    questions: list[int] = []

    async def nobody() -> list[Any]:
        questions.append(1)
        await asyncio.sleep(0)
        raise socket.gaierror(socket.EAI_NONAME, "secret")

    client = new_client("http://nobody.test:1", [])
    monkeypatch.setattr(client._http._dialer, "_addresses", nobody)
    target = client.target("/")
    for asked in (1, 2):
        requests = [client.request(b"POST", target, b"{}") for _ in range(3)]
        for error in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(error, Unavailable)
            assert (str(error), error.outage) == ("gaierror", True)
        assert len(questions) == asked
    await client.close()


@on_both_loops
async def test_a_name_is_looked_up() -> None:
    """`localhost` leads to the upstream."""
    async with far() as upstream:
        client = new_client(upstream.url.replace("127.0.0.1", "localhost"), [])
        asking = asyncio.create_task(client.request(b"POST", client.target("/"), b"{}"))
        assert b"\r\nHost: localhost:" in await (await upstream.line()).serve()
        assert await asking == DONE
        await client.close()


def addresses(upstream: Far, monkeypatch: pytest.MonkeyPatch, *first: tuple[str, int]) -> None:
    """Let the client find these addresses before the upstream's own."""
    port = int(upstream.url.rpartition(":")[2])
    monkeypatch.setattr(
        upstream.client._http._dialer,
        "_known",
        [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (host, at),
            )
            for host, at in (*first, ("127.0.0.1", port))
        ],
    )


@on_both_loops
async def test_a_host_with_a_dead_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at its IPv6 address: its IPv4 one is taken."""
    async with far() as upstream:
        addresses(upstream, monkeypatch, ("::1", 1))
        await upstream.used()


@fast
async def test_a_host_with_a_silent_address() -> None:
    """The next address is tried beside one that does not answer."""
    listening, first = full_house()
    with listening, first, pytest.MonkeyPatch.context() as monkeypatch:
        async with far() as upstream:
            addresses(upstream, monkeypatch, listening.getsockname())
            began = now()
            await upstream.used()
            assert now() - began == pytest.approx(NEXT_ADDRESS_S, abs=0.01)


@on_both_loops
async def test_ipv6() -> None:
    """An address in brackets, in the URL and in the Host header."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with far(host="::1") as upstream:
        asking = upstream.ask()
        host = upstream.url.removeprefix("http://").encode()
        assert b"\r\nHost: %b\r\n" % host in await (await upstream.line()).serve()
        assert host.startswith(b"[::1]:")
        assert await asking == DONE


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its own certificate for localhost, in one file."""
    if which("openssl") is None:
        pytest.skip("no openssl here")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(path), "-out", str(path.with_suffix(".crt"))],
        check=True,
        capture_output=True,
    )  # fmt: skip
    with path.open("a") as both:
        both.write(path.with_suffix(".crt").read_text())
    return path


@on_both_loops
async def test_tls(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a certificate that we trust: everything as without TLS."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with far(tls=context) as upstream:
        line = await upstream.used()
        body = b"x" * 2**20
        asking = upstream.ask(body)
        assert (await line.serve()).endswith(b"\r\n\r\n" + body)
        assert await asking == DONE
        asking = upstream.ask()
        await line.request()
        line.hang_up()  # stale
        line = await upstream.line()
        await line.serve(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
        line.hang_up()
        assert await asking == DONE


@on_both_loops
async def test_a_certificate_that_nobody_vouches_for(certificate: Path) -> None:
    """An outage whose name says what to look at; nothing was sent."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with far(tls=context) as upstream:
        with pytest.raises(Unavailable, match=r"^SSLCertVerificationError$") as failed:
            await upstream.ask()
        assert failed.value.outage
        assert upstream.lines.empty()


@fast
async def test_closing_ends_a_connection_in_the_making() -> None:
    """No request outlives its client."""
    listening, first = full_house()
    with listening, first:
        client = new_client(f"http://127.0.0.1:{listening.getsockname()[1]}", [])
        asking = asyncio.create_task(client.request(b"POST", client.target("/"), b"{}"))
        await asyncio.sleep(1)
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await asking
        assert now() < CONNECT_S
