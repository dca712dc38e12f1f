"""The process's memory: what the container allows, and giving back what is free.

`queue.max_bytes = "auto"` is a share of the container's own limit (D4); the cgroup file
system says what that is, in its version 2 or 1 form.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

MIB = 2**20
# Of a container's limit; the rest is for the interpreter (35 to 45 MiB), request bodies on their
# way in and out, and what the allocator can't give back.
SHARE = 0.25
WITHOUT_LIMIT = 256 * MIB
MIN_AUTO_BYTES, MAX_AUTO_BYTES = 8 * MIB, 1024 * MIB
_CGROUP = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# cgroup v1 says "no limit" with a number near 2**63.
_NO_LIMIT = 2**60


def container_limit(root: Path = _CGROUP, own: Path = _OWN) -> int | None:
    """The container's memory limit in bytes, or None where there is none.

    The least of what holds for our own cgroup and for those above it: which of them a container
    sees as the root depends on its runtime.
    """
    limits = []
    for top, path, name in _groups(own):
        for folder in (path, *path.parents):
            try:
                text = (root / top / folder / name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < _NO_LIMIT:
                limits.append(int(text))
    return min(limits, default=None)


def _groups(own: Path) -> list[tuple[str, Path, str]]:
    """In both versions: the tree, our cgroup's path in it, and the name of its limit."""
    v1, v2 = Path(), Path()
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            v2 = Path(path.lstrip("/"))
        elif "memory" in controllers.split(","):
            v1 = Path(path.lstrip("/"))
    return [("", v2, "memory.max"), ("memory", v1, "memory.limit_in_bytes")]


def automatic_max_bytes(limit: int | None) -> int:
    """`queue.max_bytes` for a container that may use `limit` bytes."""
    if limit is None:
        return WITHOUT_LIMIT
    return max(MIN_AUTO_BYTES, min(MAX_AUTO_BYTES, int(limit * SHARE)))


def _find_trim() -> Callable[[int], object] | None:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None  # musl and macOS have no such call
    return trim


class Trimmer:
    """Gives freed memory back to the system after a burst.

    glibc keeps freed payloads for later; `malloc_trim` returns them. It costs milliseconds, so it
    runs only when much was freed, and once more when the burst is really over.
    """

    WORTH = 4 * MIB
    AGAIN_AFTER = 5

    def __init__(self) -> None:
        self._trim = _find_trim()
        self._peak = 0
        self._quiet = 0

    def look(self, used: int) -> None:
        """Called about once a second with the bytes in use now."""
        self._peak = max(self._peak, used)
        freed = self._peak - used > self.WORTH
        self._quiet = 0 if freed else self._quiet + 1
        if self._trim is not None and (freed or self._quiet == self.AGAIN_AFTER):
            # Requests and their bodies hang together in cycles: free only once collected.
            gc.collect()
            self._trim(0)
            self._peak = used
