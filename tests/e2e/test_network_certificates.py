"""Upstreams with certificates of a private authority, and certificates of our own."""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sidecar.network.certificates import CertificateFiles
from tests.e2e import parts
from tests.e2e.network_support import (
    AGENTEX,
    NAMES,
    SGP,
    Etc,
    Pod,
    Relay,
    client_files,
    hashed,
    names_of,
    over_tls,
    passes_through,
    pod,
    replace,
    tinyproxy,
)
from tests.support.kill import SidecarRun
from tests.support.lives import ANSWER_S, ARRIVE_S, post_ends, within
from tests.support.tls import Authority

HOSTS = {"agentex": AGENTEX, "sgp": SGP}
PAST, FUTURE = (-100, -1), (1, 9)  # days from now
YESTERDAY = datetime.now(UTC) - timedelta(days=1)
VERSIONS = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"]
)
NEWER_FIRST = pytest.mark.parametrize(
    "version",
    [ssl.TLSVersion.TLSv1_3, pytest.param(ssl.TLSVersion.TLSv1_2, marks=pytest.mark.nightly)],
    ids=["TLS 1.3", "TLS 1.2"],
)


def ca_files(path: Path) -> dict[str, str]:
    """Settings by which both upstreams are trusted."""
    return {"SIDECAR_AGENTEX__CA_FILE": str(path), "SIDECAR_SGP__CA_FILE": str(path)}


def showing(files: CertificateFiles) -> dict[str, str]:
    """Settings with which both upstreams are shown a certificate."""
    return {
        "SIDECAR_AGENTEX__CLIENT_CERT_FILE": str(files.cert),
        "SIDECAR_AGENTEX__CLIENT_KEY_FILE": str(files.key),
        "SIDECAR_SGP__CLIENT_CERT_FILE": str(files.cert),
        "SIDECAR_SGP__CLIENT_KEY_FILE": str(files.key),
    }


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


def server(authority: Authority, **options: Any) -> ssl.SSLContext:
    """What both upstreams need for TLS."""
    return authority.server(AGENTEX, SGP, **options)


def renew(context: ssl.SSLContext, authority: Authority, *names: str) -> None:
    """Give servers another certificate for their next connections."""
    authority.issue(*(names or (AGENTEX, SGP))).configure_cert(context)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path / "etc", NAMES)


