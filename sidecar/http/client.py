"""Requests to one base URL: the request line, the headers, and a pool of connections.

In: method, target, headers, body. Out: a `Reply`. Never retries, and knows no status: what a
response means is the caller's to decide.
"""

from base64 import b64encode
from collections.abc import Coroutine, Mapping
from typing import Any

from yarl import URL

from sidecar import __version__
from sidecar.credentials import is_header_safe
from sidecar.http.client_connection import Reply
from sidecar.http.dialer import Dialer
from sidecar.http.pool import Pool


class HttpClient:
    """Sends JSON to `base_url`, on at most `max_connections` connections.

    `timeout_s` is for a whole request: waiting for a connection, connecting, sending, receiving.
    """

    def __init__(self, base_url: str, *, timeout_s: float, max_connections: int) -> None:
        url = URL(base_url)
        self._prefix = url.raw_path_qs.rstrip("/")
        self._dialer = Dialer(url)
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._pool: Pool | None = None
        self._own = _own_headers(url)
        self._last: Mapping[str, str] | None = None
        self._lines = b""

    def target(self, path: str) -> bytes:
        """`path`, already percent-encoded, under the base URL's own path."""
        target = self._prefix + path
        if not is_header_safe(target) or " " in target:
            raise ValueError("a path must be percent-encoded")
        return target.encode()

    def head(
        self, method: bytes, target: bytes, headers: Mapping[str, str], content_length: int
    ) -> bytes:
        """The head of a request; `headers` are added to the client's own.

        Their lines are kept until another object with headers comes.
        """
        if headers is not self._last:
            self._lines = _lines({**self._own, **headers})
            self._last = headers
        return b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (
            method, target, self._lines, content_length
        )  # fmt: skip

    def exchange(self, head: bytes, body: bytes) -> Coroutine[Any, Any, Reply]:
        """Send a request and return its response; raises `NoResponse` or `TimeoutError`."""
        if self._pool is None:
            self._pool = Pool(
                self._dialer, timeout_s=self._timeout_s, max_connections=self._max_connections
            )
        return self._pool.exchange(head, body)

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close()


def _own_headers(url: URL) -> dict[str, str]:
    headers = {
        "Host": url.host_port_subcomponent or "",
        "Content-Type": "application/json",
        "Accept": "application/json",
        # A compressed response would only cost CPU to throw away.
        "Accept-Encoding": "identity",
        "User-Agent": f"trace-sidecar/{__version__}",
    }
    if url.user is not None or url.password is not None:
        userinfo = f"{url.user or ''}:{url.password or ''}".encode()
        headers["Authorization"] = "Basic " + b64encode(userinfo).decode()
    return headers


def _lines(headers: Mapping[str, str]) -> bytes:
    if not all(is_header_safe(text) for text in headers.values()):
        raise ValueError("a header has a control character")
    return "".join(f"{name}: {text}\r\n" for name, text in headers.items()).encode()
