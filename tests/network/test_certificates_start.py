"""Files with certificates at the start, and the system's authorities while the process runs."""

import asyncio
from pathlib import Path

import pytest

from sidecar.network.certificates import CertificateError, CertificateFiles, Certificates
from tests.support.tls import Authority


def certificates(files: CertificateFiles | None = None) -> Certificates:
    """Those for an https upstream."""
    return Certificates("agentex", files or CertificateFiles(), secure=True)


@pytest.mark.parametrize("kind", ["below a file", "a link to itself", "too long"])
async def test_a_path_that_can_not_even_be_looked_at(kind: str, tmp_path: Path) -> None:
    """It is an error as a missing file is, and not a hanging disk."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(link)
    paths = {"below a file": file / "ca", "a link to itself": link, "too long": Path("x" * 300)}
    with pytest.raises(CertificateError, match=r"^agentex\.ca_file: "):
        await certificates(CertificateFiles(str(paths[kind]))).refresh()


@pytest.mark.parametrize("folders", ["{0}:{0}", "{0}/none"])
async def test_without_a_file_of_authorities(
    folders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a context all the same: OpenSSL has its own idea of where to look."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", folders.format(tmp_path))
    mine = certificates()
    await mine.refresh()
    assert mine.context is not None


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nhalf"])
async def test_the_systems_authorities_go_away(
    content: bytes | None, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones stay in use, as those of `ca_file` do."""
    file = tmp_path / "system.pem"
    file.write_bytes(authority.path.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    mine = certificates()
    await mine.refresh()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    assert not await mine.refresh()
    assert mine.context is not None
    assert len(mine.context.get_ca_certs()) == 1


async def test_a_file_that_goes_away_after_a_start_without_it(
    authority: Authority, tmp_path: Path
) -> None:
    """The disk hangs at the start, and the file is bad later: the running process goes on."""
    file = tmp_path / "ca.pem"
    mine = certificates(CertificateFiles(str(file)))
    ready = asyncio.Event()

    async def stall(*_: object, **__: object) -> bool:
        ready.set()
        raise OSError

    patch = pytest.MonkeyPatch()
    patch.setattr(mine._watched, "refresh", stall)
    assert not await mine.refresh()
    patch.undo()
    assert ready.is_set()
    assert not await mine.refresh()
    file.write_bytes(authority.path.read_bytes())
    await mine.refresh()
    assert mine.context is not None