@pytest.mark.parametrize("by", ["ca_file", "SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_a_private_authority(tmp_path: Path, ours: Authority, etc: Etc, by: str) -> None:
    """Both upstreams are trusted by a file for each, or by the variables that OpenSSL reads."""
    settings = {
        "ca_file": ca_files(ours.path),
        "SSL_CERT_FILE": {"SSL_CERT_FILE": str(ours.path)},
        "SSL_CERT_DIR": {"SSL_CERT_DIR": str(hashed(ours, tmp_path / "hashed"))},
    }
    async with pod(tmp_path, **settings[by]) as here, over_tls(here, server(ours)) as both:
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        assert both.accepted >= len(both)
        await here.ends(life)


async def test_a_file_is_for_its_own_upstream(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc
) -> None:
    """`ca_file` is all that is trusted, for one upstream; the other goes by the variable."""
    settings = {"SIDECAR_AGENTEX__CA_FILE": str(ours.path), "SSL_CERT_FILE": str(theirs.path)}
    async with (
        pod(tmp_path, **settings) as here,
        Relay(here.agentex.port, tls=server(ours)) as agentex,
        Relay(here.sgp.port, tls=server(theirs)) as sgp,
    ):
        here.lead_to(agentex.port, sgp.port, scheme="https")
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        here.lead_to(sgp.port, sgp.port, scheme="https")  # Agentex has a certificate of theirs
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.holds(life, "agentex", f"certificate of {AGENTEX} is not trusted: ")
        await here.delivers("sgp")
        await here.ends(life)


async def test_several_authorities_in_a_file(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc
) -> None:
    """Any authority in the file is trusted, also among comments and with Windows line ends."""
    bundle = tmp_path / "bundle.pem"
    pieces = [b"# of the company\n", theirs.path.read_bytes(), b"\n\n", ours.path.read_bytes()]
    bundle.write_bytes(b"".join(pieces).replace(b"\n", b"\r\n"))
    async with pod(tmp_path, **ca_files(bundle)) as here, over_tls(here, server(ours)):
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        await here.ends(life)


Make = Callable[[Authority, Authority], ssl.SSLContext]


EXPIRED = f"certificate of {{host}} expired {YESTERDAY:%Y-%m-%d}"
BAD: dict[str, tuple[Make, str]] = {
    "unknown CA": (lambda _, theirs: server(theirs), "certificate of {host} is not trusted: "),
    "wrong host": (
        lambda ours, _: ours.server("elsewhere.internal"),
        "certificate of {host} is not for this name: ",
    ),
    "only another address": (
        lambda ours, _: ours.server("127.0.0.1"),
        "certificate of {host} is not for this name: ",
    ),
    "expired": (lambda ours, _: server(ours, days=PAST), EXPIRED),
    "not yet valid": (
        lambda ours, _: server(ours, days=FUTURE),
        "certificate of {host}: certificate is not yet valid",
    ),
    "unknown CA and expired": (
        lambda _, theirs: server(theirs, days=PAST),
        "certificate of {host} ",
    ),
}


@pytest.mark.parametrize("bad", BAD)
async def test_bad_certificates(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc, bad: str
) -> None:
    """What is wrong with a certificate is said in words; once it is right, all spans arrive."""
    make, text = BAD[bad]
    context = make(ours, theirs)
    async with pod(tmp_path, **ca_files(ours.path)) as here, over_tls(here, context) as both:
        life = await here.start(*etc.wrapper)
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, text.format(host=host))
        assert here.agentex.requests_total == here.sgp.requests_total == 0
        renew(context, ours)
        await here.delivers()
        assert both.accepted > 0
        await here.ends(life)


async def test_a_self_signed_certificate_of_this_name(
    tmp_path: Path, ours: Authority, etc: Etc
) -> None:
    """One that no authority signed is not trusted; with it as `ca_file`, it is."""
    cert, key = tmp_path / "self.pem", tmp_path / "self.key"
    names = ",".join(f"DNS:{host}" for host in HOSTS.values())
    parts.run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=self"),
        *("-addext", f"subjectAltName={names}", "-keyout", key, "-out", cert),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with pod(tmp_path) as here, over_tls(here, context):
        life = await here.start(*etc.wrapper, **ca_files(ours.path))
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, f"certificate of {host} is not trusted: self-signed")
        await here.ends(life)
        life = await here.start(*etc.wrapper, **ca_files(cert))
        await here.delivers()
        await here.ends(life)


@pytest.mark.parametrize("bad", ["plain HTTP", "closes", "old TLS"])
async def test_no_handshake(tmp_path: Path, ours: Authority, etc: Etc, bad: str) -> None:
    """Where no handshake comes about, the text has the host and OpenSSL's reason in words."""
    context = server(ours)
    if bad == "old TLS":
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    text = {
        "plain HTTP": "TLS with {host} failed: wrong version number",
        "closes": "connection",
        "old TLS": "TLS with {host} failed: ",
    }[bad]
    async with (
        pod(tmp_path, **ca_files(ours.path)) as here,
        over_tls(here, context) as both,
        Relay(1) as closing,  # nothing listens there
    ):
        if bad == "plain HTTP":
            here.lead_to(here.agentex.port, here.sgp.port, scheme="https")
        elif bad == "closes":
            here.lead_to(closing.port, closing.port, scheme="https")
        life = await here.start(*etc.wrapper)
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, text.format(host=host))
        await here.ends(life)
        here.lead_to(both.agentex.port, both.sgp.port, scheme="https")
        both.agentex.tls = both.sgp.tls = server(ours)
        life = await here.start(*etc.wrapper)
        await here.delivers()
        await here.ends(life)


@asynccontextmanager
async def demanding(
    here: Pod, ours: Authority, clients: Authority, version: ssl.TLSVersion
) -> AsyncIterator[ssl.SSLContext]:
    """Have both upstreams require a certificate of the authority `clients`."""
    context = server(ours, clients=clients)
    context.minimum_version = context.maximum_version = version
    async with over_tls(here, context):
        yield context


