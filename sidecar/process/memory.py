"""The process's memory: the container's limit, and returning freed memory to the system.

`queue.max_bytes = "auto"` is a share of the container's limit (D4), read from cgroup v2 or v1.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

MIB = 2**20
# Share of the container's limit. The rest is for the interpreter (35 to 45 MiB), request bodies
# being received or sent, and memory that the allocator can't return.
SHARE = 0.25
WITHOUT_LIMIT = 256 * MIB
MIN_AUTO_BYTES, MAX_AUTO_BYTES = 8 * MIB, 1024 * MIB
_CGROUP = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# cgroup v1 reports "no limit" as a number near 2**63.
_NO_LIMIT = 2**60


def container_limit(root: Path = _CGROUP, own: Path = _OWN) -> int | None:
    """The container's memory limit in bytes, or None if there is none.

    It is the smallest limit of our own cgroup and its ancestors: which of them a container sees as
    the root depends on its runtime.
    """
    limits = []
    for top, path, name in _groups(own):
        for folder in (path, *path.parents):
            try:
                text = (root / top / folder / name).read_text(encoding="utf-8").strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < _NO_LIMIT:
                limits.append(int(text))
    return min(limits, default=None)


def _groups(own: Path) -> list[tuple[str, Path, str]]:
    """For each cgroup version: the hierarchy, our cgroup's path in it, the limit's file name."""
    v1, v2 = Path(), Path()
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
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
    """The value of `queue.max_bytes = "auto"` for a container limited to `limit` bytes."""
    if limit is None:
        return WITHOUT_LIMIT
    return max(MIN_AUTO_BYTES, min(MAX_AUTO_BYTES, int(limit * SHARE)))


def _find_trim() -> Callable[[int], object] | None:
    try:
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None  # musl and macOS do not have it
    return trim


class Trimmer:
    """Returns freed memory to the system after a burst.

    glibc keeps freed memory for reuse; `malloc_trim` returns it. It takes milliseconds, so it runs
    only after `MIN_FREED` bytes were freed, and once more after `SETTLED_CALLS` calls that found
    fewer.
    """

    MIN_FREED = 4 * MIB
    SETTLED_CALLS = 5

    def __init__(self) -> None:
        self._trim = _find_trim()
        self._peak = 0
        self._quiet = 0

    def observe(self, used: int) -> None:
        """Trim if worthwhile; call about once a second with the bytes in use."""
        self._peak = max(self._peak, used)
        freed = self._peak - used > self.MIN_FREED
        self._quiet = 0 if freed else self._quiet + 1
        if self._trim is not None and (freed or self._quiet == self.SETTLED_CALLS):
            # Requests and their bodies are in reference cycles: only a collection frees them.
            gc.collect()
            self._trim(0)
            self._peak = used
