"""Certificates from files: bad ones, ones that change, and what a handshake says about them."""

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from sidecar.network import dialer as dialers
from sidecar.network.certificates import (
    CertificateError,
    CertificateFiles,
    Certificates,
    load_context,
    missing_system_files,
)
from sidecar.network.dialer import Dialer, Unreachable
from sidecar.process.addresses import parse_base_url
from sidecar.sinks import Unavailable
from tests.support.faults import fast, now
from tests.support.tls import Authority
from tests.support.upstream_connection import (
    DONE,
    new_client,
    new_dialer,
    on_both_loops,
    raw_upstream,
)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    """Another authority."""
    return Authority(tmp_path, "other")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing after the handshake is not listened to for long."""
    monkeypatch.setattr(dialers, "ALERT_S", 0.1)


async def why(dialer: Dialer) -> str:
    """Why no connection can be opened, or it ends; "" if all is well."""
    try:
        return await dialer.listen() or ""
    except Unreachable as failure:
        return str(failure)


async def seen(server: ssl.SSLContext, files: CertificateFiles, name: str = "localhost") -> str:
    """What a handshake with `server` says."""
    async with raw_upstream(tls=server) as upstream:
        port = upstream.url.rpartition(":")[2]
        return await why(new_dialer(f"https://{name}:{port}", files))


@on_both_loops
async def test_an_authority_of_ones_own(authority: Authority, other: Authority) -> None:
    """`ca_file` is what is trusted, and nothing else."""
    assert await seen(authority.server(), CertificateFiles(str(authority.path))) == ""
    reason = await seen(authority.server(), CertificateFiles(str(other.path)))
    assert reason == (
        "certificate of localhost is not trusted: unable to get local issuer certificate"
    )


@on_both_loops
async def test_a_certificate_for_another_name(authority: Authority) -> None:
    """The text has the name that was expected."""
    reason = await seen(authority.server("other.test"), CertificateFiles(str(authority.path)))
    assert reason.startswith("certificate of localhost is not for this name: Hostname mismatch")


@on_both_loops
async def test_an_address_that_is_not_in_the_certificate(authority: Authority) -> None:
    """An address is a name like others; one in the certificate is fine."""
    files = CertificateFiles(str(authority.path))
    reason = await seen(authority.server(), files, "127.0.0.1")
    assert reason.startswith("certificate of 127.0.0.1 is not for this name: IP address mismatch")
    assert await seen(authority.server("127.0.0.1"), files, "127.0.0.1") == ""


@on_both_loops
async def test_an_expired_certificate(authority: Authority) -> None:
    """The text has the day."""
    server = authority.server(days=(-9, -2))
    reason = await seen(server, CertificateFiles(str(authority.path)))
    day = authority.day(-2)
    assert reason == f"certificate of localhost expired {day}"


@on_both_loops
async def test_a_certificate_that_is_not_valid_yet(authority: Authority) -> None:
    """It is OpenSSL's reason."""
    server = authority.server(days=(2, 3))
    reason = await seen(server, CertificateFiles(str(authority.path)))
    assert reason == "certificate of localhost: certificate is not yet valid"


@contextmanager
def strict_server(context: ssl.SSLContext) -> Iterator[int]:
    """A TLS server that tells its clients why it ends a connection, which asyncio's does not."""

    def serve(connection: socket.socket) -> None:
        with (
            connection,
            suppress(OSError),
            context.wrap_socket(connection, server_side=True) as one,
        ):
            received = b""
            while not received.endswith(b"{}"):
                if not (chunk := one.recv(2**16)):
                    return
                received += chunk
            one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)  # ends accept()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_both_loops