@NEWER_FIRST
@pytest.mark.parametrize("form", ["two files", "one file"])
async def test_a_client_certificate(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc, version: ssl.TLSVersion, form: str
) -> None:
    """Both upstreams get the certificate that they require, for spans and for the pass-through."""
    files = client_files(tmp_path, theirs, "pod")
    settings = showing(files)
    if form == "one file":
        replace(files.cert, joined(files))
        settings = {name: path for name, path in settings.items() if "KEY" not in name}
    more = {"SIDECAR_LISTENER__PASS_THROUGH": "true"}
    async with (
        pod(tmp_path, **ca_files(ours.path), **settings, **more) as here,
        demanding(here, ours, theirs, version),
    ):
        passes_through(here.sgp)
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        assert await passed_through(life) == 200
        await here.ends(life)


def joined(files: CertificateFiles) -> str:
    """Write the key and the certificate to one file."""
    both = Path(f"{files.cert}.both")
    both.write_bytes(Path(files.key).read_bytes() + Path(files.cert).read_bytes())
    return str(both)


async def passed_through(life: SidecarRun) -> int:
    """Send a request that is passed through to SGP; return the status of its response."""
    timeout = aiohttp.ClientTimeout(ANSWER_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{life.url}/v5/models", data=b"x" * 100_000) as reply,
    ):
        answer = await reply.json()
        if reply.status == 200:
            assert answer == {"path": "/v5/models", "size": 100_000}
        else:
            assert answer["detail"]
        return reply.status


REFUSED = {
    "none": "client certificate",  # TLS 1.2 has no alert that says just this
    "of another authority": "{host} refuses the client certificate: ",
    "expired": "{host} refuses the client certificate: ",
}


@VERSIONS
@pytest.mark.parametrize("bad", REFUSED)
async def test_a_client_certificate_is_refused(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc, version: ssl.TLSVersion, bad: str
) -> None:
    """A missing and a refused certificate are told apart; nothing is lost until it is right.

    With TLS 1.3 the server says so only after the client's part of the handshake.
    """
    good = client_files(tmp_path, theirs, "good")
    wrong = {
        "none": None,
        "of another authority": client_files(tmp_path, ours, "other"),
        "expired": client_files(tmp_path, theirs, "old", days=PAST),
    }[bad]
    async with (
        pod(tmp_path, **ca_files(ours.path)) as here,
        demanding(here, ours, theirs, version),
    ):
        life = await here.start(*etc.wrapper, **(showing(wrong) if wrong else {}))
        await here.post(life)
        for sink, host in HOSTS.items():
            seen = await here.holds(life, sink, REFUSED[bad].format(host=host))
            if (bad, version) == ("none", ssl.TLSVersion.TLSv1_3):
                assert seen["last_error"]["text"] == f"{host} requires a client certificate"
            assert host in seen["last_error"]["text"]
        if wrong is None:
            await here.ends(life)
            life = await here.start(*etc.wrapper, **showing(good))
        else:  # it is renewed while the sidecar runs
            replace(wrong.key, good.key)
            replace(wrong.cert, good.cert)
        await here.delivers()
        await here.ends(life)


@pytest.mark.parametrize("by", names_of(["ca_file", "SSL_CERT_FILE"], {"SSL_CERT_FILE"}))
async def test_an_authority_is_rotated(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc, by: str
) -> None:
    """A new file is used without a restart, for both sinks and the pass-through.

    The servers change first: what cannot be delivered in between waits.
    """
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(ours.path.read_bytes())
    settings = ca_files(trusted) if by == "ca_file" else {by: str(trusted)}
    more = {"SIDECAR_LISTENER__PASS_THROUGH": "true"}
    context = server(ours)
    async with (
        pod(tmp_path, **settings, **more) as here,
        over_tls(here, context) as both,
    ):
        passes_through(here.sgp)
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.settles(life)
        assert await passed_through(life) == 200
        renew(context, theirs)
        for relay in both:
            relay.drop()
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, f"certificate of {host} is not trusted: ")
        assert await passed_through(life) == 502
        replace(trusted, theirs.path)
        await here.delivers()
        assert await passed_through(life) == 200
        await here.ends(life)


