"""What `/debug` adds to the other pages, for `sidecar debug`: decisions, log lines and versions.

Ids, counts, reasons and statuses only, as everywhere (D19).
"""

from collections.abc import Awaitable
from typing import Any

from sidecar.operate.explainer import Explainer
from sidecar.process.blocking import BlockingThread
from sidecar.process.log_writer import LogWriter
from sidecar.process.versions import versions

DECISIONS = 1_000
# How long the files may take that say what the process runs on.
FILES_S = 2.0


class DebugReport:
    """Makes the report of one running sidecar. Create it inside a running loop."""

    def __init__(self, explainer: Explainer, log_writer: LogWriter | None) -> None:
        self._explainer = explainer
        self._log_writer = log_writer
        self._files = BlockingThread("versions")

    def report(self) -> Awaitable[dict[str, Any]]:
        """`{"decisions", "log", "versions"}`: the newest first, the last lines, a mapping.

        `log` is None for a process that has not started one, `versions` if their files hang.
        """
        writer = self._log_writer
        found: dict[str, Any] = {
            "decisions": self._explainer.latest(DECISIONS),
            "log": None if writer is None else writer.tail(),
        }
        return self._with_versions(found)

    async def _with_versions(self, found: dict[str, Any]) -> dict[str, Any]:
        try:
            found["versions"] = await self._files.call(versions, limit_s=FILES_S)
        except OSError:
            found["versions"] = None
        return found
