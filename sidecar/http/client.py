"""HTTP client for one base URL: builds heads, and sends requests over connections that it keeps.

In: method, target, headers, body. Out: a `RawResponse`. It does not interpret the status; that is
up to the caller.
"""

import asyncio
import ssl
from base64 import b64encode
from collections.abc import Mapping

from sidecar import __version__
from sidecar.credentials import is_header_safe
from sidecar.http.client_connection import ClientConnection, RawResponse
from sidecar.http.dialer import Dialer
from sidecar.http.failures import ConnectTimeout, NoResponse
from sidecar.http.timeouts import Deadlines
from sidecar.process.addresses import BaseUrl, parse_base_url

# Shorter than the server's 5 s, after which it resets the connection (docs/upstreams.md A6).
KEEPALIVE_S = 4.0


class HttpClient:
    """Sends JSON to `base_url`. Create it inside a running loop.

    `tls`: the result of `tls_context`, which clients of one upstream share.
    `timeout_s` covers the whole request: connecting, sending, receiving. Requests never wait for a
    connection: each has its own, and more than `max_requests` at once are a bug.
    """

    def __init__(
        self,
        base_url: str,
        *,
        tls: ssl.SSLContext | None = None,
        timeout_s: float,
        max_requests: int,
    ) -> None:
        url = parse_base_url(base_url)
        self._prefix = url.path.rstrip("/")
        self._default_headers = _default_headers(url)
        self._encoded_from: Mapping[str, str] | None = None
        self._encoded = b""
        self._dialer = Dialer(url, tls)
        self.resolver = self._dialer.resolver
        self._timeout_s = timeout_s
        self._max_requests = max_requests
        self._loop = asyncio.get_running_loop()
        self._requests = 0
        self._connections: set[ClientConnection] = set()
        self._idle = Deadlines(KEEPALIVE_S, ClientConnection.abort)
        self._reused = Deadlines(timeout_s, ClientConnection.time_out)
        self._opening: set[asyncio.Timeout] = set()
        self._closed = False

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
            lines = {**self._default_headers, **headers}
            if not all(map(is_header_safe, lines.values())):
                raise ValueError("a header value has control or non-ASCII characters")
            self._encoded = "".join(f"{name}: {text}\r\n" for name, text in lines.items()).encode()
            self._encoded_from = headers
        return b"%b %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n" % (
            method, target, self._encoded, content_length
        )  # fmt: skip

    async def exchange(self, head: bytes, body: bytes, *, keep_body: bool = False) -> RawResponse:
        """Send a request and return its response; raises `NoResponse` or `TimeoutError`.

        `keep_body` asks for the beginning of the body, whatever the status. Without it, a 2xx
        response counts as soon as its head has arrived, even if its body is cut off or never ends.

        A request on a connection that turns out to be stale is sent again, once, on a new one.
        """
        if self._requests >= self._max_requests:
            raise RuntimeError(f"more than {self._max_requests} requests at once")
        self._requests += 1
        try:
            due = self._loop.time() + self._timeout_s
            connection = self._idle.take_last()
            if connection is not None:
                self._reused.add(connection)
                try:
                    return await self._send(connection, head, body, keep_body=keep_body)
                except NoResponse:
                    # Before any byte of a response, the upstream most likely closed the connection
                    # without seeing the request. If it did see it, sending again is still safe: any
                    # request may arrive twice (docs/upstreams.md A9, S3), and the drain would retry
                    # it as well.
                    if connection.response_bytes:
                        raise
                finally:
                    self._reused.discard(connection)
            connection = await self._open(due)
            # Cancelling, as `asyncio.timeout_at` does, would lose a response that already counts.
            timer = self._loop.call_at(due, connection.time_out)
            try:
                return await self._send(connection, head, body, keep_body=keep_body)
            finally:
                timer.cancel()
        finally:
            self._requests -= 1

    async def _open(self, due: float) -> ClientConnection:
        connection = ClientConnection(self._connections, self._idle)
        scope = asyncio.timeout_at(due)
        try:
            async with scope:
                self._opening.add(scope)
                await self._dialer.dial(connection)
        except TimeoutError:
            if self._closed:
                raise NoResponse("closed") from None
            raise ConnectTimeout from None
        finally:
            self._opening.discard(scope)
        return connection

    async def _send(
        self, connection: ClientConnection, head: bytes, body: bytes, *, keep_body: bool
    ) -> RawResponse:
        if self._closed:
            connection.abort()
        try:
            return await connection.send(head, body, keep_body=keep_body)
        finally:
            if connection.reusable:
                self._idle.add(connection)
            else:
                connection.abort()

    async def close(self) -> None:
        """Close all connections; requests whose response does not count yet get `NoResponse`."""
        self._closed = True
        for scope in self._opening:
            if not scope.expired():
                scope.reschedule(self._loop.time())
        for connection in self._connections:
            connection.abort()
        self.resolver.close()
        while self._connections:  # noqa: ASYNC110 (they close in the loop's next rounds)
            await asyncio.sleep(0)


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
