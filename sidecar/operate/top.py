"""`sidecar top`: a sidecar's `/status` in a terminal, refreshed continuously.

Exit codes: 0 if the status was shown or the user quit. With `--once`, 1 if something is being lost
and 3 if no sidecar responds at the URL; without it, `top` keeps trying until one responds.
"""

import http.client
import json
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from textwrap import wrap
from time import monotonic, sleep
from typing import Any, Never, TextIO

from sidecar.operate.hints import BAD
from sidecar.operate.top_frame import frame
from sidecar.operate.top_line import WIDTH, Line
from sidecar.operate.words import duration
from sidecar.process.terminal import complain, draw, show_json

LOSING = 1
NO_SIDECAR = 3
TIMEOUT_S = 4.0
_MAX_BYTES = 2**20
# A pipe has no width, so lines are not cut.
_UNCUT = 10_000

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

Json = Mapping[str, Any]


class Unreachable(Exception):
    """No sidecar responds at the URL; the message gives the reason."""


def top(url: str, *, once: bool, as_json: bool, every_s: float) -> int:
    """Show the sidecar whose admin port is at `url`, and return the exit code."""
    out = sys.stdout
    sidecar = Sidecar(url, sparks=out.isatty() and "utf" in (out.encoding or "").lower())
    try:
        if once:
            return _once(sidecar, out, as_json=as_json)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        if as_json:
            _stream(sidecar, every_s)
        _watch(sidecar, out, every_s)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        return 0  # the reader closed the pipe (`| head`)


class Sidecar:
    """The sidecar at `url`; with `sparks`, also its history."""

    def __init__(self, url: str, *, sparks: bool = False) -> None:
        self._url = url.rstrip("/")
        self._sparks = sparks
        # No proxy: the sidecar is in the same pod or reached through a port forward.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._samples = -1
        self._history: Json | None = None

    def report(self) -> Json:
        """Fetch `/status`; raises Unreachable."""
        return self._get("/status")

    def frame(self, report: Json, width: int) -> list[Line]:
        """Return the lines for `width` columns; raises Unreachable if `report` is wrong."""
        try:
            if self._sparks and report["samples"] != self._samples:
                self._history = self._get("/status/history")
                self._samples = report["samples"]
            return frame(report, self._history, width)
        except (LookupError, TypeError, ValueError, AttributeError):
            reason = "is not a status report from this version of the sidecar"
            raise Unreachable(f"{self._url}/status {reason}") from None

    def _get(self, path: str) -> Json:
        try:
            with self._opener.open(self._url + path, timeout=TIMEOUT_S) as response:
                body = response.read(_MAX_BYTES)
        except urllib.error.HTTPError as error:
            raise Unreachable(f"{self._url}{path} returns HTTP {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            raise Unreachable(f"{self._url} does not respond ({type(cause).__name__})") from None
        try:
            decoded: Json = json.loads(body)
        except (ValueError, RecursionError):
            raise Unreachable(f"{self._url}{path} is not JSON") from None
        return decoded


def _once(sidecar: Sidecar, out: TextIO, *, as_json: bool) -> int:
    try:
        report = sidecar.report()
        lines = sidecar.frame(report, _columns(out))
    except Unreachable as error:
        complain(str(error))
        return NO_SIDECAR
    if as_json:
        show_json(report)
    else:
        draw("".join(f"{line}\n" for line in _shown(lines, out)), out)
    return LOSING if report["answers"][0]["level"] == BAD else 0


def _stream(sidecar: Sidecar, every_s: float) -> Never:
    while True:
        try:
            report = sidecar.report()
        except Unreachable as error:
            report = {"away": str(error)}
        show_json(report)
        sleep(every_s)


def _watch(sidecar: Sidecar, out: TextIO, every_s: float) -> Never:
    latest: Json | None = None
    latest_at = monotonic()
    resized: SimpleQueue[None] = SimpleQueue()  # its `put` is safe in a signal handler
    signal.signal(signal.SIGWINCH, lambda *_: resized.put(None))
    enter, leave = (_ENTER, _LEAVE) if out.isatty() else ("", "")
    try:
        draw(enter, out)
        while True:
            away = ""
            try:
                report = sidecar.report()
                sidecar.frame(report, WIDTH)
                latest, latest_at = report, monotonic()
            except Unreachable as error:
                age = f"; shown below: {duration(monotonic() - latest_at)} old" if latest else ""
                away = f"[BAD]  {error}; trying again{age}"
            _show(_lines(sidecar, latest, away, out), out)
            with suppress(Empty):  # it is time for the next report
                while True:
                    resized.get(timeout=every_s)
                    _show(_lines(sidecar, latest, away, out), out)
    finally:
        draw(leave, out)


def _lines(sidecar: Sidecar, report: Json | None, away: str, out: TextIO) -> list[Line]:
    """Return a frame, below a notice if the sidecar is `away`."""
    width = min(WIDTH, _columns(out))
    notice = [*(Line(part, BAD) for part in wrap(away, width)), Line()] if away else []
    return [*notice, *(sidecar.frame(report, width) if report is not None else [])]


def _show(lines: Sequence[Line], out: TextIO) -> None:
    """Write one frame: in a terminal over the previous one, otherwise after it."""
    if out.isatty():
        shown = _shown(lines[: _size(out)[1]], out)
        text = (_END_OF_LINE + "\r\n").join(shown)
        draw(_HOME + text + _END_OF_LINE + _END_OF_SCREEN, out)
    else:
        draw("\n".join(_shown(lines, out)) + "\n\n", out)


def _shown(lines: Sequence[Line], out: TextIO) -> list[str]:
    """Return plain text, or what fits into a terminal's width, in color."""
    if not out.isatty():
        return [line.show(_UNCUT, color=False) for line in lines]
    width, color = _size(out)[0], not os.environ.get("NO_COLOR")
    return [line.show(width, color=color) for line in lines]


def _columns(out: TextIO) -> int:
    return _size(out)[0] if out.isatty() else WIDTH


def _size(out: TextIO) -> tuple[int, int]:
    """Return columns and lines, from the terminal itself: $COLUMNS does not follow a resize."""
    try:
        columns, lines = os.get_terminal_size(out.fileno())
    except OSError:
        return 80, 24
    return columns or 80, lines or 24
