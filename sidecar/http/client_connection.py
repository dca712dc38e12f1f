"""One client connection to an upstream: sends one request at a time and parses the response.

llhttp (httptools) does the parsing. The upstream is not trusted: whatever it sends, the request
ends with a `RawResponse` or `NoResponse`, and no exception reaches the event loop.
"""

import asyncio
from typing import TYPE_CHECKING, NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sidecar.http.failures import NoResponse

if TYPE_CHECKING:
    from sidecar.http.timeouts import Deadlines

# How much of an error response's body is kept; other bodies are discarded.
MAX_ERROR_BODY_BYTES = 4096
# A response echoes the batch (docs/upstreams.md S1.3). Above this, a new connection is cheaper.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
# Consecutive bytes outside a body: heads, informational responses, trailers.
MAX_HEAD_BYTES = 64 * 1024

_INFORMATIONAL = range(100, 200)
_MIN_ERROR_STATUS = 300
_ENDED = "connection ended"
_RETRY_HEADERS = {b"retry-after": "Retry-After", b"retry-after-ms": "retry-after-ms"}


class RawResponse(NamedTuple):
    """A response: `error_body` is the start of an error response's body, else empty.

    `retry_headers` holds `Retry-After` and `retry-after-ms`, if the response has them.
    """

    status: int
    error_body: bytes
    retry_headers: dict[str, str]


class ClientConnection(asyncio.Protocol):
    """Sends one request at a time. It is in `connections` while it is open."""

    def __init__(
        self, connections: "set[ClientConnection]", idle: "Deadlines[ClientConnection]"
    ) -> None:
        # Its user adds it to `idle`; a connection that is lost is in neither.
        self._connections, self._idle = connections, idle
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        # Leniency is safe for a client that forwards no part of the response.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._pending: asyncio.Future[RawResponse] | None = None
        self.response_bytes = 0  # received since the request was sent
        self._non_body_bytes = 0  # received since the last byte of a body
        self._whole = False  # the response has arrived
        # State of the message that is being parsed.
        self._status = 0  # until the head of the response, which may follow informational ones
        self._error_body = b""
        self._retry_headers: dict[str, str] = {}
        self._has_length = False
        self._keep_alive = False
        self.reusable = False

    def send(self, head: bytes, body: bytes) -> asyncio.Future[RawResponse]:
        """Send a request; the future gets its response or `NoResponse`, which this also raises."""
        self.reusable = self._whole = False
        self.response_bytes = self._non_body_bytes = self._status = 0
        transport = self._transport
        if transport is None or transport.is_closing():
            raise NoResponse(_ENDED)
        self._pending = asyncio.get_running_loop().create_future()
        transport.writelines((head, body))
        return self._pending

    def time_out(self) -> None:
        """Fail a pending request with `TimeoutError`."""
        self._fail(TimeoutError())

    def abort(self) -> None:
        """Close the connection without flushing; a pending request fails with `NoResponse`."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._pending is None:
            # Unsolicited bytes could be taken for the next request's response.
            self.abort()
            return
        self.response_bytes += len(data)
        self._non_body_bytes += len(data)
        malformed = False
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            malformed = True
        if self._whole:
            self._complete(reusable=self._keep_alive and not malformed)
        elif malformed or self._non_body_bytes > MAX_HEAD_BYTES:
            self._fail(NoResponse("not an HTTP response"))
            self.abort()
        elif self.response_bytes > MAX_RESPONSE_BYTES:
            self._complete(reusable=False)

    def eof_received(self) -> None:
        if self._pending is not None and self._status and not self._has_length:
            self._complete(reusable=False)
        # close() would first wait for unsent bytes to be written.
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        del self._parser  # breaks the reference cycle
        self._fail(NoResponse(_ENDED if exc is None else type(exc).__name__))
        self._connections.discard(self)
        self._idle.discard(self)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        if self._whole:
            # Bytes after the response belong to no request (RFC 9112, 6.3).
            raise HttpParserError("surplus bytes")
        self._error_body = b""
        self._retry_headers = {}
        self._has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length":
            self._has_length = True
        elif name == b"transfer-encoding":
            self._has_length = value.lower().endswith(b"chunked")
        elif name in _RETRY_HEADERS:
            self._retry_headers.setdefault(_RETRY_HEADERS[name], value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._non_body_bytes = 0
        if self._status >= _MIN_ERROR_STATUS and len(self._error_body) < MAX_ERROR_BODY_BYTES:
            self._error_body = (self._error_body + data)[:MAX_ERROR_BODY_BYTES]

    def on_message_complete(self) -> None:
        if self._status in _INFORMATIONAL:
            self._status = 0
        else:
            self._whole = True

    # The outcome of the request

    def _complete(self, *, reusable: bool) -> None:
        pending, self._pending = self._pending, None
        transport = self._transport
        # If the response came before the request was fully written, the rest is still buffered.
        self.reusable = reusable and transport is not None and not transport.get_write_buffer_size()
        if pending is not None and not pending.done():
            response = RawResponse(self._status, self._error_body, self._retry_headers)
            pending.set_result(response)

    def _fail(self, error: Exception) -> None:
        pending, self._pending = self._pending, None
        self.reusable = False
        if pending is not None and not pending.done():
            pending.set_exception(error)
