"""HTTP in: the listener on loopback, contracts/ingest.md to the letter.

In: requests of agents in this pod. Out: spans handed to the intake, all of a request or none, and
an answer that says what was taken. Bodies are bounded in bytes, decompressed, and in time. It
serves programs, not web pages (design.md D21).
"""

import asyncio
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from ipaddress import ip_address
from time import perf_counter

import aiohttp
import msgspec
from aiohttp import web

from sidecar.budget import ByteBudget
from sidecar.credentials import Credentials
from sidecar.events import Decoded, MalformedBody, Rejection, decode
from sidecar.inflate import Inflater
from sidecar.intake import Intake, NeverFits, NoRoom
from sidecar.metrics import IntakeMetrics

RETRY_AFTER_S = "1"
# Longer than any body may take, and than aiohttp keeps a connection between two requests.
IDLE_S = 300.0
_NDJSON = {"application/json": False, "application/x-ndjson": True}
_ENCODINGS = ("", "identity", "gzip", "deflate")
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]@]+))(?::\d*)?")
_MOST_HOSTS = 256
# aiohttp logs what it could not parse, and that may be span content (design.md D19).
_quiet = logging.getLogger("sidecar.listener.http")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False
_ONE_TAKEN = b'{"accepted":1,"rejected":[]}'


class Refusal(Exception):
    """The request gets `status` and an error text, and nothing of it is taken."""

    def __init__(self, status: HTTPStatus, error: str, reason: str) -> None:
        super().__init__(error)
        self.status = status
        self.reason = reason


