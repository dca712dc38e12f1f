"""A file with a credential, read beside the event loop, because the disk may hang (D27)."""

from contextlib import suppress
from pathlib import Path

from sidecar.credentials import Secret, is_header_safe
from sidecar.process.blocking import BlockingThread

LIMIT_S = 1.0


class KeyFile:
    """The key in the file at `path`; "" is no file. Create it inside a running loop."""

    def __init__(self, path: str) -> None:
        self.key = Secret("")  # the last one that could be read
        self._path = Path(path) if path else None
        self._modified = 0.0
        self.thread = BlockingThread(f"key file {path}")

    async def refresh(self) -> None:
        """Read the file again if it has changed."""
        if self._path is not None:
            with suppress(OSError):  # being replaced, or deleted: the last key may still be valid
                await self.thread.call(self.read, limit_s=LIMIT_S)

    def read(self) -> None:
        """The same, blocking; raises `OSError`."""
        if self._path is None:
            return
        modified = self._path.stat().st_mtime
        if modified == self._modified:
            return
        with suppress(UnicodeDecodeError):
            text = self._path.read_text(encoding="utf-8-sig").strip()
            self._modified = modified
            self.key = Secret(text if is_header_safe(text) else "")
