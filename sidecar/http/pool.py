"""The connections to one upstream: kept alive, never more than so many, each request with an end.

A place is what a connection takes of the bound. It is taken before dialling, and free again when
the connection is gone; whoever waits for one gets it in order, or a connection that became idle.
"""

import asyncio
from collections import deque

from sidecar.http.client_connection import Connection, Reply
from sidecar.http.dialer import Dialer
from sidecar.http.failures import NoResponse
from sidecar.http.request_deadline import Deadline
from sidecar.http.timeouts import Deadlines

# Idle connections end before the server's 5 s, or they would be reset (docs/upstreams.md A6).
KEEPALIVE_S = 4.0


class Pool:
    """At most `max_connections` connections by `dialer`. Make it inside a running loop.

    `timeout_s` is for a whole request: waiting for a place, connecting, sending, answering.
    """

    def __init__(self, dialer: Dialer, *, timeout_s: float, max_connections: int) -> None:
        self._dialer = dialer
        self._max = max_connections
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._deadlines = Deadlines(timeout_s, Deadline.expire)
        self._places_taken = 0
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when; the newest is the last
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._dialling: set[asyncio.Timeout] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._empty: asyncio.Future[None] | None = None

    async def exchange(self, header: bytes, body: bytes) -> Reply:
        """Send a request and return its answer; raises `NoResponse` or `TimeoutError`."""
        now = self._loop.time()
        deadline = Deadline(now + self._timeout_s)
        self._deadlines.add(deadline)
        try:
            connection = self._idle_one(now) or await self._new_one(deadline)
            again = False
            while True:
                try:
                    reply = await deadline.bound(connection.ask(header, body))
                except BaseException as error:
                    connection.drop()
                    if again or not connection.stale or not isinstance(error, NoResponse):
                        raise
                else:
                    self._give_back(connection)
                    return reply
                again = True
                connection = await self._new_one(deadline, first=True)
        finally:
            self._deadlines.discard(deadline)

    async def close(self) -> None:
        """End every connection and every request; returns when all are gone."""
        self._closed = True
        self._deadlines.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for scope in self._dialling:
            if not scope.expired():
                scope.reschedule(self._loop.time())
        for connection in self._connections:
            connection.drop()
        if self._places_taken:
            self._empty = self._loop.create_future()
            await self._empty

    def _idle_one(self, now: float) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if now - since < KEEPALIVE_S:
                return connection
            connection.drop()
        return None

    async def _new_one(self, deadline: Deadline, *, first: bool = False) -> Connection:
        """A new connection, or one that another request is done with; `first`: before others."""
        if self._places_taken < self._max:
            self._places_taken += 1
        elif (given := await self._place(deadline, first=first)) is not None:
            return given
        connection = Connection(self._lost)
        self._connections.add(connection)
        try:
            await self._dial(connection, deadline)
        except BaseException:
            if connection.connected:
                connection.drop()
            else:
                self._lost(connection)
            raise
        return connection

    async def _dial(self, connection: Connection, deadline: Deadline) -> None:
        if self._closed:
            raise NoResponse("closed")
        try:
            async with asyncio.timeout_at(deadline.due) as scope:
                self._dialling.add(scope)
                try:
                    await self._dialer.dial(connection)
                finally:
                    self._dialling.discard(scope)
        except TimeoutError:
            if not self._closed:
                raise
        if self._closed:
            raise NoResponse("closed")

    async def _place(self, deadline: Deadline, *, first: bool) -> Connection | None:
        """Wait for a place, or for a connection that has one."""
        place: asyncio.Future[Connection | None] = self._loop.create_future()
        if first:
            self._waiting.appendleft(place)
        else:
            self._waiting.append(place)
        try:
            return await deadline.bound(place)
        except BaseException:
            if place in self._waiting:
                self._waiting.remove(place)
            elif not place.cancelled() and place.exception() is None:
                # Given at the very moment at which the caller was cancelled.
                given = place.result()
                if given is None:
                    self._place_free()
                else:
                    self._give_back(given)
            raise

    def _give_back(self, connection: Connection) -> None:
        """A request is done with it."""
        if not connection.reusable:
            connection.drop()
            return
        if (place := self._next_in_line()) is not None:
            place.set_result(connection)
            return
        now = self._loop.time()
        self._idle[connection] = now
        if self._sweeper is None and not self._closed:
            self._sweep_at(now + KEEPALIVE_S)

    def _next_in_line(self) -> asyncio.Future[Connection | None] | None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                return place
        return None

    def _lost(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._idle.pop(connection, None)
            self._place_free()

    def _place_free(self) -> None:
        if (place := self._next_in_line()) is not None:
            place.set_result(None)
            return
        self._places_taken -= 1
        if not self._places_taken and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _sweep_at(self, due: float) -> None:
        self._sweeper = self._loop.call_at(due, self._sweep, due)

    def _sweep(self, due: float) -> None:
        """End what has been idle for too long."""
        self._sweeper = None
        for connection, since in self._idle.items():
            if since + KEEPALIVE_S > due:
                self._sweep_at(since + KEEPALIVE_S)
                return
            connection.drop()
