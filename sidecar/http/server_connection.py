"""One connection of the HTTP server: reads requests and gives them to a service.

llhttp (httptools) does the parsing. Every state in which we wait for the client has a timeout and a
bound in bytes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from sidecar.http.heads import (
    MAX_HEAD_BYTES,
    PLAIN,
    BadRequest,
    Framing,
    read_head,
    repeated,
    without_offer,
)
from sidecar.http.messages import Headers, Receiver, Response, Service
from sidecar.http.response_writer import LastResponse, ResponseWriter
from sidecar.http.timeouts import Deadlines

HEAD_S = 10.0  # for a head, from its first byte or from the beginning of the connection
LINGER_S = 10.0  # for the client to close its side after the last response
MAX_PENDING = 64  # requests of one connection that wait for their responses
_EXPECTED = "100-continue"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(eq=False)
class ServerState:
    """What the connections of a port share; `HttpServer` describes the callbacks."""

    service: Service
    idle_s: float
    body_s: float
    has_place: Callable[[], bool]
    refused: Callable[[int, str], Response]
    failed: Callable[[BaseException], None]
    connections: "set[ServerConnection]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self.last = LastResponse()
        self.heads = Deadlines(HEAD_S, ServerConnection.late)
        self.bodies = Deadlines(self.body_s, ServerConnection.late)
        self.idle = Deadlines(self.idle_s, ServerConnection.abort)
        self.lingering = Deadlines(LINGER_S, ServerConnection.abort)


class ServerConnection(asyncio.Protocol):
    """One connection."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._transport: asyncio.Transport
        self.writer: ResponseWriter
        self._parser = HttpRequestParser(self)
        # The request that is arriving.
        self._target = b""
        self._headers: Headers = {}
        self._header_bytes = 0
        self._receiver: Receiver | None = None
        self._framing = PLAIN
        self._outside_body = 0  # bytes received since the last byte of a body or request
        self._ended = False  # no more requests are read
        self._held = False  # a receiver has paused reading
        self._reading = True
        self._timeout: Deadlines[ServerConnection] | None = None  # the one that is running

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        state = self._state
        self._transport = cast("asyncio.Transport", transport)
        self.writer = ResponseWriter(self._transport, state.last, self._settle, self._failed)
        if state.has_place():
            state.connections.add(self)
            self._wait_for(state.heads)
        else:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._state.connections.discard(self)
        self._wait_for(None)
        self._ended = True
        for receiver in (self._receiver, *(stream for stream, *_ in self.writer.pending)):
            if receiver is not None:
                receiver.lost(late=False)
        self._receiver = None
        self.writer.resume()
        # Break the reference cycles: a crowd's memory comes back at once.
        del self._parser
        if self.writer.task is None:
            del self.writer

    def eof_received(self) -> bool:
        writer = self.writer
        writer.half_closed = True
        if self._receiver is not None or (self._outside_body and not self._ended):
            self._give_up(BadRequest("the request ended early"))
        self._ended = True
        if any(stream is not None for stream, *_ in writer.pending):
            self.abort()
        elif not writer.pending:
            self.close()
        return True  # stay open for the pending responses

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._outside_body += len(data)
        while data:
            try:
                self._parser.feed_data(data)
            except HttpParserUpgrade as offer:
                # llhttp does not read on after an offer, so it gets the head again without it.
                data = self._begin_again() + data[offer.args[0] :]
                continue
            except HttpParserError as error:
                self._not_parsed(error)
            break
        if self._outside_body > MAX_HEAD_BYTES and not self._ended:
            self._give_up(_too_large())
        self._settle()

    def _begin_again(self) -> bytes:
        method, version = self._parser.get_method(), self._parser.get_http_version()
        head = without_offer(method, self._target, self._headers, version)
        self._parser = HttpRequestParser(self)
        self._forget_head()
        return head

    def _not_parsed(self, error: HttpParserError) -> None:
        cause = error.__context__  # if it was raised by a callback
        if isinstance(cause, BadRequest):
            self._give_up(cause)
        elif cause is not None:
            self._failed(cause)
        elif not self._ended:
            self._give_up(BadRequest("malformed request"))

    # Callbacks of the parser

    def on_url(self, url: bytes) -> None:
        self._target += url  # can arrive in pieces

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiver is None:  # otherwise it is a trailer
            self._header_bytes += len(name) + len(value) + len(b": \r\n")
            name = name.lower()
            first = self._headers.get(name)
            self._headers[name] = value if first is None else repeated(name, first, value)

    def on_headers_complete(self) -> None:
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        if self._header_bytes + len(self._target) > MAX_HEAD_BYTES:
            raise _too_large()
        if self._ended or (parser.should_upgrade() and method != b"CONNECT"):
            return
        request = read_head(method, self._target, self._headers, version)
        if len(self.writer.pending) >= MAX_PENDING:
            error = f"{MAX_PENDING} earlier requests wait for their responses"
            raise BadRequest(error, HTTPStatus.TOO_MANY_REQUESTS)
        self._target, self._headers, self._header_bytes = b"", {}, 0
        receiver = self._receiver = self._state.service(request, self)
        close = not parser.should_keep_alive()
        expects = b"expect" in request.headers and request.header(b"expect").lower() == _EXPECTED
        if expects and version != "1.0":
            if receiver.wants_body:
                self._transport.write(_CONTINUE)
            else:
                close = True  # the client may send the body or not: what follows is unknown
        if close or version == "1.0" or method == b"HEAD":
            self._framing = Framing(method == b"HEAD", version == "1.0", close)
        else:
            self._framing = PLAIN

    def on_body(self, chunk: bytes) -> None:
        self._outside_body = 0
        if self._receiver is not None:
            self._receiver.data(chunk)

    def on_message_complete(self) -> None:
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            self._outside_body = 0
            if self._timeout is self._state.bodies:
                self._wait_for(None)  # each body has its own time
            self._ended = self._framing.close
            stream = receiver if receiver.is_stream else None
            self.writer.answer(stream, receiver.end(), self._framing)

    # The end of a connection

    def late(self) -> None:
        """Respond to a request that did not arrive in time."""
        if self._outside_body or self._receiver is not None:
            error = f"the head did not arrive within {HEAD_S:g} s"
            self._give_up(BadRequest(error, HTTPStatus.REQUEST_TIMEOUT), late=True)
        else:
            self.abort()

    def _give_up(self, error: BadRequest, *, late: bool = False) -> None:
        """Respond to a request that will never be complete; nothing after it is read."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            response = receiver.lost(late=late)
            framing = self._framing._replace(close=True)
        else:
            response = self._state.refused(error.status, str(error))
            framing = Framing(close=True)
        self._ended = True
        self._forget_head()
        self.writer.answer(None, response, framing)
        self._settle()

    def _forget_head(self) -> None:
        self._target, self._headers, self._header_bytes = b"", {}, 0

    def _failed(self, bug: BaseException) -> None:
        self._state.failed(bug)
        self.abort()

    def abort(self) -> None:
        """Close the connection without flushing."""
        self._transport.abort()

    def close(self) -> None:
        """Close the connection after all written bytes are flushed."""
        self._transport.close()

    # Waiting for the client

    def pause_writing(self) -> None:
        self.writer.pause()
        self._settle()

    def resume_writing(self) -> None:
        self.writer.resume()
        self._settle()

    def pause_reading(self) -> None:
        """For a receiver that can't take more, until `resume_reading`."""
        self._held = True
        self._settle()

    def resume_reading(self) -> None:
        self._held = False
        self._settle()

    def _settle(self) -> None:
        """Start the timeout of what the client has to do next, and read only what can be taken."""
        if self._transport.is_closing():
            return
        writer, receiver, idle = self.writer, self._receiver, self._state.idle
        if not (self._outside_body or receiver or writer.pending or self._ended or writer.finished):
            waits_for: Deadlines[ServerConnection] | None = idle  # after almost every request
        else:
            waits_for = self._next_timeout()
        if waits_for is not self._timeout:
            self._wait_for(waits_for)
        elif waits_for is idle:
            idle.add(self)
        arriving = self._outside_body or receiver is not None or len(writer.pending) > 1
        paused = writer.writable or self._held or (writer.pending and arriving)
        reading = self._ended or not paused
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _next_timeout(self) -> "Deadlines[ServerConnection] | None":
        state, writer, receiver = self._state, self.writer, self._receiver
        if writer.writable is not None:
            return state.idle  # the client has to read
        if writer.pending:
            return None
        if self._ended or writer.finished:
            return state.lingering
        if receiver is not None:
            return state.idle if receiver.is_stream else state.bodies
        return state.heads if self._outside_body else state.idle

    def _wait_for(self, timeout: "Deadlines[ServerConnection] | None") -> None:
        if self._timeout is not None:
            self._timeout.discard(self)
        self._timeout = timeout
        if timeout is not None:
            timeout.add(self)


def _too_large() -> BadRequest:
    return BadRequest(f"the head is larger than {MAX_HEAD_BYTES} bytes")