async def test_an_authority_is_rotated_by_a_link(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc
) -> None:
    """A Secret's volume changes as a whole, by a link to another folder."""
    for name, authority in (("one", ours), ("two", theirs)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca.crt").write_bytes(authority.path.read_bytes())
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "..data").symlink_to(tmp_path / "one")
    (volume / "ca.crt").symlink_to("..data/ca.crt")
    context = server(ours)
    async with (
        pod(tmp_path, **ca_files(volume / "ca.crt")) as here,
        over_tls(here, context) as both,
    ):
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.settles(life)
        renew(context, theirs)
        for relay in both:
            relay.drop()
        (volume / "..new").symlink_to(tmp_path / "two")
        (volume / "..new").replace(volume / "..data")
        await here.post(life)
        await here.delivers()
        await here.ends(life)


@NEWER_FIRST
@pytest.mark.parametrize("order", ["certificate first", "key first"])
async def test_a_rotation_in_two_steps(
    tmp_path: Path,
    ours: Authority,
    theirs: Authority,
    etc: Etc,
    version: ssl.TLSVersion,
    order: str,
) -> None:
    """While certificate and key do not belong together, the old pair stays in use.

    Once both have changed, the new pair is used, without a restart.
    """
    third = Authority(tmp_path, "third")
    files, new = client_files(tmp_path, theirs, "pod"), client_files(tmp_path, third, "new")
    async with (
        pod(tmp_path, **ca_files(ours.path), **showing(files)) as here,
        demanding(here, ours, theirs, version) as context,
    ):
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        steps = [(files.cert, new.cert), (files.key, new.key)]
        first, second = steps if order == "certificate first" else reversed(steps)
        replace(first[0], first[1])
        await warned(life, files.cert, files.key)
        await here.post(life)
        await here.delivers()
        context.load_verify_locations(third.path)  # as well as the old authority
        replace(second[0], second[1])
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        await here.ends(life)


async def warned(life: SidecarRun, *files: str) -> None:
    """Wait for a warning in the log that names one of the files."""

    def found() -> bool:
        lines = [json.dumps(line) for line in life.log if line["level"] == "warning"]
        return any(file in line for line in lines for file in files)

    assert await within(ANSWER_S, found), files


@NEWER_FIRST
async def test_a_client_certificate_is_rotated(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc, version: ssl.TLSVersion
) -> None:
    """A new certificate is shown without a restart, once the upstreams refuse the old one."""
    third = Authority(tmp_path, "third")
    files, new = client_files(tmp_path, theirs, "pod"), client_files(tmp_path, third, "new")
    more = {"SIDECAR_LISTENER__PASS_THROUGH": "true"}
    async with pod(tmp_path, **ca_files(ours.path), **showing(files), **more) as here:
        passes_through(here.sgp)
        async with demanding(here, ours, theirs, version):
            life = await here.start(*etc.wrapper)
            await here.post(life)
            await here.settles(life)
            agentex, sgp = (
                here.settings[name] for name in ("AGENTEX_BASE_URL", "SGP_CLIENT_BASE_URL")
            )
        ports = [int(url.rpartition(":")[2]) for url in (agentex, sgp)]
        context = server(ours, clients=third)
        context.minimum_version = context.maximum_version = version
        async with (
            Relay(here.agentex.port, tls=context, port=ports[0]),
            Relay(here.sgp.port, tls=context, port=ports[1]),
        ):
            await here.post(life)
            for sink, host in HOSTS.items():
                await here.holds(life, sink, f"{host} refuses the client certificate: ")
            replace(files.key, new.key)
            replace(files.cert, new.cert)
            await here.delivers()
            assert await passed_through(life) == 200
            await here.ends(life)


@pytest.mark.parametrize(
    "bad", names_of(["missing", "empty", "garbage", "cut", "a folder"], {"empty", "a folder"})
)
async def test_a_bad_new_file(tmp_path: Path, ours: Authority, etc: Etc, bad: str) -> None:
    """A file that is bad while the sidecar runs costs a warning; what was read stays in use."""
    trusted = tmp_path / "trusted.pem"
    good = ours.path.read_bytes()
    trusted.write_bytes(good)
    async with pod(tmp_path, **ca_files(trusted)) as here, over_tls(here, server(ours)) as both:
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        if bad in {"missing", "a folder"}:
            trusted.unlink()
        if bad == "a folder":
            trusted.mkdir()
        if bad not in {"missing", "a folder"}:
            content = {"empty": b"", "garbage": b"\0garbage\n" * 99, "cut": good[:-99]}
            trusted.with_name("bad").write_bytes(content[bad])
            replace(trusted, trusted.with_name("bad"))
        await warned(life, str(trusted))
        for relay in both:
            relay.drop()
        await here.post(life)
        await here.delivers()
        assert life.process.returncode is None
        await here.ends(life)


