"""What a process runs on: versions and the container's limits, for `sidecar debug`.

This reads files, so it blocks while their disk hangs.
"""

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

from sidecar import __version__
from sidecar.process.memory import container_limit

_LIBRARIES = (
    *("aiohappyeyeballs", "aiohttp", "httptools", "msgspec", "multidict", "opentelemetry-proto"),
    *("orjson", "prometheus-client", "protobuf", "structlog", "uvloop", "yarl"),
)
# The container's share of the processors, in cgroup v2: microseconds of each period, or "max".
_CPU = Path("/sys/fs/cgroup/cpu.max")


def versions() -> dict[str, object]:
    """Versions by name, and limits: bytes, descriptors, and processors as cgroup has them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "sidecar": __version__,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "processors": os.cpu_count(),
        "cpu_max": _cpu_max(),
        "memory_limit_bytes": container_limit(),
        "descriptors": {"soft": soft, "hard": hard},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_max() -> str | None:
    try:
        return _CPU.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
