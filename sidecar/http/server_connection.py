"""One connection of the HTTP server: reads requests and gives them to a service.

llhttp (httptools) does the parsing. Every state in which we wait for the client has a timeout and a
bound in bytes.
"""

import asyncio
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from http import HTTPStatus
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from sidecar.http.heads import MAX_HEAD_BYTES, BadRequest, read_head, repeated, without_offer
from sidecar.http.messages import Headers, Receiver, Response, Service
from sidecar.http.response_writer import PLAIN, Framing, LastResponse, ResponseWriter
from sidecar.http.timeouts import Deadlines

HEAD_S = 10.0  # for a head, from its first byte or from the beginning of the connection
LINGER_S = 10.0  # for the client to close its side after the last response
MAX_PENDING = 64  # requests of one connection that wait for their responses
_TOO_LARGE = f"the head is larger than {MAX_HEAD_BYTES} bytes"
_EXPECTED = "100-continue"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(eq=False)
class ServerState:
    """What the connections of a port share; `HttpServer` describes the arguments."""

    service: Service
    _: KW_ONLY
    max_connections: int
    idle_s: float
    body_s: float
    refused: Callable[[int, str], Response]
    crowded: Callable[[], None]
    failed: Callable[[BaseException], None]

    def __post_init__(self) -> None:
        self.connections: set[ServerConnection] = set()
        self.last = LastResponse()
        self.heads = Deadlines(HEAD_S, ServerConnection.late)
        self.bodies = Deadlines(self.body_s, ServerConnection.late)
        self.idle = Deadlines(self.idle_s, ServerConnection.abort)
        self.lingering = Deadlines(LINGER_S, ServerConnection.abort)

    def make_room(self) -> bool:
        """Whether there is a place for a new connection: implemented by `HttpServer`."""
        raise NotImplementedError


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
        self._half_closed = False  # the client has closed its side
        self._held = False  # a receiver has paused reading
        self._reading = True
        self._timeout: Deadlines[ServerConnection] | None = None  # the one that is running

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        state = self._state
        self._transport = cast("asyncio.Transport", transport)
        self.writer = ResponseWriter(self._transport, state.last, self._settle, state.failed)
        if state.make_room():
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
        self._half_closed, writer = True, self.writer
        if self._receiver is not None or self._outside_body:
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
                method, version = self._parser.get_method(), self._parser.get_http_version()
                head = without_offer(method, self._target, self._headers, version)
                self._parser = HttpRequestParser(self)
                self._target, self._headers, self._header_bytes = b"", {}, 0
                data = head + data[offer.args[0] :]
                continue
            except HttpParserError as error:
                # What a callback raised is its context.
                cause = error.__context__ or BadRequest("malformed request")
                if isinstance(cause, BadRequest):
                    self._give_up(cause)
                else:
                    self._state.failed(cause)
                    self.abort()
            break
        if self._outside_body > MAX_HEAD_BYTES:
            self._give_up(BadRequest(_TOO_LARGE))
        self._settle()

    # Callbacks of the parser

    def on_url(self, url: bytes) -> None:
        self._target += url  # can arrive in pieces

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._receiver is None:  # otherwise it is a trailer
            self._header_bytes += len(name) + len(value) + 4  # ": " and CRLF
            name = name.lower()
            if name in self._headers:
                value = repeated(name, self._headers[name], value)
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        if self._header_bytes + len(self._target) > MAX_HEAD_BYTES:
            raise BadRequest(_TOO_LARGE)
        if self._ended or (parser.should_upgrade() and method != b"CONNECT"):
            return
        request = read_head(method, self._target, self._headers, version)
        if len(self.writer.pending) >= MAX_PENDING:
            error = f"{MAX_PENDING} earlier requests wait for their responses"
            raise BadRequest(error, HTTPStatus.TOO_MANY_REQUESTS)
        self._target, self._headers, self._header_bytes = b"", {}, 0
        receiver = self._receiver = self._state.service(request, self)
        old = version == "1.0"
        # In HTTP/1.0 only the end of the connection may tell where a streamed response ends.
        close = not parser.should_keep_alive() or (old and receiver.is_stream)
        expects = b"expect" in request.headers and request.header(b"expect").lower() == _EXPECTED
        if expects and not old:
            if receiver.wants_body:
                self._transport.write(_CONTINUE)
            else:
                close = True  # the client may send the body or not: what follows is unknown
        if close or old or method == b"HEAD":
            self._framing = Framing(method == b"HEAD", old, close)
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
            self._give_up(BadRequest(error, HTTPStatus.REQUEST_TIMEOUT))
        else:
            self.abort()

    def _give_up(self, error: BadRequest) -> None:
        """Respond to a request that will never be complete; nothing after it is read."""
        if self._ended:
            return
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            response = receiver.lost(late=error.status == HTTPStatus.REQUEST_TIMEOUT)
            framing = self._framing._replace(close=True)
        else:
            response = self._state.refused(error.status, str(error))
            framing = Framing(close=True)
        self._ended = True
        self._target, self._headers, self._header_bytes = b"", {}, 0
        self.writer.answer(None, response, framing)
        self._settle()

    def abort(self) -> None:
        """Close the connection without flushing."""
        self._transport.abort()

    def close(self) -> None:
        """Close the connection after all written bytes are flushed."""
        self._transport.close()

    # Waiting for the client

    def pause_writing(self) -> None:
        self.writer.writable = asyncio.get_running_loop().create_future()
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
        writer, idle = self.writer, self._state.idle
        if self._receiver or self._outside_body or writer.pending or writer.writable or self._ended:
            timeout, reading = self._expected()
        else:  # after almost every request
            timeout, reading = idle, not self._held
        if timeout is not self._timeout:
            self._wait_for(timeout)
            if timeout is self._state.lingering and self._half_closed:
                self.close()
            elif timeout is self._state.lingering:
                # Closing both sides would take the response from a client that still sends.
                self._transport.write_eof()
        elif timeout is idle:
            idle.add(self)
        if reading is not self._reading:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _expected(self) -> "tuple[Deadlines[ServerConnection] | None, bool]":
        """The timeout of what the client has to do next, and whether to read what it sends."""
        state, writer, receiver = self._state, self.writer, self._receiver
        if writer.writable is not None:
            return state.idle, self._ended  # it has to read
        if writer.pending:
            ahead = self._outside_body or receiver is not None or len(writer.pending) > 1
            return None, self._ended or not (ahead or self._held)
        if self._ended:
            return state.lingering, True
        if receiver is None:
            return state.heads, not self._held
        return state.idle if receiver.is_stream else state.bodies, not self._held

    def _wait_for(self, timeout: "Deadlines[ServerConnection] | None") -> None:
        if self._timeout is not None:
            self._timeout.discard(self)
        self._timeout = timeout
        if timeout is not None:
            timeout.add(self)
