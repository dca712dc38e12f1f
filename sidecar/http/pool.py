"""The connections to one upstream: bounded and kept alive; every request has a deadline.

A slot counts towards the bound. It is taken before dialing and freed when the connection has
closed. Requests that find no free slot wait in FIFO order, for a slot or for an idle connection.
"""

import asyncio
from collections import deque

from sidecar.http.client_connection import ClientConnection, RawResponse
from sidecar.http.dialer import Dialer
from sidecar.http.failures import NoResponse
from sidecar.http.request_deadline import RequestDeadline
from sidecar.http.timeouts import Deadlines

# Shorter than the server's 5 s, after which it resets the connection (docs/upstreams.md A6).
KEEPALIVE_S = 4.0


class Pool:
    """At most `max_connections` connections opened by `dialer`. Create it in a running loop.

    `timeout_s` covers the whole request: waiting for a slot, connecting, sending, receiving.
    """

    def __init__(self, dialer: Dialer, *, timeout_s: float, max_connections: int) -> None:
        self._dialer = dialer
        self._max_connections = max_connections
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._deadlines = Deadlines(timeout_s, RequestDeadline.expire)
        self._slots_taken = 0
        self._connections: set[ClientConnection] = set()
        # The loop time at which each became idle, longest idle first.
        self._idle: dict[ClientConnection, float] = {}
        # A waiter receives an idle connection, or None for a slot to open a new one.
        self._waiters: deque[asyncio.Future[ClientConnection | None]] = deque()
        self._dialing: set[asyncio.Timeout] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._all_closed: asyncio.Future[None] | None = None

    async def exchange(self, head: bytes, body: bytes) -> RawResponse:
        """Send a request and return its response; raises `NoResponse` or `TimeoutError`.

        A request on a connection that turns out to be stale is sent again, once, on a new one.
        """
        now = self._loop.time()
        deadline = RequestDeadline(now + self._timeout_s)
        self._deadlines.add(deadline)
        try:
            connection = self._take_idle(now) or await self._acquire(deadline)
            resent = False
            while True:
                try:
                    response = await deadline.apply(connection.send(head, body))
                except BaseException as error:
                    connection.abort()
                    if resent or not connection.stale or not isinstance(error, NoResponse):
                        raise
                else:
                    self._release(connection)
                    return response
                resent = True
                connection = await self._acquire(deadline, first=True)
        finally:
            self._deadlines.discard(deadline)

    async def close(self) -> None:
        """Abort every connection and request; returns when all connections have closed."""
        self._closed = True
        self._deadlines.close()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for scope in self._dialing:
            if not scope.expired():
                scope.reschedule(self._loop.time())
        for connection in self._connections:
            connection.abort()
        if self._slots_taken:
            self._all_closed = self._loop.create_future()
            await self._all_closed

    def _take_idle(self, now: float) -> ClientConnection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if now - since < KEEPALIVE_S:
                return connection
            connection.abort()
        return None

    async def _acquire(self, deadline: RequestDeadline, *, first: bool = False) -> ClientConnection:
        """A new connection, or one that another request released; `first` skips the queue."""
        if self._slots_taken < self._max_connections:
            self._slots_taken += 1
        elif (released := await self._wait(deadline, first=first)) is not None:
            return released
        connection = ClientConnection(self._lost)
        self._connections.add(connection)
        try:
            await self._dial(connection, deadline)
        except BaseException:
            if connection.connected:
                connection.abort()
            else:
                self._lost(connection)
            raise
        return connection

    async def _dial(self, connection: ClientConnection, deadline: RequestDeadline) -> None:
        if self._closed:
            raise NoResponse("closed")
        try:
            async with asyncio.timeout_at(deadline.due) as scope:
                self._dialing.add(scope)
                try:
                    await self._dialer.dial(connection)
                finally:
                    self._dialing.discard(scope)
        except TimeoutError:
            if not self._closed:
                raise
        if self._closed:
            raise NoResponse("closed")

    async def _wait(self, deadline: RequestDeadline, *, first: bool) -> ClientConnection | None:
        """Wait for a released connection, or for a free slot (None)."""
        waiter: asyncio.Future[ClientConnection | None] = self._loop.create_future()
        if first:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        try:
            return await deadline.apply(waiter)
        except BaseException:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif not waiter.cancelled() and waiter.exception() is None:
                # The caller was cancelled after the waiter was served: pass on what it got.
                released = waiter.result()
                if released is None:
                    self._free_slot()
                else:
                    self._release(released)
            raise

    def _release(self, connection: ClientConnection) -> None:
        """Hand `connection`, whose request has finished, to the next waiter, or keep it idle."""
        if not connection.reusable:
            connection.abort()
            return
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(connection)
            return
        now = self._loop.time()
        self._idle[connection] = now
        if self._sweep_timer is None and not self._closed:
            self._sweep_at(now + KEEPALIVE_S)

    def _next_waiter(self) -> asyncio.Future[ClientConnection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None

    def _lost(self, connection: ClientConnection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._idle.pop(connection, None)
            self._free_slot()

    def _free_slot(self) -> None:
        if (waiter := self._next_waiter()) is not None:
            waiter.set_result(None)
            return
        self._slots_taken -= 1
        if not self._slots_taken and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    def _sweep_at(self, due: float) -> None:
        self._sweep_timer = self._loop.call_at(due, self._sweep, due)

    def _sweep(self, due: float) -> None:
        """Close connections that have been idle for `KEEPALIVE_S`."""
        self._sweep_timer = None
        for connection, since in self._idle.items():
            if since + KEEPALIVE_S > due:
                self._sweep_at(since + KEEPALIVE_S)
                return
            connection.abort()
