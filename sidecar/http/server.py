"""An HTTP/1.1 server over llhttp, for both ports and every kind of request (D31).

A connection gives each request to the port's service when its head has arrived. The service returns
a receiver, which takes the body and gives the response.

A client can keep its connection waiting but not the port: when all places are taken, a new
connection gets the place of the one that has kept us waiting for longest.
"""

import asyncio

from sidecar.http.server_connection import ServerConnection, ServerState


class HttpServer(ServerState):
    """Serves up to `max_connections` connections of one port. Create it inside a running loop.

    `idle_s` is the time for the next request and for reading responses, `body_s` for a body, in
    seconds. `refused` returns the response to a request that no service gets to see, from its
    status and the error. `crowded` is called when a connection is closed to make room, `failed`
    with an exception that is a bug.
    """

    def connect(self) -> ServerConnection:
        """A protocol for a new connection."""
        return ServerConnection(self)

    def make_room(self) -> bool:
        """Make room for a new connection if necessary; False if all clients wait for us."""
        if len(self.connections) < self.max_connections:
            return True
        self.crowded()
        # `idle` after `heads`: clients that never send a request don't displace those that do.
        for waiting in (self.lingering, self.heads, self.idle, self.bodies):
            if (longest := waiting.first()) is not None:
                waiting.discard(longest)
                self.connections.discard(longest)
                longest.abort()
                return True
        return False

    async def close(self, timeout_s: float) -> None:
        """Close every connection; pending responses have `timeout_s` to finish."""
        pending = [each.writer.task for each in self.connections if each.writer.task is not None]
        for connection in list(self.connections):
            if connection.writer.task is None:
                connection.close()
        if pending:
            _, late = await asyncio.wait(pending, timeout=timeout_s)
            for task in late:
                task.cancel()
        for connection in list(self.connections):
            connection.close()
