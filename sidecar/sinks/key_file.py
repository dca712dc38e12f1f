"""A file with a credential."""

from contextlib import suppress
from pathlib import Path

from sidecar.credentials import Secret, is_header_safe
from sidecar.process.watched_files import WatchedFiles


class KeyFile:
    """The key in the file at `path`; "" is no file. Create it inside a running loop."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._files = WatchedFiles(f"key file {path}", [path], self._parse)
        self.thread = self._files.thread

    @property
    def key(self) -> Secret:
        """The last one that could be read."""
        return self._files.value or Secret("")

    async def refresh(self) -> None:
        """Read the file again if it has changed."""
        if not self.path:
            return
        # While it is being replaced, or is deleted, the last key may still be valid.
        with suppress(OSError, UnicodeDecodeError):
            await self._files.refresh()

    def _parse(self) -> Secret:
        text = Path(self.path).read_text(encoding="utf-8-sig").strip()
        return Secret(text if is_header_safe(text) else "")
