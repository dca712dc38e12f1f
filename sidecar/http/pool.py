"""The connections to one upstream: kept alive while idle; every request has a deadline.

Requests never wait for a connection: the lane limits how many run at once, and each has its own.
"""

import asyncio

from sidecar.http.client_connection import ClientConnection, RawResponse
from sidecar.http.dialer import Dialer
from sidecar.http.failures import NoResponse
from sidecar.http.timeouts import Deadlines

# Shorter than the server's 5 s, after which it resets the connection (docs/upstreams.md A6).
KEEPALIVE_S = 4.0


class Pool:
    """Connections opened by `dialer`, one for each of up to `max_requests` concurrent requests.

    `timeout_s` covers the whole request: connecting, sending, receiving. Create it in a running
    loop.
    """

    def __init__(self, dialer: Dialer, *, timeout_s: float, max_requests: int) -> None:
        self._dialer = dialer
        self._timeout_s = timeout_s
        self._max_requests = max_requests
        self._loop = asyncio.get_running_loop()
        self._requests = 0
        self._connections: set[ClientConnection] = set()
        self._idle = Deadlines(KEEPALIVE_S, ClientConnection.abort)
        self._reused = Deadlines(timeout_s, ClientConnection.time_out)
        self._opening: set[asyncio.Timeout] = set()
        self._closed = False
        self._all_closed: asyncio.Future[None] | None = None

    async def exchange(self, head: bytes, body: bytes) -> RawResponse:
        """Send a request and return its response; raises `NoResponse` or `TimeoutError`.

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
                    return await self._send(connection, head, body)
                except NoResponse:
                    if not connection.stale:
                        raise
                finally:
                    self._reused.discard(connection)
            return await self._send_on_new(due, head, body)
        finally:
            self._requests -= 1

    async def _send_on_new(self, due: float, head: bytes, body: bytes) -> RawResponse:
        connection = ClientConnection(self._lost)
        try:
            async with asyncio.timeout_at(due) as scope:
                self._opening.add(scope)
                try:
                    await self._dialer.dial(connection)
                finally:
                    self._opening.discard(scope)
                    if connection.connected:
                        self._connections.add(connection)
                return await self._send(connection, head, body)
        except TimeoutError:
            if self._closed:
                raise NoResponse("closed") from None
            raise

    async def _send(self, connection: ClientConnection, head: bytes, body: bytes) -> RawResponse:
        if self._closed:
            connection.abort()
        try:
            response = await connection.send(head, body)
        except BaseException:
            connection.abort()
            raise
        if connection.reusable:
            self._idle.add(connection)
        else:
            connection.abort()
        return response

    def _lost(self, connection: ClientConnection) -> None:
        self._connections.discard(connection)
        self._idle.discard(connection)
        done = self._all_closed
        if done is not None and not done.done() and not self._connections:
            done.set_result(None)

    async def close(self) -> None:
        """Abort every connection and request; returns when all connections have closed."""
        self._closed = True
        self._idle.close()
        self._reused.close()
        for scope in self._opening:
            if not scope.expired():
                scope.reschedule(self._loop.time())
        for connection in self._connections:
            connection.abort()
        if self._connections:
            self._all_closed = self._loop.create_future()
            await self._all_closed
