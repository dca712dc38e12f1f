"""A file with credentials: one key, or the headers of each request."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from sidecar.config_values import HeaderError, headers
from sidecar.credentials import Secret, is_header_safe
from sidecar.process.watched_files import WatchedFiles


class CredentialFile:
    """The headers in the file at `path`; "" is no file. Create it inside a running loop.

    `parse` reads them from its text; it returns none, or raises `HeaderError`, if it has none that
    can be used.
    """

    def __init__(self, path: str, parse: Callable[[str], Mapping[str, Secret]]) -> None:
        self.path = path
        self._parse = parse
        self._files = WatchedFiles(f"credential file {path}", [path], self._read)
        self.thread = self._files.thread

    @property
    def headers(self) -> Mapping[str, Secret]:
        """The last ones that could be read; none until then."""
        return self._files.value or {}

    async def refresh(self) -> None:
        """Read the file again if it has changed."""
        if not self.path:
            return
        # While it is being replaced, or is deleted, the last credentials may still be valid.
        with suppress(OSError, UnicodeDecodeError):
            await self._files.refresh()

    def _read(self) -> Mapping[str, Secret]:
        text = Path(self.path).read_text(encoding="utf-8-sig")
        with suppress(HeaderError):
            return self._parse(text) or self.headers
        return self.headers


def key_as(header: str) -> Callable[[str], Mapping[str, Secret]]:
    """What parses a file with one key, which is sent in `header`."""

    def parse(text: str) -> Mapping[str, Secret]:
        key = text.strip()
        if not is_header_safe(key):
            raise HeaderError("must have one line of printable ASCII, the key")
        return {header: Secret(key)} if key else {}

    return parse


def header_lines(text: str) -> dict[str, Secret]:
    """The headers in lines `Name: value`, without blank lines and comments (`#`).

    Raises `HeaderError`, whose text has no value in it.
    """
    return headers(_lines(text))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise HeaderError(f"line {number} must be NAME: VALUE")
        yield name, value
