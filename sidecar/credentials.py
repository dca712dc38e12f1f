"""Credentials: configured, read from a file that can change, or relayed from an agent's request.

A configured credential wins. Without one, the latest one from an agent is used, even for writes
that are already waiting (D14; docs/api.md, "Credentials that come with a request"). No credential
is ever shown.
"""

from collections.abc import Callable, Mapping
from pathlib import Path


class Secret:
    """A string that prints as `***`, so that it can't leak into a log, a metric or a page."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The string itself, for a request header."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


def is_header_safe(text: str) -> bool:
    """Whether `text` can be an HTTP header value: printable ASCII only."""
    return text.isascii() and text.isprintable()


class Credentials:
    """The credential headers of one upstream.

    `configured` maps header names to secrets, empty where nothing is configured. `key_file` holds
    the value of `key_header` and is read again when it changes. `relay`: an agent can supply what
    is not configured. `required`: no request is sent unless all of the headers are known.
    `on_change` is called when the headers have changed.
    """

    def __init__(
        self,
        configured: Mapping[str, Secret],
        *,
        key_header: str,
        key_file: str = "",
        relay: bool,
        required: bool,
    ) -> None:
        self._configured = {name: secret for name, secret in configured.items() if secret}
        self._names = tuple(configured)
        self._key_header = key_header
        self._key_file = Path(key_file) if key_file else None
        self._modified = 0.0
        # The headers that an agent can supply, in lower case.
        self.relayed = frozenset(name.encode() for name in configured) if relay else frozenset()
        self._required = required
        self._relayed: dict[str, Secret] = {}
        self._headers: dict[str, str] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self._rebuild()

    def headers(self) -> dict[str, str] | None:
        """The headers to send; None while a required one is missing."""
        return self._headers

    def refresh(self) -> None:
        """Read the key file again if it has changed; call it periodically."""
        if self._key_file is None:
            return
        try:
            modified = self._key_file.stat().st_mtime
            if modified == self._modified:
                return
            text = self._key_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return  # being replaced, or deleted: the last key may still be valid
        self._modified = modified
        key = Secret(text if is_header_safe(text) else "")
        if key and key != self._configured.get(self._key_header):
            self._configured[self._key_header] = key
            self._changed()

    def offer(self, headers: Mapping[bytes, bytes]) -> None:
        """Use what an agent sent with a request, for headers that are not configured.

        The names in `headers` are in lower case.
        """
        new = {}
        for name in self._names:
            key = b"" if name in self._configured else name.encode()
            text = headers.get(key, b"").decode("latin-1").strip()
            if key in self.relayed and text and is_header_safe(text):
                new[name] = Secret(text)
        if new and any(self._relayed.get(name) != secret for name, secret in new.items()):
            self._relayed |= new
            self._changed()

    def _changed(self) -> None:
        self._rebuild()
        self.on_change()

    def _rebuild(self) -> None:
        if self._headers is None and self._key_file is not None and not self._modified:
            self._headers = {}
            self.refresh()
        secrets = self._relayed | self._configured
        missing = self._required and any(name not in secrets for name in self._names)
        self._headers = None if missing else {n: s.reveal() for n, s in secrets.items()}
