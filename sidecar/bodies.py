"""Reads the body of a request: bounded in bytes, decompressed, and in time.

Bytes count against the memory budget while they arrive, so that many slow requests can't take more
than `queue.max_bytes` either. What can't be taken is a `Refusal`; each route says it its own way.
"""

import asyncio
import zlib
from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

import aiohttp
from aiohttp import web

from sidecar.budget import ByteBudget
from sidecar.events import MalformedBody
from sidecar.inflate import Inflater

_ENCODINGS = ("", "identity", "gzip", "deflate")


class Refusal(Exception):
    """The request gets `status` and an error text, and nothing of it is taken."""

    def __init__(self, status: HTTPStatus, error: str, reason: str) -> None:
        super().__init__(error)
        self.status = status
        self.reason = reason


class Limits(NamedTuple):
    """What bodies may take: room in the budget, bytes each (decompressed), seconds to arrive."""

    budget: ByteBudget
    max_body: int
    timeout_s: float


class BodyReader:
    """Reads bodies within `limits`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._budget, self._max_body, self._timeout_s = limits

    async def read(self, request: web.BaseRequest) -> bytes:
        """The decompressed body; raises `Refusal`, or `MalformedBody` for a broken stream."""
        encoding = _encoding(request.headers)
        length = request.content_length
        if length is not None and length > self._max_body:
            raise self._too_large()
        try:
            await say_continue(request)
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
                    most = min(self._max_body - size, self._budget.limit) + 1
                    chunk = inflate(chunk, most)
                size += len(chunk)
                self._budget.reading += len(chunk)
                if size > self._max_body:
                    raise self._too_large()
                if not self._budget.fits(0):
                    raise no_room()
                parts.append(chunk)
            if inflate is not None and not inflate.complete:
                raise zlib.error  # noqa: TRY301 (the same answer as for a broken one)
        except zlib.error:
            raise MalformedBody(f"the body is not a whole {encoding} stream") from None
        finally:
            self._budget.reading -= size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self) -> Refusal:
        error = f"the body is larger than listener.max_body ({self._max_body})"
        return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error, "too_large")


async def say_continue(request: web.BaseRequest) -> None:
    """Let a client send its body that waits to be told; the low-level server does not."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _encoding(headers: Mapping[str, str]) -> str:
    """How the body is compressed, "" for not."""
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        error = "Content-Encoding must be gzip, deflate or identity"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")
    return "" if encoding == "identity" else encoding


def require_json(media_type_: str) -> None:
    """Refuse what does not say that it is JSON."""
    if media_type_ != "application/json":
        error = "Content-Type must be application/json"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")


def media_type(headers: Mapping[str, str]) -> str:
    """The content type without its parameters, in lower case."""
    content_type = headers.get("Content-Type", "")
    if content_type == "application/json":
        return content_type
    return content_type.partition(";")[0].strip().lower()


def too_slow(timeout_s: float) -> Refusal:
    """A body that did not come to its end in time."""
    error = f"the body did not arrive within {timeout_s:g} s"
    return Refusal(HTTPStatus.REQUEST_TIMEOUT, error, "malformed")


def ended_early() -> Refusal:
    """A body that never comes to its end."""
    return Refusal(HTTPStatus.BAD_REQUEST, "the body ended early", "malformed")


def no_room() -> Refusal:
    """The whole request is not taken: later."""
    error = "the queue is full (queue.max_bytes); nothing of this request was taken"
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, error, "no_room")


def stopping() -> Refusal:
    """The process ends; what comes now is not taken."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the sidecar is stopping", "stopping")
