"""A connection of an agent: plain requests for spans are read and answered right here.

aiohttp makes a request, a reader, a response and a step of a task for every request: most of what
a span cost at the listener (DECISIONS.md 30). A plain request, whose head is known, needs none of
it. At the first one that is not plain the connection goes over to aiohttp for good, with every byte
of that request: compression, chunks, handshakes, other paths and broken bytes are its business.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import cast

from aiohttp.helpers import rfc822_formatted_time

from sidecar.bodies import Limits, Refusal, ended_early, no_room, too_slow
from sidecar.deadlines import Deadlines
from sidecar.known_heads import Found, KnownHead, KnownHeads
from sidecar.metrics import IntakeMetrics
from sidecar.reception import Reception
from sidecar.routes import Answer, retry_after

# What may come behind a request that is not answered yet.
_MOST_UNREAD = 256 * 1024


def _head_of(status: HTTPStatus) -> bytes:
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in retry_after(status).items()]
    if status == HTTPStatus.REQUEST_TIMEOUT:
        lines.append("Connection: close")
    return "\r\n".join(lines).encode()


_HEADS = {status: _head_of(status) for status in HTTPStatus}


@dataclass(eq=False)
class Desk:
    """What all connections share.

    `aiohttp` makes the protocol for what is not plain; `bug` is told of an exception in here.
    """

    heads: KnownHeads
    reception: Reception
    metrics: IntakeMetrics
    limits: Limits
    aiohttp: Callable[[], asyncio.Protocol]
    bug: Callable[[Exception], None]

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections: set[AgentConnection] = set()
        self.arriving = Deadlines(self.limits.timeout_s, AgentConnection.too_slow)


class AgentConnection(asyncio.Protocol):
    """One connection, until it ends or goes over to aiohttp."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._transport: asyncio.Transport
        # When the last request began: in loop time, and for its duration.
        self.begun = desk.loop.time()
        self._started = 0.0
        # The request whose body is not whole yet; what came of it, and how much is still to come.
        self._found: Found | None = None
        self._pieces: list[bytes] = []
        self._missing = 0
        self._full = False  # there is no room for it
        # The request whose answer has to wait, who waits for it, and what came behind it.
        self._job: tuple[KnownHead, bytes] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._unread: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """An agent is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._desk.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """It is gone, maybe in the middle of a body."""
        self._desk.connections.discard(self)
        if self._found is not None:
            self._gave_up(self._found, ended_early())
        if self._wake is not None:
            self._wake.cancel()

    def pause_writing(self) -> None:
        """The agent does not read its answers: nor do we read what else it asks."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        try:
            if self._job is not None:
                self._keep(data)
            elif self._found is None:
                self._begin(data)
            else:
                self._go_on(self._found, data)
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _begin(self, data: bytes) -> None:
        desk = self._desk
        while data:
            found = desk.heads.find(data)
            if found is None or found.length > desk.limits.max_body:
                self._hand_over(data)
                return
            self.begun, self._started = desk.loop.time(), perf_counter()
            end = found.start + found.length
            if len(data) < end:
                self._found, self._missing = found, end
                desk.arriving.add(self)
                self._go_on(found, data)
                return
            body, data = data[found.start : end], data[end:]
            if not desk.limits.budget.fits(found.length):
                self._refuse(found.head, no_room())
            elif not self._answered(found.head, body):
                self._keep(data)
                return

    def _go_on(self, found: Found, data: bytes) -> None:
        budget = self._desk.limits.budget
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
            self._refuse(found.head, no_room())
        else:
            # Nothing is copied but the body, once.
            parts: list[bytes | memoryview] = [*self._pieces]
            parts[0] = memoryview(self._pieces[0])[found.start :]
            self._forget()
            if not self._answered(found.head, b"".join(parts)):
                self._keep(behind)
                return
        self._begin(behind)

    def _forget(self) -> None:
        """The request that was arriving is whole now, or never will be."""
        self._drop_pieces()
        self._found, self._full = None, False
        self._desk.arriving.discard(self)

    def _drop_pieces(self) -> None:
        self._desk.limits.budget.reading -= sum(map(len, self._pieces))
        self._pieces = []

    def too_slow(self) -> None:
        """The body did not come in time."""
        if self._found is not None:
            self._gave_up(self._found, too_slow(self._desk.limits.timeout_s))
            self._transport.close()

    def _gave_up(self, found: Found, refusal: Refusal) -> None:
        self._forget()
        self._refuse(found.head, refusal)

    def _refuse(self, head: KnownHead, refusal: Refusal) -> None:
        self._write(self._desk.reception.refused(head.route, refusal))

    def _hand_over(self, received: bytes) -> None:
        """Let aiohttp have the connection, from the request that begins with `received` on."""
        self._desk.connections.discard(self)
        self._transport.resume_reading()
        successor = self._desk.aiohttp()
        self._transport.set_protocol(successor)
        successor.connection_made(self._transport)
        successor.data_received(received)

    # Answering.

    def _answered(self, head: KnownHead, body: bytes) -> bool:
        """Take a request; False when its answer has to wait."""
        reception = self._desk.reception
        if not reception.waits:
            self._write(reception.answer_now(head.route, head.request, body))
            return True
        self._job = head, body
        if self._worker is None:
            self._worker = self._desk.loop.create_task(self._work())
        elif self._wake is not None:
            self._wake.set_result(None)
        return False

    async def _work(self) -> None:
        """Give the answers that had to wait; made once for a connection, at its first one."""
        try:
            while True:
                while self._job is not None:
                    head, body = self._job
                    answer = await self._desk.reception.answer(head.route, head.request, body)
                    del body
                    self._job = None
                    self._write(answer)
                    self._catch_up()
                if self._transport.is_closing():
                    return
                self._wake = self._desk.loop.create_future()
                await self._wake
                self._wake = None
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)

    def _keep(self, data: bytes) -> None:
        """Let `data` wait until the request before it is answered."""
        if data:
            self._unread.append(data)
            if sum(map(len, self._unread)) > _MOST_UNREAD:
                self._transport.pause_reading()

    def _catch_up(self) -> None:
        if not self._unread:
            return
        data, self._unread = b"".join(self._unread), []
        self._transport.resume_reading()
        self._begin(data)

    def _write(self, answer: Answer) -> None:
        self._desk.metrics.answered(answer.status, perf_counter() - self._started)
        if not self._transport.is_closing():
            self._transport.write(
                b"%b\r\nContent-Length: %d\r\nDate: %b\r\n\r\n%b"
                % (
                    _HEADS[answer.status],
                    len(answer.body),
                    rfc822_formatted_time().encode(),
                    answer.body,
                )
            )

    def _failed(self, bug: Exception) -> None:
        self._desk.bug(bug)
        self._transport.abort()

    # Ending.

    @property
    def answering(self) -> "asyncio.Task[None] | None":
        """What still has an answer to give."""
        return self._worker if self._job is not None else None

    def close(self) -> None:
        """End it, once what is written has gone."""
        self._transport.close()
