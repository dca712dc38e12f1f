"""HTTP client for one base URL: builds heads, and sends requests over connections that it keeps.

In: method, target, headers, body. Out: a `RawResponse`. It does not interpret the status; that is
up to the caller.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from sidecar.credentials import is_header_safe
from sidecar.http.client_connection import ClientConnection, RawResponse
from sidecar.http.failures import NoResponse
from sidecar.http.timeouts import Deadlines
from sidecar.network.dialer import USER_AGENT, Dialer, Unreachable

# Shorter than the server's 5 s, after which it resets the connection (docs/upstreams.md A6).
KEEPALIVE_S = 4.0
# A connection is replaced up to this much earlier than it has to be, so that the connections of a
# thousand sidecars are not replaced at the same moment.
AGE_JITTER = 0.2
# For so long after a failure, other idle connections are left alone.
TRUST_S = 1.0


class HttpClient:
    """Sends requests to the URL of `dialer`, of JSON unless their headers say otherwise.

    Create it inside a running loop.

    `timeout_s` covers the whole request: connecting, sending, receiving. Requests never wait for a
    connection: each has its own, and more than `max_requests` at once are a bug. `max_age_s`: for
    how long a connection is used, so that the upstream's name can move to another address.
    """

    def __init__(
        self, dialer: Dialer, *, timeout_s: float, max_requests: int, max_age_s: float
    ) -> None:
        url = dialer.url
        self._dialer = dialer
        self.forwarded = dialer.forwards
        # Through a proxy without a tunnel, a target is the whole URL (RFC 9112, 3.2.2).
        origin = f"http://{url.authority}" if dialer.forwards else ""
        self._prefix = origin + url.path.rstrip("/")
        self._default_headers = _default_headers(dialer)
        self._encoded_from: Mapping[str, str] | None = None
        self._encoded = b""
        self._timeout_s = timeout_s
        self._max_requests = max_requests
        self._max_age_s = max_age_s
        self._loop = asyncio.get_running_loop()
        self._requests = 0
        self._connections: set[ClientConnection] = set()
        self._idle = Deadlines(KEEPALIVE_S, ClientConnection.abort)
        self._reused = Deadlines(timeout_s, ClientConnection.time_out)
        self._opening: set[asyncio.Timeout] = set()
        self._closed = False
        self._trusts_until = 0.0

    def target(self, path: str) -> bytes:
        """The request target for `path`, which must be percent-encoded, below the base URL."""
        target = self._prefix + path
        if not is_header_safe(target) or " " in target:
            raise ValueError("the path must be percent-encoded")
        return target.encode()

    def head(
        self, method: bytes, target: bytes, headers: Mapping[str, str], content_length: int
    ) -> bytes:
        """The head of a request; `headers` are added to the client's defaults, or replace them.

        The encoded lines are reused as long as `headers` is the same object. Raises `ValueError`
        for a header value with control or non-ASCII characters.
        """
        if headers is not self._encoded_from:
            given = {name.lower() for name in headers}
            defaults = self._default_headers.items()
            lines = {name: text for name, text in defaults if name.lower() not in given}
            lines |= headers
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
            except NoResponse as failure:
                if connection.response_bytes or self._closed:
                    raise
                raise NoResponse(await self._why_ended(due) or str(failure)) from None
            finally:
                timer.cancel()
        finally:
            self._requests -= 1

    async def _open(self, due: float) -> ClientConnection:
        connection = ClientConnection(self._connections, self._idle, self._dialer.url.host)
        age_s = self._max_age_s * (1 - AGE_JITTER * random.random())  # noqa: S311 (no secret)
        connection.usable_until = self._loop.time() + age_s
        opened = False
        try:
            async with self._until(due):
                await self._dialer.dial(connection)
                opened = True
        except TimeoutError:
            text = "closed" if self._closed else "timed out before a connection was open"
            raise NoResponse(text, outage=True, late=not self._closed) from None
        except Unreachable as failure:
            raise NoResponse(str(failure), outage=True, late=failure.late) from None
        finally:
            if not opened:  # it may have been cancelled at the last moment
                connection.abort()
                self._connections.discard(connection)
        return connection

    async def _why_ended(self, due: float) -> str:
        with suppress(TimeoutError):
            async with self._until(due):
                return await self._dialer.why_ended()
        return ""

    @asynccontextmanager
    async def _until(self, due: float) -> AsyncIterator[None]:
        """What is inside ends with a `TimeoutError` at loop time `due`, or at `close`."""
        scope = asyncio.timeout_at(due)
        try:
            async with scope:
                self._opening.add(scope)
                yield
        finally:
            self._opening.discard(scope)

    async def _send(
        self, connection: ClientConnection, head: bytes, body: bytes, *, keep_body: bool
    ) -> RawResponse:
        if self._closed:
            connection.abort()
        try:
            return await connection.send(head, body, keep_body=keep_body)
        finally:
            if connection.reusable and self._loop.time() < connection.usable_until:
                self._idle.add(connection)
            else:
                connection.abort()

    def distrust(self) -> None:
        """A request just failed: the next one gets a new connection, perhaps to another server.

        At most once a second, this ends all idle connections; else only the one that was used last,
        so that a server that fails now and then is not kept busy with handshakes.
        """
        now = self._loop.time()
        only_one = now < self._trusts_until
        if not only_one:
            self._trusts_until = now + TRUST_S
        while (connection := self._idle.take_last()) is not None:
            connection.abort()
            if only_one:
                return

    async def close(self) -> None:
        """Close all connections; requests whose response does not count yet get `NoResponse`."""
        self._closed = True
        for scope in self._opening:
            if not scope.expired():
                scope.reschedule(self._loop.time())
        for connection in self._connections:
            connection.abort()
        while self._connections:  # noqa: ASYNC110 (they close in the loop's next rounds)
            await asyncio.sleep(0)


def _default_headers(dialer: Dialer) -> dict[str, str]:
    url, proxy = dialer.url, dialer.proxy
    headers = {
        "Host": url.authority,
        "Content-Type": "application/json",
        "Accept": "application/json",
        # Bodies are discarded, so decompressing them would only waste CPU.
        "Accept-Encoding": "identity",
        "User-Agent": USER_AGENT,
    }
    if url.credential:
        headers["Authorization"] = url.credential
    if dialer.forwards and proxy is not None and proxy.authorization:
        headers["Proxy-Authorization"] = proxy.authorization.reveal()
    return headers
