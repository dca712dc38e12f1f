"""Reads request bodies through aiohttp: decompressed, and bounded in size and time."""

import asyncio
import zlib
from collections.abc import Mapping
from http import HTTPStatus

import aiohttp
from aiohttp import web

from sidecar.http.decompression import Inflater
from sidecar.listener.refusals import Limits, Refusal, ended_early, no_room, too_large, too_slow
from sidecar.spans.decode import MalformedBody

_ENCODINGS = ("", "identity", "gzip", "deflate")


class BodyReader:
    """Reads bodies within `limits`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._budget, self._max_body, self._timeout_s = limits

    async def read(self, request: web.BaseRequest) -> bytes:
        """Return the decompressed body.

        Raises `Refusal`, or `MalformedBody` for a broken compressed stream.
        """
        encoding = _encoding(request.headers)
        length = request.content_length
        if length is not None and length > self._max_body:
            raise too_large(self._max_body)
        try:
            await send_continue(request)
            if request.content.is_eof():
                return await self._collect(request, encoding)
            async with asyncio.timeout(self._timeout_s):
                return await self._collect(request, encoding)
        except TimeoutError:
            raise too_slow(self._timeout_s) from None
        except (ConnectionError, aiohttp.ClientError):
            raise ended_early() from None

    async def _collect(self, request: web.BaseRequest, encoding: str) -> bytes:
        content = request.content
        inflate = Inflater(encoding) if encoding else None
        parts: list[bytes] = []
        size = 0
        try:
            while chunk := await content.readany():
                if inflate is not None:
                    max_bytes = min(self._max_body - size, self._budget.limit) + 1
                    chunk = inflate(chunk, max_bytes)
                size += len(chunk)
                self._budget.reading += len(chunk)
                if size > self._max_body:
                    raise too_large(self._max_body)
                if not self._budget.fits(0):
                    raise no_room()
                parts.append(chunk)
            if inflate is not None and not inflate.complete:
                raise zlib.error  # noqa: TRY301 (a truncated stream is a broken one)
        except zlib.error:
            raise MalformedBody(f"the body is not a complete {encoding} stream") from None
        finally:
            self._budget.reading -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def send_continue(request: web.BaseRequest) -> None:
    """Send 100 Continue to a client that expects it; aiohttp's low-level server does not."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _encoding(headers: Mapping[str, str]) -> str:
    """The content encoding, "" for identity."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        error = "Content-Encoding must be gzip, deflate or identity"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")
    return "" if encoding == "identity" else encoding