async def test_a_pipe_instead_of_a_file(tmp_path: Path, ours: Authority, etc: Etc) -> None:
    """It is not waited for: while running, the old files stay in use; a start ends at once."""
    trusted = tmp_path / "trusted.pem"
    replace(trusted, ours.path)
    async with pod(tmp_path, **ca_files(trusted)) as here, over_tls(here, server(ours)) as both:
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.settles(life)
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").replace(trusted)
        await warned(life, str(trusted))
        for relay in both:
            relay.drop()
        await here.post(life)
        await here.settles(life)
        await here.ends(life)
        process = await here.launch(*etc.wrapper)
        async with asyncio.timeout(ARRIVE_S):
            _, errors = await process.communicate()
        assert (process.returncode, f"{trusted}: not a file".encode() in errors) == (2, True)


@pytest.mark.nightly
async def test_every_account_gets_the_new_files(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc
) -> None:
    """With several accounts, a new `ca_file` is used for each of them."""
    trusted = tmp_path / "trusted.pem"
    replace(trusted, ours.path)
    relay = {"SIDECAR_SGP__RELAY": "true", "SGP_ACCOUNT_ID": "", "SGP_API_KEY": ""}
    context = server(ours)
    async with (
        pod(tmp_path, **ca_files(trusted), **relay) as here,
        over_tls(here, context) as both,
    ):
        life = await here.start(*etc.wrapper)
        for turn in range(2):
            for account in range(3):
                ids = [f"{turn}-{account}-{number}" for number in range(3)]
                names = {"x-api-key": "key", "x-selected-account-id": f"account-{account}"}
                await post_ends(life.url, ids, **names)
                here.sent |= set(ids)
            if turn:
                await here.holds(life, "sgp", f"certificate of {SGP} is not trusted: ")
                replace(trusted, theirs.path)
            await here.settles(life)
            renew(context, theirs)
            for each in both:
                each.drop()
        await here.ends(life)


MISSING = "No such file or directory"


@pytest.mark.parametrize("name", ["CA_FILE", "CLIENT_CERT_FILE", "CLIENT_KEY_FILE"])
@pytest.mark.parametrize("sink", ["agentex", pytest.param("sgp", marks=pytest.mark.nightly)])
async def test_a_missing_file_stops_the_start(
    tmp_path: Path, theirs: Authority, sink: str, name: str
) -> None:
    """The setting, the path and the reason are on standard error, and the exit code is 2."""
    given = showing(client_files(tmp_path, theirs, "pod"))
    path = tmp_path / "not there.pem"
    given[f"SIDECAR_{sink.upper()}__{name}"] = str(path)
    async with pod(tmp_path, **given) as here:
        here.lead_to(1, 1, scheme="https")
        errors = await here.refuses_to_start()
        assert f"{sink}.{name.lower()}: {path}: {MISSING}" in errors
        code, _, errors = await here.says("check")
        assert (code, f"{path}: {MISSING}" in errors) == (2, True), errors


def spoiled(folder: Path, files: CertificateFiles, how: str) -> dict[str, str]:
    """Settings with a file that can't be used, and which it is, as `path`."""
    bad = folder / "bad.pem"
    match how:
        case "empty CA" | "empty certificate" | "empty key":
            bad.touch()
        case "garbage CA" | "garbage certificate" | "garbage key":
            bad.write_bytes(b"-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n")
        case "binary CA":
            bad.write_bytes(bytes(range(256)) * 9)
        case "a folder as CA":
            bad.mkdir()
        case "a key as CA":
            bad.write_bytes(Path(files.key).read_bytes())
        case "encrypted key":
            command = ("openssl", "pkcs8", "-topk8", "-passout", "pass:secret")
            parts.run(*command, "-in", files.key, "-out", bad)
        case "another key":
            parts.run("openssl", "genpkey", "-algorithm", "RSA", "-out", bad)
    settings = showing(files)
    what = how.rpartition(" ")[2]
    kind = {"CA": "CA_FILE", "certificate": "CLIENT_CERT_FILE", "key": "CLIENT_KEY_FILE"}[what]
    return {**settings, f"SIDECAR_SGP__{kind}": str(bad)}


