"""`sidecar top`: what a sidecar's `/status` says, in a terminal, refreshing.

Exit codes: 0 shown, or ended by the user; 1 with `--once`: something is being lost; 3 with
`--once`: no sidecar answers there. Without `--once` a sidecar that is away is waited for.
"""

import http.client
import json
import os
import select
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import wrap
from time import monotonic
from types import FrameType
from typing import Any, Never, Self, TextIO

from sidecar.operate.diagnosis import BAD, duration
from sidecar.operate.top_frame import WIDTH, Line, frame

LOSING = 1
AWAY = 3
PATIENCE_S = 4.0
_MAX_BYTES = 2**20
# A pipe has no width: whoever reads it cuts lines himself.
_UNCUT = 10_000

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

Json = Mapping[str, Any]


class Away(Exception):
    """No sidecar answers; says why."""


def top(url: str, *, once: bool, as_json: bool, every_s: float) -> int:
    """Show the sidecar whose admin port is at `url`; the exit code."""
    out = sys.stdout
    sidecar = _Sidecar(url, sparks=out.isatty() and "utf" in (out.encoding or "").lower())
    try:
        if once:
            return _once(sidecar, out, as_json=as_json)
        with _waking() as wakes:
            if as_json:
                _stream(sidecar, out, every_s, wakes)
            if not out.isatty():
                _watch(sidecar, _Paper(out), every_s, wakes)
            with _Screen(out) as screen:
                _watch(sidecar, screen, every_s, wakes)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The reader has seen enough; Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 0


class _Sidecar:
    """The sidecar at `url`; with `sparks`, its history too."""

    def __init__(self, url: str, *, sparks: bool) -> None:
        self._url = url.rstrip("/")
        self._sparks = sparks
        # No proxy: the address is a pod's or a port forward's.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._samples = -1
        self._history: Json | None = None

    def report(self) -> Json:
        """What `/status` says now; raises `Away`."""
        return self._get("/status")

    def frame(self, report: Json) -> list[Line]:
        """The lines to show; raises `Away` when that is not a report."""
        try:
            if self._sparks and report["samples"] != self._samples:
                self._history = self._get("/status/history")
                self._samples = report["samples"]
            return frame(report, self._history)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise Away(f"{self._url}/status is not that of a sidecar of this version") from None

    def _get(self, path: str) -> Json:
        try:
            with self._opener.open(self._url + path, timeout=PATIENCE_S) as reply:
                body = reply.read(_MAX_BYTES)
        except urllib.error.HTTPError as error:
            raise Away(f"{self._url}{path} answers HTTP {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            raise Away(f"{self._url} does not answer ({type(cause).__name__})") from None
        try:
            decoded: Json = json.loads(body)
        except ValueError:
            raise Away(f"{self._url}{path} is not JSON") from None
        return decoded


class _Paper:
    """Shows frames one below the other, as plain text."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, lines: Sequence[Line]) -> None:
        """Show one frame."""
        shown = [line.show(_UNCUT, color=False) for line in lines]
        self._out.write("\n".join(shown) + "\n\n")
        self._out.flush()


class _Screen:
    """Shows frames one over the other in a terminal, which is as before when it ends."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> Self:
        self._out.write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        self._out.write(_LEAVE)
        self._out.flush()

    def show(self, lines: Sequence[Line]) -> None:
        """Show as much of one frame as there is room for."""
        width, height = _size(self._out)
        shown = [line.show(width, color=_colored()) for line in lines[:height]]
        ended = (_END_OF_LINE + "\r\n").join(shown)
        self._out.write(_HOME + ended + _END_OF_LINE + _END_OF_SCREEN)
        self._out.flush()


def _once(sidecar: _Sidecar, out: TextIO, *, as_json: bool) -> int:
    try:
        report = sidecar.report()
        lines = sidecar.frame(report)
    except Away as away:
        sys.stderr.write(f"sidecar: {away}\n")
        return AWAY
    if as_json:
        out.write(json.dumps(report) + "\n")
    else:
        width = _size(out)[0] if out.isatty() else _UNCUT
        out.writelines(line.show(width, color=out.isatty() and _colored()) + "\n" for line in lines)
    out.flush()
    return LOSING if report["answers"][0]["level"] == BAD else 0


def _stream(sidecar: _Sidecar, out: TextIO, every_s: float, wakes: socket.socket) -> Never:
    while True:
        try:
            said = sidecar.report()
        except Away as away:
            said = {"away": str(away)}
        out.write(json.dumps(said) + "\n")
        out.flush()
        _wait(every_s, wakes)


def _watch(
    sidecar: _Sidecar, where: _Paper | _Screen, every_s: float, wakes: socket.socket
) -> Never:
    heard: list[Line] = []
    heard_at = monotonic()
    while True:
        try:
            lines = heard = sidecar.frame(sidecar.report())
            heard_at = monotonic()
        except Away as away:
            age = f"; what follows is {duration(monotonic() - heard_at)} old" if heard else ""
            said = wrap(f"[BAD]  {away}; trying again{age}", WIDTH)
            lines = [*(Line(part, BAD) for part in said), Line(), *heard]
        where.show(lines)
        while _wait(every_s, wakes):
            where.show(lines)  # the terminal has another size


def _wait(seconds: float, wakes: socket.socket) -> bool:
    """Wait; True as soon as a signal came."""
    if not select.select([wakes], [], [], seconds)[0]:
        return False
    wakes.recv(4096)
    return True


@contextmanager
def _waking() -> Iterator[socket.socket]:
    """A socket that can be read once the terminal's size changed. SIGTERM ends as Ctrl-C does."""

    def end(_: int, __: FrameType | None) -> Never:
        raise KeyboardInterrupt

    reads, writes = socket.socketpair()
    with reads, writes:
        writes.setblocking(False)  # noqa: FBT003 (its only form)
        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGWINCH, lambda *_: None)
        signal.set_wakeup_fd(writes.fileno(), warn_on_full_buffer=False)
        try:
            yield reads
        finally:
            signal.set_wakeup_fd(-1)


def _size(out: TextIO) -> tuple[int, int]:
    """Columns and lines; asked of the terminal itself, whatever the environment says."""
    try:
        columns, lines = os.get_terminal_size(out.fileno())
    except OSError:
        return 80, 24
    return columns or 80, lines or 24


def _colored() -> bool:
    return not os.environ.get("NO_COLOR")
