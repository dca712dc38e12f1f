"""A connection of an agent: plain requests (known_heads.py) are read and answered right here.

aiohttp makes a request, a reader, a response and a step of a task for every request: most of what
a span cost at the listener (DECISIONS.md 30). A plain request, whose head is known, needs none of
it. At the first one that is not plain the connection goes over to aiohttp for good, with every byte
of that request: compression, chunks, handshakes, other paths and broken bytes are its business.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from time import perf_counter, time
from typing import cast

from sidecar.http.timeouts import Deadlines
from sidecar.listener.body import Limits, Refusal, ended_early, no_room, too_slow
from sidecar.listener.head_cache import CachedHead, Found, HeadCache
from sidecar.listener.ingest import Ingest
from sidecar.listener.routes import Answer, retry_after
from sidecar.telemetry.metrics import IntakeMetrics

# What an agent that was too slow is given to read the answer.
LEAVE_S = 10.0
# What may come behind a request that is not answered yet.
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
    """What all connections share.

    `load` sets `others`, which makes the protocol for what is not plain; `bug` is told of an
    exception in here.
    `arriving`: connections whose body is not whole; `leaving`: those that have had their last
    answer.
    """

    heads: HeadCache
    ingest: Ingest
    metrics: IntakeMetrics
    limits: Limits
    load: Callable[[], Awaitable[None]]
    bug: Callable[[Exception], None]

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.others: Callable[[], asyncio.Protocol] | None = None
        self.connections: set[AgentConnection] = set()
        self.arriving = Deadlines(self.limits.timeout_s, AgentConnection.too_slow)
        self.leaving = Deadlines(LEAVE_S, AgentConnection.close)
        # The last answer and its bytes, with the second of its date.
        self._said: Answer | None = None
        self._whole = b""
        self._second = 0
        self._date = b""

    def whole(self, answer: Answer) -> bytes:
        """An answer as it goes over the wire; most are the same one again."""
        second = int(time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
            self._said = None
        if answer is not self._said:
            self._whole = b"%b\r\nContent-Type: %b\r\nContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (
                _HEADS[answer.status],
                answer.content_type.encode(),
                len(answer.body),
                self._date,
                answer.body,
            )
            self._said = answer
        return self._whole


class AgentConnection(asyncio.Protocol):
    """One connection, until it ends or goes over to aiohttp."""

    def __init__(self, desk: ServerState) -> None:
        self._state = desk
        self._transport: asyncio.Transport
        # When the last request began: in loop time, and for its duration.
        self.begun = desk.loop.time()
        self._started = 0.0
        # The request whose body is not whole yet; what came of it, and how much is still to come.
        self._found: Found | None = None
        self._pieces: list[bytes] = []
        self._missing = 0
        self._full = False  # there is no room for it
        # What waits for an answer that can't be given at once, and what came behind its request.
        self.answering: asyncio.Task[None] | None = None
        self._pending_input: list[bytes] = []
        self._write_paused = False  # the agent does not read
        self._closing = False  # nothing is answered any more
        self._waits_for_aiohttp = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """An agent is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It is gone, maybe in the middle of a body."""
        self._state.connections.discard(self)
        if self._found is not None:
            self._gave_up(self._found[0], ended_early())
        self._pending_input = []
        self._state.leaving.discard(self)

    def pause_writing(self) -> None:
        """The agent does not read its answers: nor do we read what else it asks."""
        self._write_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._write_paused = False
        if not self._pending_input and not self._waits_for_aiohttp:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            if self._closing:
                return
            if self.answering is not None:
                self._keep(data)
            elif self._found is None:
                self._begin(data)
            else:
                self._go_on(self._found, data)
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _begin(self, data: bytes) -> None:
        desk = self._state
        while data:
            found = desk.heads.find(data)
            if found is None or found[2] > desk.limits.max_body:
                self._hand_over(data)
                return
            self.begun, self._started = desk.loop.time(), perf_counter()
            head, start, length = found
            end = start + length
            if len(data) < end:
                self._found, self._missing = found, end
                desk.arriving.add(self)
                self._go_on(found, data)
                return
            body, data = data[start:end], data[end:]
            if not self._answered(head, body):
                self._keep(data)
                return

    def _go_on(self, found: Found, data: bytes) -> None:
        head, start, _ = found
        budget = self._state.limits.budget
        data, behind = data[: self._missing], data[self._missing :]
        self._missing -= len(data)
        if not self._full:
            self._pieces.append(data)
            budget.reading += len(data)
            if not budget.fits(0):
                # The rest is read, not kept: the agent gets its 429 when it listens.
                self._drop_pieces()
                self._full = True
        if self._missing:
            return
        if self._full:
            self._forget()
            self._refuse(head, no_room())
        else:
            # Nothing is copied but the body, once.
            parts: list[bytes | memoryview] = [*self._pieces]
            parts[0] = memoryview(self._pieces[0])[start:]
            self._forget()
            if not self._answered(head, b"".join(parts)):
                self._keep(behind)
                return
        self._begin(behind)

    def _forget(self) -> None:
        """The request that was arriving is whole now, or never will be."""
        self._drop_pieces()
        self._found, self._full = None, False
        self._state.arriving.discard(self)

    def _drop_pieces(self) -> None:
        self._state.limits.budget.reading -= sum(map(len, self._pieces))
        self._pieces = []

    def too_slow(self) -> None:
        """The body did not come in time."""
        if self._found is not None:
            self._gave_up(self._found[0], too_slow(self._state.limits.timeout_s))
            # Closed at once, an agent that still sends would get a reset instead of its answer.
            self._closing = True
            self._state.leaving.add(self)
            self._transport.write_eof()

    def _gave_up(self, head: CachedHead, refusal: Refusal) -> None:
        self._forget()
        self._refuse(head, refusal)

    def _refuse(self, head: CachedHead, refusal: Refusal) -> None:
        self._write(self._state.ingest.refused(head.route, refusal))

    def _hand_over(self, received: bytes) -> None:
        """Let aiohttp have the connection, from the request that begins with `received` on."""
        if self._state.others is None:
            # Nothing more is read meanwhile: nor is the end of the connection.
            self._waits_for_aiohttp = True
            self._transport.pause_reading()
            self.answering = self._state.loop.create_task(self._hand_over_later(received))
            return
        self._state.connections.discard(self)
        successor = self._state.others()
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        if self._write_paused:
            successor.pause_writing()
        self._transport.resume_reading()
        successor.data_received(received)

    async def _hand_over_later(self, received: bytes) -> None:
        """As `_hand_over`, once aiohttp is loaded."""
        try:
            await self._state.load()
            self.answering = None
            if not self._transport.is_closing():
                self._hand_over(b"".join([received, *self._pending_input]))
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    # Answering.

    def _answered(self, head: CachedHead, body: bytes) -> bool:
        """Take a request; False when its answer has to wait."""
        ingest = self._state.ingest
        if not ingest.waits():
            self._write(ingest.answer_now(head.route, head.request, body))
            return True
        answer = ingest.answer(head.route, head.request, body)
        self.answering = self._state.loop.create_task(self._answer_later(answer))
        return False

    async def _answer_later(self, answer: Coroutine[None, None, Answer]) -> None:
        """Write an answer that has to wait, then go on with what came behind its request."""
        try:
            said = await answer
            self.answering = None
            self._write(said)
            if self._pending_input and not self._transport.is_closing():
                data, self._pending_input = b"".join(self._pending_input), []
                if not self._write_paused:
                    self._transport.resume_reading()
                self._begin(data)
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _keep(self, data: bytes) -> None:
        """Let `data` wait until the request before it is answered."""
        if data:
            self._pending_input.append(data)
            if sum(map(len, self._pending_input)) > _MAX_PENDING_INPUT:
                self._transport.pause_reading()

    def _write(self, answer: Answer) -> None:
        self._state.metrics.answered(answer.status, perf_counter() - self._started)
        if not self._transport.is_closing():
            self._transport.write(self._state.whole(answer))

    def _failed(self, bug: Exception) -> None:
        self._state.bug(bug)
        self._transport.abort()

    def close(self) -> None:
        """End it, once what is written has gone."""
        self._transport.close()
