"""`POST /v1/flush` as HTTP (docs/api.md): its parameters, and its response."""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable
from http import HTTPStatus
from urllib.parse import parse_qsl

import msgspec

from sidecar.http.messages import Request, Response
from sidecar.listener.flush import Flush
from sidecar.listener.refusals import Refusal
from sidecar.listener.routes import JSON, refused

DEFAULT_WAIT_S, MAX_WAIT_S = 3.0, 30.0
_MAX_PARAMETERS = 8
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


class FlushRequest:
    """The receiver of one request (http/messages.py), whose body is ignored. Raises `Refusal`.

    A client that hangs up waits no longer. `outcomes` counts by `FLUSH_OUTCOMES`.
    """

    wants_body = False
    is_stream = True

    def __init__(self, flush: Flush, request: Request, outcomes: Counter[str]) -> None:
        self._flush = flush
        self._wait_s, self._until_disk = _parameters(request)
        self._outcomes = outcomes
        self._waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def data(self, chunk: bytes) -> None: ...

    async def _respond(self) -> Response:
        flush = self._flush
        if flush.waiting >= flush.max_waiters:
            self._outcomes["refused"] += 1
            error = f"{flush.waiting} requests wait for a flush already: try again later"
            return _refused(HTTPStatus.TOO_MANY_REQUESTS, error)
        left = await flush.wait(self._wait_s, until_disk=self._until_disk, waiter=self._waiter)
        self._outcomes["left" if left else "delivered"] += 1
        status = HTTPStatus.ACCEPTED if left else HTTPStatus.OK
        return Response(status, msgspec.json.encode({"left": left}), JSON)

    def end(self) -> Awaitable[Response]:
        return self._respond()

    def lost(self, *, late: bool) -> Response:
        if not self._waiter.done():
            self._waiter.set_result(False)
        status = HTTPStatus.REQUEST_TIMEOUT if late else HTTPStatus.BAD_REQUEST
        return _refused(status, "the request did not arrive whole")


def _refused(status: HTTPStatus, error: str) -> Response:
    return refused(Refusal(status, error, "not_ours"), "error")


def _parameters(request: Request) -> tuple[float, bool]:
    """`wait_s`, and whether being on disk is enough. Raises `Refusal`."""
    query = request.target.partition("?")[2]
    wait_s, until_disk = DEFAULT_WAIT_S, False
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError:
        raise _bad("it has too many parameters") from None
    if len(dict(fields)) < len(fields):
        raise _bad("a parameter is there twice")
    for name, value in fields:
        if name == "wait_s":
            wait_s = _seconds(value)
        elif name == "until":
            if value != "disk":
                raise _bad("until must be disk, or left out")
            until_disk = True
        else:
            raise _bad("the only parameters are wait_s and until")
    return wait_s, until_disk


def _seconds(text: str) -> float:
    if _NUMBER.fullmatch(text) and 0 <= (seconds := float(text)) <= MAX_WAIT_S:
        return seconds
    raise _bad(f"wait_s must be a number of seconds from 0 to {MAX_WAIT_S:g}")


def _bad(error: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, f"the query of the URL: {error}", "not_ours")
