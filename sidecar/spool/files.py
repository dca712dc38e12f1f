"""Files by name: which file a path names, and the lock that gives a directory to one sidecar."""

import fcntl
import os
from pathlib import Path

from sidecar.spool.rows import SpoolInUse


def named(path: Path | int) -> tuple[int, int] | None:
    """Which file a path or a descriptor names: its device and inode; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a path has no descriptor)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def sync(path: Path) -> None:
    """Have a file, or the names in a directory, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DirectoryLock:
    """A lock on `directory`, which the kernel releases when the process ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "spool.lock"
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether another sidecar would find it locked: not if its file was removed."""
        return self._descriptor is not None and named(self._path) == named(self._descriptor)

    def acquire(self) -> None:
        """Create the directory and lock it, unless it is locked already. Raises `SpoolInUse`."""
        if self.is_held:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise SpoolInUse(
                f"spool.path {self._directory} is in use by another sidecar: "
                "give each sidecar its own directory"
            ) from None
        self.release()
        self._descriptor = descriptor

    def release(self) -> None:
        """Release it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
