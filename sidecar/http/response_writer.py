"""Writes the responses of one connection: in the order of their requests, at the client's pace."""

import asyncio
from collections.abc import Callable
from time import time

from sidecar.http.heads import PLAIN, Framing, streamed, whole
from sidecar.http.messages import Answer, Receiver, Response, StreamedResponse, Truncated


class LastResponse:
    """The last whole response of a port and its bytes: most repeat it. `Date` makes it expire."""

    __slots__ = ("response", "second", "sent")

    def __init__(self) -> None:
        self.response: Response | None = None
        self.second = 0
        self.sent = b""


class ResponseWriter:
    """Writes to `transport`. `changed` is called when `pending` or `writable` have changed.

    `failed` is called with an exception that is a bug.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        last: LastResponse,
        changed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._transport, self._last = transport, last
        self._changed, self._failed = changed, failed
        # Requests that wait for their responses, in order. A streamed response needs its receiver
        # until it has ended.
        self.pending: list[tuple[Receiver | None, Answer, Framing]] = []
        self.task: asyncio.Task[None] | None = None
        self.writable: asyncio.Future[None] | None = None  # set while the client does not read
        self.finished = False  # the last response is written
        self.half_closed = False  # the client has closed its side

    def answer(self, stream: Receiver | None, answer: Answer, framing: Framing) -> None:
        """Write a response now, or when it is ready and its turn has come."""
        if type(answer) is Response and not self.pending and self.writable is None:
            last = self._last
            if answer is last.response and framing is PLAIN and last.second == int(time()):
                self._transport.write(last.sent)
            else:
                self._write(answer, framing)
            return
        self.pending.append((stream, answer, framing))
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._answer_pending())

    async def _answer_pending(self) -> None:
        try:
            while self.pending:
                _, answer, framing = self.pending[0]
                response = answer if isinstance(answer, Response) else await answer
                if self.writable is not None:
                    await self.writable
                if isinstance(response, Response):
                    self._write(response, framing)
                else:
                    await self._stream(response, framing)
                del self.pending[0]
        except (asyncio.CancelledError, Truncated):
            self._transport.abort()
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self._failed(bug)
        self.pending.clear()
        self.task = None
        if self.half_closed:
            self._transport.close()
        self._changed()

    def _write(self, response: Response, framing: Framing) -> None:
        if self._transport.is_closing():
            return
        sent = whole(response, framing)
        self._transport.write(sent)
        if framing is PLAIN:
            self._last.response, self._last.second, self._last.sent = response, int(time()), sent
        elif framing.close:
            self._finish()

    async def _stream(self, response: StreamedResponse, framing: Framing) -> None:
        head, chunked, close = streamed(response, framing)
        self._transport.write(head)
        async for chunk in response.chunks:
            self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            if self.writable is not None:
                await self.writable
            if self._transport.is_closing():
                raise Truncated
        if chunked:
            self._transport.write(b"0\r\n\r\n")
        if close:
            self._finish()

    def _finish(self) -> None:
        """Close our side. Closing both would take the response from a client that still sends."""
        self.finished = True
        if self.half_closed:
            self._transport.close()
        else:
            self._transport.write_eof()

    def pause(self) -> None:
        """The client does not read."""
        self.writable = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """The client reads again, or is gone."""
        if self.writable is not None:
            self.writable.set_result(None)
            self.writable = None
