"""HTTP client for one base URL: builds request heads and sends requests over a connection pool.

In: method, target, headers, body. Out: a `RawResponse`. It does not interpret the status; that is
up to the caller. Only the pool resends, once, after a stale connection.
"""

from base64 import b64encode
from collections.abc import Coroutine, Mapping
from typing import Any

from sidecar import __version__
from sidecar.credentials import is_header_safe
from sidecar.http.client_connection import RawResponse
from sidecar.http.dialer import Dialer
from sidecar.http.pool import Pool
from sidecar.process.addresses import BaseUrl, parse_base_url


class HttpClient:
    """Sends JSON to `base_url`, up to `max_requests` requests at once.

    `timeout_s` covers the whole request: connecting, sending, receiving.
    """

    def __init__(self, base_url: str, *, timeout_s: float, max_requests: int) -> None:
        url = parse_base_url(base_url)
        self._prefix = url.path.rstrip("/")
        self._dialer = Dialer(url)
        self._timeout_s = timeout_s
        self._max_requests = max_requests
        self._pool: Pool | None = None
        self._default_headers = _default_headers(url)
        self._encoded_from: Mapping[str, str] | None = None
        self._encoded = b""

    def target(self, path: str) -> bytes:
        """The request target for `path`, which must be percent-encoded, below the base URL."""
        target = self._prefix + path
        if not is_header_safe(target) or " " in target:
            raise ValueError("the path must be percent-encoded")
        return target.encode()

    def head(
        self, method: bytes, target: bytes, headers: Mapping[str, str], content_length: int
    ) -> bytes:
        """The head of a request; `headers` are added to the client's defaults.

        The encoded lines are reused as long as `headers` is the same object. Raises `ValueError`
        for a header value with control or non-ASCII characters.
        """
        if headers is not self._encoded_from:
            self._encoded = _encode({**self._default_headers, **headers})
            self._encoded_from = headers
        return b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (
            method, target, self._encoded, content_length
        )  # fmt: skip

    def exchange(self, head: bytes, body: bytes) -> Coroutine[Any, Any, RawResponse]:
        """Send a request and return its response; raises `NoResponse` or `TimeoutError`."""
        if self._pool is None:
            self._pool = Pool(
                self._dialer, timeout_s=self._timeout_s, max_requests=self._max_requests
            )
        return self._pool.exchange(head, body)

    async def close(self) -> None:
        """Close all connections; requests in flight fail with `NoResponse`."""
        if self._pool is not None:
            await self._pool.close()


def _default_headers(url: BaseUrl) -> dict[str, str]:
    headers = {
        "Host": url.authority,
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Bodies are discarded, so decompressing them would only waste CPU.
        "Accept-Encoding": "identity",
        "User-Agent": f"trace-sidecar/{__version__}",
    }
    if url.user is not None or url.password is not None:
        userinfo = f"{url.user or ''}:{url.password or ''}".encode()
        headers["Authorization"] = "Basic " + b64encode(userinfo).decode()
    return headers


def _encode(headers: Mapping[str, str]) -> bytes:
    if not all(is_header_safe(value) for value in headers.values()):
        raise ValueError("a header value has control or non-ASCII characters")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
