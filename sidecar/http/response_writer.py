"""Writes the responses of one connection: in the order of their requests, at the client's pace."""

import asyncio
from collections.abc import Callable
from time import time

from sidecar.http.heads import PLAIN, Framing, streamed, whole
from sidecar.http.messages import Answer, Receiver, Response, StreamedResponse, Truncated


class Serializer:
    """Serializes whole responses. Most repeat the last one, which is kept for a second."""

    def __init__(self) -> None:
        self._last: tuple[Response | None, int] = (None, 0)
        self._bytes = b""

    def __call__(self, response: Response, framing: Framing) -> bytes:
        """The bytes of `response`."""
        if framing is not PLAIN:
            return whole(response, framing)
        last, second = self._last
        if last is not response or second != int(time()):
            self._last, self._bytes = (response, int(time())), whole(response, framing)
        return self._bytes


class ResponseWriter:
    """Writes to `transport`. `changed` is called when `pending` or `writable` have changed.

    `failed` is called with an exception that is a bug.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        serialize: Serializer,
        changed: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._transport, self._serialize = transport, serialize
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
            if framing is PLAIN and not self._transport.is_closing():
                self._transport.write(self._serialize(answer, framing))
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
        if not self._transport.is_closing():
            self._transport.write(self._serialize(response, framing))
            if framing.close:
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
