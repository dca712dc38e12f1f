"""Files that are read again when they change, beside the event loop: their disk may hang (D27)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from sidecar.process.blocking import BlockingThread

LIMIT_S = 1.0

_T = TypeVar("_T")


class WatchedFiles(Generic[_T]):
    """What `parse` makes of the files at `paths`. Create it inside a running loop.

    `name` is what the files are, for people. Without paths, it is called once.
    """

    def __init__(self, name: str, paths: Sequence[str], parse: Callable[[], _T]) -> None:
        self.value: _T | None = None  # of the last time that all could be read
        self._paths = [Path(path) for path in paths]
        self._parse = parse
        self._seen: list[tuple[int, int, int] | None] | None = None
        self.thread = BlockingThread(name)

    async def refresh(self) -> bool:
        """Read the files again if one has changed; returns whether `value` is a new one.

        Raises `OSError`, or what `parse` raises. `value` is kept, and the next call tries again.
        """
        return await self.thread.call(self.read, limit_s=LIMIT_S)

    def read(self) -> bool:
        """The same, blocking."""
        # Seen before they are read: what is written in between is read again.
        found = [_version(path) for path in self._paths]
        if found == self._seen:
            return False
        value = self._parse()
        self._seen, self.value = found, value
        return True


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file; None if it can't be looked at. Links are followed."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # reading it will say why
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