async def test_a_certificate_of_ones_own(
    version: ssl.TLSVersion,
    authority: Authority,
    other: Authority,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An upstream that requires one gets it; without it, or with a wrong one, the text says so."""
    monkeypatch.setattr(dialers, "ALERT_S", 30.0)
    context = authority.server(clients=authority)
    context.maximum_version = version
    mine = authority.client_files("mine", trusts=authority)
    wrong = other.client_files("wrong", trusts=authority)
    outcomes: dict[str, str] = {}
    with strict_server(context) as port:
        for name, files in (
            ("mine", mine),
            ("wrong", wrong),
            ("none", CertificateFiles(str(authority.path))),
        ):
            client = new_client(new_dialer(f"https://localhost:{port}", files), [])
            try:
                # The server reads a small body only; with a large one, its word may be lost.
                body = b"{}" if name == "mine" else b"x" * 2**20
                response = await client.request(b"POST", client.target("/"), body)
                outcomes[name] = str(response.status)
            except Unavailable as failed:
                outcomes[name] = str(failed)
            await client.close()
    assert outcomes["mine"] == "200"
    assert outcomes["wrong"].startswith("localhost refuses the client certificate: ")
    assert "require" in outcomes["none"]
    assert "client certificate" in outcomes["none"]


@on_both_loops
async def test_a_certificate_and_its_key_in_one_file(authority: Authority, tmp_path: Path) -> None:
    """Without `client_key_file`, the key is in `client_cert_file`."""
    ca, cert, key = authority.client_files("both", trusts=authority)
    both = tmp_path / "both.pem"
    both.write_bytes(contents(key) + contents(cert))
    with strict_server(authority.server(clients=authority)) as port:
        dialer = new_dialer(f"https://localhost:{port}", CertificateFiles(ca, str(both)))
        assert await why(dialer) == ""


@on_both_loops
async def test_a_server_without_tls(authority: Authority) -> None:
    """The reason is OpenSSL's, with a hint."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(2**16)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        reason = await why(new_dialer(f"https://localhost:{port}"))
    assert reason.startswith("TLS with localhost failed: ")
    assert reason.endswith(" (does it expect http?)")


@fast
async def test_a_server_that_never_answers_the_handshake() -> None:
    """It is given up after `TLS_S`."""
    async with raw_upstream() as upstream:
        began = now()
        reason = await why(new_dialer(upstream.url.replace("http:", "https:")))
        assert reason == "TLS with 127.0.0.1 failed: no answer within 5 s"
        assert now() - began == pytest.approx(5.0, abs=0.01)


# Files.


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


def replace(path: str, by: str) -> None:
    """Replace a file at once, as an update of a volume does."""
    fresh = Path(path + ".new")
    fresh.write_bytes(contents(by))
    fresh.replace(path)


def new_certificates(files: CertificateFiles) -> Certificates:
    return Certificates("agentex", files, secure=True)


DAMAGED = b"".join(
    b"-----BEGIN %b-----\nAAAA\n-----END %b-----\n" % (what, what)
    for what in (b"CERTIFICATE", b"PRIVATE KEY")
)


@pytest.mark.parametrize("setting", CertificateFiles._fields)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "in PEM format is in it"),
        (b"\x30\x82\x01", "in PEM format is in it"),
        (DAMAGED, "it is damaged"),
    ],
)
async def test_a_bad_file(
    setting: str, content: bytes | None, reason: str, authority: Authority, tmp_path: Path
) -> None:
    """The error names the setting, the path and the reason."""
    files = authority.client_files("bad", trusts=authority)
    path = tmp_path / "bad.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CertificateError) as failed:
        await new_certificates(files._replace(**{setting: str(path)})).refresh()
    named = {"ca": "ca_file", "cert": "client_cert_file", "key": "client_key_file"}[setting]
    assert str(failed.value).startswith(f"agentex.{named}: {path}: ")
    assert reason in str(failed.value)


async def test_a_directory_instead_of_a_file(tmp_path: Path) -> None:
    """It is not mistaken for an empty file."""
    with pytest.raises(CertificateError, match="not a file"):
        await new_certificates(CertificateFiles(str(tmp_path))).refresh()


async def test_a_pipe_instead_of_a_file(tmp_path: Path) -> None:
    """It would have us wait for its other end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CertificateError, match="not a file"):
        load_context("agentex", CertificateFiles(str(tmp_path / "pipe")))


def test_no_more_strict_than_openssl(authority: Authority) -> None:
    """Authorities that an agent's Python 3.12 trusts are trusted by our 3.13, too."""
    context = load_context("agentex", CertificateFiles(str(authority.path)))
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT


