"""One client connection to an upstream: sends one request at a time and parses the response.

llhttp (httptools) does the parsing. The upstream is not trusted: whatever it sends, the request
ends with a `RawResponse` or `NoResponse`, and no exception reaches the event loop.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sidecar.http.failures import NoResponse

# How much of an error response's body is kept; other bodies are discarded.
MAX_ERROR_BODY_BYTES = 4096
# A response echoes the batch (docs/upstreams.md S1.3). Above this, a new connection is cheaper.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
# Consecutive bytes outside a body: heads, informational responses, trailers.
MAX_HEAD_BYTES = 64 * 1024

_INFORMATIONAL = range(100, 200)
_MIN_ERROR_STATUS = 300
_NOT_HTTP = "not an HTTP response"
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
    """Sends one request at a time. `on_lost` is called once, when an open connection has closed."""

    def __init__(self, on_lost: Callable[["ClientConnection"], None]) -> None:
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        # Leniency is safe for a client that forwards no part of the response.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._pending: asyncio.Future[RawResponse] | None = None
        self._responded_before = False
        self._received_any = False  # since the request was sent
        self._response_bytes = 0
        self._non_body_bytes = 0  # received since the last byte of a body
        self._surplus = False  # another message began after the response
        self._response: RawResponse | None = None
        # State of the message that is being parsed.
        self._status = 0
        self._error_body = b""
        self._retry_headers: dict[str, str] = {}
        self._has_length = False
        self._until_eof = False
        self._keep_alive = False
        self.connected = False
        self.reusable = False

    def send(self, head: bytes, body: bytes) -> asyncio.Future[RawResponse]:
        """Send a request; the future gets its response or `NoResponse`."""
        pending: asyncio.Future[RawResponse] = asyncio.get_running_loop().create_future()
        self.reusable = self._received_any = self._surplus = False
        self._response_bytes = self._non_body_bytes = 0
        self._response = None
        transport = self._transport
        if transport is None or transport.is_closing():
            pending.set_exception(NoResponse(_ENDED))
            return pending
        self._pending = pending
        transport.writelines((head, body))
        return pending

    @property
    def stale(self) -> bool:
        """Whether a reused connection ended before any byte of the last response arrived.

        The upstream most likely closed it before it saw the request. If it did see the request,
        sending again is still safe: any request may arrive twice (docs/upstreams.md A9, S3), and
        the drain would retry it as well.
        """
        return self._responded_before and not self._received_any

    def time_out(self) -> None:
        """Fail a pending request with `TimeoutError`."""
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(TimeoutError())

    def abort(self) -> None:
        """Close the connection without flushing; a pending request fails with `NoResponse`."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.connected = True

    def data_received(self, data: bytes) -> None:
        if self._pending is None:
            # Unsolicited bytes could be taken for the next request's response.
            self.abort()
            return
        self._received_any = True
        self._response_bytes += len(data)
        self._non_body_bytes += len(data)
        malformed = False
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            malformed = True
        if self._response is not None:
            # Bytes after the response belong to no request (RFC 9112, 6.3).
            keep = self._keep_alive and not (malformed or self._surplus)
            self._complete(self._response, reusable=keep)
        elif malformed or self._non_body_bytes > MAX_HEAD_BYTES:
            self._fail(_NOT_HTTP)
        elif self._response_bytes > MAX_RESPONSE_BYTES:
            self._complete(self._parsed(), reusable=False)

    def eof_received(self) -> None:
        if self._pending is not None and self._until_eof:
            self._complete(self._parsed(), reusable=False)
        # close() would first wait for unsent bytes to be written.
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        del self._parser  # breaks the reference cycle
        self._fail(_ENDED if exc is None else type(exc).__name__)
        if self.connected:
            self._on_lost(self)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        self._surplus = self._response is not None
        self._status = 0
        self._error_body = b""
        self._retry_headers = {}
        self._has_length = self._until_eof = False

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
        self._until_eof = not self._has_length and self._status not in _INFORMATIONAL

    def on_body(self, data: bytes) -> None:
        self._non_body_bytes = 0
        if self._status >= _MIN_ERROR_STATUS and len(self._error_body) < MAX_ERROR_BODY_BYTES:
            self._error_body = (self._error_body + data)[:MAX_ERROR_BODY_BYTES]

    def on_message_complete(self) -> None:
        self._until_eof = False
        if self._response is None and self._status not in _INFORMATIONAL:
            self._response = self._parsed()

    # The outcome of the request

    def _parsed(self) -> RawResponse:
        return RawResponse(self._status, self._error_body, self._retry_headers)

    def _complete(self, response: RawResponse, *, reusable: bool) -> None:
        pending, self._pending = self._pending, None
        self._responded_before = True
        transport = self._transport
        # If the response came before the request was fully written, the rest is still buffered.
        self.reusable = reusable and transport is not None and not transport.get_write_buffer_size()
        if pending is not None and not pending.done():
            pending.set_result(response)

    def _fail(self, reason: str) -> None:
        pending, self._pending = self._pending, None
        if pending is not None and not pending.done():
            pending.set_exception(NoResponse(reason))
        self.abort()
