"""Records how many writes were lost at shutdown, for the next process and for `kubectl describe`.

A metric set as the process ends is never scraped, so the number goes into a small file on the
volume of the spool or the dead letters, and the next process exposes it as a metric. If it is
not 0, it also goes into the container's termination message.
"""

from contextlib import suppress
from pathlib import Path

import structlog

# Kubernetes' default terminationMessagePath.
TERMINATION_MESSAGE = Path("/dev/termination-log")
NAME = "last_shutdown_lost"

log = structlog.get_logger()


class ExitReport:
    """Reads the previous process's report and writes this one's; both block.

    `folder` outlives the container; None if there is no such volume. `lost`: the writes that the
    previous process lost at shutdown, 0 if unknown.
    """

    def __init__(self, folder: Path | None, message: Path = TERMINATION_MESSAGE) -> None:
        self._file = folder / NAME if folder is not None else None
        self._message = message
        self.lost = 0

    def read(self) -> None:
        """Read the previous process's report, once."""
        if self._file is not None:
            with suppress(OSError, ValueError):  # the first process on this volume
                self.lost = int(self._file.read_text(encoding="utf-8"))
                # Reset it now, because a killed process writes nothing: it is reported only once.
                self._file.write_text("0\n", encoding="utf-8")

    def write(self, lost: int) -> None:
        """Record how many writes this process lost at shutdown."""
        try:
            if self._file is not None:
                self._file.write_text(f"{lost}\n", encoding="utf-8")
            if lost and self._message.exists():
                self._message.write_text(f"lost {lost} writes at shutdown\n", encoding="utf-8")
        except OSError as error:
            log.warning("last_words_not_kept", error=error.strerror)


def report_directory(spool_path: str, dead_letters_path: str) -> Path | None:
    """A configured folder that outlives the container, or None."""
    if spool_path:
        return Path(spool_path)
    return Path(dead_letters_path).parent if dead_letters_path else None
