"""What TLS needs to reach one upstream, from files that can change while the process runs."""

import os
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

import structlog

from sidecar.process.watched_files import LIMIT_S, WatchedFiles

# Python has no name for it: X509_V_FLAG_NO_CHECK_TIME in OpenSSL's x509_vfy.h.
_NO_CHECK_TIME = 0x200000
MAX_FILE_BYTES = 16 * 2**20
# Where OpenSSL looks for authorities, instead of the system's places.
SYSTEM_VARIABLES = "SSL_CERT_FILE", "SSL_CERT_DIR"

log = structlog.get_logger()


class CertificateFiles(NamedTuple):
    """Paths of PEM files, "" for none. `ca`: the only authorities to trust, else the system's.

    `cert` is shown to the upstream; `key` is its key, which is in the same file if it is "".
    """

    ca: str = ""
    cert: str = ""
    key: str = ""


class CertificateError(ValueError):
    """A file can't be used; the message names the setting, the path and the reason."""


class Certificates:
    """The TLS context for the upstream `name`. Create it inside a running loop.

    `secure`: its URL is an https one. Otherwise files that are configured are still read, because
    a mistake in them, or in the URL, should not wait for the day when they are needed.
    """

    def __init__(self, name: str, files: CertificateFiles, *, secure: bool) -> None:
        self._name, self._files = name, files
        self._are_used = secure or any(files)
        self.has_own = bool(files.cert)
        paths = [path for path in files if path]
        if secure and not files.ca:
            paths += _system_files()
        self._watched = WatchedFiles(f"certificates for {name}", paths, self._load)
        self.thread = self._watched.thread
        self._is_first = True
        self._had_authorities = False
        self._complaint = ""

    @property
    def context(self) -> ssl.SSLContext | None:
        """What connections use now; None before the files could be read."""
        return self._watched.value

    async def refresh(self) -> bool:
        """Read the files again if one has changed; returns whether the context is a new one.

        The first time, it raises `CertificateError` if they can't be used. Later, the old one stays
        in use, if there is one.
        """
        if not self._are_used:
            return False
        is_first, self._is_first = self._is_first, False
        had_one = self.context is not None
        try:
            changed = await self._watched.refresh()
        except OSError:  # the disk hangs, or there is no thread to read them
            return False
        except CertificateError as error:
            if is_first:
                raise
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("certificates_unusable", sink=self._name, error=str(error))
            return False
        if changed and had_one:
            log.info("certificates_changed", sink=self._name)
        self._complaint = ""
        return changed

    async def regardless_of_time(self) -> ssl.SSLContext:
        """A context for which no certificate is too old or too new; raises as `refresh` does."""

        def load() -> ssl.SSLContext:
            context = load_context(self._name, self._files)
            context.verify_flags |= _NO_CHECK_TIME
            return context

        return await self.thread.call(load, limit_s=LIMIT_S)

    def _load(self) -> ssl.SSLContext:
        context = load_context(self._name, self._files)
        # Those in a directory are read later, one by one.
        has_authorities = context.cert_store_stats()["x509_ca"] > 0
        if self._had_authorities and not (has_authorities or self._files.ca):
            raise CertificateError("the system's file of authorities has none any more")
        self._had_authorities = has_authorities
        return context


def load_context(name: str, files: CertificateFiles) -> ssl.SSLContext:
    """Read the files of the upstream `name`; raises `CertificateError`. It blocks."""
    for setting, path, what in zip(_SETTINGS, files, _CONTENTS, strict=True):
        if path:
            _check(f"{name}.{setting}: {path}", Path(path), what)
    ca, cert, key = files
    if cert and not key:
        _check(f"{name}.client_cert_file: {cert}", Path(cert), "PRIVATE KEY")
    context = _context(f"{name}.ca_file: {ca}", ca)
    if cert:
        _context(f"{name}.client_cert_file: {cert}", cert)  # to know which of the two is bad
        try:
            # Without a password given here, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(cert, key or None, password="")
        except (OSError, ValueError) as error:
            where = f"client_key_file: {key}" if key else f"client_cert_file: {cert}"
            raise CertificateError(f"{name}.{where}: {_reason(error)}") from None
    context.set_alpn_protocols(["http/1.1"])
    # Python 3.13 is stricter than OpenSSL itself, than Python 3.12, and so than many agents, with
    # certificates of private authorities.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


_SETTINGS = "ca_file", "client_cert_file", "client_key_file"
_CONTENTS = "CERTIFICATE", "CERTIFICATE", "PRIVATE KEY"
# How both ways to encrypt a key begin.
_ENCRYPTED = b"ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"


def _context(where: str, authorities: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authorities or None)
    except (OSError, ValueError) as error:
        raise CertificateError(f"{where}: {_reason(error)}") from None


def _check(where: str, path: Path, what: str) -> None:
    try:
        if not S_ISREG(path.stat().st_mode):  # a pipe would have us wait for its other end
            raise CertificateError(f"{where}: not a file")
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, CertificateError):
            raise
        raise CertificateError(f"{where}: {getattr(error, 'strerror', error)}") from None
    if f"{what}-----".encode() not in text:
        raise CertificateError(f"{where}: no {what.lower()} in PEM format is in it")
    if any(begin in text for begin in _ENCRYPTED):
        raise CertificateError(f"{where}: the key has a password, which is not supported")


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    why = f" ({reason.lower().replace('_', ' ')})" if reason else ""
    return f"it is damaged{why}"


def _system_files() -> list[str]:
    """Where OpenSSL looks for the system's authorities, whether or not they are there."""
    found = ssl.get_default_verify_paths()
    file, folders = (
        os.environ.get(name) or default
        for name, default in zip(
            SYSTEM_VARIABLES, (found.openssl_cafile, found.openssl_capath), strict=True
        )
    )
    return [file, *folders.split(os.pathsep)]


def missing_system_files(environ: Mapping[str, str]) -> Iterator[str]:
    """What to warn of: variables that name a file or directory of authorities that is not there."""
    for name in SYSTEM_VARIABLES:
        for path in environ.get(name, "").split(os.pathsep if name.endswith("DIR") else "\0"):
            if path and not os.access(path, os.R_OK):
                yield f"{name}: {path} can't be read: authorities in it are not trusted"
