"""What a life of the sidecar says at its end, for the next one and for `kubectl describe pod`.

A metric that is set at the end of a process is never scraped. So the number of writes that were
lost at shutdown goes into a small file on the volume of the spool or of the dead letters, and the
next life shows it; and, when it is not 0, into the container's termination message.
"""

from contextlib import suppress
from pathlib import Path

import structlog

# Kubernetes' default terminationMessagePath.
TERMINATION_MESSAGE = Path("/dev/termination-log")
NAME = "last_shutdown_lost"

log = structlog.get_logger()


class ExitReport:
    """Reads the last life's words, and writes this one's. `folder` is None where none outlives us.

    `lost`: writes that the last life lost at its shutdown, 0 where nobody knows.
    """

    def __init__(self, folder: Path | None, message: Path = TERMINATION_MESSAGE) -> None:
        self._file = folder / NAME if folder is not None else None
        self._message = message
        self.lost = 0
        if self._file is not None:
            with suppress(OSError, ValueError):  # the first life on this volume
                self.lost = int(self._file.read_text())
                # Said once: a life that is killed says nothing, and must not repeat this.
                self._file.write_text("0\n")

    def say(self, lost: int) -> None:
        """This life ends and lost so many writes."""
        try:
            if self._file is not None:
                self._file.write_text(f"{lost}\n")
            if lost and self._message.exists():
                self._message.write_text(f"lost {lost} writes at shutdown\n")
        except OSError as error:
            log.warning("last_words_not_kept", error=error.strerror)


def folder_of(spool_path: str, dead_letters_path: str) -> Path | None:
    """The folder that outlives a container, if one is configured."""
    if spool_path:
        return Path(spool_path)
    return Path(dead_letters_path).parent if dead_letters_path else None
