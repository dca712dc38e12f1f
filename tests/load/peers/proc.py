"""CPU time and resident memory of a process and its children, from /proc.

CPU is utime and stime of /proc/PID/stat; the peak is reset for each load.
"""

import contextlib
import os
from pathlib import Path

import msgspec

AFTER_S = 10.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


class Watched:
    """A process and its descendants, by the pid of the process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_s(self) -> float:
        """User and system seconds so far, including ended children."""
        return sum(_cpu_ticks(pid) for pid in self._family()) * _TICK_S

    def rss_mib(self) -> float:
        """Resident memory now."""
        return sum(_memory_kib(pid, "VmRSS") for pid in self._family()) / 1024

    def peak_mib(self) -> float:
        """Peak resident memory since `forget_peak`, as recorded by the kernel."""
        return sum(_memory_kib(pid, "VmHWM") for pid in self._family()) / 1024

    def forget_peak(self) -> None:
        """Reset the peak."""
        for pid in self._family():
            (_PROC / str(pid) / "clear_refs").write_text("5")

    def _family(self) -> list[int]:
        parents = {}
        for entry in _PROC.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):  # it ended meanwhile
                    parents[int(entry.name)] = int(_stat(int(entry.name))[1])
        family = [self._pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        return family


class Memory(msgspec.Struct):
    """Resident memory of a process in MiB: before the load, its peak, and `AFTER_S` after it.

    `after` is measured in the last repetition only.
    """

    idle: float = 0.0
    peak: float = 0.0
    after: float | None = None


class Meter:
    """CPU and memory of one process over a run; zeros without a pid."""

    def __init__(self, watched: Watched | None) -> None:
        self._watched = watched
        self.memory: Memory | None = None
        self.cpu_s = 0.0
        if watched is not None:
            self.memory = Memory(idle=watched.rss_mib())
            watched.forget_peak()
            self.cpu_s = -watched.cpu_s()

    def stop(self) -> None:
        """Read the figures at the end of the load."""
        if self._watched is not None and self.memory is not None:
            self.cpu_s += self._watched.cpu_s()
            self.memory.peak = self._watched.peak_mib()

    def settle(self) -> None:
        """Read memory after the pause that follows the load."""
        if self._watched is not None and self.memory is not None:
            self.memory.after = self._watched.rss_mib()

    def cpu_ms(self, spans: int) -> float | None:
        """Return milliseconds per span."""
        return None if self._watched is None else 1000 * self.cpu_s / spans


def _stat(pid: int) -> list[str]:
    """Return fields 3 (the state) and later; the name before them can contain spaces."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu_ticks(pid: int) -> int:
    return sum(map(int, _stat(pid)[11:15]))  # utime, stime, cutime, cstime


def _memory_kib(pid: int, field: str) -> int:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0  # it ended meanwhile
