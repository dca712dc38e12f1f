"""`sidecar debug`: one archive to attach to an issue, with no span content and no secrets.

Whatever can be had is in it; README.txt says what is not, and why. A sidecar that does not respond
is no reason to make none.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from sidecar.config import ConfigError, redacted
from sidecar.config_load import read
from sidecar.process.blocking import within
from sidecar.process.terminal import complain, show, show_bytes, to_ascii_json
from sidecar.process.versions import versions

# Exit codes. INCOMPLETE also if the archive can't be written.
COMPLETE, INCOMPLETE, NO_SIDECAR = 0, 1, 3
STDOUT = "-"
# For each page, its body included.
TIMEOUT_S = 10.0
_MAX_BYTES = 4 * 2**20

_ABOUT = """\
Made by `sidecar debug` at {at} from {url}.

It has ids of spans and accounts, names of hosts and paths, counts, statuses and times. It has no
content of spans and no secrets. Replace what is nobody else's business before you publish it.

status.json         what /status says: the answers, and what is behind them
history.json        the last 15 minutes
metrics.txt         one scrape
configuration.json  every setting; secrets are ***
decisions.json      the latest decisions about spans, newest first
log.txt             the last lines of the log
versions.json       what the sidecar runs on, and what this command runs on

"""
_STUCK = (
    "the sidecar does not respond: SIGQUIT makes it write into its log where each thread is, so "
    "attach its log as well (docs/runbooks.md#something-hangs)"
)


class _Missing(Exception):
    """Something can't be had; the message says why."""


def run(url: str, output: str, config: str | None, environ: Mapping[str, str]) -> int:
    """Write the archive about the sidecar whose admin port is at `url`; returns the exit code.

    `output` is the archive's path, "" for a new file in this directory, "-" for standard output.
    `config` is the configuration file for what the sidecar itself does not say.
    """
    now = datetime.now(UTC)
    missing: dict[str, str] = {}
    files = dict(_from_sidecar(url.rstrip("/"), missing))
    responds = bool(files)
    files |= _from_here(files, config, environ, missing)
    about = _ABOUT.format(at=now.isoformat(timespec="seconds"), url=url)
    about += "".join(f"missing: {name}: {why}\n" for name, why in missing.items())
    archive = _packed({"README.txt": about.encode(), **files}, now)
    for name, why in missing.items():
        complain(f"{name} is missing: {why}")
    if not responds:
        complain(_STUCK)
    path = output or f"trace-sidecar-debug-{now:%Y%m%dT%H%M%SZ}.tar.gz"
    try:
        _write(archive, path)
    except OSError as error:
        complain(f"{path}: {error.strerror}: name a file with --output, or --output - for stdout")
        return INCOMPLETE
    if path != STDOUT:
        show(f"{path}: {len(archive):,} bytes, without span content or secrets: look, then attach")
    return NO_SIDECAR if not responds else INCOMPLETE if missing else COMPLETE


def _from_sidecar(url: str, missing: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """The files that the sidecar has something for."""
    pages: dict[str, Callable[[bytes], dict[str, bytes]]] = {
        "/status": lambda body: {"status.json": body, "configuration.json": _config_in(body)},
        "/status/history": lambda body: {"history.json": _checked(body)},
        "/metrics": lambda body: {"metrics.txt": _checked_metrics(body)},
        "/debug": _parts_of_debug,
    }
    source = _Source(url)
    for path, parts in pages.items():
        try:
            yield from parts(source.page(path)).items()
        except _Missing as why:
            missing[path] = str(why)


class _Source:
    """The pages of a sidecar. Once one does not come in time, there are no more."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._gone = ""

    def page(self, path: str) -> bytes:
        """The body of a page; raises `_Missing`."""
        if not self._gone:
            try:
                return within(TIMEOUT_S, _get, self._url + path)
            except TimeoutError:
                self._gone = f"{self._url} does not respond within {TIMEOUT_S:g} s"
            except ConnectionError as error:
                self._gone = f"{self._url} does not respond ({type(error).__name__})"
        raise _Missing(self._gone)


def _get(url: str) -> bytes:
    # No proxy: the sidecar is in the same pod or reached through a port forward.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            body: bytes = response.read(_MAX_BYTES + 1)
    except HTTPError as error:
        error.close()
        raise _Missing(f"HTTP {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, TimeoutError | ConnectionError):
            raise cause from None
        raise _Missing(type(cause).__name__) from None
    if len(body) > _MAX_BYTES:
        raise _Missing(f"it is larger than {_MAX_BYTES:,} bytes")
    return body


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise _Missing("what responds is not this version of the sidecar")
    return decoded


def _checked(body: bytes) -> bytes:
    _decoded(body)
    return body


def _checked_metrics(body: bytes) -> bytes:
    if not body.startswith(b"# HELP"):
        raise _Missing("what responds is not this version of the sidecar")
    return body


def _config_in(status: bytes) -> bytes:
    return _json(_decoded(status).get("config"))


def _parts_of_debug(body: bytes) -> dict[str, bytes]:
    parts = _decoded(body)
    log = parts.get("log")
    return {
        "decisions.json": _json(parts.get("decisions")),
        "log.txt": str(log or "the process has not started its log\n").encode(),
        "versions.json": _json({"sidecar": parts.get("versions")}),
    }


def _from_here(
    files: Mapping[str, bytes],
    config: str | None,
    environ: Mapping[str, str],
    missing: dict[str, str],
) -> Iterator[tuple[str, bytes]]:
    """What this command knows: its versions, and the settings if the sidecar has not said them."""
    theirs = json.loads(files.get("versions.json", b"{}"))
    yield "versions.json", _json({"sidecar": None, **theirs, "command": versions()})
    if "configuration.json" in files:
        return
    try:
        settings = read(config, environ)
    except ConfigError as error:
        missing["configuration"] = str(error)
        return
    here = {"of": "this command's own variables and file", "mistakes": settings.mistakes}
    yield "configuration.json", _json(here | {"config": redacted(settings.config)})


def _json(value: object) -> bytes:
    return to_ascii_json(value, indent=1).encode() + b"\n"


def _packed(files: Mapping[str, bytes], now: datetime) -> bytes:
    """A .tar.gz with the files in one folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, body in files.items():
            entry = tarfile.TarInfo(f"trace-sidecar-debug/{name}")
            entry.size, entry.mtime, entry.mode = len(body), now.timestamp(), 0o600
            archive.addfile(entry, io.BytesIO(body))
    return packed.getvalue()


def _write(archive: bytes, path: str) -> None:
    """Write the archive, for nobody else to read."""
    if path == STDOUT:
        show_bytes(archive)
        return
    file = Path(path)
    file.touch(0o600)
    file.write_bytes(archive)
