"""Writes the responses of one connection: in the order of their requests, at the client's pace."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import NamedTuple

from sidecar.http.messages import Answer, Fields, Receiver, Response, StreamedResponse, Truncated

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class Framing(NamedTuple):
    """How the response to a request has to be written."""

    head_only: bool = False
    http_1_0: bool = False
    close: bool = False  # after the response


# Of almost every response.
PLAIN = Framing()


@dataclass(slots=True)
class LastResponse:
    """The last whole response of a port and its bytes: most repeat it. `Date` makes it expire."""

    response: Response | None = None
    second: int = 0
    sent: bytes = b""


@dataclass(eq=False)
class ResponseWriter:
    """Writes to `transport`. `changed` is called when all pending responses have been written.

    `failed` is called with an exception that is a bug.
    """

    transport: asyncio.Transport
    last: LastResponse
    changed: Callable[[], None]
    failed: Callable[[BaseException], None]
    # Requests that wait for their responses, in order. A streamed response needs its receiver
    # until it has ended.
    pending: list[tuple[Receiver | None, Answer, Framing]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None  # runs while there are any
    writable: asyncio.Future[None] | None = None  # set while the client does not read

    def answer(self, stream: Receiver | None, answer: Answer, framing: Framing) -> None:
        """Write a response now, or when it is ready and its turn has come."""
        if type(answer) is Response and not self.pending and self.writable is None:
            last = self.last
            if answer is last.response and framing is PLAIN and last.second == int(time()):
                self.transport.write(last.sent)
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
            self.transport.abort()
        except Exception as bug:  # noqa: BLE001 (it ends the process, D13)
            self.failed(bug)
            self.transport.abort()
        self.pending.clear()
        self.task = None
        self.changed()

    def _write(self, response: Response, framing: Framing) -> None:
        if self.transport.is_closing():
            return
        status, body, content_type, headers = response
        second = int(time())
        sent = (
            f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\nDate: {_date(second)}\r\n{_rest(headers, framing)}"
        ).encode()
        if not framing.head_only:
            sent += body
        self.transport.write(sent)
        if framing is PLAIN:
            self.last.response, self.last.second, self.last.sent = response, second, sent

    async def _stream(self, response: StreamedResponse, framing: Framing) -> None:
        status, reason, headers, chunks = response
        bodiless = framing.head_only or status in _NO_BODY
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        chunked = not (bodiless or has_length or framing.http_1_0)
        if chunked:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
        head = f"HTTP/1.1 {status} {reason}\r\n{_rest(headers, framing)}"
        self.transport.write(head.encode("utf-8", "surrogateescape"))
        async for chunk in chunks:
            self.transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunked else chunk)
            if self.writable is not None:
                await self.writable
            if self.transport.is_closing():
                raise Truncated
        if chunked:
            self.transport.write(b"0\r\n\r\n")

    def resume(self) -> None:
        """The client reads again, or is gone."""
        if self.writable is not None:
            self.writable.set_result(None)
            self.writable = None


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _rest(headers: Fields, framing: Framing) -> str:
    """The rest of a head: `headers`, and `Connection` where it is not the default."""
    if framing.close or framing.http_1_0:
        headers = [*headers, ("Connection", "close" if framing.close else "keep-alive")]
    return "".join([f"{name}: {value}\r\n" for name, value in headers]) + "\r\n"
