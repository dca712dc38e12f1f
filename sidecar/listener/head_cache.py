"""Heads of requests that came before: an agent sends the same one again, but for its length.

A head is parsed once, by a library; after that it is found by its bytes. Only plain requests are
known, those that bring spans and `GET /readyz`: HTTP/1.1 on a connection that stays, with a length
where there is a body, without compression, from a program in the pod. Everything else is None here,
and aiohttp's business (other_requests.py).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import httptools
from multidict import CIMultiDict

from sidecar.listener.body import media_type
from sidecar.listener.routes import Request, Route

_READYZ = b"GET /readyz HTTP/1.1\r\n"
_STARTS = (
    b"POST /v1/spans HTTP/1.1\r\n",
    b"PUT /v5/spans/batch HTTP/1.1\r\n",
    b"POST /v5/spans/batch HTTP/1.1\r\n",
    b"POST /spans HTTP/1.1\r\n",
    _READYZ,
)
_MAX_DIGITS = 12
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,%d})\r\n" % _MAX_DIGITS)
_END = b"\r\n\r\n"
_NOT_PLAIN = (
    "content-encoding expect proxy-connection te trailer transfer-encoding upgrade".split()  # noqa: SIM905
)
_MAX_BYTES = 8192
# An agent whose heads always differ (a trace id in each) does not fill the memory.
_MAX_HEADS = 64


class CachedHead(NamedTuple):
    """A head that was understood, and the route that takes its body."""

    request: Request
    route: Route


# A head in what was received; where its body begins, and its length in bytes.
Found = tuple[CachedHead, int, int]


class HeadCache:
    """Finds heads. `route_of` gives the route of a request that may come in here, or None."""

    def __init__(self, route_of: Callable[[Request], Route | None]) -> None:
        self._route_of = route_of
        self._known: dict[bytes, CachedHead] = {}
        # The last one: what comes before its length, what after it, and what it is.
        self._last: tuple[bytes, bytes, CachedHead] | None = None

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._known)

    def find(self, received: bytes) -> Found | None:
        """The head at the beginning of `received`, when it is a whole one of the plain kind."""
        if self._last is not None:
            # As a rule it is the one before again: then nothing is searched, and nothing hashed.
            before, after, known = self._last
            if received.startswith(before):
                at = len(before)
                end = received.find(b"\r\n", at, at + _MAX_DIGITS + 2)
                digits = received[at : max(at, end)]
                if digits.isdigit() and received.startswith(after, end):
                    return known, end + len(after), int(digits)
        return self._look_up(received)

    def _look_up(self, received: bytes) -> Found | None:
        if not received.startswith(_STARTS):
            return None
        end = received.find(_END, 0, _MAX_BYTES)
        if end < 0:
            return None
        head = received[: end + len(_END)]
        if head.startswith(_READYZ):
            # A body, however its length is spelt, is aiohttp's to read.
            known = None if b"content-length" in head.lower() else self._learnt(head, head)
            return None if known is None else (known, len(head), 0)
        length = _LENGTH.search(head)
        if length is None:
            return None
        before, after = head[: length.start(1)], head[length.end(1) :]
        known = self._learnt(before + after, head)
        if known is None:
            return None
        self._last = before, after, known
        return known, len(head), int(length[1])

    def _learnt(self, key: bytes, head: bytes) -> CachedHead | None:
        known = self._known.get(key)
        if known is None:
            known = self._learn(head)
            if known is None:
                return None
            if len(self._known) >= _MAX_HEADS:
                self._known.clear()
            self._known[key] = known
        return known

    def _learn(self, head: bytes) -> CachedHead | None:
        parsed = _Parsed()
        try:
            httptools.HttpRequestParser(parsed).feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        headers = parsed.headers
        if headers is None or not _is_plain(headers):
            return None
        method, path, _ = head.split(b" ", 2)
        request = Request(method.decode(), path.decode(), headers, media_type(headers))
        route = self._route_of(request)
        return None if route is None else CachedHead(request, route)


class _Parsed:
    """What the parser tells of a head: None when a name comes twice or a value is no ASCII."""

    def __init__(self) -> None:
        self.headers: CIMultiDict[str] | None = CIMultiDict()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called for each line."""
        key = name.decode()
        if self.headers is None or key in self.headers or not value.isascii():
            self.headers = None
        else:
            self.headers.add(key, value.decode().strip(" \t"))


def _is_plain(headers: CIMultiDict[str]) -> bool:
    stays = headers.get("Connection", "keep-alive").lower() == "keep-alive"
    return stays and "Host" in headers and not any(name in headers for name in _NOT_PLAIN)
