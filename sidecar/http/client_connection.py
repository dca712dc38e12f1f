"""One client connection to an upstream: sends one request at a time and parses the response.

llhttp (httptools) does the parsing. The upstream is not trusted: whatever it sends, the request
ends with a `RawResponse` or `NoResponse`, and no exception reaches the event loop.

Once the head of a 2xx response has arrived, the response counts, however its body ends; so does a
401, 403 or 407, because who refuses a credential often ends the connection before it has read the
request. Other errors, and responses whose body the caller asked for, have to be complete.
"""

import asyncio
import ssl
from typing import TYPE_CHECKING, NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sidecar.http.failures import NoResponse
from sidecar.network.reasons import ended

if TYPE_CHECKING:
    from sidecar.http.timeouts import Deadlines

# How much of a body is kept, if it is not discarded.
MAX_KEPT_BODY_BYTES = 8192
# And of a body that was asked for.
MAX_ASKED_BODY_BYTES = 256 * 1024
# A response echoes the batch (docs/upstreams.md S1.3). Above this, a new connection is cheaper.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024
# Consecutive bytes outside a body: heads, informational responses, trailers.
MAX_HEAD_BYTES = 64 * 1024

_INFORMATIONAL = range(100, 200)
_SUCCESS = range(200, 300)
_MIN_ERROR_STATUS = 300
_REFUSALS = {401, 403, 407}
_ENDED = "connection ended"
_KEPT_HEADERS = ("retry-after", "retry-after-ms", "content-type", "content-encoding", "date")
_FRAMING_HEADERS = ("content-length", "transfer-encoding")
_READ_HEADERS = {name.encode(): name for name in _KEPT_HEADERS + _FRAMING_HEADERS}


class RawResponse(NamedTuple):
    """A response.

    `body` is its first `MAX_KEPT_BODY_BYTES` bytes, still encoded, if the response is an error or
    the caller asked for them; else it is empty. `headers` has, by lower-case name, the first value
    of `Retry-After`, `retry-after-ms`, `Content-Type`, `Content-Encoding` and `Date`, if present.
    """

    status: int
    body: bytes
    headers: dict[str, str]


class ClientConnection(asyncio.Protocol):
    """Sends one request at a time to `host`. It is in `connections` while it is open."""

    def __init__(
        self,
        connections: "set[ClientConnection]",
        idle: "Deadlines[ClientConnection]",
        host: str,
    ) -> None:
        self._host = host
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
        self._body = b""
        self._headers: dict[str, str] = {}
        self._has_length = False
        self._keep_alive = False
        self._keep_body = False
        self.reusable = False
        self.usable_until = 0.0  # loop time; kept by its user

    def send(self, head: bytes, body: bytes, *, keep_body: bool) -> asyncio.Future[RawResponse]:
        """Send a request; the future gets its response or `NoResponse`, which this also raises.

        `keep_body`: keep the beginning of the body whatever the status, and wait for its end.
        """
        self._keep_body = keep_body
        self.reusable = self._whole = False
        self.response_bytes = self._non_body_bytes = self._status = 0
        transport = self._transport
        if transport is None or transport.is_closing():
            raise NoResponse(_ENDED)
        self._pending = asyncio.get_running_loop().create_future()
        # Never an empty part: in Python 3.12, asyncio would try to send it for ever.
        transport.writelines((head, body) if body else (head,))
        return self._pending

    def time_out(self) -> None:
        """End a pending request: with `TimeoutError`, unless a response already counts."""
        self._fail(TimeoutError())

    def abort(self) -> None:
        """Close the connection without flushing, which ends a pending request."""
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
        if self._status and not self._has_length and self._ended_by_upstream():
            self._complete(reusable=False)
        # close() would first wait for unsent bytes to be written.
        self.abort()

    def _ended_by_upstream(self) -> bool:
        """Whether the stream really ends here: over TLS, that takes the upstream's close_notify."""
        tls: ssl.SSLObject | None = None
        if self._transport is not None:
            tls = self._transport.get_extra_info("ssl_object")
        try:
            # asyncio, unlike uvloop, also reports the end of the TCP connection below TLS.
            return tls is None or tls.read(1) == b""
        except ssl.SSLError:
            return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        del self._parser  # breaks the reference cycle
        self._fail(NoResponse(ended(self._host, exc)))
        self._connections.discard(self)
        self._idle.discard(self)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        if self._whole:
            # Bytes after the response belong to no request (RFC 9112, 6.3).
            raise HttpParserError("surplus bytes")
        self._body = b""
        self._headers = {}
        self._has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        read = _READ_HEADERS.get(name.lower())
        if read is None or self._status:  # after the head, it is a trailer
            return
        if read == "content-length":
            self._has_length = True
        elif read == "transfer-encoding":
            self._has_length = value.rstrip().lower().endswith(b"chunked")
        elif read not in self._headers:
            self._headers[read] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._non_body_bytes = 0
        kept = MAX_ASKED_BODY_BYTES if self._keep_body else MAX_KEPT_BODY_BYTES
        wanted = self._keep_body or self._status >= _MIN_ERROR_STATUS
        if wanted and len(self._body) < kept:
            self._body = (self._body + data)[:kept]

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
            pending.set_result(RawResponse(self._status, self._body, self._headers))

    def _fail(self, error: Exception) -> None:
        """End the request without a complete response: its head may count."""
        status = self._status
        if status in _REFUSALS or (status in _SUCCESS and not self._keep_body):
            self._complete(reusable=False)
            return
        pending, self._pending = self._pending, None
        self.reusable = False
        if pending is not None and not pending.done():
            pending.set_exception(error)