UNUSABLE = [
    "empty CA",
    "garbage CA",
    "binary CA",
    "a folder as CA",
    "a key as CA",
    "empty certificate",
    "garbage certificate",
    "empty key",
    "garbage key",
    "another key",
    "encrypted key",
]


@pytest.mark.parametrize(
    "how", names_of(UNUSABLE, {"binary CA", "a key as CA", "empty certificate", "garbage key"})
)
async def test_a_file_that_cannot_be_used(tmp_path: Path, theirs: Authority, how: str) -> None:
    """It stops the start with its path; nobody is asked for a pass phrase."""
    given = spoiled(tmp_path, client_files(tmp_path, theirs, "pod"), how)
    async with pod(tmp_path, **given) as here:
        here.lead_to(1, 1, scheme="https")
        errors = await here.refuses_to_start()
        assert str(tmp_path / "bad.pem") in errors
        assert "sgp." in errors
        assert "pass phrase" not in errors


async def test_a_file_that_may_not_be_read(tmp_path: Path, ours: Authority) -> None:
    """A file of somebody else's stops the start with its path and the reason."""
    ours.path.chmod(0)
    # Root may read everything, unless it gives that up.
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    parts.run(*without, "true")
    async with pod(tmp_path, **ca_files(ours.path)) as here:
        here.lead_to(1, 1, scheme="https")
        errors = await here.refuses_to_start(*without)
        assert f"{ours.path}: Permission denied" in errors


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_a_variable_that_leads_nowhere(
    tmp_path: Path, ours: Authority, etc: Etc, variable: str
) -> None:
    """The variables are also for others: a warning, no more, and `ca_file` works all the same."""
    nowhere = str(tmp_path / "nowhere")
    settings = {**ca_files(ours.path), variable: nowhere}
    async with pod(tmp_path, **settings) as here, over_tls(here, server(ours)):
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.delivers()
        await here.ends(life)
        del here.settings["SIDECAR_SGP__CA_FILE"]
        life = await here.start(*etc.wrapper)
        await here.post(life)
        await here.holds(life, "sgp", f"certificate of {SGP} is not trusted: ")
        lines = [json.dumps(line) for line in life.log if line["level"] == "warning"]
        assert any(nowhere in line and variable in line for line in lines)
        await here.ends(life)
        code, _, errors = await here.says("check")
        assert code == 0
        assert variable in errors
        assert nowhere in errors


@pytest.mark.parametrize("credential", ["", "pod:password"], ids=["open", "credential"])
async def test_client_certificates_through_a_proxy(
    tmp_path: Path, ours: Authority, theirs: Authority, etc: Etc, credential: str
) -> None:
    """In a tunnel, the upstream's certificate is checked, and ours is shown."""
    files = showing(client_files(tmp_path, theirs, "pod"))
    more = {"SIDECAR_LISTENER__PASS_THROUGH": "true"}
    async with (
        pod(tmp_path, **ca_files(ours.path), **files, **more) as here,
        demanding(here, ours, theirs, ssl.TLSVersion.TLSv1_3) as context,
        tinyproxy(tmp_path / "proxy", credential=credential, etc=etc) as proxy,
    ):
        passes_through(here.sgp)
        life = await here.start(HTTPS_PROXY=proxy.url)
        await here.post(life)
        await here.delivers()
        assert await passed_through(life) == 200
        await here.ends(life)
        renew(context, ours, "elsewhere.internal")
        life = await here.start(HTTPS_PROXY=proxy.url)
        await here.post(life)
        for sink, host in HOSTS.items():
            await here.holds(life, sink, f"certificate of {host} is not for this name: ")
        assert await passed_through(life) == 502
        renew(context, ours)
        await here.delivers()
        await here.ends(life)
