"""What `sidecar demo` prints: lines that stay, above one line of progress."""

import os
import shutil
import sys

from sidecar.process.terminal import draw, show, visible

_CLEAR_LINE = "\r\x1b[K"


class Screen:
    """On a terminal the progress is redrawn in place; elsewhere it is lines like the others."""

    def __init__(self) -> None:
        self._in_place = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    def say(self, line: str = "") -> None:
        """Print a line that stays."""
        if self._in_place:
            draw(_CLEAR_LINE, sys.stdout)
        show(line)

    def progress(self, line: str) -> None:
        """Print how far it is, in place of what was printed last."""
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            draw(f"{_CLEAR_LINE}{visible(line)[:width]}", sys.stdout)
        else:
            show(line)
