"""An answer that goes out in one write, for the requests that come by the thousand.

aiohttp builds headers, a writer and two pieces for each response: a tenth of what a small request
costs here (sampled with perf and py-spy). The bytes are the same.
"""

from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

_HEADS = {
    status: f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    "Content-Type: application/json\r\n".encode()
    for status in HTTPStatus
}


class ReadyResponse(web.StreamResponse):
    """A JSON answer to a request that keeps its connection."""

    def __init__(self, status: HTTPStatus, body: bytes) -> None:
        super().__init__(status=status)
        self._ready = b"%bContent-Length: %d\r\nDate: %b\r\n\r\n%b" % (
            _HEADS[status],
            len(body),
            rfc822_formatted_time().encode(),
            body,
        )

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write all of it."""
        self._keep_alive = True
        if request.transport is not None:
            request.transport.write(self._ready)
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to write."""


def answer_to(request: web.BaseRequest, status: HTTPStatus, body: bytes) -> web.StreamResponse:
    """The quickest response that fits `request`."""
    if request.version == HttpVersion11 and request.keep_alive and request.method != "HEAD":
        return ReadyResponse(status, body)
    return web.Response(status=status, body=body, content_type="application/json")
