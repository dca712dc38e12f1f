"""Caches parsed request heads: an agent repeats the same head, except for its Content-Length.

A library parses each head once; afterwards it is found by its bytes. Only plain requests are
cached: a route of spans or `GET /readyz`, HTTP/1.1, keep-alive, a Content-Length where there is a
body, no compression, and a client in the pod. `find` returns None for any other request, which
aiohttp then handles (aiohttp_server.py).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import httptools
from multidict import CIMultiDict

from sidecar.listener.refusals import media_type
from sidecar.listener.routes import Request, Route

_READYZ = b"GET /readyz HTTP/1.1\r\n"
_REQUEST_LINES = (
    b"POST /v1/spans HTTP/1.1\r\n",
    b"PUT /v5/spans/batch HTTP/1.1\r\n",
    b"POST /v5/spans/batch HTTP/1.1\r\n",
    b"POST /spans HTTP/1.1\r\n",
    _READYZ,
)
_MAX_LENGTH_DIGITS = 12
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,%d})\r\n" % _MAX_LENGTH_DIGITS)
_END_OF_HEAD = b"\r\n\r\n"
_NOT_PLAIN = (
    "content-encoding expect proxy-connection te trailer transfer-encoding upgrade".split()  # noqa: SIM905
)
_MAX_HEAD_BYTES = 8192
# Bounds memory when every head differs, for example by a trace id.
_MAX_HEADS = 64


class CachedHead(NamedTuple):
    """A parsed head, and the route that takes its body."""

    request: Request
    route: Route


# A head, the offset at which its body begins, and the body's length in bytes.
Found = tuple[CachedHead, int, int]


class HeadCache:
    """Finds heads. `route_of` returns the route of a request, or None to leave it to aiohttp."""

    def __init__(self, route_of: Callable[[Request], Route | None]) -> None:
        self._route_of = route_of
        self._heads: dict[bytes, CachedHead] = {}
        # The last match: the bytes before its length, those after it, and the head.
        self._last: tuple[bytes, bytes, CachedHead] | None = None

    def __len__(self) -> int:
        """The number of cached heads."""
        return len(self._heads)

    def find(self, received: bytes) -> Found | None:
        """The head at the beginning of `received`, if it is complete and plain."""
        if self._last is not None:
            # Usually it is the last head again: comparing needs neither a search nor a hash.
            before, after, head = self._last
            if received.startswith(before):
                at = len(before)
                end = received.find(b"\r\n", at, at + _MAX_LENGTH_DIGITS + 2)
                digits = received[at : max(at, end)]
                if digits.isdigit() and received.startswith(after, end):
                    return head, end + len(after), int(digits)
        return self._search(received)

    def _search(self, received: bytes) -> Found | None:
        if not received.startswith(_REQUEST_LINES):
            return None
        end = received.find(_END_OF_HEAD, 0, _MAX_HEAD_BYTES)
        if end < 0:
            return None
        raw = received[: end + len(_END_OF_HEAD)]
        if raw.startswith(_READYZ):
            # A Content-Length, however spelled, means that there is a body, which aiohttp reads.
            head = None if b"content-length" in raw.lower() else self._parsed(raw, raw)
            return None if head is None else (head, len(raw), 0)
        length = _LENGTH.search(raw)
        if length is None:
            return None
        before, after = raw[: length.start(1)], raw[length.end(1) :]
        head = self._parsed(before + after, raw)
        if head is None:
            return None
        self._last = before, after, head
        return head, len(raw), int(length[1])

    def _parsed(self, key: bytes, raw: bytes) -> CachedHead | None:
        """The head `raw`, from the cache if it has been parsed before."""
        head = self._heads.get(key)
        if head is None:
            head = self._parse(raw)
            if head is None:
                return None
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[key] = head
        return head

    def _parse(self, raw: bytes) -> CachedHead | None:
        collector = _HeaderCollector()
        try:
            httptools.HttpRequestParser(collector).feed_data(raw)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        headers = collector.headers
        if headers is None or not _is_plain(headers):
            return None
        method, path, _ = raw.split(b" ", 2)
        request = Request(method.decode(), path.decode(), headers, media_type(headers))
        route = self._route_of(request)
        return None if route is None else CachedHead(request, route)


class _HeaderCollector:
    """Parser callbacks. `headers` is None after a repeated name or a non-ASCII value."""

    def __init__(self) -> None:
        self.headers: CIMultiDict[str] | None = CIMultiDict()

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode()
        if self.headers is None or key in self.headers or not value.isascii():
            self.headers = None
        else:
            self.headers.add(key, value.decode().strip(" \t"))


def _is_plain(headers: CIMultiDict[str]) -> bool:
    keep_alive = headers.get("Connection", "keep-alive").lower() == "keep-alive"
    return keep_alive and "Host" in headers and not any(name in headers for name in _NOT_PLAIN)
