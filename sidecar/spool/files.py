"""Files by name: which file a path names, and the lock that gives a directory to one sidecar."""

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

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


# linux/fs.h: `struct fsxattr`, the requests that read and write it, and the flag by which the files
# of a directory get its extent size.
_FSXATTR = struct.Struct("5I8x")
_FSGETXATTR, _FSSETXATTR, _EXTSZINHERIT = 0x801C581F, 0x401C5820, 0x1000
_EXTENT_BYTES = 64 * 2**10


def reserve_little(directory: Path) -> None:
    """Have XFS reserve 64 KiB at a time for the files that are created in a directory.

    By itself it reserves as much again as a growing file has, and the kubelet counts that. Other
    file systems do not know the request.
    """
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            data = fcntl.ioctl(descriptor, _FSGETXATTR, bytes(_FSXATTR.size))
            flags, _, *others = _FSXATTR.unpack(data)
            data = _FSXATTR.pack(flags | _EXTSZINHERIT, _EXTENT_BYTES, *others)
            fcntl.ioctl(descriptor, _FSSETXATTR, data)
        finally:
            os.close(descriptor)


_LOCK = "spool.lock"
# How long `is_locked` of another process may hold the lock: no longer than it is off the CPU.
LOOK_S = 0.5
IN_USE = "is in use by another sidecar: give each sidecar its own directory"


def is_locked(directory: Path) -> bool:
    """Whether a sidecar uses the directory, which need not exist."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    """Lock it; raises `BlockingIOError` if another process does not only look at it."""
    until = monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() > until:
                raise
            sleep(LOOK_S / 50)
        else:
            return


class DirectoryLock:
    """A lock on `directory`, which the kernel releases when the process ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / _LOCK
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
        reserve_little(self._directory)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise SpoolInUse(f"spool.path: {self._directory} {IN_USE}") from None
        self.release()
        self._descriptor = descriptor

    def release(self) -> None:
        """Release it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
