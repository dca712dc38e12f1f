"""One connection to an upstream: writes a request, reads its answer, never two at a time.

llhttp parses (httptools). What an upstream sends is never trusted: whatever it is, the request ends
with a `Reply` or with `NoResponse`, and nothing is raised into the event loop.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from sidecar.http.failures import NoResponse

# Of the body of an error; no other body is kept.
HEAD_BYTES = 4096
# An answer echoes the batch (docs/upstreams.md S1.3); more than this is not worth the connection.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
# In a row, of what is not body: the header, informational answers, trailers.
MAX_HEADER_BYTES = 64 * 1024

_INFORMATIONAL = range(100, 200)
_ERRORS = 300
_NOT_HTTP = "not an HTTP answer"
_ENDED = "connection ended"
_RETRY = {b"retry-after": "Retry-After", b"retry-after-ms": "retry-after-ms"}


class Reply(NamedTuple):
    """An answer: its status, the first bytes of an error, the headers about trying again."""

    status: int
    head: bytes
    retry: dict[str, str]


class Connection(asyncio.Protocol):
    """Asks one thing at a time. `lost` is called once, after it was connected and is no more."""

    def __init__(self, lost: Callable[["Connection"], None]) -> None:
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        # As lenient as a client can be that hands nothing on.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )
        self._asked: asyncio.Future[Reply] | None = None
        self._answered_before = False
        self._heard = False  # any byte since the request
        self._bytes = 0  # of this answer
        self._not_body = 0  # of these, since the last byte of its body
        self._surplus = False
        self._reply: Reply | None = None
        # Of the message that is being parsed.
        self._status = 0
        self._body = b""
        self._retry: dict[str, str] = {}
        self._has_length = False
        self._until_end = False
        self._keep_alive = False
        self.connected = False
        self.reusable = False

    # For the pool.

    def ask(self, header: bytes, body: bytes) -> asyncio.Future[Reply]:
        """Send a request; the future has its answer, or `NoResponse`."""
        asked: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.reusable = self._heard = self._surplus = False
        self._bytes = self._not_body = 0
        self._reply = None
        transport = self._transport
        if transport is None or transport.is_closing():
            asked.set_exception(NoResponse(_ENDED))
            return asked
        self._asked = asked
        transport.writelines((header, body))
        return asked

    @property
    def stale(self) -> bool:
        """Whether it ended unused since its last answer, as far as we can know.

        The upstream may have closed it before the request came. Or not: but every request may come
        twice (docs/upstreams.md A9, S3), and the drain would send it again, too.
        """
        return self._answered_before and not self._heard

    def drop(self) -> None:
        """End it now; what was asked is not answered any more."""
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self.connected = True

    def data_received(self, data: bytes) -> None:
        """Parse; what comes unasked ends the connection."""
        if self._asked is None:
            self.drop()
            return
        self._heard = True
        self._bytes += len(data)
        self._not_body += len(data)
        broken = False
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            broken = True
        if self._reply is not None:
            # What follows an answer is nobody's (RFC 9112, 6.3).
            self._answer(self._reply, reusable=self._keep_alive and not (broken or self._surplus))
        elif broken or self._not_body > MAX_HEADER_BYTES:
            self._fail(_NOT_HTTP)
        elif self._bytes > MAX_ANSWER_BYTES:
            self._answer(self._said(), reusable=False)

    def eof_received(self) -> None:
        """The end of the connection may be the end of the answer."""
        if self._asked is not None and self._until_end:
            self._answer(self._said(), reusable=False)
        # Closing alone would first wait until all is written.
        self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was asked is not answered any more."""
        self._transport = None
        del self._parser  # it holds us
        self._fail(_ENDED if exc is None else type(exc).__name__)
        if self.connected:
            self._lost(self)

    # For the parser.

    def on_message_begin(self) -> None:
        """A message begins: the answer, one that only informs, or one too many."""
        self._surplus = self._reply is not None
        self._status = 0
        self._body = b""
        self._retry = {}
        self._has_length = self._until_end = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note what the answer's length and the next try depend on."""
        name = name.lower()
        if name == b"content-length":
            self._has_length = True
        elif name == b"transfer-encoding":
            self._has_length = value.lower().endswith(b"chunked")
        elif name in _RETRY:
            self._retry.setdefault(_RETRY[name], value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        """Note the status, and how the answer will end."""
        self._status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()
        self._until_end = not self._has_length and self._status not in _INFORMATIONAL

    def on_body(self, data: bytes) -> None:
        """Throw the body away, but for the beginning of an error."""
        self._not_body = 0
        if self._status >= _ERRORS and len(self._body) < HEAD_BYTES:
            self._body = (self._body + data)[:HEAD_BYTES]

    def on_message_complete(self) -> None:
        """The answer is there, unless it only informs."""
        self._until_end = False
        if self._reply is None and self._status not in _INFORMATIONAL:
            self._reply = self._said()

    # What became of the request.

    def _said(self) -> Reply:
        return Reply(self._status, self._body, self._retry)

    def _answer(self, reply: Reply, *, reusable: bool) -> None:
        asked, self._asked = self._asked, None
        self._answered_before = True
        transport = self._transport
        # An answer to a request that is not all written leaves its rest on the wire.
        self.reusable = reusable and transport is not None and not transport.get_write_buffer_size()
        if asked is not None and not asked.done():
            asked.set_result(reply)

    def _fail(self, why: str) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_exception(NoResponse(why))
        self.drop()
