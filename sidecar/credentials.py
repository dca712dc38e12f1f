"""Credentials: configured, read from a file that can change, or relayed from an agent's request.

A configured credential wins. Without one, the latest one from an agent is used, even for writes
that are already waiting (D14; docs/api.md, "Credentials that come with a request"). No credential
is ever shown.
"""

from collections.abc import Mapping
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


def is_header_safe(text: str) -> bool:
    """Whether `text` can be an HTTP header value: printable ASCII only."""
    return text.isascii() and text.isprintable()


class Credentials:
    """The credential headers of one upstream.

    `configured` maps header names to secrets, empty where nothing is configured. `key_file` holds
    the value of `key_header` and is read again when it changes. `relay`: an agent can supply what
    is not configured. `required`: no request is sent unless all of the headers are known.
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
        self._needed = len(configured) if required else 0
        self._key_header = key_header
        self._key_file = Path(key_file) if key_file else None
        self._modified = 0.0
        # The headers that an agent can supply, in lower case.
        self.relayed = tuple(name.encode() for name in configured) if relay else ()
        self._relayed: dict[str, Secret] = {}
        self._headers = self._known()
        self.refresh()

    def headers(self) -> dict[str, str] | None:
        """The headers to send; None while a required one is missing."""
        return self._headers

    def refresh(self) -> bool:
        """Read the key file again if it has changed; returns whether the headers have."""
        if self._key_file is None:
            return False
        try:
            modified = self._key_file.stat().st_mtime
            if modified == self._modified:
                return False
            text = self._key_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            return False  # being replaced, or deleted: the last key may still be valid
        self._modified = modified
        key = Secret(text if is_header_safe(text) else "")
        if not key or key == self._configured.get(self._key_header):
            return False
        self._configured[self._key_header] = key
        self._headers = self._known()
        return True

    def offer(self, headers: Mapping[bytes, bytes]) -> bool:
        """Use what an agent sent with a request, for headers that are not configured.

        The names in `headers` are in lower case. Returns whether the headers to send have changed.
        """
        changed = False
        for header in self.relayed:
            name, text = header.decode(), headers.get(header, b"").decode("latin-1").strip()
            if name in self._configured or not (text and is_header_safe(text)):
                continue
            if self._relayed.get(name) != (secret := Secret(text)):
                self._relayed[name] = secret
                changed = True
        if changed:
            self._headers = self._known()
        return changed

    def _known(self) -> dict[str, str] | None:
        secrets = self._relayed | self._configured
        if len(secrets) < self._needed:
            return None
        return {name: secret.reveal() for name, secret in secrets.items()}