class Listener:
    """Handles requests on the agents' side. `stopping` makes it answer 503 to new events."""

    def __init__(
        self,
        intake: Intake,
        budget: ByteBudget,
        metrics: IntakeMetrics,
        credentials: Sequence[Credentials],
        *,
        max_body: int,
        body_timeout_s: float,
        hosts: Sequence[str],
    ) -> None:
        self._intake = intake
        self._budget = budget
        self._metrics = metrics
        self._credentials = credentials
        self._max_body = max_body
        self._body_timeout_s = body_timeout_s
        self._hosts = frozenset(host.lower() for host in hosts)
        self._known: dict[str, bool] = {}
        # Holds the exception of a bug in here: the app waits for it and ends the process (D13).
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self.stopping = False
        self.idle_s = IDLE_S
        self._server: web.Server | None = None
        # When the last request on each connection began, in loop time.
        self._begun: dict[web.RequestHandler, float] = {}

    def server(self) -> web.Server:
        """The protocol factory: no router, no middleware, bodies as they come."""
        self._server = web.Server(
            self.handle, access_log=None, auto_decompress=False, logger=_quiet
        )
        return self._server

    def sweep(self, now: float) -> None:
        """Close connections on which no request began for `idle_s`; called now and then.

        aiohttp does so only after a first request: half a header would stay for ever.
        """
        connections = self._server.connections if self._server is not None else []
        self._begun = {each: self._begun.get(each, now) for each in connections}
        for connection, begun in self._begun.items():
            if now - begun > self.idle_s:
                connection.force_close()

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one request."""
        started = perf_counter()
        self._begun[request.protocol] = self._loop.time()
        try:
            response = await self._route(request)
        except Refusal as refusal:
            self._metrics.rejected[refusal.reason] += 1
            response = _error(refusal)
        except Exception as bug:
            if not self.failed.done():
                self.failed.set_exception(bug)
            raise
        self._metrics.answered(response.status, perf_counter() - started)
        return response

    async def _route(self, request: web.BaseRequest) -> web.Response:
        self._refuse_pages(request.headers)
        path = request.path
        if path == "/v1/spans":
            if request.method != "POST":
                return _not_allowed("POST")
            return await self._spans(request)
        if path == "/readyz":
            if request.method not in {"GET", "HEAD"}:
                return _not_allowed("GET")
            if self.stopping:
                raise _stopping()
            return web.Response(text="ready\n")
        text = f"no such path; agents post to /v1/spans of this port, not {request.method} here"
        raise Refusal(HTTPStatus.NOT_FOUND, text, "unsupported")

    def _refuse_pages(self, headers: Mapping[str, str]) -> None:
        host = headers.get("Host")
        if "Origin" in headers or (host is not None and not self._knows(host)):
            error = "this port serves programs in the pod, not web pages"
            raise Refusal(HTTPStatus.FORBIDDEN, error, "unsupported")

    def _knows(self, host: str) -> bool:
        known = self._known.get(host)
        if known is None:
            known = self._is_ours(host)
            if len(self._known) < _MOST_HOSTS:
                self._known[host] = known
        return known

    def _is_ours(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().removesuffix(".")
        if name == "localhost" or name in self._hosts:
            return True
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return False

    async def _spans(self, request: web.BaseRequest) -> web.Response:
        headers = request.headers
        ndjson, encoding = _format(headers)
        if self.stopping:
            raise _stopping()
        try:
            body = await self._read(request, encoding)
            size = len(body)
            decoded = decode(body, self._loop.time(), ndjson=ndjson)
            del body
        except MalformedBody as error:
            decoded = Decoded([], [Rejection(0, None, str(error), "malformed")])
            size = 0
        for credentials in self._credentials:
            credentials.offer(headers)
        if decoded.spans:
            await self._take(decoded, size)
            await self._intake.give_way()
        return self._answer(decoded)

    async def _take(self, decoded: Decoded, size: int) -> None:
        if self.stopping:
            raise _stopping()
        try:
            await self._intake.take_durably(decoded.spans)
        except NeverFits:
            limit = self._budget.limit
            error = f"{size} bytes never fit: see queue.max_bytes ({limit}) and spool.max_bytes"
            raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error, "too_large") from None
        except NoRoom:
            raise _no_room() from None

    def _answer(self, decoded: Decoded) -> web.Response:
        if not decoded.rejected and decoded.spans:
            taken = len(decoded.spans)
            body = _ONE_TAKEN if taken == 1 else b'{"accepted":%d,"rejected":[]}' % taken
            return web.Response(
                status=HTTPStatus.ACCEPTED, body=body, content_type="application/json"
            )
        for rejection in decoded.rejected:
            self._metrics.rejected[rejection.reason] += 1
        rejected = [{"index": r.position, "id": r.id, "error": r.error} for r in decoded.rejected]
        return web.Response(
            status=HTTPStatus.ACCEPTED if decoded.spans else HTTPStatus.BAD_REQUEST,
            body=msgspec.json.encode({"accepted": len(decoded.spans), "rejected": rejected}),
            content_type="application/json",
        )

    async def _read(self, request: web.BaseRequest, encoding: str) -> bytes:
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = request.content_length
        if length is not None and length > self._max_body:
            raise self._too_large()
        if request.content.is_eof():
            return await self._collect(request, encoding)
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await self._collect(request, encoding)
        except TimeoutError:
            error = f"the body did not arrive within {self._body_timeout_s:g} s"
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, error, "malformed") from None
        except (ConnectionError, aiohttp.ClientError):
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body ended early", "malformed") from None

    async def _collect(self, request: web.BaseRequest, encoding: str) -> bytes:
        """The decompressed body; its bytes count against the budget while they arrive."""
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
                    raise _no_room()
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


def _format(headers: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the body is NDJSON, and how it is compressed ("" for not)."""
    content_type = headers.get("Content-Type", "")
    ndjson = _NDJSON.get(content_type)
    if ndjson is None:
        ndjson = _NDJSON.get(content_type.partition(";")[0].strip().lower())
    if ndjson is None:
        error = "Content-Type must be application/json or application/x-ndjson"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")
    encoding = headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        error = "Content-Encoding must be gzip, deflate or identity"
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, error, "unsupported")
    return ndjson, "" if encoding == "identity" else encoding


def _no_room() -> Refusal:
    error = "the queue is full (queue.max_bytes); nothing of this request was taken"
    return Refusal(HTTPStatus.TOO_MANY_REQUESTS, error, "no_room")


def _stopping() -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the sidecar is stopping", "stopping")


def _error(refusal: Refusal) -> web.Response:
    later = refusal.status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
    response = web.Response(
        status=refusal.status,
        body=msgspec.json.encode({"error": str(refusal)}),
        content_type="application/json",
        headers={"Retry-After": RETRY_AFTER_S} if later else None,
    )
    if refusal.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()
    return response


def _not_allowed(method: str) -> web.Response:
    return web.Response(
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        body=b'{"error":"use %b"}' % method.encode(),
        content_type="application/json",
        headers={"Allow": method},
    )
