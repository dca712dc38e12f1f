"""One agent connection: reads plain requests (head_cache.py) and responds without aiohttp.

aiohttp creates a request, a reader, a response and a task step for each request, which was most of
the listener's cost per span (DECISIONS.md 30). A plain request whose head is cached needs none of
them. The first request that is not plain moves the connection to aiohttp for good, with every byte
received for that request: compression, chunked bodies, upgrades, other paths and malformed HTTP are
handled there.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from time import perf_counter, time
from typing import cast

from sidecar.http.timeouts import Deadlines
from sidecar.listener.head_cache import CachedHead, Found, HeadCache
from sidecar.listener.ingest import Ingest
from sidecar.listener.refusals import Limits, Refusal, ended_early, no_room, too_slow
from sidecar.listener.routes import Response, retry_after
from sidecar.telemetry.metrics import IntakeMetrics

# How long an agent whose body timed out may take to read its 408.
CLOSE_S = 10.0
# Bytes kept for pipelined requests while a response is pending; beyond that, reading pauses.
_MAX_PENDING_INPUT = 256 * 1024


def _head_of(status: HTTPStatus) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in retry_after(status).items()]
    if status == HTTPStatus.REQUEST_TIMEOUT:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode()


_HEADS = {status: _head_of(status) for status in HTTPStatus}


@dataclass(eq=False)
class ServerState:
    """State shared by all connections.

    `load_aiohttp` loads aiohttp and sets `aiohttp_protocol`, the factory of the protocol that takes
    over a connection. `on_bug` is called with an exception that is a bug in a connection.
    `receiving` holds the connections whose request body is incomplete, `closing` those that have
    sent their last response.
    """

    heads: HeadCache
    ingest: Ingest
    metrics: IntakeMetrics
    limits: Limits
    load_aiohttp: Callable[[], Awaitable[None]]
    on_bug: Callable[[Exception], None]

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.aiohttp_protocol: Callable[[], asyncio.Protocol] | None = None
        self.connections: set[AgentConnection] = set()
        self.receiving = Deadlines(self.limits.timeout_s, AgentConnection.body_timed_out)
        self.closing = Deadlines(CLOSE_S, AgentConnection.close)
        # The last response and its bytes, with the second of its `Date`.
        self._last_response: Response | None = None
        self._bytes = b""
        self._second = 0
        self._date = b""

    def serialize(self, response: Response) -> bytes:
        """The bytes of a response, cached because most responses repeat the last one."""
        second = int(time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
            self._last_response = None
        if response is not self._last_response:
            self._bytes = b"%b\r\nContent-Type: %b\r\nContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (
                _HEADS[response.status],
                response.content_type.encode(),
                len(response.body),
                self._date,
                response.body,
            )
            self._last_response = response
        return self._bytes


class AgentConnection(asyncio.Protocol):
    """One connection, until it closes or moves to aiohttp."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._transport: asyncio.Transport
        # When the last request began: loop time, and `perf_counter` to measure its duration.
        self.request_at = state.loop.time()
        self._started = 0.0
        # The request whose body is incomplete, what has arrived of it, and how many bytes are left.
        self._found: Found | None = None
        self._parts: list[bytes] = []
        self._remaining = 0
        self._discarding = False  # its body does not fit: read the rest, keep none of it
        # The task that the connection is waiting for: a response, or loading aiohttp.
        self.pending: asyncio.Task[None] | None = None
        self._pending_input: list[bytes] = []  # received while waiting
        self._loading_aiohttp = False
        self._write_paused = False
        self._closing = False  # ignore further input

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._state.connections.discard(self)
        if self._found is not None:
            self._abort_request(self._found[0], ended_early())
        self._pending_input = []
        self._state.closing.discard(self)

    def pause_writing(self) -> None:
        # Read no more requests from an agent that does not read its responses.
        self._write_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        if not self._pending_input and not self._loading_aiohttp:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            if self._closing:
                return
            if self.pending is not None:
                self._defer(data)
            elif self._found is None:
                self._read_requests(data)
            else:
                self._read_body(self._found, data)
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _read_requests(self, data: bytes) -> None:
        state = self._state
        while data:
            found = state.heads.find(data)
            if found is None or found[2] > state.limits.max_body:
                self._move_to_aiohttp(data)
                return
            self.request_at, self._started = state.loop.time(), perf_counter()
            head, start, length = found
            end = start + length
            if len(data) < end:
                self._found, self._remaining = found, end
                state.receiving.add(self)
                self._read_body(found, data)
                return
            body, data = data[start:end], data[end:]
            if not self._respond(head, body):
                self._defer(data)
                return

    def _read_body(self, found: Found, data: bytes) -> None:
        head, start, _ = found
        budget = self._state.limits.budget
        data, following = data[: self._remaining], data[self._remaining :]
        self._remaining -= len(data)
        if not self._discarding:
            self._parts.append(data)
            budget.reading += len(data)
            if not budget.fits(0):
                # The body is still read to its end: most clients read the 429 only after sending.
                self._drop_parts()
                self._discarding = True
        if self._remaining:
            return
        if self._discarding:
            self._end_request()
            self._refuse(head, no_room())
        else:
            # Only the body is copied, and only once.
            parts: list[bytes | memoryview] = [*self._parts]
            parts[0] = memoryview(self._parts[0])[start:]
            self._end_request()
            if not self._respond(head, b"".join(parts)):
                self._defer(following)
                return
        self._read_requests(following)

    def _end_request(self) -> None:
        """Forget the request that was being received: it is complete, or never will be."""
        self._drop_parts()
        self._found, self._discarding = None, False
        self._state.receiving.discard(self)

    def _drop_parts(self) -> None:
        self._state.limits.budget.reading -= sum(map(len, self._parts))
        self._parts = []

    def body_timed_out(self) -> None:
        """Respond 408 to a body that did not arrive in time, then close."""
        if self._found is not None:
            self._abort_request(self._found[0], too_slow(self._state.limits.timeout_s))
            # If closed now, an agent that is still sending would get a reset instead of its 408.
            self._closing = True
            self._state.closing.add(self)
            self._transport.write_eof()

    def _abort_request(self, head: CachedHead, refusal: Refusal) -> None:
        self._end_request()
        self._refuse(head, refusal)

    def _refuse(self, head: CachedHead, refusal: Refusal) -> None:
        self._write(self._state.ingest.refuse(head.route, refusal))

    def _move_to_aiohttp(self, received: bytes) -> None:
        """Let aiohttp take over, beginning with the request that `received` starts with."""
        if self._state.aiohttp_protocol is None:
            # Reading stays paused while aiohttp loads, so even an EOF is only seen afterwards.
            self._loading_aiohttp = True
            self._transport.pause_reading()
            self.pending = self._state.loop.create_task(self._move_once_loaded(received))
            return
        self._state.connections.discard(self)
        successor = self._state.aiohttp_protocol()
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        if self._write_paused:
            successor.pause_writing()
        self._transport.resume_reading()
        successor.data_received(received)

    async def _move_once_loaded(self, received: bytes) -> None:
        try:
            await self._state.load_aiohttp()
            self.pending = None
            if not self._transport.is_closing():
                self._move_to_aiohttp(b"".join([received, *self._pending_input]))
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _respond(self, head: CachedHead, body: bytes) -> bool:
        """Process a request; False if its response is pending."""
        ingest = self._state.ingest
        if not ingest.must_wait():
            self._write(ingest.respond_now(head.route, head.request, body))
            return True
        response = ingest.respond(head.route, head.request, body)
        self.pending = self._state.loop.create_task(self._respond_later(response))
        return False

    async def _respond_later(self, pending: Coroutine[None, None, Response]) -> None:
        """Write a response once it is ready, then read the requests received while waiting."""
        try:
            response = await pending
            self.pending = None
            self._write(response)
            if self._pending_input and not self._transport.is_closing():
                data, self._pending_input = b"".join(self._pending_input), []
                if not self._write_paused:
                    self._transport.resume_reading()
                self._read_requests(data)
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _defer(self, data: bytes) -> None:
        """Keep `data` until the pending response is written."""
        if data:
            self._pending_input.append(data)
            if sum(map(len, self._pending_input)) > _MAX_PENDING_INPUT:
                self._transport.pause_reading()

    def _write(self, response: Response) -> None:
        self._state.metrics.responded(response.status, perf_counter() - self._started)
        if not self._transport.is_closing():
            self._transport.write(self._state.serialize(response))

    def _failed(self, bug: Exception) -> None:
        self._state.on_bug(bug)
        self._transport.abort()

    def close(self) -> None:
        """Close once the written responses are flushed."""
        self._transport.close()
