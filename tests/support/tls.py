"""Certificates of an authority of the tests' own, and fixtures with them."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from sidecar.demo.agentex import AgentexStandIn
from sidecar.demo.sgp import SgpStandIn
from sidecar.network.certificates import CertificateFiles

NAME = "localhost"


class Authority:
    """A certificate authority; its own certificate is at `path`."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def issue(self, *names: str, days: tuple[float, float] = (-1, 30)) -> trustme.LeafCert:
        """A certificate, with its key, valid from one number of days from now until the other."""
        now = datetime.now(UTC)
        return self._ca.issue_cert(
            *names,
            not_before=now + timedelta(days=days[0]),
            not_after=now + timedelta(days=days[1]),
        )

    @staticmethod
    def day(days: float) -> str:
        """The day that is so many days from now, in UTC."""
        return f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}"

    def server(
        self, *names: str, days: tuple[float, float] = (-1, 30), clients: "Authority | None" = None
    ) -> ssl.SSLContext:
        """TLS for an upstream; `clients` is the authority whose certificate a client must have."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.issue(*(names or [NAME]), days=days).configure_cert(context)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(clients.path)
        return context

    def client_files(self, name: str, *, trusts: "Authority") -> CertificateFiles:
        """Files with a client's certificate and its key."""
        issued = self.issue(f"{name}.test")
        cert, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return CertificateFiles(str(trusts.path), str(cert), str(key))


class Relay:
    """TLS in front of a stand-in. `clients`: the authority of its clients' certificates."""

    def __init__(self, authority: Authority, *names: str, clients: Authority | None = None) -> None:
        self._context = authority.server(*names, clients=clients)
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def __call__(self, stand_in: AgentexStandIn | SgpStandIn) -> AsyncIterator[int]:
        """Yields the port."""

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while chunk := await reader.read(2**16):
                    writer.write(chunk)
            except OSError:
                pass
            finally:
                writer.transport.abort()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            near = await asyncio.open_connection("127.0.0.1", stand_in.port)
            await asyncio.gather(copy(reader, near[1]), copy(near[0], writer))

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._tasks.add(asyncio.create_task(relay(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=self._context)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await server.wait_closed()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority that the system does not know."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def tls(authority: Authority) -> ssl.SSLContext:
    """TLS for an upstream, with a certificate that the client does not trust."""
    return authority.server()


@pytest.fixture
def trusted_tls(
    tls: ssl.SSLContext, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> ssl.SSLContext:
    """TLS for an upstream, with a certificate that the client trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    return tls