async def test_a_key_of_another_certificate(authority: Authority) -> None:
    """As while one of the two is replaced before the other."""
    one = authority.client_files("one", trusts=authority)
    two = authority.client_files("two", trusts=authority)
    with pytest.raises(CertificateError, match="the key does not belong to the certificate"):
        await new_certificates(one._replace(key=two.key)).refresh()


async def test_a_certificate_without_a_key(authority: Authority) -> None:
    """Its file then has to have the key, too."""
    files = authority.client_files("one", trusts=authority)
    expected = f"agentex.client_cert_file: {files.cert}: no private key in PEM format is in it"
    with pytest.raises(CertificateError) as failed:
        await new_certificates(files._replace(key="")).refresh()
    assert str(failed.value) == expected


async def test_an_encrypted_key(authority: Authority, tmp_path: Path) -> None:
    """It is refused; nobody is asked for its password."""
    files = authority.client_files("locked", trusts=authority)
    key = load_pem_private_key(contents(files.key), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    expected = r"^agentex\.client_key_file: .*locked\.key: the key has a password, which is not"
    with pytest.raises(CertificateError, match=expected):
        await new_certificates(files._replace(key=str(locked))).refresh()


async def test_files_that_change(other: Authority, tmp_path: Path) -> None:
    """They are used once they are whole; until then the ones before are, and it is said once."""
    mine = Authority(tmp_path)
    files = mine.client_files("old", trusts=mine)
    new = other.client_files("new", trusts=other)
    certificates = new_certificates(files)
    assert await certificates.refresh()
    first = certificates.context
    assert not await certificates.refresh()
    replace(files.cert, new.cert)
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            assert not await certificates.refresh()
        assert certificates.context is first
        replace(files.key, new.key)
        assert await certificates.refresh()
        assert certificates.context is not first
        assert not await certificates.refresh()
        os.unlink(files.ca)  # noqa: PTH108
        assert not await certificates.refresh()
    assert [line["event"] for line in lines] == [
        "certificates_unusable",
        "certificates_changed",
        "certificates_unusable",
    ]
    assert lines[2]["error"].endswith("ca.pem: No such file or directory")


async def test_authorities_that_the_system_gets_later(
    authority: Authority, other: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SSL_CERT_FILE` is read again, too."""
    path = tmp_path / "bundle.pem"
    replace(str(path), str(other.path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    certificates = new_certificates(CertificateFiles())
    await certificates.refresh()
    async with raw_upstream(tls=authority.server()) as upstream:
        dialer = Dialer(parse_base_url(upstream.url), certificates)
        assert "is not trusted" in await why(dialer)
        replace(str(path), str(authority.path))
        assert await dialer.refresh()
        assert await why(dialer) == ""


def test_a_variable_that_names_nothing(tmp_path: Path) -> None:
    """A file that is not there would silently be no authority."""
    environ = {"SSL_CERT_FILE": str(tmp_path / "none"), "SSL_CERT_DIR": str(tmp_path)}
    assert list(missing_system_files(environ)) == [
        f"SSL_CERT_FILE: {tmp_path}/none can't be read: authorities in it are not trusted"
    ]


async def test_before_the_files_could_be_read() -> None:
    """No connection is opened without them."""
    certificates = new_certificates(CertificateFiles())
    dialer = Dialer(parse_base_url("https://localhost:1"), certificates)
    assert await why(dialer) == "the files with the certificates can't be read"


@on_both_loops
async def test_requests_use_what_has_changed(authority: Authority, other: Authority) -> None:
    """A new connection does, also if the client had connections before."""
    files = CertificateFiles(str(other.path))
    async with raw_upstream(tls=authority.server()) as upstream:
        dialer = new_dialer(upstream.url, files)
        client = new_client(dialer, [])
        with pytest.raises(Unavailable, match="is not trusted"):
            await client.request(b"POST", client.target("/"), b"{}")
        replace(files.ca, str(authority.path))
        assert await dialer.refresh()
        sending = asyncio.create_task(client.request(b"POST", client.target("/"), b"{}"))
        await (await upstream.accept()).serve()
        assert await sending == DONE
        await client.close()
