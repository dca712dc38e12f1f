"""An HTTP/1.1 server over llhttp, for both ports and every kind of request (D31).

A connection gives each request to the port's service when its head has arrived. The service returns
a receiver, which takes the body and gives the response.

A client can keep its connection waiting but not the port: when all places are taken, a new
connection gets the place of the one that has kept us waiting for longest.
"""

import asyncio
from collections.abc import Callable

from sidecar.http.messages import Response, Service
from sidecar.http.server_connection import ServerConnection, ServerState


class HttpServer:
    """Serves up to `max_connections` connections of one port. Create it inside a running loop.

    `idle_s` is the time for the next request and for reading responses, `body_s` for a body, in
    seconds. `refused` returns the response to a request that no service gets to see, from its
    status and the error. `crowded` is called when a connection is closed to make room, `failed`
    with an exception that is a bug.
    """

    def __init__(
        self,
        service: Service,
        *,
        max_connections: int,
        idle_s: float,
        body_s: float,
        refused: Callable[[int, str], Response],
        crowded: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._max_connections = max_connections
        self._crowded = crowded
        self.state = ServerState(service, idle_s, body_s, self._has_place, refused, failed)

    def connect(self) -> ServerConnection:
        """A protocol for a new connection."""
        return ServerConnection(self.state)

    def _has_place(self) -> bool:
        """Make room for a new connection if necessary; False if all clients wait for us."""
        state = self.state
        if len(state.connections) < self._max_connections:
            return True
        self._crowded()
        # `idle` after `heads`: clients that never send a request don't displace those that do.
        for waiting in (state.lingering, state.heads, state.idle, state.bodies):
            if (longest := waiting.first()) is not None:
                waiting.discard(longest)
                state.connections.discard(longest)
                longest.abort()
                return True
        return False

    async def close(self, timeout_s: float) -> None:
        """Close every connection; pending responses have `timeout_s` to finish."""
        connections = self.state.connections
        pending = [each.writer.task for each in connections if each.writer.task is not None]
        for connection in list(connections):
            if connection.writer.task is None:
                connection.close()
        if pending:
            _, late = await asyncio.wait(pending, timeout=timeout_s)
            for task in late:
                task.cancel()
        for connection in list(connections):
            connection.close()
        for timeout in (self.state.lingering, self.state.heads, self.state.idle, self.state.bodies):
            timeout.close()
